// Products over all steps at once, beside the serial chain: rows of a sequence times a matrix, and
// sums of outer products over all rows. A row is one sequence at one slot (a step that counts).
// Every sum has one fixed order, which depends on the net's own shape alone: same bits in any group.
#pragma once

#include "kernels/gpu/platform.cuh"
#include "gpu_scan.cuh"
#include "gpu_tile.cuh"

namespace hfcore_gpu {

constexpr int kProductThreads = 256;

// Where an operand's row lies.
enum Place : int {
    kAtSlot = 0,     // as the result's
    kAtStep = 1,     // at the step of the slot: the operand has all steps
    kAtPrevious = 2  // at the step before, zero at the first; slots are all steps
};

// ---- y = (a A + h V + bias) ⊙ factor, a tile of 64 rows by 4 `groups` columns a block.
//
// A thread sums 4 x 4 elements over a slice of each chunk of 32 k; narrow results have more slices.

constexpr int kRowTile = 64;
constexpr int kDepth = 32;
constexpr int kRowStride = kRowTile + kTile;  // spreads the rows of a warp's stores over the banks

// One product of this block's net; `rows` lie where `place` says.
struct Operand {
    const float* rows;     // [slots or T, B, width]
    const float* weights;  // [columns, width] if transposed, else [width, columns]
    int width;             // 0: left out
    int place;
};

// Which rows and columns of the result a block computes.
struct RowTask {
    const long long* steps;  // of the slots; null: all steps
    long long first_row, rows, B;
    int first_column, columns;
    bool transposed;
};

// A thread's place in the block's tile, and shared memory: where each row starts, then a chunk of
// rows and of weights, afterwards the slices' sums in their place.
struct RowTile {
    long long* start;  // [kRowTile], -1 for rows that are zero
    float *rows, *weights, *sums;
    int groups, slices, column, row, slice;

    __device__ __forceinline__ RowTile(float* shared, int column_groups) : groups(column_groups) {
        start = reinterpret_cast<long long*>(shared);
        rows = shared + 2 * kRowTile;
        weights = rows + kDepth * kRowStride;
        sums = rows;
        const int thread = static_cast<int>(threadIdx.x);
        slices = kProductThreads / (kRowTile / kTile) / groups;
        column = thread % groups * kTile;
        row = thread / groups % (kRowTile / kTile) * kTile;
        slice = thread / groups / (kRowTile / kTile);
    }

