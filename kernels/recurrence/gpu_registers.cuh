// The recurrence of gpu_scan.cuh with the weights in registers, for H <= 128.
//
// A warp takes 16 columns of the product carry [8 rows, H] · W [H, H]: each of its 8 slices of K,
// `kLength` long, is the work of 4 lanes, and a lane multiplies 8 rows by 4 columns. Its weights never
// move, so that per k it reads two LDS.128 of the carry, one address for the 4 lanes of a slice, for
// 32 FFMA. The slices' sums meet within the warp by halving: a lane hands over half of what it holds
// and adds what it gets, three times, and ends with 4 rows of one column. The carry has two buffers,
// so a step has one barrier.
//
// Which half a lane hands over depends on its slice; reading the rows and the columns in an order of
// its own makes that the same registers in every lane.
//
// V meets the states of the step before, which are known beforehand: that product of the next step
// is summed before the barrier, while other warps wait.
#pragma once

#include "gpu_activation.cuh"
#include "gpu_platform.cuh"
#include "gpu_scan.cuh"
#include "gpu_tile.cuh"

namespace hfcore_gpu {

constexpr int kSlices = 8;
constexpr int kWarpColumns = 16;

// Sums of one lane: both halves of the rows in its own order, columns in its own order.
using LaneSums = float[2][kTile][kTile];

template <int kLength>
using LaneWeights = float[kLength][kTile];

// A lane's place: which slice and columns it multiplies, and which 4 rows of a column it finishes.
struct Lane {
    int quad, slice, half, turn, first_column;

    __device__ __forceinline__ Lane() {
        const int lane = static_cast<int>(threadIdx.x) % 32;
        quad = lane % 4;
        slice = lane / 4;
        half = slice % 2;
        turn = slice / 2;
        first_column = static_cast<int>(threadIdx.x) / 32 * kWarpColumns;
    }

    // The column that weight and sum number `j` belong to; that of number 0 is finished here.
    __device__ __forceinline__ int column(int j) const {
        return first_column + quad + 4 * (j ^ turn);
    }
};

// Rows [8 slices of kLength k][8 rows]; an odd distance between slices keeps them on different banks.
template <int kLength>
struct RowBuffer {
    static constexpr int kStride = (kLength | 1) * kRows;
    static constexpr int kWords = kSlices * kStride;

    static __device__ __forceinline__ int at(int k) {
        return k / kLength * kStride + k % kLength * kRows;
    }
};

__device__ __forceinline__ void start_rank_one(float (&sum)[kTile][kTile], float4 a, float4 w) {
    const float rows[kTile] = {a.x, a.y, a.z, a.w};
    const float columns[kTile] = {w.x, w.y, w.z, w.w};
#pragma unroll
    for (int c = 0; c < kTile; ++c)
#pragma unroll
        for (int r = 0; r < kTile; ++r) sum[c][r] = columns[c] * rows[r];
}

// sum += rows · weights over the lane's slice, or = if kFresh.
template <int kLength, bool kFresh>
__device__ __forceinline__ void multiply(LaneSums& sum, const LaneWeights<kLength>& weights,
                                         const float* rows, const Lane& lane) {
    const float* const slice = rows + lane.slice * RowBuffer<kLength>::kStride;
    const float* const own = slice + lane.half * kTile;
    const float* const other = slice + (1 - lane.half) * kTile;
#pragma unroll
    for (int k = 0; k < kLength; ++k) {
        const float4 w = make_float4(weights[k][0], weights[k][1], weights[k][2], weights[k][3]);
        const float4 first = read4(own + k * kRows), second = read4(other + k * kRows);
        if (kFresh && k == 0) {
            start_rank_one(sum[0], first, w);
            start_rank_one(sum[1], second, w);
        } else {
            rank_one(sum[0], first, w);
            rank_one(sum[1], second, w);
        }
    }
}

// total[r] += the sum over all slices of the lane's own column and rows.
__device__ __forceinline__ void add_slices(LaneSums& sum, float (&total)[kTile]) {
    constexpr unsigned kAll = 0xffffffffu;
#pragma unroll
    for (int j = 0; j < kTile; ++j)
#pragma unroll
        for (int r = 0; r < kTile; ++r) sum[0][j][r] += __shfl_xor_sync(kAll, sum[1][j][r], 4);
#pragma unroll
    for (int j = 0; j < kTile; j += 2)
#pragma unroll
        for (int r = 0; r < kTile; ++r) sum[0][j][r] += __shfl_xor_sync(kAll, sum[0][j + 1][r], 8);
#pragma unroll
    for (int r = 0; r < kTile; ++r)
        total[r] += sum[0][0][r] + __shfl_xor_sync(kAll, sum[0][2][r], 16);
}

__device__ __forceinline__ void clear(LaneSums& sum) {
#pragma unroll
    for (int i = 0; i < 2 * kTile * kTile; ++i) sum[i / 16][i / 4 % 4][i % 4] = 0.0f;
}

// W [H,H] as it lies in memory into shared memory, rows H | 1 apart.
__device__ __forceinline__ void stage(float* staged, const float* W, int H) {
    const int threads = static_cast<int>(blockDim.x), stride = H | 1;
    const int rows_on = threads / H, columns_on = threads % H;
    int row = static_cast<int>(threadIdx.x) / H, column = static_cast<int>(threadIdx.x) % H;
#pragma unroll 4
    for (int i = static_cast<int>(threadIdx.x); i < H * H; i += threads) {
        staged[row * stride + column] = W[i];
        row += rows_on;
        column += columns_on;
        if (column >= H) {
            column -= H;
            ++row;
        }
    }
}

// The lane's weights out of what is staged, zero beyond H.
template <int kLength>
__device__ __forceinline__ void take_weights(LaneWeights<kLength>& weights, const float* staged,
                                             const Lane& lane, int H, bool transposed) {
    const int stride = H | 1;
#pragma unroll
    for (int k = 0; k < kLength; ++k) {
        const int from = lane.slice * kLength + k;
#pragma unroll
        for (int j = 0; j < kTile; ++j) {
            const int to = lane.column(j);
            const int at = transposed ? to * stride + from : from * stride + to;
            weights[k][j] = from < H && to < H ? staged[at] : 0.0f;
        }
    }
}

// Two buffers that change places every step.
struct Pair {
    float *now, *next;

