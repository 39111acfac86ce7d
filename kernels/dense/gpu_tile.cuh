// A tile of a matrix product, one a block: sums over k of left[row][k] right[k][column].
//
// Chunks of k pass through 2 or 3 slots of shared memory, [k][row] and [k][column] whatever the
// layout of the arrays; copies of 4 bytes do the turning, and weights may start at any float. While a
// chunk is multiplied the next ones are on their way. The k of a chunk are cut into slices, each
// multiplied by threads of its own: a small result still has 4 warps or 8, and meets in shared
// memory at the end, slice after slice, from where whole rows are written.
//
// A thread holds `tall` x `wide` sums in groups of 4 rows and 4 columns, so that a warp's LDS.128 are
// two wavefronts each: lanes i and i^1 read equal columns, lanes i and i^2 equal rows.
// Every sum has one fixed order, which depends on the shape of the net's arrays alone.
#pragma once

#include "kernels/gpu/platform.cuh"

namespace hfcore_gpu {

constexpr int kAcross = 8;  // threads side by side

// height x width of the result by a block, tall x wide of them by a thread, over `depth` k of every
// chunk; `stages` slots. gpu.py has the same numbers.
template <int kHeight, int kWidth, int kTall, int kSlices, int kDepth, int kStages>
struct TileShape {
    static constexpr int stages = kStages;
    static constexpr int height = kHeight, width = kWidth, tall = kTall, wide = kWidth / kAcross;
    static constexpr int slices = kSlices, depth = kDepth, chunk = kSlices * kDepth;
    static constexpr int down = kHeight / kTall;
    static constexpr int slice_threads = down * kAcross, threads = kSlices * slice_threads;
    static constexpr int elements = height * width / threads;  // that a thread writes
    static constexpr int batch =
        elements % 8 == 0 ? 8 : elements % 5 == 0 ? 5 : elements % 4 == 0 ? 4 : 2;
    // Blocks that a multiprocessor shall hold: 12 warps or 16.
    static constexpr int resident = threads <= 128 ? 3 : 2;
    static_assert(slice_threads % 32 == 0 && tall % 4 == 0 && wide % 2 == 0, "whole warps, vectors");
    static_assert(elements % batch == 0, "no element is left over");
};

// What a block computes: a piece of a `rows` x `columns` result, over k < depth.
struct TileTask {
    int first_row, first_column, rows, columns, depth;
};

// Neighbouring blocks share rows.
template <class T>
__device__ __forceinline__ TileTask tile_task(int tile, int rows, int columns, int depth) {
    const int across = (columns + T::width - 1) / T::width;
    return {tile / across * T::height, tile % across * T::width, rows, columns, depth};
}

// One operand of the block: kExtent rows (or columns) that it copies chunk by chunk. kAlongK: k runs
// along the array's rows, else across them.
template <class T, int kExtent, bool kAlongK>
struct TileSide {
    // Lanes take 8 k by 4 rows, or 16 or 32 rows of one k: whole sectors, and no bank conflict.
    static constexpr int stride = kAlongK ? kExtent + 4 : kExtent;
    static constexpr int words = T::chunk * stride;
    static constexpr int turns = T::threads / 8;
    static constexpr int lanes = kExtent % (kAlongK ? turns : 32) == 0 ? (kAlongK ? turns : 32) : 16;
    static constexpr int deep = T::threads / lanes;  // k that one pass over the rows copies
    static_assert(kExtent % lanes == 0 && T::chunk % deep == 0, "passes are whole");

    const float* from;
    long long row_length;
    int k, row, inside;

    // Rows first .. of an array with rows of that length; `count` rows exist in all.
    __device__ __forceinline__ TileSide(const float* array, int first, int count, int length)
        : row_length(length) {
        const int thread = static_cast<int>(threadIdx.x);
        k = kAlongK ? thread % 8 + thread / (8 * lanes) * 8 : thread / lanes;
        row = kAlongK ? thread / 8 % lanes : thread % lanes;
        inside = count - first - row;
        start(array, first);
    }

    __device__ __forceinline__ void start(const float* array, int first) {
        from = kAlongK ? array + (first + row) * row_length + k
                       : array + k * row_length + (first + row);
    }