    __device__ __forceinline__ int columns() const { return groups * kTile; }
    __device__ __forceinline__ int weight_stride() const { return columns() + kTile; }
};

// The first 64 threads say where the operand's rows begin.
__device__ __forceinline__ void find_rows(const RowTile& tile, const RowTask& task,
                                          const Operand& a) {
    if (threadIdx.x >= kRowTile) return;
    long long at = task.first_row + threadIdx.x;
    if (at >= task.rows) {
        at = -1;
    } else if (a.place == kAtPrevious) {
        at = at >= task.B ? at - task.B : -1;
    } else if (a.place == kAtStep && task.steps != nullptr) {
        const long long slot = at / task.B;
        at = task.steps[slot] * task.B + (at - slot * task.B);
    }
    tile.start[threadIdx.x] = at < 0 ? -1 : at * a.width;
}

// k = from .. from+31. Lanes take 8 k by 4 rows or columns: whole 32-byte sectors, no bank conflict.
__device__ __forceinline__ void load_chunk(const RowTile& tile, const RowTask& task,
                                           const Operand& a, int from) {
    const int low = static_cast<int>(threadIdx.x) % 8, other = static_cast<int>(threadIdx.x) / 8;
#pragma unroll
    for (int part = 0; part < kDepth * kRowTile / kProductThreads; ++part) {
        const int k = part / 2 * 8 + low, r = part % 2 * (kProductThreads / 8) + other;
        const long long at = tile.start[r];
        tile.rows[k * kRowStride + r] =
            at >= 0 && from + k < a.width ? a.rows[at + from + k] : 0.0f;
    }
    const int k_by = task.transposed ? 8 : 1;
    for (int i = static_cast<int>(threadIdx.x); i < kDepth * tile.columns(); i += kProductThreads) {
        const int k = i / (k_by * tile.columns()) * k_by + i % k_by;
        const int c = i / k_by % tile.columns(), column = task.first_column + c;
        float value = 0.0f;
        if (from + k < a.width && column < task.columns) {
            const long long at = task.transposed
                                     ? static_cast<long long>(column) * a.width + from + k
                                     : static_cast<long long>(from + k) * task.columns + column;
            value = a.weights[at];
        }
        tile.weights[k * tile.weight_stride() + c] = value;
    }
}

// sum[column][row] += the thread's slice of the operand's product.
__device__ __forceinline__ void add_product(float (&sum)[kTile][kTile], const RowTile& tile,
                                            const RowTask& task, const Operand& a) {
    if (a.width == 0) return;
    find_rows(tile, task, a);  // nobody reads `start` any more once a chunk is complete
    const int depth = kDepth / tile.slices;
    for (int from = 0; from < a.width; from += kDepth) {
        __syncthreads();  // `start` is complete, and nobody reads the chunk before any more
        load_chunk(tile, task, a, from);
        __syncthreads();  // the chunk is complete
        const float* row_at = tile.rows + tile.slice * depth * kRowStride + tile.row;
        const float* weight_at =
            tile.weights + tile.slice * depth * tile.weight_stride() + tile.column;
#pragma unroll 4
        for (int k = 0; k < depth; ++k) {
            rank_one(sum, read4(row_at), read4(weight_at));
            row_at += kRowStride;
            weight_at += tile.weight_stride();
        }
    }
}

// ---- Σ over rows of left ⊗ [x | h | 1 | first step?], the rows cut into `splits`.
//
// A block takes a tile of 8 `high` by 8 `wide` elements over one split; a thread 8 x 8 of them. While
// a chunk of rows is multiplied the next is on its way; a thread always fetches the same column.

constexpr int kOuter = 8;  // rows and columns of a thread's tile, and rows that it fetches at once
constexpr int kChunkStride = 256;  // columns of left and right that a chunk has room for
constexpr int kSharers = 2;        // threads that share a column's rows at most

__device__ const float kOne = 1.0f;

// One column of left or right: the rows first .. last-1 of an array, elsewhere zero.
struct SourceColumn {
    const float* at;         // row 0
    const long long* steps;  // the rows are those of these steps, if given
    int stride, first, last, B;

    // Rows from .. from+7.
    __device__ __forceinline__ void read(int from, float (&to)[kOuter]) const {
        if (steps != nullptr) {
            for_steps(from, to);
            return;
        }
        const float* row = at + static_cast<long long>(from) * stride;
#pragma unroll
        for (int k = 0; k < kOuter; ++k, row += stride)
            to[k] = from + k >= first && from + k < last ? *row : 0.0f;
    }

private:
    __device__ __forceinline__ void for_steps(int from, float (&to)[kOuter]) const {
#pragma unroll
        for (int k = 0; k < kOuter; ++k) {
            to[k] = 0.0f;
            if (from + k < first || from + k >= last) continue;
            const int slot = (from + k) / B;
            to[k] = at[(steps[slot] * B + (from + k - slot * B)) * stride];
        }
    }
};

// Rows fit an int: gpu_products.py sees to that.
struct Outer {
    const float *left, *x, *h;  // [S,B,I], [T,B,n], [T,B,H] of this block's net
    const long long* steps;     // of h's rows; null: left has all steps
    int I, n, H, B;
    int begin, end;  // rows of this split
    bool previous;   // h of the step before, and a column that is one at the first step

    __device__ __forceinline__ int columns() const { return n + H + (previous ? 2 : 1); }

    __device__ __forceinline__ SourceColumn left_column(int i) const {
        return {left + i, nullptr, I, begin, i < I ? end : begin, B};
    }