    __device__ __forceinline__ void turn() {
        float* const was = now;
        now = next;
        next = was;
    }
};

// Shared memory of a block; gpu.py plans the bytes.
template <int kLength>
struct Rooms {
    float *carry, *hidden, *inputs, *input_weights, *staged;
    int columns;

    __device__ __forceinline__ Rooms(float* shared, int m, bool with_hidden) {
        constexpr int kBuffers = 2 * RowBuffer<kLength>::kWords;
        columns = static_cast<int>(blockDim.x) / 32 * kWarpColumns;
        carry = shared;
        hidden = carry + kBuffers;
        inputs = hidden + (with_hidden ? kBuffers : 0);
        input_weights = inputs + 2 * m * kRows;
        staged = input_weights + m * columns;
    }
};

// [m, columns], zero in those beyond H. Source: [m, H] as it is, or [H, m] when transposed.
__device__ __forceinline__ void load_input_weights(float* weights, const float* source, int m,
                                                   int columns, int H, bool transposed) {
    for (int c = static_cast<int>(threadIdx.x); c < columns; c += static_cast<int>(blockDim.x))
        for (int j = 0; j < m; ++j)
            weights[j * columns + c] = c < H ? source[transposed ? c * m + j : j * H + c] : 0.0f;
}

// total[r] += input rows · weights of one column.
__device__ __forceinline__ void add_inputs(float (&total)[kTile], const float* rows,
                                           const float* weights, int m, int columns) {
#pragma unroll 2
    for (int j = 0; j < m; ++j) {
        const float w = weights[j * columns];
        const float4 x = read4(rows + j * kRows);
        total[0] += w * x.x;
        total[1] += w * x.y;
        total[2] += w * x.z;
        total[3] += w * x.w;
    }
}

// The same as scan() for weights that `kLength` k a slice hold: H <= 8 kLength.
template <int kLength, bool kActivates, bool kHidden, bool kReverse, bool kTransposed>
__device__ __forceinline__ void scan_in_registers(const Scan& s) {
    HFCORE_DYNAMIC_SHARED(float, shared);
    using Buffer = RowBuffer<kLength>;
    const int T = static_cast<int>(s.T), H = static_cast<int>(s.H), m = static_cast<int>(s.m);
    const Rooms<kLength> rooms(shared, m, kHidden);
    const Lane lane;
    const Nets<kReverse> net(s);
    Pair carry{rooms.carry, rooms.carry + Buffer::kWords};
    Pair hidden{rooms.hidden, rooms.hidden + Buffer::kWords};  // of the next step, and of that after
    Pair inputs{rooms.inputs, rooms.inputs + m * kRows};

    for (int i = static_cast<int>(threadIdx.x); i < (kHidden ? 4 : 2) * Buffer::kWords;
         i += static_cast<int>(blockDim.x))
        rooms.carry[i] = 0.0f;
    load_input_weights(rooms.input_weights,
                       group(s.distinct, s.input_weights, kInputWeights, s.m * s.H), m,
                       rooms.columns, H, kTransposed);
    stage(rooms.staged, group(s.distinct, s.W, kCarryWeights, s.H * s.H), H);
    __syncthreads();  // W is there, and the buffers are zero
    LaneWeights<kLength> weights, hidden_weights;
    take_weights<kLength>(weights, rooms.staged, lane, H, kTransposed);
    if (kHidden) {
        __syncthreads();  // V takes the place of W
        stage(rooms.staged, group(s.distinct, s.V, kHiddenWeights, s.H * s.H), H);
        __syncthreads();  // V is there
        take_weights<kLength>(hidden_weights, rooms.staged, lane, H, kTransposed);
    }
    const Column column(s, lane.column(0), lane.half * kTile);
    const Biases bias(s, column);
    Arriving<kReverse> arriving(s, net, column);
    Kept<kReverse> kept(s, net, column);
    InputElement<kReverse> element(s, net);
    const auto time = [T](int step) { return kReverse ? T - 1 - step : step; };

    float next_input = 0.0f;
    bool has_input = element.fetch(time(0), next_input);
    element.store(inputs.now, next_input);
    bool next_has_input = T > 1 && element.fetch(time(1), next_input);
    const int place = Buffer::at(column.exists ? column.index : 0) + column.row;
    Operands now, next;
    arriving.fetch(time(0), next);
    if (kHidden && column.exists) write4(hidden.now + place, next.factor);
    LaneSums sum;
    clear(sum);
    __syncthreads();  // the rows of the first step are complete

    for (int step = 0; step < T; ++step) {
        now = next;
        const float arriving_input = next_input;
        const bool with_input = has_input;
        has_input = next_has_input;
        if (step + 1 < T) arriving.fetch(time(step + 1), next);
        next_has_input = step + 2 < T && element.fetch(time(step + 2), next_input);

        if (lane.first_column < H) {
            float y[kTile];
#pragma unroll
            for (int r = 0; r < kTile; ++r) y[r] = now.added[r] + bias.at(step);
            if (with_input)
                add_inputs(y, inputs.now + column.row,
                           rooms.input_weights + column.index, m, rooms.columns);
            // Nothing is carried into the first step.
            if (step > 0) multiply<kLength, !kHidden>(sum, weights, carry.now, lane);
            add_slices(sum, y);
            finish<kActivates>(s, now, net.structural != nullptr, y);
            if (column.exists) {
                write4(carry.next + place, y);
                if (kHidden) write4(hidden.next + place, next.factor);
                kept.write(time(step), y);
            }
            if (kHidden)
                multiply<kLength, true>(sum, hidden_weights, hidden.now, lane);
        }
        if (has_input) element.store(inputs.next, arriving_input);
        carry.turn();
        hidden.turn();
        inputs.turn();
        __syncthreads();  // the rows of the next step are complete
    }
}

// The compiled lengths of a slice; gpu.py has the same and gives one as `split`.
template <bool kActivates, bool kHidden, bool kReverse, bool kTransposed>
__device__ __forceinline__ void scan_by_length(const Scan& s) {
    if (s.stop != nullptr && *s.stop != 0) return;
    if (s.split <= 4) {
        scan_in_registers<4, kActivates, kHidden, kReverse, kTransposed>(s);
    } else if (s.split <= 8) {
        scan_in_registers<8, kActivates, kHidden, kReverse, kTransposed>(s);
    } else if (s.split <= 13) {
        scan_in_registers<13, kActivates, kHidden, kReverse, kTransposed>(s);
    } else {
        scan_in_registers<16, kActivates, kHidden, kReverse, kTransposed>(s);
    }
}

}  // namespace hfcore_gpu
