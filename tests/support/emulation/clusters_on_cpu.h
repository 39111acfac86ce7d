// Clusters of blocks for cuda_on_cpu.h, which includes this: barriers of a cluster, and stores to the
// shared memory of another of its blocks.
//
// Blocks drift apart as far as the cluster's barrier allows: one runs until it waits there before the
// next one starts; in two of the three orders it stays behind once it has arrived, until all others
// have gone on as far as they can. A store to another block arrives at once or, in these two orders,
// when the thread that stores next arrives at the barrier, which is when others may count on it. A block
// that has not started, or has finished, has no shared memory.
#pragma once

namespace cuda_on_cpu {

// Ends the launch: the thread that runs does not go on.
[[noreturn]] inline void give_up(const std::string& why) {
    block().error = why;
    for (;;) suspend(State::at_barrier);
}

inline int cluster_rank() { return block().fibers[block().running].block; }

// Whether every thread of the cluster has arrived as often as this one.
inline bool cluster_complete(const Fiber& fiber) {
    const Block& b = block();
    return b.arrivals >= static_cast<long long>(b.fibers.size()) * fiber.arrivals;
}

inline void arrive_store(const RemoteStore& store) {
    const Member& target = block().members[store.block];
    if (!target.started || target.finished)
        give_up("block " + std::to_string(store.block) + " is stored to " +
                (target.finished ? "after its end" : "before it has started"));
    std::memcpy(store.to, store.words, sizeof store.words);
}

inline void arrive_stores() {
    Fiber& self = block().fibers[block().running];
    for (const RemoteStore& store : self.stores) arrive_store(store);
    self.stores.clear();
}

inline void cluster_arrive() {
    Block& b = block();
    Fiber& self = b.fibers[b.running];
    if (self.waits != self.arrivals) give_up("a cluster barrier is arrived at twice");
    arrive_stores();
    ++self.arrivals;
    ++b.arrivals;
    if (b.late) suspend(State::lagging);
}

inline void cluster_wait() {
    Block& b = block();
    Fiber& self = b.fibers[b.running];
    if (++self.waits != self.arrivals) give_up("a cluster barrier is waited at by who has not arrived");
    if (!cluster_complete(self)) suspend(State::at_cluster_barrier);
}

// To where `own`, an address in the shared memory of the thread's block, is in that of block `rank`.
inline void store_remote(const void* own, int rank, const std::uint32_t (&words)[4]) {
    Block& b = block();
    if (rank < 0 || rank >= static_cast<int>(b.members.size()))
        give_up("the cluster has no block " + std::to_string(rank));
    const auto offset = static_cast<const char*>(own) - b.shared;
    RemoteStore store{rank, b.members[rank].shared + offset, {}};
    std::memcpy(store.words, words, sizeof words);
    if (!b.members[rank].started || !b.late) {
        arrive_store(store);
    } else {
        b.fibers[b.running].stores.push_back(store);
    }
}

// The first block, in the order of this round, that stays behind goes on; whether there is one.
inline bool go_on(const std::vector<int>& order) {
    Block& b = block();
    for (const int number : order) {
        bool found = false;
        for (int i = number * b.threads; i < (number + 1) * b.threads; ++i) {
            if (b.fibers[i].state != State::lagging) continue;
            b.fibers[i].state = State::runnable;
            found = true;
        }
        if (found) return true;
    }
    return false;
}

inline void name_missing_thread() {
    Block& b = block();
    std::size_t latest = 0;
    for (std::size_t i = 0; i < b.fibers.size(); ++i)
        if (b.fibers[i].arrivals < b.fibers[latest].arrivals) latest = i;
    b.error = "a cluster barrier is not reached by thread " + std::to_string(latest % b.threads) +
              " of block " + std::to_string(latest / b.threads);
}

inline void run_cluster(Schedule& schedule) {
    Block& b = block();
    for (;;) {
        bool moved = false, all_finished = true;
        const std::vector<int> order = schedule.next_blocks();
        for (const int number : order) {
            if (!b.members[number].finished && run_block(schedule, number)) moved = true;
            if (!b.error.empty()) return;
        }
        for (const Member& member : b.members) all_finished = all_finished && member.finished;
        if (all_finished) return;
        if (!moved && !go_on(order)) {
            name_missing_thread();
            return;
        }
    }
}

}  // namespace cuda_on_cpu