    // The next chunk, of which `left` k exist: the others are zero. Rows beyond the array stay as
    // they are, since nobody writes what they give.
    __device__ __forceinline__ void copy(float* slot, int left) {
        const CopyTarget to(slot + k * stride + row);
        const float* at = from;
        const auto put = [&](int p, int q, const float* source) {
            if (p * lanes < inside)
                copy_async(to, q * deep * stride + p * lanes, source, k + q * deep < left);
        };
        if constexpr (kAlongK) {
#pragma unroll
            for (int p = 0; p < kExtent / lanes; ++p, at += lanes * row_length)
#pragma unroll
                for (int q = 0; q < T::chunk / deep; ++q) put(p, q, at + q * deep);
            from += T::chunk;
        } else {
#pragma unroll
            for (int q = 0; q < T::chunk / deep; ++q, at += deep * row_length)
#pragma unroll
                for (int p = 0; p < kExtent / lanes; ++p) put(p, q, at + p * lanes);
            from += T::chunk * row_length;
        }
    }
};

// Place of a thread's sums: groups of 4 of `lanes` threads each, then what is left over of pairs.
template <int kCount, int kLanes>
__device__ __forceinline__ int place(int lane, int i) {
    constexpr int kWhole = kCount / 4 * 4;
    return i < kWhole ? i / 4 * 4 * kLanes + 4 * lane + i % 4
                      : kWhole * kLanes + (kCount - kWhole) * lane + (i - kWhole);
}

template <int kCount, int kLanes>
__device__ __forceinline__ void read_places(const float* from, int lane, float (&to)[kCount]) {
#pragma unroll
    for (int i = 0; i + 4 <= kCount; i += 4) {
        const float4 four = read4(from + place<kCount, kLanes>(lane, i));
        to[i] = four.x;
        to[i + 1] = four.y;
        to[i + 2] = four.z;
        to[i + 3] = four.w;
    }
    if constexpr (kCount % 4 == 2) {
        const float2 two = *reinterpret_cast<const float2*>(
            from + place<kCount, kLanes>(lane, kCount - 2));
        to[kCount - 2] = two.x;
        to[kCount - 1] = two.y;
    }
}

// A thread's place in its block.
template <class T>
struct TilePlace {
    int slice, x, y;

    __device__ __forceinline__ TilePlace() {
        const int thread = static_cast<int>(threadIdx.x), at = thread % T::slice_threads;
        slice = thread / T::slice_threads;
        x = at / 2 % kAcross;
        y = at % 2 + at / 16 * 2;
    }
};

// The block's sums of left · right, in shared memory as [slice][row][column]. With `more` passes a
// second pair of arrays of the same shapes is summed behind the first. kSquared: of the squares.
// `watch` sees every chunk of left.
template <class T, bool kLeftAlongK, bool kRightAlongK, bool kSquared, class Watch>
__device__ __forceinline__ void sum_tile(const TileTask& task, const float* left_array,
                                         const float* right_array, bool more,
                                         const float* left_second, const float* right_second,
                                         int left_length, int right_length, float* shared,
                                         Watch watch) {
    using Left = TileSide<T, T::height, kLeftAlongK>;
    using Right = TileSide<T, T::width, kRightAlongK>;
    constexpr int kSlot = Left::words + Right::words;
    Left left(left_array, task.first_row, task.rows, left_length);
    Right right(right_array, task.first_column, task.columns, right_length);
    const int chunks = (task.depth + T::chunk - 1) / T::chunk, all = more ? 2 * chunks : chunks;
    int next = 0, remaining = task.depth;
    float* fill = shared;
    const auto load = [&] {
        if (next < all) {
            if (next == chunks) {
                left.start(left_second, task.first_row);
                right.start(right_second, task.first_column);
                remaining = task.depth;
            }
            left.copy(fill, remaining);
            right.copy(fill + Left::words, remaining);
            remaining -= T::chunk;
            fill = fill == shared + (T::stages - 1) * kSlot ? shared : fill + kSlot;
            ++next;
        }
        close_copies();
    };
    const TilePlace<T> at;
    float sum[T::tall][T::wide] = {};
#pragma unroll
    for (int stage = 0; stage < T::stages - 1; ++stage) load();
    const float* slot = shared;
    for (int c = 0; c < all; ++c) {
        wait_for_copies<T::stages - 2>();
        __syncthreads();  // the chunk is complete, and nobody reads the one before any more
        load();
        watch(slot);
        const float* left_at = slot + at.slice * T::depth * Left::stride;
        const float* right_at = slot + Left::words + at.slice * T::depth * Right::stride;
#pragma unroll
        for (int k = 0; k < T::depth; ++k) {
            float rows[T::tall], columns[T::wide];
            read_places<T::tall, T::down>(left_at + k * Left::stride, at.y, rows);
            read_places<T::wide, kAcross>(right_at + k * Right::stride, at.x, columns);
            if constexpr (kSquared) {
#pragma unroll
                for (float& row : rows) row *= row;
#pragma unroll
                for (float& column : columns) column *= column;
            }
#pragma unroll
            for (int i = 0; i < T::tall; ++i)
#pragma unroll
                for (int j = 0; j < T::wide; ++j) sum[i][j] += rows[i] * columns[j];
        }
        slot = slot == shared + (T::stages - 1) * kSlot ? shared : slot + kSlot;
    }
    __syncthreads();  // nobody reads a chunk any more
    float* const mine = shared + at.slice * T::height * T::width;
#pragma unroll
    for (int i = 0; i < T::tall; ++i) {
        float* const row = mine + place<T::tall, T::down>(at.y, i) * T::width;
#pragma unroll
        for (int j = 0; j + 4 <= T::wide; j += 4)
            *reinterpret_cast<float4*>(row + place<T::wide, kAcross>(at.x, j)) =
                make_float4(sum[i][j], sum[i][j + 1], sum[i][j + 2], sum[i][j + 3]);
#pragma unroll
        for (int j = T::wide / 4 * 4; j < T::wide; ++j)
            row[place<T::wide, kAcross>(at.x, j)] = sum[i][j];
    }
    __syncthreads();  // the sums are complete
}

// Some elements of the tile, the same number for every thread: neighbours hold neighbours.
template <int kBatch>
struct TileElements {
    long long at[kBatch];  // in the whole result
    int column[kBatch];
    bool inside[kBatch];
    float value[kBatch];

