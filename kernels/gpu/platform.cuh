// What the kernels need of the compiler, so that the same .cu also builds as C++ for the CPU.
#pragma once

#ifdef __CUDACC__
// `name` is the block's dynamic shared memory.
#define HFCORE_DYNAMIC_SHARED(type, name) extern __shared__ __align__(16) type name[]
#elif !defined(HFCORE_DYNAMIC_SHARED)
#error "compile with nvcc, or as C++ after tests/support/emulation/cuda_on_cpu.h"
#endif

namespace hfcore_gpu {

__device__ __forceinline__ float4 read4(const float* p) {
    return *reinterpret_cast<const float4*>(p);
}

// To about 2 ulp, results below the smallest normal number are zero. `volatile` keeps them out of
// branches: values that a thread computes side by side would wait for one another there.
__device__ __forceinline__ float fast_exp2(float x) {
#ifdef __CUDACC__
    float y;
    asm volatile("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return std::exp2(x);
#endif
}

__device__ __forceinline__ float fast_reciprocal(float x) {
#ifdef __CUDACC__
    float y;
    asm volatile("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return 1.0f / x;
#endif
}

// __syncthreads() for warps of one block that are at different places of a kernel.
__device__ __forceinline__ void block_barrier() {
#ifdef __CUDACC__
    asm volatile("bar.sync 0;" ::: "memory");
#else
    __syncthreads();
#endif
}

// ---- copies from global to shared memory that a thread issues, closes into groups, and waits for.
//
// 4 bytes each, so that any alignment will do. Other threads see them behind a barrier.

// Where in shared memory: the hardware's own address, computed once.
struct CopyTarget {
#ifdef __CUDACC__
    unsigned at;
    __device__ __forceinline__ explicit CopyTarget(float* shared)
        : at(static_cast<unsigned>(__cvta_generic_to_shared(shared))) {}
#else
    float* at;
    explicit CopyTarget(float* shared) : at(shared) {}
#endif
};

// To `words` behind the target; zero, and nothing is read, unless the source exists.
__device__ __forceinline__ void copy_async(CopyTarget to, int words, const float* from,
                                           bool exists) {
#ifdef __CUDACC__
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to.at + 4 * words),
                 "l"(from), "r"(exists ? 4 : 0)
                 : "memory");
#else
    cuda_on_cpu::copy_async(to.at + words, from, exists);
#endif
}

__device__ __forceinline__ void close_copies() {
#ifdef __CUDACC__
    asm volatile("cp.async.commit_group;" ::: "memory");
#else
    cuda_on_cpu::close_copies();
#endif
}

// Until all groups but the last kLater have arrived.
template <int kLater>
__device__ __forceinline__ void wait_for_copies() {
#ifdef __CUDACC__
    asm volatile("cp.async.wait_group %0;" ::"n"(kLater) : "memory");
#else
    cuda_on_cpu::wait_for_copies(kLater);
#endif
}

}  // namespace hfcore_gpu
