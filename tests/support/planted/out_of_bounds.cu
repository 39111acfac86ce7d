// Shifts a row by one through shared memory; the planted kernel writes one float beyond its end.
#include "kernels/gpu/platform.cuh"

extern "C" __global__ void shifted(const float* in, float* out) {
    HFCORE_DYNAMIC_SHARED(float, shared);
    shared[(threadIdx.x + 1) % blockDim.x] = in[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = shared[threadIdx.x];
}

extern "C" __global__ void planted(const float* in, float* out) {
    HFCORE_DYNAMIC_SHARED(float, shared);
    shared[threadIdx.x + 1] = in[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = shared[threadIdx.x];
}
