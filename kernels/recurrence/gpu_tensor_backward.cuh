// Backpropagation through time on tensor cores, with the weights' gradient:
//
//   gt_t = e'(t_t) ⊙ ([W_hh ; W_yh]ᵀ · [gt_{t+1} ; gs_t] + u_t) + coefficient · a_t
//   G    = Σ_t gt_tᵀ [x_t | h_{t-1} | 1 | first step?], of the block's sequences
//
// Inputs, the one and that of the first step are in the padding of the units, and so is gs.
//
// Two groups of warps, one barrier a step. The first carries the chain; the second multiplies its results
// of the step before, which lie in shared memory as rows, by [h ; x] of that step. Its sums stay in
// registers for the whole sequence, and no gt goes to memory.
//
// This product is mma.m16n8k8, K being the sequences: the D fragment in which the chain finishes gt is an
// A fragment of it, but for pairs of sequences in place of pairs of units; the lane's elements of h are a
// B fragment. The smaller products of a step are summed by the tensor core first, the largest onto them
// (cut once), and the steps outside of it, to nearest.
#pragma once

#include "kernels/gpu/activation.cuh"
#include "gpu_scan.cuh"
#include "gpu_tensor_tile.cuh"

namespace hfcore_gpu {

// Sizes of a block's problem, as the kernel is given them.
struct BackwardTask {
    long long distinct, net_stride, T, B, H, n, k, slots, nonlinearity;
    float coefficient;
};

// Shared memory of a block, in words; gpu_tensor.py plans the same. Rows twice, by parity of the step.
template <int kChunks, int kAllInRegisters>
struct BackwardRooms {
    static constexpr int kRowWords = kChunks * kChunkWords;
    unsigned* shared;

    __device__ __forceinline__ unsigned* carry(int parity) const {
        return shared + parity * kRowWords;
    }
    // [chunk][piece][lane][units r and r + 8], pairs of sequences.
    __device__ __forceinline__ unsigned* states(int parity) const {
        return shared + (2 + parity) * kRowWords;
    }
    __device__ __forceinline__ unsigned* weights(int tile) const {
        return shared + 4 * kRowWords + tile * TensorWeights<kChunks, kAllInRegisters>::kWords;
    }
};

// ---- the second group

// Σ gt ⊗ [h ; x] of one tile of 16 units and all columns: value i of half e of chunk c is of unit
// r + 8 (i / 2) and column 16 c + 8 e + 2 q + i % 2.
template <int kChunks>
struct TensorGradient {
    float sum[kChunks][2][4];

    __device__ __forceinline__ TensorGradient() : sum{} {}

    // `gt`: a buffer of rows, of which the chain's lane of the same place stored what is read here.
    __device__ __forceinline__ void add(const unsigned* gt, const TensorLane& lane,
                                        const unsigned* states) {
        unsigned a[kPieces][2];
#pragma unroll
        for (int p = 0; p < kPieces; ++p) {
            const unsigned even = gt[lane.word(0) + kPieceWords * p];
            const unsigned odd = gt[lane.word(1) + kPieceWords * p];
            a[p][0] = low_halves(even, odd);
            a[p][1] = high_halves(even, odd);
        }
        const int here = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
        for (int c = 0; c < kChunks; ++c) {
            unsigned b[2][kPieces];
#pragma unroll
            for (int p = 0; p < kPieces; ++p) {
                const uint2 pair = *reinterpret_cast<const uint2*>(
                    states + kChunkWords * c + kPieceWords * p + 2 * here);
                b[0][p] = pair.x;
                b[1][p] = pair.y;
            }
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                float product[4] = {};
                mma(product, a[1], b[e][1]);
                mma(product, a[2], b[e][0]);
                mma(product, a[0], b[e][2]);
                mma(product, a[1], b[e][0]);
                mma(product, a[0], b[e][1]);
                mma(product, a[0], b[e][0]);
#pragma unroll
                for (int i = 0; i < 4; ++i) sum[c][e][i] += product[i];
            }
        }
    }

    // Into rows of [x | h | 1 | first step?].
    __device__ __forceinline__ void write(float* to, const TensorLane& lane, int n) const {
        const int H = lane.H, width = n + H + 2;
        const int q = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
        for (int c = 0; c < kChunks; ++c)
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                const int column = kUnits * c + i / 4 * 8 + 2 * q + i % 2;
                const int row = lane.unit + i / 2 % 2 * 8;
                if (row >= H || column >= width) continue;
                const int place = column < H ? n + column : column < H + n ? column - H : column;
                to[row * width + place] = sum[c][i / 4][i % 4];
            }
    }
};

__device__ __forceinline__ void store_states(unsigned* to, const TensorLane& lane,
                                             const Fragment& v) {
    const int here = static_cast<int>(threadIdx.x) % 32;
    const Pieces first(v[0], v[1]), second(v[2], v[3]);
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
        unsigned* const at = to + kChunkWords * (lane.unit / kUnits) + kPieceWords * p + 2 * here;
        at[0] = first.part[p];
        at[1] = second.part[p];
    }
}

