// Recurrence ops on the GPU, true float32: forward pass, R-op and linear scan with the time loop
// inside the kernel and the weights on chip, and the epilogues of the form with one GEMM a step.
//
// gpu.py plans and launches. Pointers may be null, integers are long long, reals are float. Every
// kernel takes `stop` and leaves its outputs as they are when *stop is not zero.
//
// Model of the on-chip kernels on an H200 (none of it timed yet): H=100, B=1000, n=2, k=1, so 125
// blocks of 8 sequences, one a multiprocessor, 8 warps each, two to a scheduler.
//   K        rows of weights: H + n, 2 H + n, H (+ k at an output step), in 5 slices of L
//   issue    2 warps · (19.4 L + 250): 77 instructions for 4 k in the SASS of sm_90 (64 FFMA,
//            8 LDS.128), and 250 a step for the rest: fetch, partial sums, epilogue, store
//   shared   wavefronts 8 · 4 L (2 for the weights and 2 for the rows of an LDS.128), 128 to write
//            and 128 to read partial sums: beside the issue
//   waits    two barriers, first LDS of the slice and of the sums, tanh: about 150 cycles, the part
//            of 250 that the other warp does not cover
//   DRAM     bytes a step at 4.8 TB/s, beside the issue
//
//   kernel       L   kFMA  floor  issue  shared  cycles  predicted µs a step  aim  DRAM µs
//   rnn_forward  21   82    640   1315     930    1465          0.74          0.8  0.08 (h)
//   rnn_tangent  41  162   1260   2090    1570    2240          1.13          1.2  0.17 (h, Rh)
//   linear_scan  20   80    625   1275     900    1425          0.72          0.8  0.25 (h, Rh, gt)
//
// At 1.98 GHz; 13 % more at 1.755 GHz. Loading a matrix of weights once costs about 2 µs. A whole
// product at T=200 is then 0.37 ms of kernels and 4 GFLOP of gradient GEMM (0.06 ms at the full
// rate of the chip, 0.1 at the usual 60 %).
#include "gpu_scan.cuh"

using namespace hfcore_gpu;

// h_t = e(W_hh h_{t-1} + W_hx x_t + u_t + b_h), b_init in the place of W_hh h_0 at the first step.
// FLOP 2·B·H·(H+n) a step; bytes 4·B·(H+n), or 4·B·n where `steps` keeps nothing.
extern "C" __global__ void __launch_bounds__(448)
    rnn_forward(const int* stop, long long distinct, const float* W_hh, const float* W_hx,
                const float* b_h, const float* b_init, const float* x, const float* u,
                const long long* steps, float* h, long long T, long long B, long long H,
                long long n, long long slots, long long nonlinearity, long long split) {
    Scan s{stop, distinct, W_hh,    nullptr, W_hx, b_h, b_init, x,     u,
           nullptr, nullptr, steps, h,       T,    B,   H,      n,     slots,
           nonlinearity, 0.0f, split};
    scan<true, false, false, true>(s);
}

// Rh_t = e'(t_t) ⊙ (W_hh Rh_{t-1} + V_hh h_{t-1} + V_hx x_t + u_t + v_b), v_init as b_init.
// FLOP 2·B·H·(2H+n) a step; bytes 4·B·(2H+n). Without V on chip, u holds its product.
extern "C" __global__ void __launch_bounds__(448)
    rnn_tangent(const int* stop, long long distinct, const float* W_hh, const float* V_hh,
                const float* V_hx, const float* v_b, const float* v_init, const float* x,
                const float* u, const float* h, const long long* steps, float* Rh, long long T,
                long long B, long long H, long long n, long long slots, long long nonlinearity,
                long long split) {
    Scan s{stop, distinct, W_hh,    V_hh, V_hx, v_b, v_init, x,     u,
           h,    nullptr,  steps,   Rh,   T,    B,   H,      n,     slots,
           nonlinearity, 0.0f, split};
    if (V_hh != nullptr) {
        scan<false, true, false, true>(s);
    } else {
        scan<false, false, false, true>(s);
    }
}

