// A gated cell through time in one kernel: a block takes 8 sequences of one net, the weights of the
// step's product stay in shared memory.
//
//   forward, R-op   sums [8, R·H] = carry [8, H] · W_hhᵀ       columns: unit by unit, R of each
//   back            sums [8, H]   = carry [8, R·H] · W_hh      k: row of blocks by row
//
// A thread multiplies 8 rows by 4 columns over a slice of K: an LDS.128 of weights and two of the
// carry, which are the same for all lanes of a slice, for 32 FFMA. Its weights of the first kHeld k of
// the slice are in its registers instead, where not all of them fit in shared memory. The slices'
// sums meet in shared memory, where 2 H threads finish 4 rows of a unit each; what that needs from
// global memory was asked for before the product.
//
// Layout   weights [column / 4][k that are not held, slice by slice][column % 4], the number of k made
//          odd, so that 8 groups of columns side by side lie on different banks.
//          carry [k][8 rows]; zeros where the last slice ends beyond K.
//          sums [slice][column / 4][column % 4][8 rows], 4 words between the groups for the banks.
#pragma once

#include "gpu_cell.cuh"

namespace hfcore_gpu {

constexpr int kRows = 8;     // sequences of a block
constexpr int kColumns = 4;  // of a thread
constexpr int kHalf = 4;     // rows that a thread finishes
constexpr int kGroupSums = kColumns * kRows + 4;

using TileSums = float[kColumns][kRows];

// Sizes of the block's product; gpu.py plans `split` and the bytes.
template <int kHeld>
struct Extent {
    int K, columns, split;

    __device__ __forceinline__ int groups() const { return (columns + kColumns - 1) / kColumns; }
    __device__ __forceinline__ int length() const { return (K + split - 1) / split; }
    __device__ __forceinline__ int rest() const { return length() - kHeld; }  // not held
    __device__ __forceinline__ int group_words() const { return (split * rest() | 1) * kColumns; }
    __device__ __forceinline__ int weight_words() const { return groups() * group_words(); }
    __device__ __forceinline__ int carry_words() const { return split * length() * kRows; }
};

// What one thread multiplies: a slice, if it is below `split`, of four columns.
struct Tile {
    int slice, group;

    template <int kHeld>
    __device__ __forceinline__ explicit Tile(const Extent<kHeld>& extent)
        : slice(static_cast<int>(threadIdx.x) / extent.groups()),
          group(static_cast<int>(threadIdx.x) % extent.groups()) {}
};

// Where the weight of (k, column) is in W_hh [R·H,H]: torch's rows r·H + unit.
template <class Op>
__device__ __forceinline__ int weight_at(int k, int column, int H) {
    if (Op::kBack) return k * H + column;
    return (column % Op::kSums * H + column / Op::kSums) * H + k;
}

// W_hh as a product's right side: zero beyond its K and columns.
template <class Op, int kHeld>
struct Weights {
    const float* W;
    const Extent<kHeld>& extent;
    int H;

    __device__ __forceinline__ float at(int k, int column) const {
        return k < extent.K && column < extent.columns ? W[weight_at<Op>(k, column, H)] : 0.0f;
    }

    // Those that are not held, into shared memory.
    __device__ __forceinline__ void load(float* shared) const {
        // Lanes take 8 k by 4 columns: whole 32-byte sectors of W_hh forward, no bank conflict.
        constexpr int kBy = Op::kBack ? 1 : 8;
        const int rest = extent.rest(), count = extent.split * rest;
        const int columns = extent.groups() * kColumns;
        const int all = (count + kBy - 1) / kBy * kBy * columns;
        for (int i = static_cast<int>(threadIdx.x); i < all; i += static_cast<int>(blockDim.x)) {
            const int row = i / (kBy * columns) * kBy + i % kBy;
            const int c = i / kBy % columns;
            if (row >= count) continue;
            shared[c / kColumns * extent.group_words() + row * kColumns + c % kColumns] =
                at(row / rest * extent.length() + kHeld + row % rest, c);
        }
    }

    // Those of the first k of the thread's slice.
    template <int kCount>
    __device__ __forceinline__ void take(const Tile& tile, float (&held)[kCount][kColumns]) const {
#pragma unroll
        for (int i = 0; i < kHeld; ++i)
#pragma unroll
            for (int c = 0; c < kColumns; ++c)
                held[i][c] = at(tile.slice * extent.length() + i, tile.group * kColumns + c);
    }
};

// sum[column][row] += columns · rows.
__device__ __forceinline__ void rank_one(TileSums& sum, const float (&columns)[kColumns],
                                         const float* carry) {
    const float4 low = read4(carry), high = read4(carry + kHalf);
    const float rows[kRows] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int c = 0; c < kColumns; ++c)
#pragma unroll
        for (int r = 0; r < kRows; ++r) sum[c][r] += columns[c] * rows[r];
}

// sum[column][row] += weights[k][column] · carry[k][row] over the thread's slice.
template <int kHeld, int kCount>
__device__ __forceinline__ void multiply(TileSums& sum, const float (&held)[kCount][kColumns],
                                         const float* weights, const float* carry,
                                         const Extent<kHeld>& extent, const Tile& tile) {
    const float* a_at = carry + tile.slice * extent.length() * kRows;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) rank_one(sum, held[i], a_at + i * kRows);
    a_at += kHeld * kRows;
    const int rest = extent.rest();
    const float* w_at = weights + tile.group * extent.group_words() + tile.slice * rest * kColumns;
