// The recurrence that all three on-chip kernels are: one block takes 8 sequences through time.
//
//   pre_t = [carry_t ; hidden_t ; input_t] · [W ; V ; W_input] + u_t + bias (+ initial bias at first)
//   y_t   = e(pre_t)                          forward pass
//   y_t   = d_t ⊙ pre_t + coefficient · a_t   R-op, reverse scan
//
// W, V and W_input stay in shared memory for the whole sequence and form one K loop. What a step
// needs from global memory was asked for one step earlier.
#pragma once

#include "kernels/gpu/activation.cuh"
#include "kernels/gpu/platform.cuh"
#include "gpu_tile.cuh"

namespace hfcore_gpu {

// Bits of `distinct`: which arrays have a group axis; the others are shared. gpu.py has this order. Nets of
// an array of sequences follow one another; those of weights and biases are `net_stride` elements apart,
// as they lie in the rows of one [G,N].
enum Distinct : int {
    kCarryWeights = 0,
    kHiddenWeights = 1,
    kInputWeights = 2,
    kBias = 3,
    kInitialBias = 4,
    kInput = 5,
    kAdded = 6,
    kFactor = 7,
    kStructural = 8,
};

// Null pointers leave their term out. A "slot" is the position of a step in `steps`, or the step
// itself when `steps` is null. Arrays marked S hold slots only: the result in the forward direction,
// what comes in when reverse.
struct Scan {
    const int* stop;
    long long distinct;
    long long net_stride;        // elements from net to net of weights and biases
    const float* W;              // [G,H,H]
    const float* V;              // [G,H,H], meets hidden_t = factor_{t-1}
    const float* input_weights;  // [G,H,m] transposed, else [G,m,H]
    const float* bias;           // [G,H]
    const float* initial_bias;   // [G,H]
    const float* input;          // [G,T,B,m], S when reverse
    const float* added;          // u: [G,T,B,H], S when reverse
    const float* factor;         // d, or the h that it is derived from: [G,T,B,H]
    const float* structural;     // a: [G,T,B,H]
    const long long* steps;      // increasing
    float* y;                    // [G,T,B,H], S in the forward direction
    long long T, B, H, m, slots;
    long long nonlinearity;
    float coefficient;
    long long split;  // slices of K
};

// Walks the increasing output steps along with the loop over time.
class Cursor {
public:
    __device__ __forceinline__ Cursor(const long long* steps, long long count, bool reverse)
        : steps_(steps),
          count_(static_cast<int>(count)),
          at_(reverse ? count_ - 1 : 0),
          move_(reverse ? -1 : 1),
          upcoming_(read()) {}

    // Whether step t has a slot; steps must be asked for in the loop's order.
    __device__ __forceinline__ bool has(int t) {
        if (steps_ == nullptr) return true;
        if (t != upcoming_) return false;
        at_ += move_;
        upcoming_ = read();
        return true;
    }

    // The slot of step t, of which has(t) was true just now.
    __device__ __forceinline__ int slot(int t) const {
        return steps_ == nullptr ? t : at_ - move_;
    }

private:
    __device__ __forceinline__ int read() const {
        return steps_ != nullptr && at_ >= 0 && at_ < count_ ? static_cast<int>(steps_[at_]) : -1;
    }

    const long long* steps_;
    int count_, at_, move_, upcoming_;
};

// The slot of step t, or -1; by itself, where Cursor goes along with a loop.
__device__ __forceinline__ long long slot_of(const long long* steps, long long slots, long long t) {
    if (steps == nullptr) return t;
    long long below = 0, above = slots;  // first slot whose step is not before t
    while (below < above) {
        const long long middle = (below + above) / 2;
        if (steps[middle] < t) {
            below = middle + 1;
        } else {
            above = middle;
        }
    }
    return below < slots && steps[below] == t ? below : -1;
}

// What one thread finishes in every step: rows row .. row+3 of column `at`, if there is one.
class Column {
public:
    __device__ __forceinline__ Column(const Scan& s, int at, int first_row)
        : index(at),
          row(first_row),
          exists(index < static_cast<int>(s.H)),
          H_(static_cast<int>(s.H)) {
        const long long first = static_cast<long long>(blockIdx.x) * kRows + row;
        offset_ = first * s.H + index;
        rows_ = exists ? static_cast<int>(s.B - first) : 0;  // those beyond the batch stay out
    }

    // Of an array that starts with [B,H] of the first step.
    template <class Real>
    __device__ __forceinline__ Real* place(Real* array) const {
        return array + offset_;
    }

    // `at` is its place in [B,H] of one step.
    __device__ __forceinline__ void read(const float* at, float (&value)[kTile]) const {
#pragma unroll
        for (int r = 0; r < kTile; ++r, at += H_) value[r] = r < rows_ ? *at : 0.0f;
    }

    __device__ __forceinline__ void write(float* at, const float (&value)[kTile]) const {
#pragma unroll
        for (int r = 0; r < kTile; ++r, at += H_)
            if (r < rows_) *at = value[r];
    }