// y_t = d_t ⊙ (y_{t-1} W + gs_t W_y + u_t) + coefficient · a_t, or with y_{t+1} when reverse.
// `steps` names the steps that have a gs_t and a u_t, in the reverse direction only.
// FLOP 2·B·H·(H+k) a step; bytes 4·B·H·(2, 3 with a, 4 with u as well) and gs.
extern "C" __global__ void __launch_bounds__(448)
    linear_scan(const int* stop, long long distinct, const float* W, const float* W_y,
                const float* gs, const float* u, const float* d, const float* a,
                const long long* steps, float* y, long long T, long long B, long long H,
                long long k, long long slots, long long nonlinearity, long long reverse, float coefficient,
                long long split) {
    Scan s{stop, distinct, W,     nullptr, W_y, nullptr, nullptr, gs, u,
           d,    a,        steps, y,       T,   B,       H,       k,  slots,
           nonlinearity, coefficient, split};
    if (reverse != 0) {
        scan<false, false, true, false>(s);
    } else {
        scan<false, false, false, false>(s);
    }
}

// ---- One GEMM a step, for weights that do not fit on chip: z [G,B,H] is the product, null at the
// first step. One thread an element of [B,H], blockIdx.y is the net; bytes a step 4·B·H·(2 to 5), no
// barrier, so the model is bytes over bandwidth, and a launch of about 2 µs where that is longer.

// h_t = e(z + u_t + b_h (+ b_init at the first step)).
extern "C" __global__ void rnn_forward_step(const int* stop, long long distinct, const float* z,
                                            const float* u, const float* b_h, const float* b_init,
                                            float* h, long long t, long long T, long long B,
                                            long long H, long long nonlinearity) {
    if (stop != nullptr && *stop != 0) return;
    const long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= B * H) return;
    const long long g = blockIdx.y, at = t * B * H + i, column = i % H;
    float pre = group(distinct, u, kAdded, T * B * H)[at] + group(distinct, b_h, kBias, H)[column];
    pre += t == 0 ? group(distinct, b_init, kInitialBias, H)[column] : z[g * B * H + i];
    float value[1] = {pre};
    activate(value, nonlinearity);
    h[g * T * B * H + at] = value[0];
}

// y_t = d_t ⊙ (z + u_t + bias (+ initial bias where z is null)) + coefficient · a_t. Null terms are
// left out; u_t only at `steps`, looked up here because the host must not wait for it.
extern "C" __global__ void linear_scan_step(const int* stop, long long distinct, const float* z,
                                            const float* u, const float* d, const float* a,
                                            const float* bias, const float* initial_bias,
                                            const long long* steps, float* y, long long t,
                                            long long T, long long B, long long H, long long slots,
                                            long long nonlinearity, float coefficient) {
    if (stop != nullptr && *stop != 0) return;
    const long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= B * H) return;
    const long long g = blockIdx.y, at = t * B * H + i, column = i % H;
    long long slot = t;
    if (steps != nullptr) {
        long long below = 0, above = slots;  // first slot whose step is not before t
        while (below < above) {
            const long long middle = (below + above) / 2;
            if (steps[middle] < t) {
                below = middle + 1;
            } else {
                above = middle;
            }
        }
        slot = below < slots && steps[below] == t ? below : -1;
    }
    float pre = z != nullptr ? z[g * B * H + i] : 0.0f;
    if (slot >= 0) pre += group(distinct, u, kAdded, slots * B * H)[slot * B * H + i];
    if (bias != nullptr) pre += group(distinct, bias, kBias, H)[column];
    if (z == nullptr && initial_bias != nullptr)
        pre += group(distinct, initial_bias, kInitialBias, H)[column];
    const float factor[1] = {group(distinct, d, kFactor, T * B * H)[at]};
    float derivative[1];
    differentiate(factor, nonlinearity, derivative);
    float value = derivative[0] * pre;
    if (a != nullptr) value += coefficient * group(distinct, a, kStructural, T * B * H)[at];
    y[g * T * B * H + at] = value;
}

// out [G,N] = scale · g [1 or G,N] + damping · v [1 or G,N]; v may be null. Bytes 4·3·N.
extern "C" __global__ void scale_and_damp(const int* stop, long long distinct, const float* g,
                                          const float* v, float* out, long long N, float scale,
                                          float damping) {
    if (stop != nullptr && *stop != 0) return;
    const long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= N) return;
    float value = scale * group(distinct, g, kFactor, N)[i];
    if (v != nullptr) value += damping * group(distinct, v, kAdded, N)[i];
    out[blockIdx.y * N + i] = value;
}