    // Elements of an array like the result, and of one with an element a column; else zero.
    __device__ __forceinline__ void read(const float* array, float (&to)[kBatch]) const {
#pragma unroll
        for (int i = 0; i < kBatch; ++i) to[i] = inside[i] ? array[at[i]] : 0.0f;
    }

    __device__ __forceinline__ void add_columns(const float* array) {
#pragma unroll
        for (int i = 0; i < kBatch; ++i) value[i] += inside[i] ? array[column[i]] : 0.0f;
    }

    __device__ __forceinline__ void write(float* array) const {
#pragma unroll
        for (int i = 0; i < kBatch; ++i)
            if (inside[i]) array[at[i]] = value[i];
    }
};

// Gives the tile's elements to `finish`, a batch at a time.
template <class T, class Finish>
__device__ __forceinline__ void finish_tile(const TileTask& task, const float* sums,
                                            Finish finish) {
#pragma unroll 1
    for (int first = static_cast<int>(threadIdx.x); first < T::height * T::width;
         first += T::batch * T::threads) {
        TileElements<T::batch> some;
#pragma unroll
        for (int i = 0; i < T::batch; ++i) {
            const int element = first + i * T::threads;
            const int row = task.first_row + element / T::width;
            some.column[i] = task.first_column + element % T::width;
            some.inside[i] = row < task.rows && some.column[i] < task.columns;
            some.at[i] = static_cast<long long>(row) * task.columns + some.column[i];
            some.value[i] = 0.0f;
#pragma unroll
            for (int slice = 0; slice < T::slices; ++slice)
                some.value[i] += sums[slice * T::height * T::width + element];
        }
        finish(some);
    }
}

// For a product without a watcher.
struct Unwatched {
    __device__ __forceinline__ void operator()(const float*) const {}
};

// Sums of left's rows over all k, at `total` behind finish(): thread t adds row t % height of every
// parts-th k.
template <class T, bool kSquared>
struct RowSums {
    static constexpr int parts = T::threads / T::height;
    static constexpr int stride = TileSide<T, T::height, false>::stride;
    bool wanted;
    float sum = 0.0f;

    __device__ __forceinline__ void operator()(const float* left) {
        if (!wanted) return;
        const int thread = static_cast<int>(threadIdx.x);
        const float* at = left + thread / T::height * stride + thread % T::height;
#pragma unroll
        for (int k = 0; k < T::chunk / parts; ++k, at += parts * stride)
            sum += kSquared ? *at * *at : *at;
    }

    // Every thread calls it; those of the first `height` get their row's sum.
    __device__ __forceinline__ float total(float* shared) const {
        const int thread = static_cast<int>(threadIdx.x);
        shared[thread] = sum;
        __syncthreads();  // the parts are complete
        float all = 0.0f;
        if (thread < T::height) {
#pragma unroll
            for (int part = 0; part < parts; ++part) all += shared[part * T::height + thread];
        }
        return all;
    }
};

}  // namespace hfcore_gpu