    __device__ __forceinline__ SourceColumn right_column(int j) const {
        if (j < n) return {x + j, nullptr, n, begin, end, B};
        if (j < n + H && previous)
            return {h + (j - n) - static_cast<long long>(B) * H, nullptr, H, begin < B ? B : begin,
                    end, B};
        if (j < n + H) return {h + (j - n), steps, H, begin, end, B};
        if (j == n + H) return {&kOne, nullptr, 0, begin, end, B};
        if (j < columns()) return {&kOne, nullptr, 0, begin, end < B ? end : B, B};
        return {&kOne, nullptr, 0, begin, begin, B};
    }
};

// The warps that multiply are the first of a block, or of the later half of the grid those two
// further: blocks that share a multiprocessor then load its four schedulers alike.
__device__ __forceinline__ int outer_thread() {
    const int turned = 2 * blockIdx.x >= gridDim.x ? 64 : 0;
    return (static_cast<int>(threadIdx.x) + turned) % kProductThreads;
}

// The block's sums over its rows; threads beyond high x wide only fetch. Shared: two chunks.
__device__ __forceinline__ void sum_outer(const Outer& o, float* shared, int high, int wide,
                                          int first_i, int first_j, float (&sum)[kOuter][kOuter]) {
    const int thread = outer_thread();
    const int width = kOuter * (high + wide);
    const int sharers = kProductThreads / width < kSharers ? kProductThreads / width : kSharers;
    const int own = thread % width, turn = thread / width;
    const int depth = kOuter * sharers;  // rows of a chunk
    const SourceColumn source = own < kOuter * high
                                    ? o.left_column(first_i + own)
                                    : o.right_column(first_j + own - kOuter * high);
    const bool fetches = turn < sharers, multiplies = thread < high * wide;
    const int i_at = thread / wide * kOuter, j_at = kOuter * high + thread % wide * kTile;
    float ahead[kOuter];
    const auto fetch = [&](int from) {
        if (fetches) source.read(from + turn * kOuter, ahead);
    };
    const auto store = [&](float* chunk) {
        if (!fetches) return;
#pragma unroll
        for (int k = 0; k < kOuter; ++k)
            chunk[(turn * kOuter + k) * kChunkStride + own] = ahead[k];
    };
    fetch(o.begin);
    store(shared);
    __syncthreads();
    int buffer = 0;
    for (int row = o.begin; row < o.end; row += depth) {
        const bool more = row + depth < o.end;
        if (more) fetch(row + depth);
        if (multiplies) {
            const float* i_from = shared + buffer * depth * kChunkStride + i_at;
            const float* j_from = shared + buffer * depth * kChunkStride + j_at;
            const float* j_next = j_from + kTile * wide;
            for (int turns = sharers; turns > 0; --turns) {
#pragma unroll
                for (int k = 0; k < kOuter; ++k) {
                    const float4 i0 = read4(i_from + k * kChunkStride);
                    const float4 i1 = read4(i_from + k * kChunkStride + kTile);
                    const float4 j0 = read4(j_from + k * kChunkStride);
                    const float4 j1 = read4(j_next + k * kChunkStride);
                    const float is[kOuter] = {i0.x, i0.y, i0.z, i0.w, i1.x, i1.y, i1.z, i1.w};
                    const float js[kOuter] = {j0.x, j0.y, j0.z, j0.w, j1.x, j1.y, j1.z, j1.w};
#pragma unroll
                    for (int a = 0; a < kOuter; ++a)
#pragma unroll
                        for (int b = 0; b < kOuter; ++b) sum[a][b] += is[a] * js[b];
                }
                i_from += kOuter * kChunkStride;
                j_from += kOuter * kChunkStride;
                j_next += kOuter * kChunkStride;
            }
        }
        buffer ^= 1;
        if (more) store(shared + buffer * depth * kChunkStride);
        __syncthreads();  // the next chunk is complete, and this one is free
    }
}

}  // namespace hfcore_gpu
