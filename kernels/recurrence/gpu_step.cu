// Recurrence ops on tensor cores in float32 quality, one launch a step, for nets that no cluster holds:
// every step is one product of all units by all sequences with what is done with it.
//
// gpu_step.py plans and launches. Pointers may be null, integers are long long, reals are float. Every
// kernel takes `stop` and leaves its outputs as they are when *stop is not zero. FLOP 2·6·B·H² a step.
// Bytes a step, most of them from L2: 6·H² of weights for every 112 sequences, 6·B·H of rows for every
// 64 units, 8·splits·B·H of sums, 4·B·H of each array.
//
// At H=1024, B=100 (16 blocks of units by one of sequences, 8 splits): 336 mma a warp, two warps a
// scheduler, 6 cycles each: 4,000 cycles; 17 MB of weights and rows and 7 MB of sums. Predicted 4 to 5
// µs a step with the launch; no GPU has run these kernels yet.
#include "gpu_step_product.cuh"

using namespace hfcore_gpu;

// The weights W [G,H,H], nets `net_stride` elements apart, or their transposed, as fragments; zero in the
// counters of the G nets of the pass, of which there are `count`.
extern "C" __global__ void __launch_bounds__(32 * kPackWarps)
    pack_step_weights(const int* stop, long long net_stride, const float* W, unsigned* packed,
                      int* counters, long long count, long long H, long long transposed) {
    if (stop != nullptr && *stop != 0) return;
    const long long tiles = tiles_of(H, kUnits), net = blockIdx.y;
    if (net == 0)
        for (long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
             i += static_cast<long long>(gridDim.x) * blockDim.x)
            counters[i] = 0;
    pack_weights(W + net * net_stride,
                 reinterpret_cast<uint4*>(packed) + net * tiles * tiles * (kPieces * 32),
                 static_cast<int>(H), transposed != 0);
}

// h_t = e(W h_{t-1} + u_t + b_h), b_init in the place of W h_0 at the first step.
extern "C" __global__ void __launch_bounds__(32 * kStepTiles * kStepGroups, 1)
    rnn_forward_step_tensor(const int* stop, long long distinct, long long net_stride,
                            const unsigned* packed, const unsigned* rows, unsigned* next,
                            float* partial, int* counters, const float* u, const float* b_h,
                            const float* b_init, float* h, long long t, long long T, long long B,
                            long long H, long long splits, long long nonlinearity) {
    if (stop != nullptr && *stop != 0) return;
    const StepProduct product(distinct, packed, rows, next, partial, counters, B, H, splits);
    const float* const added = group(distinct, u, kAdded, T * B * H) + t * B * H;
    const float* const bias = group(distinct, b_h, kBias, net_stride);
    const float* const initial = group(distinct, b_init, kInitialBias, net_stride);
    run_step(product, h + (blockIdx.y * T + t) * B * H, B, H,
             [&](const StepLane& lane, Fragment& y) {
#pragma unroll
                 for (int i = 0; i < 4; ++i) {
                     if (!lane.exists(i)) continue;
                     y[i] += added[lane.at(i)] + bias[lane.column(i)];
                     if (t == 0) y[i] += initial[lane.column(i)];
                 }
                 activate(y, nonlinearity);
             });
}

// y_t = d_t ⊙ (M y_{t∓1} + u_t + bias (+ initial bias where rows is null)) + coefficient · a_t. Null terms
// are left out; u_t only at `steps`, looked up here because the host must not wait for it.
extern "C" __global__ void __launch_bounds__(32 * kStepTiles * kStepGroups, 1)
    linear_scan_step_tensor(const int* stop, long long distinct, long long net_stride,
                            const unsigned* packed, const unsigned* rows, unsigned* next,
                            float* partial, int* counters, const float* u, const float* d,
                            const float* a, const float* bias, const float* initial_bias,
                            const long long* steps, float* y, long long t, long long T, long long B,
                            long long H, long long slots, long long splits, long long nonlinearity,
                            float coefficient) {
    if (stop != nullptr && *stop != 0) return;
    const StepProduct product(distinct, packed, rows, next, partial, counters, B, H, splits);
    const long long slot = slot_of(steps, slots, t), move = B * H;
    const float* const added =
        slot < 0 ? nullptr : group(distinct, u, kAdded, slots * move) + slot * move;
    const float* const every = group(distinct, bias, kBias, net_stride);
    const float* const first =
        rows == nullptr ? group(distinct, initial_bias, kInitialBias, net_stride) : nullptr;
    const float* const factors = group(distinct, d, kFactor, T * move) + t * move;
    const float* const structural =
        a == nullptr ? nullptr : group(distinct, a, kStructural, T * move) + t * move;
    run_step(product, y + (blockIdx.y * T + t) * move, B, H,
             [&](const StepLane& lane, Fragment& y) {
                 Fragment factor = {}, derivative;
#pragma unroll
                 for (int i = 0; i < 4; ++i) {
                     if (!lane.exists(i)) continue;
                     factor[i] = factors[lane.at(i)];
                     if (added != nullptr) y[i] += added[lane.at(i)];
                     if (every != nullptr) y[i] += every[lane.column(i)];
                     if (first != nullptr) y[i] += first[lane.column(i)];
                 }
                 differentiate(factor, nonlinearity, derivative);
#pragma unroll
                 for (int i = 0; i < 4; ++i) {
                     y[i] *= derivative[i];
                     if (structural != nullptr && lane.exists(i))
                         y[i] += coefficient * structural[lane.at(i)];
                 }
             });
}
