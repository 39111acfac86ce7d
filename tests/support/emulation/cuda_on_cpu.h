// CUDA C++ kernels as C++ on the CPU: every thread of a block is a fiber (ucontext).
//
// Include it before a .cu file, then start kernels through cuda_on_cpu::launch. What it has: one- to
// three-dimensional grids and blocks, dynamic shared memory, __syncthreads, __shfl_*_sync, products on
// tensor cores (tensor_cores_on_cpu.h), copies that arrive later, clusters of blocks that write to one
// another's shared memory (clusters_on_cpu.h). Blocks, or clusters, run one after the other. What it
// shows: a barrier that is missing (three orders of the threads), a barrier or shuffle that not all
// threads reach, reads of shared memory that nobody wrote (it starts as NaN), and, under
// -fsanitize=address, any access outside of shared memory, whose size is exact.
// It shows nothing of the memory model, and no speed.
#pragma once

#include <setjmp.h>
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
#define __cluster_dims__(...)
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

#include "fibers_on_cpu.h"

namespace cuda_on_cpu {

struct Launch {
    dim3 grid, block;
    std::size_t shared_bytes;
    Order order;
    unsigned cluster;  // blocks of one, along x
};

inline void run_cluster(Schedule& schedule);  // clusters_on_cpu.h

inline std::string refusal(const Launch& how) {
    const unsigned threads = how.block.x * how.block.y * how.block.z;
    if (threads > most_threads) return "a block has at most 1024 threads";
    if (how.cluster > most_blocks) return "a cluster has at most 8 blocks";
    if (how.grid.x % how.cluster != 0) return "the grid is no multiple of a cluster";
    const bool whole_warps = threads % warp_size == 0 || how.cluster == 1;
    return whole_warps ? "" : "the blocks of a cluster need whole warps";
}

inline bool run_grid(const Launch& how, void (*body)(void*), void* closure) {
    Block& b = block();
    gridDim = how.grid;
    blockDim = how.block;
    b.error = refusal(how);
    if (!b.error.empty()) return false;
    b.threads = static_cast<int>(how.block.x * how.block.y * how.block.z);
    b.fibers.reserve(most_threads * most_blocks);  // they must not move: their stacks refer to them
    b.fibers.resize(b.threads * how.cluster);
    b.body = body;
    b.closure = closure;
    b.barriers = 0;
    b.late = how.order != Order::forward;
    Schedule schedule(how.order, b.threads, static_cast<int>(how.cluster));
    const unsigned blocks = how.grid.x * how.grid.y * how.grid.z, clusters = blocks / how.cluster;
    for (unsigned i = 0; i < clusters && b.error.empty(); ++i) {
        const unsigned first = (how.order == Order::reverse ? clusters - 1 - i : i) * how.cluster;
        b.members.assign(how.cluster, {});
        for (unsigned m = 0; m < how.cluster; ++m) {
            const unsigned flat = first + m;
            b.members[m].index = {flat % how.grid.x, flat / how.grid.x % how.grid.y,
                                  flat / how.grid.x / how.grid.y};
            // Allocated at its exact size and filled with NaN: both are there to be caught.
            b.members[m].shared = static_cast<char*>(std::malloc(how.shared_bytes));
            std::memset(b.members[m].shared, 0xff, how.shared_bytes);
        }
        prepare_fibers();
        run_cluster(schedule);
        for (const Member& member : b.members) std::free(member.shared);
    }
#if defined(__SANITIZE_ADDRESS__)
    for (const Fiber& fiber : b.fibers)
        __asan_unpoison_memory_region(fiber.stack.get(), stack_bytes);
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
    if (b.late) {
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

inline void __syncwarp(unsigned = 0xffffffffu) { cuda_on_cpu::exchange(0u, cuda_on_cpu::lane()); }

// Blocks run one after the other, and memory is what was written last.
inline void __threadfence() {}

inline int atomicAdd(int* at, int more) {
    const int before = *at;
    *at += more;
    return before;
}

inline float __ldcg(const float* at) { return *at; }

#include "clusters_on_cpu.h"
#include "tensor_cores_on_cpu.h"
