// The R-op on tensor cores: Rh_t = e'(t_t) ⊙ (W Rh_{t-1} + [V | V_x] · [h_{t-1} ; x_t] + u_t + v_b
// (+ v_init at first)).
//
// Two groups of warps, one barrier a step. The first carries the chain; the second multiplies by V for
// the step after, which waits for nothing, and hands its sums over in shared memory. Both run the same
// product, so that either keeps the tensor cores busy while the other is in its epilogue.
#pragma once

#include "kernels/gpu/activation.cuh"
#include "gpu_scan.cuh"
#include "gpu_tensor_tile.cuh"

namespace hfcore_gpu {

// Shared memory of a block, in words; gpu_tensor.py plans the same. Everything twice, by parity of the
// step.
template <int kChunks, int kAllInRegisters>
struct TangentRooms {
    static constexpr int kRowWords = kChunks * kChunkWords;
    static constexpr int kSumWords = kChunks * 32 * 4;
    unsigned* shared;

    __device__ __forceinline__ unsigned* carry(int parity) const {
        return shared + parity * kRowWords;
    }
    __device__ __forceinline__ unsigned* states(int parity) const {
        return shared + (2 + parity) * kRowWords;
    }
    // The lane's sums of the second group.
    __device__ __forceinline__ float4* sums(int parity, int tile) const {
        return reinterpret_cast<float4*>(shared + 4 * kRowWords + parity * kSumWords) + 32 * tile +
               static_cast<int>(threadIdx.x) % 32;
    }
    __device__ __forceinline__ unsigned* weights(int warp) const {
        return shared + 4 * kRowWords + 2 * kSumWords +
               warp * TensorWeights<kChunks, kAllInRegisters>::kWords;
    }
};

__device__ __forceinline__ void add_sums(float4 sums, Fragment& y) {
    y[0] += sums.x;
    y[1] += sums.y;
    y[2] += sums.z;
    y[3] += sums.w;
}

// H <= 16 kChunks. n input columns are in the padding: H + n <= 16 kChunks.
template <int kChunks, int kAllInRegisters>
__device__ __forceinline__ void tangent_on_tensor_cores(
    const int* stop, long long distinct, long long net_stride, const float* W_hh, const float* V_hh,
    const float* V_hx, const float* v_b, const float* v_init, const float* x, const float* u,
    const float* h, const long long* steps, float* Rh, long long T_, long long B_, long long H_,
    long long n_, long long slots, long long nonlinearity) {
    if (stop != nullptr && *stop != 0) return;
    HFCORE_DYNAMIC_SHARED(unsigned, shared);
    const TangentRooms<kChunks, kAllInRegisters> rooms{shared};
    const int T = static_cast<int>(T_), B = static_cast<int>(B_);
    const int H = static_cast<int>(H_), n = static_cast<int>(n_);
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const bool chain = warp < kChunks;
    const int tile = chain ? warp : warp - kChunks;
    TensorLane lane(tile, H, B);
    const float* const M = chain ? group(distinct, W_hh, kCarryWeights, net_stride)
                                 : group(distinct, V_hh, kHiddenWeights, net_stride);
    const float* const V_x = group(distinct, V_hx, kInputWeights, net_stride);
    TensorWeights<kChunks, kAllInRegisters> weights;
    weights.load(tile, rooms.weights(warp), [&](int row, int column) {
        if (row >= H || column >= H + (chain ? 0 : n)) return 0.0f;
        return column < H ? M[row * H + column] : V_x[row * n + column - H];
    });
    const int move = B * H, input_move = B * n;
    const float* const states = group(distinct, h, kFactor, T_ * B_ * H_);
    const float* const inputs = group(distinct, x, kInput, T_ * B_ * n_);
    const float* const added = group(distinct, u, kAdded, T_ * B_ * H_);
    float* const out = Rh + blockIdx.y * (steps != nullptr ? slots : T_) * B_ * H_;
    Cursor kept(steps, slots, false);
    float bias[2];
    read_bias(group(distinct, v_b, kBias, net_stride), lane, bias);

    if (!chain) {  // the first step has a bias more, where a pointer of it would cost registers
        float first[2];
        read_bias(group(distinct, v_init, kInitialBias, net_stride), lane, first);
        *rooms.sums(0, tile) = make_float4(first[0], first[0], first[1], first[1]);
    }

    // Chain: h_t of the step t to come. Second group: [h_{t+1} ; x_{t+2}].
    Fragment arriving = {};
    if (!chain) lane.read_inputs(inputs, n, arriving);
    // Nothing is carried into the first step, and no state is before it.
    store_rows(chain ? rooms.carry(0) : rooms.states(0), lane, arriving);
    const auto fetch = [&](int t) {
        const int of = t + (chain ? 0 : 1);
        if (of + (chain ? 0 : 1) >= T) return;
        lane.read(step_of(states, of, move), arriving);
        if (!chain) lane.read_inputs(step_of(inputs, of + 1, input_move), n, arriving);
    };
    fetch(chain ? 0 : -1);
    __syncthreads();  // the rows of the first step are complete

    for (int t = -1; t < T; ++t) {
        lane.forget();
        const int odd = (t + 1) % 2, even = 1 - odd;
        const bool works = chain ? t >= 0 : t + 1 < T;
        Fragment y;
        if (works) {
            if (chain) {
                y[0] = y[1] = y[2] = y[3] = 0.0f;
                add_sums(*rooms.sums(even, tile), y);
            } else {
                start_at(bias, y);
                if (t < 0) add_sums(*rooms.sums(odd, tile), y);
                if (added != nullptr) add_step(step_of(added, t + 1, move), lane, y);
                store_rows(rooms.states(even), lane, arriving);
                fetch(t + 1);
            }
            weights.multiply(chain ? rooms.carry(even) : rooms.states(odd), y);
            if (chain) {
                Fragment d;
                differentiate(arriving, nonlinearity, d);
#pragma unroll
                for (int i = 0; i < 4; ++i) y[i] *= d[i];  // 0 for units that do not exist
                store_rows(rooms.carry(odd), lane, y);
                fetch(t + 1);
            } else {
                *rooms.sums(odd, tile) = make_float4(y[0], y[1], y[2], y[3]);
            }
        }
        __syncthreads();  // the rows and sums of the next step are complete
        if (chain && t >= 0 && kept.has(t)) lane.write(step_of(out, kept.slot(t), move), y);
    }
}

}  // namespace hfcore_gpu
