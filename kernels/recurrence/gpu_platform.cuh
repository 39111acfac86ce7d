// What the kernels need of the compiler, so that the same .cu also builds as C++ for the CPU.
#pragma once

#ifdef __CUDACC__
// `name` is the block's dynamic shared memory.
#define HFCORE_DYNAMIC_SHARED(type, name) extern __shared__ __align__(16) type name[]
#elif !defined(HFCORE_DYNAMIC_SHARED)
#error "compile with nvcc, or as C++ after kernels/emulation/cuda_on_cpu.h"
#endif

namespace hfcore_gpu {

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

}  // namespace hfcore_gpu
