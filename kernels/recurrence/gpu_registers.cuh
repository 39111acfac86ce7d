// The recurrence of gpu_scan.cuh with the weights in registers, for H <= 128.
//
// In the product carry [8 rows, H] · W [H, H] a warp cuts K into 8 slices, each `kLength` long and the
// work of 4 lanes. A lane multiplies 32 elements of the result over its slice; its weights never move,
// so that it reads nothing but the carry, one address for the 4 lanes of a slice:
//
//   wide   4 rows by 8 columns, a warp 4 rows by 32 columns: one LDS.128 a k for 32 FFMA, and 8
//          registers of weights
//   tall   8 rows by 4 columns, a warp 8 rows by 16 columns: two LDS.128, and 4 registers, which leaves
//          room for V
//
// The slices' sums meet within the warp by halving: a lane hands over half of what it holds and adds
// what it gets, three times, and ends with 4 rows of one column. Which half that is depends on its
// slice; taking rows and columns in an order of its own makes it the same registers in every lane. The
// carry has two buffers, so a step has one barrier.
//
// V meets the states of the step before, which are known beforehand: that product of the next step
// is summed before the barrier, while other warps wait.
#pragma once

#include "kernels/gpu/activation.cuh"
#include "kernels/gpu/platform.cuh"
#include "gpu_scan.cuh"
#include "gpu_tile.cuh"

namespace hfcore_gpu {

constexpr int kSlices = 8;

// Sums of one lane: two tiles of 4 columns by 4 rows, the tile that it finishes a part of first.
using LaneSums = float[2][kTile][kTile];

// Tall: two tiles of rows by one of columns. Wide: one of rows by two of columns.
template <int kLength, bool kWide>
using LaneWeights = float[kLength][kWide ? 2 : 1][kTile];

// A lane's place: which slice and columns it multiplies, and which 4 rows of a column it finishes.
template <bool kWide>
struct Lane {
    static constexpr int kColumns = kWide ? 32 : 16;  // of its warp

    int quad, slice, half, turn, first_column, row;

    __device__ __forceinline__ Lane() {
        const int lane = static_cast<int>(threadIdx.x) % 32;
        const int warp = static_cast<int>(threadIdx.x) / 32;
        quad = lane % 4;
        slice = lane / 4;
        half = slice % 2;
        turn = slice / 2;
        first_column = (kWide ? warp / 2 : warp) * kColumns;
        row = (kWide ? warp % 2 : half) * kTile;
    }

