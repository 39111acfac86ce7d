// CUDA C++ kernels as C++ on the CPU: every thread of a block is a fiber (ucontext).
//
// Include it before a .cu file, then start kernels through cuda_on_cpu::launch. What it has: one- to
// three-dimensional grids and blocks, dynamic shared memory, __syncthreads, __shfl_*_sync, products on
// tensor cores (tensor_cores_on_cpu.h), copies that arrive later. Blocks run one after the other. What it shows: a barrier that is missing (three orders of the threads), a
// barrier or shuffle that not all threads reach, reads of shared memory that nobody wrote (it starts
// as NaN), and, under -fsanitize=address, any access outside of shared memory, whose size is exact.
// It shows nothing of the memory model, and no speed.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define HFCORE_DYNAMIC_SHARED(type, name) \
    type* const name = reinterpret_cast<type*>(cuda_on_cpu::block().shared)

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

struct alignas(16) float4 {
    float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
struct alignas(8) float2 {
    float x, y;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

inline dim3 gridDim, blockDim, blockIdx, threadIdx;

namespace cuda_on_cpu {

constexpr int warp_size = 32;
constexpr std::size_t stack_bytes = 128 * 1024;

enum class Order : int { forward, reverse, shuffled };
enum class State { runnable, at_barrier, at_shuffle, finished };

// Copies that a thread has issued, group by group; the last group is open.
struct Copies {
    struct Copy {
        float* to;
        const float* from;  // null: zero

