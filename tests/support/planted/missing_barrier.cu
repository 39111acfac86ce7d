// Reverses a row through shared memory; the planted kernel reads before all threads have written.
#include "kernels/gpu/platform.cuh"

extern "C" __global__ void reversed(const float* in, float* out) {
    HFCORE_DYNAMIC_SHARED(float, shared);
    shared[threadIdx.x] = in[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

extern "C" __global__ void planted(const float* in, float* out) {
    HFCORE_DYNAMIC_SHARED(float, shared);
    shared[threadIdx.x] = in[threadIdx.x];
    out[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

extern "C" __global__ void divergent(const float* in, float* out) {
    out[threadIdx.x] = in[threadIdx.x];
    if (threadIdx.x > 0) __syncthreads();
}
