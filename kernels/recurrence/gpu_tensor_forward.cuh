// The forward pass on tensor cores: h_t = e([W | W_x] · [h_{t-1} ; x_t] + u_t + b (+ b_init at first)).
#pragma once

#include "kernels/gpu/activation.cuh"
#include "gpu_scan.cuh"
#include "gpu_tensor_tile.cuh"

namespace hfcore_gpu {

// H <= 16 kChunks. n input columns are in the padding: H + n <= 16 kChunks.
template <int kChunks>
__device__ __forceinline__ void forward_on_tensor_cores(
    const int* stop, long long distinct, long long net_stride, const float* W_hh, const float* W_hx,
    const float* b_h, const float* b_init, const float* x, const float* u, const long long* steps,
    float* h, long long T_, long long B_, long long H_, long long n_, long long slots,
    long long nonlinearity) {
    if (stop != nullptr && *stop != 0) return;
    HFCORE_DYNAMIC_SHARED(unsigned, shared);
    const int T = static_cast<int>(T_), B = static_cast<int>(B_);
    const int H = static_cast<int>(H_), n = static_cast<int>(n_);
    const int tile = static_cast<int>(threadIdx.x) / 32;
    TensorLane lane(tile, H, B);
    const float* const W = group(distinct, W_hh, kCarryWeights, net_stride);
    const float* const W_x = group(distinct, W_hx, kInputWeights, net_stride);
    TensorWeights<kChunks> weights;
    weights.load(tile, nullptr, [&](int row, int column) {
        if (row >= H || column >= H + n) return 0.0f;
        return column < H ? W[row * H + column] : W_x[row * n + column - H];
    });
    const int move = B * H, input_move = B * n;
    const float* const inputs = group(distinct, x, kInput, T_ * B_ * n_);
    const float* const added = group(distinct, u, kAdded, T_ * B_ * H_);
    float* const out = h + blockIdx.y * (steps != nullptr ? slots : T_) * B_ * H_;
    Cursor kept(steps, slots, false);
    float bias[2];
    read_bias(group(distinct, b_h, kBias, net_stride), lane, bias);

    Fragment arriving = {};  // inputs of the step after, in the place of units that do not exist
    unsigned *now = shared, *next = shared + kChunks * kChunkWords;
    lane.read_inputs(inputs, n, arriving);
    store_rows(now, lane, arriving);  // nothing is carried into the first step
    if (T > 1) lane.read_inputs(inputs + input_move, n, arriving);
    __syncthreads();  // the rows of the first step are complete

    for (int t = 0; t < T; ++t) {
        lane.forget();
        Fragment y;
        start_at(bias, y);
        if (t == 0) add_bias(group(distinct, b_init, kInitialBias, net_stride), lane, y);
        if (added != nullptr) add_step(step_of(added, t, move), lane, y);
        weights.template multiply<4>(now, y);
        activate(y, nonlinearity);
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (!lane.real(i)) y[i] = arriving[i];
        store_rows(next, lane, y);
        if (t + 2 < T) lane.read_inputs(step_of(inputs, t + 2, input_move), n, arriving);
        unsigned* const was = now;
        now = next;
        next = was;
        __syncthreads();  // the rows of the next step are complete
        if (kept.has(t)) lane.write(step_of(out, kept.slot(t), move), y);
    }
}

}  // namespace hfcore_gpu