    // The column of weight and sum number `j` of a tile; number 0 of tile 0 is finished here.
    __device__ __forceinline__ int column(int tile, int j) const {
        return first_column + quad + 4 * (j ^ turn) + (kWide ? 16 * (tile ^ half) : 0);
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
template <int kLength, bool kWide, bool kFresh>
__device__ __forceinline__ void multiply(LaneSums& sum, const LaneWeights<kLength, kWide>& weights,
                                         const float* rows, const Lane<kWide>& lane) {
    const float* const slice = rows + lane.slice * RowBuffer<kLength>::kStride;
#pragma unroll
    for (int k = 0; k < kLength; ++k) {
#pragma unroll
        for (int tile = 0; tile < 2; ++tile) {
            const int row = kWide || tile == 0 ? lane.row : kTile - lane.row;
            const float(&w)[kTile] = weights[k][kWide ? tile : 0];
            const float4 columns = make_float4(w[0], w[1], w[2], w[3]);
            if (kFresh && k == 0) {
                start_rank_one(sum[tile], read4(slice + row + k * kRows), columns);
            } else {
                rank_one(sum[tile], read4(slice + row + k * kRows), columns);
            }
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
template <int kLength, bool kWide>
__device__ __forceinline__ void take_weights(LaneWeights<kLength, kWide>& weights,
                                             const float* staged, const Lane<kWide>& lane, int H,
                                             bool transposed) {
    const int stride = H | 1;
#pragma unroll
    for (int k = 0; k < kLength; ++k) {
        const int from = lane.slice * kLength + k;
#pragma unroll
        for (int i = 0; i < (kWide ? 2 : 1) * kTile; ++i) {
            const int to = lane.column(i / kTile, i % kTile);
            const int at = transposed ? to * stride + from : from * stride + to;
            weights[k][i / kTile][i % kTile] = from < H && to < H ? staged[at] : 0.0f;
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
    volatile int* numbers;

    __device__ __forceinline__ Rooms(float* shared, int m, int H, bool with_hidden) {
        constexpr int kBuffers = 2 * RowBuffer<kLength>::kWords;
        carry = shared;
        hidden = carry + kBuffers;
        inputs = hidden + (with_hidden ? kBuffers : 0);
        input_weights = inputs + 2 * m * kRows;
        staged = input_weights + m * H;
        numbers = reinterpret_cast<int*>(staged + (H - 1) * (H | 1) + H);
    }
};

// [m, H]. Source: the same as it is, or [H, m] when transposed.
__device__ __forceinline__ void load_input_weights(float* weights, const float* source, int m,
                                                   int H, bool transposed) {
    for (int c = static_cast<int>(threadIdx.x); c < H; c += static_cast<int>(blockDim.x))
        for (int j = 0; j < m; ++j)
            weights[j * H + c] = source[transposed ? c * m + j : j * H + c];
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

// A scan whose numbers that every step asks for stay in registers: a parameter of the kernel is loaded
// anew wherever it is asked for, and a step waits for it. Every thread stores the same, so none waits.
__device__ __forceinline__ Scan with_numbers_in_registers(const Scan& given, volatile int* room) {
    room[0] = static_cast<int>(given.T);
    room[1] = static_cast<int>(given.H);
    room[2] = static_cast<int>(given.m);
    room[3] = static_cast<int>(given.nonlinearity);
    Scan s = given;
    s.T = room[0];
    s.H = room[1];
    s.m = room[2];
    s.nonlinearity = room[3];
    return s;
}

// All steps, once the lane has its weights, and the carry is zero.
template <int kLength, bool kWide, bool kActivates, bool kHidden, bool kReverse>
__device__ __forceinline__ void take_steps(const Scan& s, const Rooms<kLength>& rooms,
                                           const Lane<kWide>& lane,
                                           const LaneWeights<kLength, kWide>& weights,
                                           const LaneWeights<kLength, kWide>& hidden_weights) {
    using Buffer = RowBuffer<kLength>;
    const int T = static_cast<int>(s.T), H = static_cast<int>(s.H), m = static_cast<int>(s.m);
    const Nets<kReverse> net(s);
    Pair carry{rooms.carry, rooms.carry + Buffer::kWords};
    Pair hidden{rooms.hidden, rooms.hidden + Buffer::kWords};  // of the next step, and of that after
    Pair inputs{rooms.inputs, rooms.inputs + m * kRows};
    const Column column(s, lane.column(0, 0), lane.row);
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
            if (with_input && column.exists)
                add_inputs(y, inputs.now + column.row, rooms.input_weights + column.index, m, H);
            // Nothing is carried into the first step.
            if (step > 0) multiply<kLength, kWide, !kHidden>(sum, weights, carry.now, lane);
            add_slices(sum, y);
            finish<kActivates>(s, now, net.structural != nullptr, y);
            if (column.exists) {
                write4(carry.next + place, y);
                if (kHidden) write4(hidden.next + place, next.factor);
                kept.write(time(step), y);
            }
            if (kHidden)
                multiply<kLength, kWide, true>(sum, hidden_weights, hidden.now, lane);
        }
        if (has_input) element.store(inputs.next, arriving_input);
        carry.turn();
        hidden.turn();
        inputs.turn();
        __syncthreads();  // the rows of the next step are complete
    }
}

// The same as scan() for weights that `kLength` k a slice hold: H <= 8 kLength.
template <int kLength, bool kWide, bool kActivates, bool kHidden, bool kReverse, bool kTransposed>
__device__ __forceinline__ void scan_in_registers(const Scan& s) {
    HFCORE_DYNAMIC_SHARED(float, shared);
    using Buffer = RowBuffer<kLength>;
    const int H = static_cast<int>(s.H), m = static_cast<int>(s.m);
    const Rooms<kLength> rooms(shared, m, H, kHidden);
    const Lane<kWide> lane;

    for (int i = static_cast<int>(threadIdx.x); i < (kHidden ? 4 : 2) * Buffer::kWords;
         i += static_cast<int>(blockDim.x))
        rooms.carry[i] = 0.0f;
    load_input_weights(rooms.input_weights,
                       group(s.distinct, s.input_weights, kInputWeights, s.net_stride), m, H,
                       kTransposed);
    stage(rooms.staged, group(s.distinct, s.W, kCarryWeights, s.net_stride), H);
    __syncthreads();  // W is there, and the buffers are zero
    LaneWeights<kLength, kWide> weights, hidden_weights;
    take_weights<kLength, kWide>(weights, rooms.staged, lane, H, kTransposed);
    if (kHidden) {
        __syncthreads();  // V takes the place of W
        stage(rooms.staged, group(s.distinct, s.V, kHiddenWeights, s.net_stride), H);
        __syncthreads();  // V is there
        take_weights<kLength, kWide>(hidden_weights, rooms.staged, lane, H, kTransposed);
    }
    take_steps<kLength, kWide, kActivates, kHidden, kReverse>(
        with_numbers_in_registers(s, rooms.numbers), rooms, lane, weights, hidden_weights);
}

// The compiled lengths of a slice; gpu.py has the same and gives one as `split`.
template <bool kWide, bool kActivates, bool kHidden, bool kReverse, bool kTransposed>
__device__ __forceinline__ void scan_by_length(const Scan& s) {
    if (s.stop != nullptr && *s.stop != 0) return;
    if (s.split <= 4) {
        scan_in_registers<4, kWide, kActivates, kHidden, kReverse, kTransposed>(s);
    } else if (s.split <= 8) {
        scan_in_registers<8, kWide, kActivates, kHidden, kReverse, kTransposed>(s);
    } else if (s.split <= 13) {
        scan_in_registers<13, kWide, kActivates, kHidden, kReverse, kTransposed>(s);
    } else {
        scan_in_registers<16, kWide, kActivates, kHidden, kReverse, kTransposed>(s);
    }
}

}  // namespace hfcore_gpu
