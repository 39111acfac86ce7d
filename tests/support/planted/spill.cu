// Planted: 96 sums alive at once with 32 registers a thread to hold them. The nvcc gate must fail.
extern "C" __global__ void __launch_bounds__(1024, 2) spill(const float* x, float* y) {
  float sum[96];
#pragma unroll
  for (int i = 0; i < 96; ++i) sum[i] = x[i * 1024 + threadIdx.x];
  for (int t = 1; t < 1000; ++t) {
    const float next = x[t * 1024 + threadIdx.x];
#pragma unroll
    for (int i = 0; i < 96; ++i) sum[i] = sum[i] * next + sum[(i + 1) % 96];
  }
#pragma unroll
  for (int i = 0; i < 96; ++i) y[i * 1024 + threadIdx.x] = sum[i];
}
