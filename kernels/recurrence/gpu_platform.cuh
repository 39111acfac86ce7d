// What the kernels need of the compiler, so that the same .cu also builds as C++ for the CPU.
#pragma once

#ifdef __CUDACC__
// `name` is the block's dynamic shared memory.
#define HFCORE_DYNAMIC_SHARED(type, name) extern __shared__ __align__(16) type name[]
// To about 2 ulp, without a branch.
#define HFCORE_EXP(x) __expf(x)
#define HFCORE_QUOTIENT(x, y) __fdividef(x, y)
#elif !defined(HFCORE_DYNAMIC_SHARED)
#error "compile with nvcc, or as C++ after kernels/emulation/cuda_on_cpu.h"
#endif