    const int index, row;
    const bool exists;

private:
    int H_, rows_;
    long long offset_;
};

// This block's net in an array whose nets are `size` elements apart.
__device__ __forceinline__ const float* group(long long distinct, const float* array, Distinct bit,
                                              long long size) {
    const bool own = (distinct >> bit & 1) != 0;
    return array == nullptr || !own ? array : array + blockIdx.y * size;
}

// What one lane needs from global memory in one step.
struct Operands {
    float factor[kTile];
    float added[kTile];
    float structural[kTile];
};

// A block's net in the arrays of a scan, at the first step of the loop. In the forward direction
// `steps` says what is kept, in reverse what comes in.
template <bool kReverse>
struct Nets {
    const float *input, *added, *factor, *structural;
    float* y;
    long long move, input_move;  // from step to step
    const long long *in_steps, *out_steps;

    __device__ __forceinline__ explicit Nets(const Scan& s)
        : move((kReverse ? -1 : 1) * s.B * s.H),
          input_move((kReverse ? -1 : 1) * s.B * s.m),
          in_steps(kReverse ? s.steps : nullptr),
          out_steps(kReverse ? nullptr : s.steps) {
        const long long BH = s.B * s.H, in_slots = kReverse ? s.slots : s.T;
        input = at_first(group(s.distinct, s.input, kInput, in_slots * s.B * s.m), in_slots,
                         s.B * s.m);
        added = at_first(group(s.distinct, s.added, kAdded, in_slots * BH), in_slots, BH);
        factor = at_first(group(s.distinct, s.factor, kFactor, s.T * BH), s.T, BH);
        structural = at_first(group(s.distinct, s.structural, kStructural, s.T * BH), s.T, BH);
        y = s.y + blockIdx.y * (out_steps != nullptr ? s.slots : s.T) * BH;
        if (kReverse) y += (s.T - 1) * BH;
    }

private:
    static __device__ __forceinline__ const float* at_first(const float* array, long long slots,
                                                            long long words) {
        return kReverse && array != nullptr ? array + (slots - 1) * words : array;
    }
};

// One element of the 8 input rows for each of the first 8 m threads, which gpu.py sees to.
template <bool kReverse>
class InputElement {
public:
    __device__ __forceinline__ InputElement(const Scan& s, const Nets<kReverse>& net)
        : at_(net.input),
          move_(net.input_move),
          steps_(net.in_steps, s.slots, kReverse),
          m_(static_cast<int>(s.m)),
          row_(m_ > 0 ? static_cast<int>(threadIdx.x) / m_ : kRows),
          column_(m_ > 0 ? static_cast<int>(threadIdx.x) % m_ : 0) {
        const long long b = static_cast<long long>(blockIdx.x) * kRows + row_;
        reads_ = row_ < kRows && b < s.B;
        at_ += reads_ ? b * m_ + column_ : 0;
    }

    // Whether the step at time t has an input; fetches it if so. Called once a step, in order.
    __device__ __forceinline__ bool fetch(int t, float& value) {
        if (m_ == 0 || !steps_.has(t)) return false;
        value = reads_ ? *at_ : 0.0f;
        at_ += move_;
        return true;
    }

    __device__ __forceinline__ void store(float* rows, float value) const {
        if (row_ < kRows) rows[column_ * kRows + row_] = value;
    }

private:
    const float* at_;
    long long move_;
    Cursor steps_;
    int m_, row_, column_;
    bool reads_;
};

// Of one column: null pointers are zeros.
struct Biases {
    float every, initial;

    __device__ __forceinline__ Biases(const Scan& s, const Column& column) {
        const float* const bias_of = group(s.distinct, s.bias, kBias, s.net_stride);
        const float* const initial_of =
            group(s.distinct, s.initial_bias, kInitialBias, s.net_stride);
        every = bias_of != nullptr && column.exists ? bias_of[column.index] : 0.0f;
        initial = initial_of != nullptr && column.exists ? initial_of[column.index] : 0.0f;
    }

    __device__ __forceinline__ float at(int step) const {
        return step == 0 ? every + initial : every;
    }
};

// Fetches what one lane needs from global memory, step after step.
template <bool kReverse>
class Arriving {
public:
    __device__ __forceinline__ Arriving(const Scan& s, const Nets<kReverse>& net,
                                        const Column& column)
        : column_(column),
          added_steps_(net.in_steps, s.slots, kReverse),
          with_factor_(net.factor != nullptr),
          with_structural_(net.structural != nullptr),
          with_added_(net.added != nullptr),
          factor_(column.place(net.factor)),
          structural_(column.place(net.structural)),
          added_(column.place(net.added)),
          move_(net.move) {}

    // Of the step at time t; called once a step, in order.
    __device__ __forceinline__ void fetch(int t, Operands& to) {
        if (with_factor_) {
            column_.read(factor_, to.factor);
            factor_ += move_;
        }
        if (with_structural_) {
            column_.read(structural_, to.structural);
            structural_ += move_;
        }
#pragma unroll
        for (int r = 0; r < kTile; ++r) to.added[r] = 0.0f;
        if (with_added_ && added_steps_.has(t)) {
            column_.read(added_, to.added);
            added_ += move_;
        }
    }

private:
    const Column& column_;
    Cursor added_steps_;
    bool with_factor_, with_structural_, with_added_;
    const float *factor_, *structural_, *added_;
    long long move_;
};

// Writes the result at the steps that keep it, in the loop's order.
template <bool kReverse>
class Kept {
public:
    __device__ __forceinline__ Kept(const Scan& s, const Nets<kReverse>& net, const Column& column)
        : column_(column),
          steps_(net.out_steps, s.slots, kReverse),
          at_(column.place(net.y)),
          move_(net.move) {}