        void arrive() const { *to = from == nullptr ? 0.0f : *from; }
    };
    std::vector<std::vector<Copy>> groups{1};
};

struct Fiber {
    ucontext_t context;
    char* stack = nullptr;
    dim3 index;
    State state = State::runnable;
    unsigned shuffles = 0;             // shuffles reached so far
    std::uint32_t slot[2] = {0, 0};    // value given to this and to the previous shuffle
    std::uint32_t fragments[2][6];     // A and B of this and of the previous product, likewise
    void* fake_stack = nullptr;
    Copies copies;
};

struct Block {
    ucontext_t scheduler;
    std::vector<Fiber> fibers;
    int running = -1;
    char* shared = nullptr;
    void (*body)(void*) = nullptr;
    void* closure = nullptr;
    long long barriers = 0;
    bool copies_arrive_late = false;
    std::string error;
    const void* scheduler_stack = nullptr;
    std::size_t scheduler_stack_bytes = 0;
};

inline Block& block() {
    static Block only;
    return only;
}

// Back to the scheduler until it finds this thread runnable again.
inline void suspend(State state) {
    Block& b = block();
    Fiber& self = b.fibers[b.running];
    self.state = state;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(state == State::finished ? nullptr : &self.fake_stack,
                                   b.scheduler_stack, b.scheduler_stack_bytes);
#endif
    swapcontext(&self.context, &b.scheduler);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(self.fake_stack, nullptr, nullptr);
#endif
}

inline void run_thread() {
    Block& b = block();
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &b.scheduler_stack, &b.scheduler_stack_bytes);
#endif
    b.body(b.closure);
    suspend(State::finished);
}

inline void resume(int thread) {
    Block& b = block();
    Fiber& next = b.fibers[thread];
    b.running = thread;
    threadIdx = next.index;
#if defined(__SANITIZE_ADDRESS__)
    void* fake_stack = nullptr;
    __sanitizer_start_switch_fiber(&fake_stack, next.stack, stack_bytes);
#endif
    swapcontext(&b.scheduler, &next.context);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

// The order in which threads are tried; a thread runs on until it has to wait for another.
class Schedule {
public:
    Schedule(Order order, int threads) : order_(order), threads_(threads) {}

    void shuffle(std::vector<int>& ids) {
        ids.resize(threads_);
        for (int i = 0; i < threads_; ++i) ids[i] = order_ == Order::reverse ? threads_ - 1 - i : i;
        if (order_ != Order::shuffled) return;
        for (int i = threads_ - 1; i > 0; --i) {
            random_ = random_ * 6364136223846793005ull + 1442695040888963407ull;
            std::swap(ids[i], ids[(random_ >> 33) % static_cast<unsigned>(i + 1)]);
        }
    }

private:
    Order order_;
    int threads_;
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

// Lets all threads at the barrier go on; every thread of the block must be there.
inline bool release_barrier() {
    Block& b = block();
    for (std::size_t i = 0; i < b.fibers.size(); ++i) {
        if (b.fibers[i].state == State::at_barrier) continue;
        b.error = "a barrier is not reached by thread " + std::to_string(i);
        return false;
    }
    for (Fiber& fiber : b.fibers) fiber.state = State::runnable;
    ++b.barriers;
    return true;
}

// Runs a warp as far as it can before the next, so that warps drift apart as far as barriers allow.
inline bool run_block(Schedule& schedule) {
    Block& b = block();
    std::vector<int> ids;
    for (;;) {
        schedule.shuffle(ids);
        bool moved = false;
        bool all_finished = true;
        for (const int id : ids) {
            const int first = id / warp_size * warp_size;
            for (bool again = true; again;) {
                again = false;
                for (const int lane : ids) {
                    if (lane / warp_size * warp_size != first) continue;
                    Fiber& fiber = b.fibers[lane];
                    if (fiber.state == State::at_shuffle && warp_complete(lane))
                        fiber.state = State::runnable;
                    if (!b.error.empty()) return false;
                    if (fiber.state != State::runnable) continue;
                    resume(lane);
                    moved = again = true;
                }
            }
            all_finished = all_finished && b.fibers[id].state == State::finished;
        }
        if (all_finished) return true;
        if (!moved && !release_barrier()) return false;
    }
}

inline void prepare_fibers(int threads) {
    Block& b = block();
    for (int i = 0; i < threads; ++i) {
        Fiber& fiber = b.fibers[i];
        const unsigned flat = static_cast<unsigned>(i);
        fiber.index = {flat % blockDim.x, flat / blockDim.x % blockDim.y,
                       flat / blockDim.x / blockDim.y};
        fiber.state = State::runnable;
        fiber.shuffles = 0;
        fiber.copies = {};
#if defined(__SANITIZE_ADDRESS__)
        __asan_unpoison_memory_region(fiber.stack, stack_bytes);
#endif
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack;
        fiber.context.uc_stack.ss_size = stack_bytes;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, run_thread, 0);
    }
}

struct Launch {
    dim3 grid, block;
    std::size_t shared_bytes;
    Order order;
};

inline bool run_grid(const Launch& how, void (*body)(void*), void* closure) {
    Block& b = block();
    gridDim = how.grid;
    blockDim = how.block;
    const int threads = static_cast<int>(how.block.x * how.block.y * how.block.z);
    const std::unique_ptr<char[]> stacks(new char[threads * stack_bytes]);
    b.fibers = std::vector<Fiber>(threads);
    for (int i = 0; i < threads; ++i) b.fibers[i].stack = stacks.get() + i * stack_bytes;
    b.body = body;
    b.closure = closure;
    b.barriers = 0;
    b.copies_arrive_late = how.order != Order::forward;
    b.error.clear();
    Schedule schedule(how.order, threads);
    const unsigned blocks = how.grid.x * how.grid.y * how.grid.z;
    for (unsigned i = 0; i < blocks && b.error.empty(); ++i) {
        const unsigned flat = how.order == Order::reverse ? blocks - 1 - i : i;
        blockIdx = {flat % how.grid.x, flat / how.grid.x % how.grid.y,
                    flat / how.grid.x / how.grid.y};
        // Allocated at its exact size and filled with NaN: both are there to be caught.
        b.shared = static_cast<char*>(std::malloc(how.shared_bytes));
        std::memset(b.shared, 0xff, how.shared_bytes);
        prepare_fibers(threads);
        run_block(schedule);
        std::free(b.shared);
    }
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(stacks.get(), threads * stack_bytes);
#endif
    return b.error.empty();
}

template <class T>
constexpr char code() {
    if constexpr (std::is_pointer_v<T>) return 'p';
    if constexpr (std::is_same_v<T, long long>) return 'i';
    if constexpr (std::is_same_v<T, float>) return 'f';
    return '?';
}

template <class T>
T argument(const void* slot) {
    static_assert(code<T>() != '?', "kernels take pointers, long long and float only");
    T value;
    std::memcpy(&value, slot, sizeof value);
    return value;
}

template <class... A, std::size_t... I>
bool call(void (*kernel)(A...), const Launch& how, void* const* slots, std::index_sequence<I...>) {
    auto body = [&] { kernel(argument<A>(slots[I])...); };
    return run_grid(how, [](void* f) { (*static_cast<decltype(body)*>(f))(); }, &body);
}

// Runs a kernel on arguments given by address, whose kinds ("ppif...") must be the kernel's own.
template <class... A>
bool launch(void (*kernel)(A...), const Launch& how, const char* kinds, void* const* slots) {
    const char wanted[] = {code<A>()..., '\0'};
    if (std::strcmp(kinds, wanted) != 0) {
        block().error = std::string("got arguments ") + kinds + ", need " + wanted;
        return false;
    }
    return call(kernel, how, slots, std::index_sequence_for<A...>());
}

// Gives every lane of the warp the value of the lane that `source` names; all 32 must take part.
template <class T>
T exchange(T value, int source) {
    static_assert(sizeof(T) == sizeof(std::uint32_t), "32-bit values only");
    Block& b = block();
    const int thread = b.running;
    Fiber& self = b.fibers[thread];
    const unsigned turn = self.shuffles++ & 1u;  // a slow lane may still read the last one
    std::memcpy(&self.slot[turn], &value, sizeof value);
    suspend(State::at_shuffle);
    T got;
    std::memcpy(&got, &b.fibers[thread / warp_size * warp_size + source].slot[turn], sizeof got);
    return got;
}

// A copy arrives as early or as late as it may, by the order of the threads: early shows a target
// that is still being read, late a wait that is missing.
inline void copy_async(float* to, const float* from, bool exists) {
    Block& b = block();
    const Copies::Copy copy{to, exists ? from : nullptr};
    if (b.copies_arrive_late) {
        b.fibers[b.running].copies.groups.back().push_back(copy);
    } else {
        copy.arrive();
    }
}

inline void close_copies() { block().fibers[block().running].copies.groups.emplace_back(); }

inline void wait_for_copies(int later) {
    auto& groups = block().fibers[block().running].copies.groups;
    const int closed = static_cast<int>(groups.size()) - 1;
    for (int i = 0; i < closed - later; ++i) {
        for (const Copies::Copy& copy : groups.front()) copy.arrive();
        groups.erase(groups.begin());
    }
}

inline int lane() { return block().running % warp_size; }

}  // namespace cuda_on_cpu

inline void __syncthreads() { cuda_on_cpu::suspend(cuda_on_cpu::State::at_barrier); }

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
    return cuda_on_cpu::exchange(value, cuda_on_cpu::lane() ^ mask);
}

template <class T>
T __shfl_sync(unsigned, T value, int source) {
    return cuda_on_cpu::exchange(value, source & (cuda_on_cpu::warp_size - 1));
}

template <class T>
T __shfl_down_sync(unsigned, T value, int delta) {
    const int from = cuda_on_cpu::lane() + delta;
    return cuda_on_cpu::exchange(value, from < cuda_on_cpu::warp_size ? from : cuda_on_cpu::lane());
}

#include "tensor_cores_on_cpu.h"
