// The threads of a block, or of the blocks of a cluster, as fibers for cuda_on_cpu.h, which includes
// this: how they wait, and in what order they run.
#pragma once

namespace cuda_on_cpu {

constexpr int warp_size = 32;
constexpr int most_threads = 1024;  // of a block
constexpr int most_blocks = 8;      // of a cluster, on every GPU that has them
constexpr std::size_t stack_bytes = 128 * 1024;

enum class Order : int { forward, reverse, shuffled };
enum class State {
    runnable,
    at_barrier,
    at_shuffle,
    at_cluster_barrier,
    lagging,  // has arrived at the cluster's barrier, and goes on when nothing else can
    finished
};

// Copies that a thread has issued, group by group; the last group is open.
struct Copies {
    struct Copy {
        float* to;
        const float* from;  // null: zero

        void arrive() const { *to = from == nullptr ? 0.0f : *from; }
    };
    std::vector<std::vector<Copy>> groups{1};
};

// A store to the shared memory of another block that is under way.
struct RemoteStore {
    int block;
    char* to;
    std::uint32_t words[4];
};

struct Fiber {
    ucontext_t context;
    jmp_buf place;         // where it waits
    bool started = false;  // it waits there; one that has finished begins anew in the next block
    std::unique_ptr<char[]> stack{new char[stack_bytes]};
    dim3 index;
    int block = 0;  // of its cluster
    State state = State::runnable;
    unsigned shuffles = 0;             // shuffles reached so far
    std::uint32_t slot[2] = {0, 0};    // value given to this and to the previous shuffle
    std::uint32_t fragments[2][6];     // A and B of this and of the previous product, likewise
    void* fake_stack = nullptr;
    Copies copies;
    long long arrivals = 0, waits = 0;  // at the cluster's barrier
    std::vector<RemoteStore> stores;
};

// One block of those that run together.
struct Member {
    dim3 index;
    char* shared = nullptr;
    bool started = false, finished = false;
};

// The block that runs, or the blocks of a cluster: their threads one block after the other.
struct Block {
    ucontext_t scheduler;
    jmp_buf scheduler_place;
    std::vector<Fiber> fibers;  // one a thread, kept from one launch to the next
    std::vector<Member> members{1};
    int threads = 0;         // of each member
    long long arrivals = 0;  // of all threads at the cluster's barrier
    int running = -1;
    char* shared = nullptr;  // of the member whose thread runs
    void (*body)(void*) = nullptr;
    void* closure = nullptr;
    long long barriers = 0;
    bool late = false;  // copies and stores to other blocks arrive as late as they may
    std::string error;
    const void* scheduler_stack = nullptr;
    std::size_t scheduler_stack_bytes = 0;
};

inline Block& block() {
    static Block only;
    return only;
}

// Back to the scheduler until it finds this thread runnable again. swapcontext asks the kernel for
// the signal mask at every switch, so it is left to the sanitizers, which have to be told of stacks.
inline void suspend(State state) {
    Block& b = block();
    Fiber& self = b.fibers[b.running];
    self.state = state;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(state == State::finished ? nullptr : &self.fake_stack,
                                   b.scheduler_stack, b.scheduler_stack_bytes);
    swapcontext(&self.context, &b.scheduler);
    __sanitizer_finish_switch_fiber(self.fake_stack, nullptr, nullptr);
#else
    if (_setjmp(self.place) == 0) _longjmp(b.scheduler_place, 1);
#endif
}

inline void arrive_stores();  // clusters_on_cpu.h

inline void run_thread() {
    Block& b = block();
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &b.scheduler_stack, &b.scheduler_stack_bytes);
#endif
    for (;;) {
        b.body(b.closure);
        arrive_stores();
        suspend(State::finished);
    }
}

inline void resume(int thread) {
    Block& b = block();
    Fiber& next = b.fibers[thread];
    Member& member = b.members[next.block];
    b.running = thread;
    b.shared = member.shared;
    member.started = true;
    threadIdx = next.index;
    blockIdx = member.index;
#if defined(__SANITIZE_ADDRESS__)
    void* fake_stack = nullptr;
    __sanitizer_start_switch_fiber(&fake_stack, next.stack.get(), stack_bytes);
    swapcontext(&b.scheduler, &next.context);
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#else
    if (_setjmp(b.scheduler_place) != 0) return;
    if (next.started) _longjmp(next.place, 1);
    next.started = true;
    setcontext(&next.context);
#endif
}

// The order in which threads are tried; a thread runs on until it has to wait for another.
class Schedule {
public:
    Schedule(Order order, int threads, int blocks)
        : order_(order),
          ids_(threads),
          blocks_(blocks),
          warps_((threads + warp_size - 1) / warp_size) {}

    // The blocks of a cluster.
    const std::vector<int>& next_blocks() {
        permute(blocks_);
        return blocks_;
    }