#pragma unroll 4
    for (int left = rest; left > 0; --left) {
        const float4 w = read4(w_at);
        const float columns[kColumns] = {w.x, w.y, w.z, w.w};
        rank_one(sum, columns, a_at);
        w_at += kColumns;
        a_at += kRows;
    }
}

__device__ __forceinline__ void write4(float* p, float a, float b, float c, float d) {
    *reinterpret_cast<float4*>(p) = make_float4(a, b, c, d);
}

__device__ __forceinline__ void write_sums(float* at, const TileSums& sum) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
        write4(at + c * kRows, sum[c][0], sum[c][1], sum[c][2], sum[c][3]);
        write4(at + c * kRows + kHalf, sum[c][4], sum[c][5], sum[c][6], sum[c][7]);
    }
}

// total[row][k] = the sum over all slices, in their order, of number k of a unit; a slice has `words`.
template <int kSums>
__device__ __forceinline__ void add_sums(const float* sums, int split, int words, int unit,
                                         int first_row, float (&total)[kHalf][kSums]) {
#pragma unroll
    for (int k = 0; k < kSums; ++k) {
        const int column = unit * kSums + k;
        const float* at = sums + column / kColumns * kGroupSums + column % kColumns * kRows +
                          first_row;
#pragma unroll 4
        for (int slice = 0; slice < split; ++slice) {
            const float4 part = read4(at);
            total[0][k] += part.x;
            total[1][k] += part.y;
            total[2][k] += part.z;
            total[3][k] += part.w;
            at += words;
        }
    }
}

// blockIdx.y is the net; those of W_hh are `net_stride` elements apart. At least 2 H threads, and groups x split; slices of kHeld k at least.
template <class Op, int kHeld>
__device__ __forceinline__ void scan(long long distinct, long long net_stride, const float* W_hh,
                                     const Arrays& all, long long split) {
    HFCORE_DYNAMIC_SHARED(float, shared);
    constexpr int R = Op::kBack ? Op::kCarried : Op::kSums;
    const int T = static_cast<int>(all.T), H = static_cast<int>(all.H);
    const Extent<kHeld> extent{Op::kBack ? R * H : H, Op::kBack ? H : R * H,
                               static_cast<int>(split)};
    float* const weights = shared;
    float* const carry = weights + extent.weight_words();
    float* const sums = carry + extent.carry_words();
    const int slice_words = extent.groups() * kGroupSums;
    const Tile tile(extent);
    const bool multiplies = tile.slice < extent.split;
    const Weights<Op, kHeld> of_net{group(distinct, W_hh, kWeights, net_stride), extent, H};
    float held[kHeld > 0 ? kHeld : 1][kColumns] = {};
    of_net.load(weights);
    of_net.take(tile, held);
    for (int i = extent.K * kRows + static_cast<int>(threadIdx.x); i < extent.carry_words();
         i += static_cast<int>(blockDim.x))
        carry[i] = 0.0f;

    const Arrays a = all.of_net<Op>(distinct);
    const int unit = static_cast<int>(threadIdx.x) % H;
    const int first_row = static_cast<int>(threadIdx.x) / H * kHalf;
    const bool finishes = first_row < kRows;
    const long long first = static_cast<long long>(blockIdx.x) * kRows + first_row;
    const Bias bias(a, unit, finishes);
    float state[kHalf] = {};

    for (int step = 0; step < T; ++step) {
        const int t = Op::kBack ? T - 1 - step : step;
        const auto element = [&](int r) {
            return Element{t * a.B + first + r, unit, finishes && first + r < a.B, t == 0};
        };
        typename Op::Operands now[kHalf];
#pragma unroll
        for (int r = 0; r < kHalf; ++r) Op::fetch(a, element(r), now[r]);

        float total[kHalf][Op::kSums] = {};
        if (step > 0) {  // nothing is carried into the first step
            if (multiplies) {
                TileSums sum = {};
                multiply(sum, held, weights, carry, extent, tile);
                write_sums(sums + tile.slice * slice_words + tile.group * kGroupSums, sum);
            }
            __syncthreads();  // the sums are complete, and nobody reads the carry any more
            if (finishes)
                add_sums<Op::kSums>(sums, extent.split, slice_words, unit, first_row, total);
        }
        if (finishes) {
            float carried[kHalf][Op::kCarried];
#pragma unroll
            for (int r = 0; r < kHalf; ++r)
                Op::finish(a, element(r), bias, now[r], total[r], state[r], carried[r]);
#pragma unroll
            for (int k = 0; k < Op::kCarried; ++k)
                write4(carry + (k * H + unit) * kRows + first_row, carried[0][k], carried[1][k],
                       carried[2][k], carried[3][k]);
        }
        // Nothing is multiplied in the first step: the weights are there by now, too.
        __syncthreads();  // the carry of the next step is complete, and the sums are free
    }
}

}  // namespace hfcore_gpu
