// One block's product per step: carry [8 rows, K] times weights [K, H], both in shared memory.
//
// A thread holds a tile of 4 rows x 4 columns over one slice of K, so that per k it issues two
// LDS.128 for 16 FMAs. The slices' sums meet in shared memory, where another 2 H threads add them
// up, 4 rows of a column each. Cutting K as finely as the threads allow costs a second barrier a
// step, and fills all warps whatever H is: at H=100 a sum within warps would leave a fifth idle.
//
// Layout   weights [column / 4][k][column % 4], K made odd: constant distance from k to k+1, and
//          the 8 column groups of a half-warp fall on different banks.
//          carry [k][8 rows].
// Lanes i and i^1 hold the two row halves of the same columns: equal weight addresses, and equal
// row addresses for i and i^2, which lets the hardware merge the quarter-warps of an LDS.128.
#pragma once

#include "kernels/gpu/platform.cuh"

namespace hfcore_gpu {

constexpr int kRows = 8;  // batch rows of a block
constexpr int kTile = 4;  // rows, and columns, of a thread

__device__ __forceinline__ void write4(float* p, const float (&y)[kTile]) {
    *reinterpret_cast<float4*>(p) = make_float4(y[0], y[1], y[2], y[3]);
}

// Sizes of the block's product; kernels/recurrence/gpu.py plans `split` and the bytes.
struct Extent {
    int H, K, split;

    __device__ __forceinline__ int groups() const { return (H + kTile - 1) / kTile; }
    __device__ __forceinline__ int odd_K() const { return K | 1; }
    __device__ __forceinline__ int weight_words() const { return groups() * kTile * odd_K(); }
    __device__ __forceinline__ int carry_words() const { return K * kRows; }
};

// A range of k, the same for all threads of a slice.
struct Slice {
    int begin, end;
};

// What one thread multiplies.
struct Tile {
    int slice;  // `split` and above for threads that have none
    int group;  // columns 4 group .. +3
    int row;    // rows row .. +3

    __device__ __forceinline__ explicit Tile(const Extent& extent) {
        const int tiles = 2 * extent.groups();
        const int thread = static_cast<int>(threadIdx.x);
        slice = thread / tiles;
        group = thread % tiles / 2;
        row = thread % 2 * kTile;
    }

    // This thread's part of [from, to), cut into slices of equal length.
    __device__ __forceinline__ Slice cut(const Extent& extent, int from, int to) const {
        if (slice >= extent.split || from >= to) return {0, 0};
        const int length = (to - from + extent.split - 1) / extent.split;
        const int begin = from + slice * length;
        return {begin, begin + length < to ? begin + length : to};
    }
};

__device__ __forceinline__ void rank_one(float (&sum)[kTile][kTile], float4 a, float4 w) {
    const float rows[kTile] = {a.x, a.y, a.z, a.w};
    const float columns[kTile] = {w.x, w.y, w.z, w.w};
#pragma unroll
    for (int c = 0; c < kTile; ++c)
#pragma unroll
        for (int r = 0; r < kTile; ++r) sum[c][r] += columns[c] * rows[r];
}

// sum[column][row] += weights[k][column] · carry[k][row] over the slice.
__device__ __forceinline__ void multiply(float (&sum)[kTile][kTile], const float* weights,
                                         const float* carry, const Extent& extent, const Tile& tile,
                                         Slice slice) {
    if (slice.begin >= slice.end) return;
    const float* w_at = weights + (tile.group * extent.odd_K() + slice.begin) * kTile;
    const float* a_at = carry + slice.begin * kRows + tile.row;
    float4 w = read4(w_at);
    float4 a = read4(a_at);
    // The next operands are on their way while these are used; the last round is peeled.
#pragma unroll 4
    for (int left = slice.end - slice.begin - 1; left > 0; --left) {
        w_at += kTile;
        a_at += kRows;
        const float4 w_next = read4(w_at);
        const float4 a_next = read4(a_at);
        rank_one(sum, a, w);
        w = w_next;
        a = a_next;
    }
    rank_one(sum, a, w);
}

// Where a slice's sum of one column and 4 rows lies. The columns of a group are turned by the
// group's number, so that the threads of a quarter-warp write to different banks.
__device__ __forceinline__ int partial_at(const Extent& extent, int slice, int column, int row) {
    const int group = column / kTile;
    const int turned = (column ^ group) % kTile;
    return ((slice * extent.groups() + group) * kTile + turned) * kRows + row;
}

__device__ __forceinline__ void write_partial(float* partial, const Extent& extent,
                                              const Tile& tile,
                                              const float (&sum)[kTile][kTile]) {
    if (tile.slice >= extent.split) return;
#pragma unroll
    for (int c = 0; c < kTile; ++c)
        write4(partial + partial_at(extent, tile.slice, tile.group * kTile + c, tile.row), sum[c]);
}

// total[r] = the sum over all slices, in their order.
__device__ __forceinline__ void add_partials(const float* partial, const Extent& extent, int column,
                                             int row, float (&total)[kTile]) {
    const float* at = partial + partial_at(extent, 0, column, row);
    const int words = extent.groups() * kTile * kRows;
#pragma unroll 4
    for (int slice = 0; slice < extent.split; ++slice) {
        const float4 part = read4(at);
        total[0] += part.x;
        total[1] += part.y;
        total[2] += part.z;
        total[3] += part.w;
        at += words;
    }
}

// Rows first .. first+m-1 of the weights, zero in the columns beyond H.
// Source: [m, H] as it is, or [H, m] when transposed.
__device__ __forceinline__ void load_weights(float* weights, const Extent& extent, int first, int m,
                                             const float* source, bool transposed) {
    const int columns = extent.groups() * kTile;
    const int threads = static_cast<int>(blockDim.x);
    // Lanes take 8 k by 4 columns: whole 32-byte sectors of a transposed source, no bank conflict.
    const int k_by = transposed ? 8 : 1;
    const int all = (m + k_by - 1) / k_by * k_by * columns;
    for (int i = static_cast<int>(threadIdx.x); i < all; i += threads) {
        const int k = i / (k_by * columns) * k_by + i % k_by;
        const int c = i / k_by % columns;
        if (k >= m) continue;
        const int at = transposed ? c * m + k : k * extent.H + c;
        const float value = c < extent.H ? source[at] : 0.0f;
        weights[(c / kTile * extent.odd_K() + first + k) * kTile + c % kTile] = value;
    }
}

}  // namespace hfcore_gpu