    // The threads of every warp in their order, and the warps in that of their first threads.
    const std::vector<std::vector<int>>& next() {
        permute(ids_);
        std::vector<int> place(warps_.size(), -1);
        int found = 0;
        for (const int id : ids_) {
            int& at = place[id / warp_size];
            if (at < 0) {
                at = found++;
                warps_[at].clear();
            }
            warps_[at].push_back(id);
        }
        return warps_;
    }

private:
    void permute(std::vector<int>& ids) {
        const int count = static_cast<int>(ids.size());
        for (int i = 0; i < count; ++i) ids[i] = order_ == Order::reverse ? count - 1 - i : i;
        for (int i = count - 1; i > 0 && order_ == Order::shuffled; --i) {
            random_ = random_ * 6364136223846793005ull + 1442695040888963407ull;
            std::swap(ids[i], ids[(random_ >> 33) % static_cast<unsigned>(i + 1)]);
        }
    }

    Order order_;
    std::vector<int> ids_, blocks_;
    std::vector<std::vector<int>> warps_;
    std::uint64_t random_ = 1;
};

// Whether every thread of this one's warp has come to the shuffle it waits at; names a missing one.
inline bool warp_complete(int thread) {
    Block& b = block();
    const int threads = static_cast<int>(b.fibers.size());
    const int first = thread / warp_size * warp_size;
    for (int i = first; i < first + warp_size; ++i) {
        if (i < threads && b.fibers[i].shuffles >= b.fibers[thread].shuffles) continue;
        if (i >= threads || b.fibers[i].state == State::finished ||
            b.fibers[i].state == State::at_barrier)
            b.error = "a shuffle is not reached by thread " + std::to_string(i);
        return false;
    }
    return true;
}

// Lets all threads at the barrier of a block go on; every thread of the block must be there.
inline bool release_barrier(int first) {
    Block& b = block();
    for (int i = first; i < first + b.threads; ++i) {
        if (b.fibers[i].state == State::at_barrier) continue;
        b.error = "a barrier is not reached by thread " + std::to_string(i - first);
        return false;
    }
    for (int i = first; i < first + b.threads; ++i) b.fibers[i].state = State::runnable;
    ++b.barriers;
    return true;
}

inline bool cluster_complete(const Fiber& fiber);  // clusters_on_cpu.h

// Runs every thread of a warp that can run, of the block whose threads begin at `first`; whether
// there was one.
inline bool run_warp(const std::vector<int>& lanes, int first) {
    Block& b = block();
    bool moved = false;
    for (const int lane : lanes) {
        Fiber& fiber = b.fibers[first + lane];
        if ((fiber.state == State::at_shuffle && warp_complete(first + lane)) ||
            (fiber.state == State::at_cluster_barrier && cluster_complete(fiber)))
            fiber.state = State::runnable;
        if (!b.error.empty()) return false;
        if (fiber.state != State::runnable) continue;
        resume(first + lane);
        moved = true;
    }
    return moved;
}

// Runs a block until its threads have finished, or wait for other blocks; false where an error or
// nothing came of it. A warp runs as far as it can before the next, so that warps drift apart as far
// as barriers allow.
inline bool run_block(Schedule& schedule, int number) {
    Block& b = block();
    const int first = number * b.threads;
    for (bool moved_once = false;;) {
        bool moved = false;
        for (const std::vector<int>& lanes : schedule.next())
            while (run_warp(lanes, first)) moved = true;
        if (!b.error.empty()) return false;
        moved_once = moved_once || moved;
        bool all_finished = true, all_elsewhere = true;  // for others, or at the end
        for (int i = first; i < first + b.threads; ++i) {
            const State state = b.fibers[i].state;
            const bool finished = state == State::finished;
            all_finished = all_finished && finished;
            all_elsewhere = all_elsewhere && (finished || state == State::at_cluster_barrier ||
                                              state == State::lagging);
        }
        b.members[number].finished = all_finished;
        if (all_elsewhere) return moved_once;
        if (!moved && !release_barrier(first)) return false;
    }
}

inline void prepare_fibers() {
    Block& b = block();
    b.arrivals = 0;
    for (std::size_t i = 0; i < b.fibers.size(); ++i) {
        Fiber& fiber = b.fibers[i];
        const unsigned flat = static_cast<unsigned>(i) % static_cast<unsigned>(b.threads);
        fiber.block = static_cast<int>(i) / b.threads;
        fiber.arrivals = fiber.waits = 0;
        fiber.stores.clear();
        fiber.index = {flat % blockDim.x, flat / blockDim.x % blockDim.y,
                       flat / blockDim.x / blockDim.y};
#if defined(__SANITIZE_ADDRESS__)
        __asan_unpoison_memory_region(fiber.stack.get(), stack_bytes);
        fiber.started = false;
#endif
        // One that an error left in the middle is given up.
        fiber.started = fiber.started && fiber.state == State::finished;
        fiber.state = State::runnable;
        fiber.shuffles = 0;
        fiber.copies.groups.assign(1, {});
        if (fiber.started) continue;
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = stack_bytes;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, run_thread, 0);
    }
}

}  // namespace cuda_on_cpu