    __device__ __forceinline__ void write(int t, const float (&y)[kTile]) {
        if (!steps_.has(t)) return;
        column_.write(at_, y);
        at_ += move_;
    }

private:
    const Column& column_;
    Cursor steps_;
    float* at_;
    long long move_;
};

// y = e(y), or d ⊙ y + coefficient · a.
template <bool kActivates>
__device__ __forceinline__ void finish(const Scan& s, const Operands& now, bool structural,
                                       float (&y)[kTile]) {
    if (kActivates) {
        activate(y, s.nonlinearity);
        return;
    }
    float d[kTile];
    differentiate(now.factor, s.nonlinearity, d);
#pragma unroll
    for (int r = 0; r < kTile; ++r) y[r] *= d[r];
    if (structural) {
#pragma unroll
        for (int r = 0; r < kTile; ++r) y[r] += s.coefficient * now.structural[r];
    }
}

// kActivates: forward pass. kHidden: V is on chip. kReverse: from the last step to the first.
// kTransposed: weights are stored as the net has them, [to, from].
template <bool kActivates, bool kHidden, bool kReverse, bool kTransposed>
__device__ __forceinline__ void scan(const Scan& s) {
    if (s.stop != nullptr && *s.stop != 0) return;
    HFCORE_DYNAMIC_SHARED(float, shared);
    const int T = static_cast<int>(s.T), H = static_cast<int>(s.H), m = static_cast<int>(s.m);
    const int input_from = kHidden ? 2 * H : H;
    const Extent extent{H, input_from + m, static_cast<int>(s.split)};
    float* const weights = shared;
    float* const carry = weights + extent.weight_words();
    float* const partial = carry + extent.carry_words();

    const Nets<kReverse> net(s);
    for (int i = static_cast<int>(threadIdx.x); i < extent.carry_words();
         i += static_cast<int>(blockDim.x))
        carry[i] = 0.0f;
    load_weights(weights, extent, 0, H, group(s.distinct, s.W, kCarryWeights, s.net_stride),
                 kTransposed);
    if (kHidden)
        load_weights(weights, extent, H, H, group(s.distinct, s.V, kHiddenWeights, s.net_stride),
                     kTransposed);
    load_weights(weights, extent, input_from, m,
                 group(s.distinct, s.input_weights, kInputWeights, s.net_stride), kTransposed);
    __syncthreads();

    const Column column(s, static_cast<int>(threadIdx.x) / 2,
                        static_cast<int>(threadIdx.x) % 2 * kTile);
    const Biases bias(s, column);
    Arriving<kReverse> arriving(s, net, column);
    Kept<kReverse> kept(s, net, column);
    InputElement<kReverse> element(s, net);
    const auto time = [T](int step) { return kReverse ? T - 1 - step : step; };

    float* const input_rows = carry + input_from * kRows;
    float next_input = 0.0f;
    bool next_has_input = element.fetch(time(0), next_input);
    element.store(input_rows, next_input);
    Operands now, next;
    arriving.fetch(time(0), next);
    const Tile tile(extent);
    const Slice with_input = tile.cut(extent, 0, extent.K);
    const Slice without_input = tile.cut(extent, 0, input_from);
    // Nothing is carried into the first step.
    Slice slice = tile.cut(extent, input_from, next_has_input ? extent.K : input_from);
    next_has_input = T > 1 && element.fetch(time(1), next_input);
    __syncthreads();

    for (int step = 0; step < T; ++step) {
        now = next;
        const float arriving_input = next_input;
        const bool has_input = next_has_input;
        if (step + 1 < T) arriving.fetch(time(step + 1), next);
        next_has_input = step + 2 < T && element.fetch(time(step + 2), next_input);

        float sum[kTile][kTile] = {};
        multiply(sum, weights, carry, extent, tile, slice);
        write_partial(partial, extent, tile, sum);
        __syncthreads();  // partial is complete, and nobody reads the rows of this step any more

        if (column.exists) {
            float y[kTile] = {};
            add_partials(partial, extent, column.index, column.row, y);
#pragma unroll
            for (int r = 0; r < kTile; ++r) y[r] += now.added[r] + bias.at(step);
            finish<kActivates>(s, now, net.structural != nullptr, y);
            write4(carry + column.index * kRows + column.row, y);
            if (kHidden) write4(carry + (H + column.index) * kRows + column.row, now.factor);
            kept.write(time(step), y);
        }
        if (has_input) element.store(input_rows, arriving_input);
        slice = has_input ? with_input : without_input;
        __syncthreads();  // the rows of the next step are complete, and partial is free
    }
}

}  // namespace hfcore_gpu