template <int kChunks, int kAllInRegisters>
__device__ __forceinline__ void sum_gradient(const BackwardTask& task,
                                             const BackwardRooms<kChunks, kAllInRegisters>& rooms,
                                             TensorLane lane, const float* h, const float* x,
                                             float* partial) {
    const int T = static_cast<int>(task.T), n = static_cast<int>(task.n);
    const int move = lane.B * lane.H, input_move = lane.B * n;
    TensorGradient<kChunks> gradient;
    Fragment arriving;  // [h_{t-1} ; x_t ; 1 ; first step?]
    const auto fetch = [&](int t) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int beyond = lane.unit + i / 2 * 8 - lane.H - n;
            arriving[i] = beyond == 0 || (beyond == 1 && t == 0) ? 1.0f : 0.0f;
        }
        if (t > 0) lane.read(step_of(h, t - 1, move), arriving);
        lane.read_inputs(step_of(x, t, input_move), n, arriving);
    };
    fetch(T - 1);
    for (int c = 0; c < kChunks; c += 2) block_barrier();  // as many as the weights' are
    block_barrier();  // the rows of the first step are complete
    for (int t = T - 1; t >= -1; --t) {
        lane.forget();
        const int even = (T - 1 - t) % 2, odd = 1 - even;
        if (t >= 0) store_states(rooms.states(odd), lane, arriving);
        if (t > 0) fetch(t - 1);
        if (t < T - 1) gradient.add(rooms.carry(even), lane, rooms.states(even));
        block_barrier();  // gt_t and what it is multiplied by are complete
    }
    // The block's number in x as the lane knows it: kept for this alone it took a register too many.
    const long long block =
        static_cast<long long>(blockIdx.y) * gridDim.x + lane.sequence / kSequences;
    gradient.write(partial + block * task.H * (task.n + task.H + 2), lane, n);
}

// ---- the first group

// k outputs are in the padding, as inputs are; with u there are none.
template <int kChunks, int kAllInRegisters>
__device__ __forceinline__ void chain_backward(const BackwardTask& task,
                                               const BackwardRooms<kChunks, kAllInRegisters>& rooms,
                                               TensorLane lane, int tile, const float* W,
                                               const float* W_y, const float* h, const float* gs,
                                               const float* u, const float* a,
                                               const long long* steps) {
    const int T = static_cast<int>(task.T), k = static_cast<int>(task.k), H = lane.H;
    const int move = lane.B * H, output_move = lane.B * k;
    TensorWeights<kChunks, kAllInRegisters> weights;
    weights.load(tile, rooms.weights(tile), [&](int row, int column) {
        if (row >= H || column >= H + k) return 0.0f;
        return column < H ? W[column * H + row] : W_y[(column - H) * H + row];
    });
    Cursor outputs(steps, task.slots, true);
    Fragment arriving = {}, damped = {};  // arriving: [h_t ; gs_{t-1}]
    const auto fetch_outputs = [&](int t) {
        clear_absent(lane, arriving);
        if (k > 0 && outputs.has(t))
            lane.read_inputs(step_of(gs, outputs.slot(t), output_move), k, arriving);
    };
    const auto fetch = [&](int t) {
        lane.read(step_of(h, t, move), arriving);
        if (t > 0) fetch_outputs(t - 1);
        if (a != nullptr) lane.read(step_of(a, t, move), damped);
    };
    fetch_outputs(T - 1);
    store_rows(rooms.carry(0), lane, arriving);  // nothing is carried into the last step
    fetch(T - 1);
    block_barrier();  // the rows of the first step are complete
    for (int t = T - 1; t >= 0; --t) {
        lane.forget();
        const int even = (T - 1 - t) % 2, odd = 1 - even;
        Fragment y = {};
        if (u != nullptr && outputs.has(t)) add_step(step_of(u, outputs.slot(t), move), lane, y);
        weights.multiply(rooms.carry(even), y);
        Fragment d;
        differentiate(arriving, task.nonlinearity, d);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            y[i] = d[i] * y[i] + task.coefficient * damped[i];
            if (!lane.inside(i)) y[i] = 0.0f;  // the gradient is over all sequences
            if (!lane.real(i)) y[i] = arriving[i];
        }
        store_rows(rooms.carry(odd), lane, y);
        if (t > 0) fetch(t - 1);
        block_barrier();  // gt_t and what it is multiplied by are complete
    }
    block_barrier();  // the second group's last step
}

// H + n + 2 <= 16 kChunks, and H + k likewise.
template <int kChunks, int kAllInRegisters>
__device__ __forceinline__ void backward_on_tensor_cores(
    const BackwardTask& task, const float* W_hh, const float* W_yh, const float* x, const float* h,
    const float* gs, const float* u, const float* a, const long long* steps, float* partial) {
    HFCORE_DYNAMIC_SHARED(unsigned, shared);
    const BackwardRooms<kChunks, kAllInRegisters> rooms{shared};
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const int tile = warp < kChunks ? warp : warp - kChunks;
    const TensorLane lane(tile, static_cast<int>(task.H), static_cast<int>(task.B));
    const long long TB = task.T * task.B, slots_B = task.slots * task.B;
    const float* const states = group(task.distinct, h, kFactor, TB * task.H);
    if (warp < kChunks) {
        chain_backward(task, rooms, lane, tile,
                       group(task.distinct, W_hh, kCarryWeights, task.net_stride),
                       group(task.distinct, W_yh, kInputWeights, task.net_stride), states,
                       // gs has the bit of a bias, of which there is none.
                       group(task.distinct, gs, kBias, slots_B * task.k),
                       group(task.distinct, u, kAdded, slots_B * task.H),
                       group(task.distinct, a, kStructural, TB * task.H), steps);
    } else {
        sum_gradient(task, rooms, lane, states,
                     group(task.distinct, x, kInput, TB * task.n), partial);
    }
}

}  // namespace hfcore_gpu
