// The recurrence on tensor cores (kernels/gpu/tensor_core.cuh): who holds what. One block takes 8
// sequences of one net through time, so that nothing but one column of states moves between steps.
//
//   product    16 units x 8 sequences a warp: M and N of an mma. K are the slots, 16 a chunk.
//   weights    the A operand, in registers for the whole sequence
//   rows       the B operand, through shared memory, twice: a step has one barrier
//
// Slots. K is not in the order of the units but in that which saves moving data: slots 2 j and 2 j + 1
// of chunk c are units 16 c + j and 16 c + 8 + j. The lane 4 r + q that finishes a D fragment has units
// 16 w + r and 16 w + 8 + r of sequences 2 q and 2 q + 1: these two are one register of the B fragment of
// the next step, so that it stores whole words.
//
// Columns beyond the H units, up to the end of the last chunk, are inputs: of [W | W_x] · [carry ;
// input], padding of the tiles carries the input product at no cost, where the inputs fit in. The lanes
// whose units do not exist fetch the inputs in place of finishing anything.
//
// Rows in shared memory: [chunk][piece][64 words]. Register i of lane 4 b + q, sequence b, is word
// 8 (b ^ b / 2) + 2 q + i: the lanes of a store hold every second sequence, those of a load four in a
// row, and in this order of sequences (the Gray code) both fall on different banks.
#pragma once

#include "kernels/gpu/platform.cuh"
#include "kernels/gpu/tensor_core.cuh"

namespace hfcore_gpu {

constexpr int kUnits = 16;      // of a tile, and slots of a chunk
constexpr int kSequences = 8;   // of a block
constexpr int kPieceWords = 64;  // of a chunk: a B fragment
constexpr int kChunkWords = kPieces * kPieceWords;

// Four values of a lane, in the order of a D fragment: value i is unit r + 8 (i / 2) of the tile, of
// sequence 2 q + i % 2.
using Fragment = float[4];

// The address of step t of an array whose steps are `move` elements, fewer than 2^31.
template <class Real>
__device__ __forceinline__ Real* step_of(Real* array, int t, int move) {
    return array + static_cast<long long>(t) * move;
}

// A lane's place in the block: what it finishes, and brings in. Steps of an array [T,B,...] are named by
// the address of their first element.
struct TensorLane {
    int H, B;
    int unit, sequence;  // of value 0, in the net and in the batch; they may not exist

    __device__ __forceinline__ TensorLane(int tile, int H_, int B_) : H(H_), B(B_) {
        const int lane = static_cast<int>(threadIdx.x) % 32;
        unit = kUnits * tile + lane / 4;
        sequence = static_cast<int>(blockIdx.x) * kSequences + 2 * (lane % 4);
    }

    // To be called once a step: what follows from the place is computed anew then. Kept from step to step
    // it would take more registers than there are.
    __device__ __forceinline__ void forget() {
#ifdef __CUDACC__
        asm volatile("" : "+r"(unit), "+r"(sequence));
#endif
    }

    // Whether value i belongs to a unit, and to a sequence.
    __device__ __forceinline__ bool real(int i) const { return unit + i / 2 * 8 < H; }
    __device__ __forceinline__ bool inside(int i) const { return sequence + i % 2 < B; }

    // Where the lane stores sequence 2 q + `next`, in words of a buffer of rows.
    __device__ __forceinline__ int word(int next) const {
        const int b = sequence % kSequences + next, r = unit % kUnits;
        return kChunkWords * (unit / kUnits) + 8 * (b ^ b / 2) + 2 * (r % 4) + r / 4;
    }

    // Its elements of a step [B,H]; values of units that do not exist stay. Those of sequences beyond the
    // batch are of the last one: nothing is made of them.
    __device__ __forceinline__ void read(const float* step, Fragment& to) const {
        const float* const at = step + (within() * H + unit);
        const float* const next = inside(1) ? at + H : at;
        if (real(0)) {
            to[0] = at[0];
            to[1] = next[0];
        }
        if (real(2)) {
            to[2] = at[8];
            to[3] = next[8];
        }
    }

    // In the place of units that do not exist, elements of a step [B,m] of inputs; others stay.
    __device__ __forceinline__ void read_inputs(const float* step, int m, Fragment& to) const {
        const int column = unit - H;
        if (column + 8 < 0) return;
        const float* const at = step + (within() * m + column);
        const float* const next = inside(1) ? at + m : at;
        if (!real(0) && column < m) {
            to[0] = at[0];
            to[1] = next[0];
        }
        if (!real(2) && column + 8 < m) {
            to[2] = at[8];
            to[3] = next[8];
        }
    }

    __device__ __forceinline__ void write(float* step, const Fragment& from) const {
        float* const at = step + (sequence * H + unit);
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (real(i) && inside(i)) at[i / 2 * 8 + i % 2 * H] = from[i];
    }

private:
    __device__ __forceinline__ int within() const { return sequence < B ? sequence : B - 1; }
};

// A matrix [units of a tile, slots] as A fragments of one warp. The smallest pieces of the last chunks
// may lie in shared memory, where registers are short: one LDS.128 a chunk in place of 4 of them.
template <int kChunks, int kAllInRegisters = kChunks>
struct TensorWeights {
    static constexpr int kBeside = kChunks - kAllInRegisters;
    static constexpr int kWords = kBeside * 32 * 4;  // of shared memory a warp
    static constexpr int kLast = kPieces - 1;

    unsigned part[kLast][kChunks][4], last[kAllInRegisters > 0 ? kAllInRegisters : 1][4];
    const uint4* beside;  // of this lane

    // `at(row, column)` gives an element, both numbered by unit; `shared` are the warp's kWords.
    template <class At>
    __device__ __forceinline__ void load(int tile, unsigned* shared, At at) {
        const int lane = static_cast<int>(threadIdx.x) % 32;
        beside = reinterpret_cast<const uint4*>(shared) + lane;
#pragma unroll
        for (int c = 0; c < kChunks; ++c) {
            if (c % 2 == 0) __syncthreads();  // fewer loads at once, or registers run out here
            unsigned smallest[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int row = kUnits * tile + lane / 4 + i % 2 * 8;
                const int column = kUnits * c + lane % 4 + i / 2 * 4;
                const Pieces w(at(row, column), at(row, column + 8));
                part[0][c][i] = w.part[0];
                part[1][c][i] = w.part[1];
                smallest[i] = w.part[kLast];
            }
            if (c < kAllInRegisters) {
#pragma unroll
                for (int i = 0; i < 4; ++i) last[c][i] = smallest[i];
            } else {
                reinterpret_cast<uint4*>(shared)[(c - kAllInRegisters) * 32 + lane] =
                    make_uint4(smallest[0], smallest[1], smallest[2], smallest[3]);
            }
        }
    }

    // y = start + weights · rows; kSmall sums at once of the smaller products, where registers allow.
    template <int kSmall = 2>
    __device__ __forceinline__ void multiply(const unsigned* rows, Fragment& y) const {
        const int lane = static_cast<int>(threadIdx.x) % 32, b = lane / 4;
        const unsigned* from = rows + 8 * (b ^ b / 2) + 2 * (lane % 4);
        Sums<kSmall> sums(y);
#pragma unroll
        for (int c = 0; c < kChunks; ++c) {
            unsigned a[kPieces][4], v[kPieces][2];
#pragma unroll
            for (int p = 0; p < kPieces; ++p) {
                const uint2 pair = *reinterpret_cast<const uint2*>(from + kChunkWords * c + kPieceWords * p);
                v[p][0] = pair.x;
                v[p][1] = pair.y;
            }
            uint4 smallest;
            if (c >= kAllInRegisters) smallest = beside[(c - kAllInRegisters) * 32];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                a[0][i] = part[0][c][i];
                a[1][i] = part[1][c][i];
            }
            if (c < kAllInRegisters) {
#pragma unroll
                for (int i = 0; i < 4; ++i) a[kLast][i] = last[c][i];
            } else {
                a[kLast][0] = smallest.x;
                a[kLast][1] = smallest.y;
                a[kLast][2] = smallest.z;
                a[kLast][3] = smallest.w;
            }
            sums.add(c, a, v);
        }
        sums.finish(y);
    }
};

// The lane's values into a buffer of rows.
__device__ __forceinline__ void store_rows(unsigned* rows, const TensorLane& lane, const Fragment& y) {
#pragma unroll
    for (int next = 0; next < 2; ++next) {
        const Pieces pieces(y[next], y[2 + next]);
#pragma unroll
        for (int p = 0; p < kPieces; ++p) rows[lane.word(next) + kPieceWords * p] = pieces.part[p];
    }
}

// Zero in the place of units that do not exist.
__device__ __forceinline__ void clear_absent(const TensorLane& lane, Fragment& y) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
        if (!lane.real(i)) y[i] = 0.0f;
}

// A bias of the lane's two units; null is zero.
__device__ __forceinline__ void read_bias(const float* bias, const TensorLane& lane, float (&to)[2]) {
#pragma unroll
    for (int e = 0; e < 2; ++e)
        to[e] = bias != nullptr && lane.real(2 * e) ? bias[lane.unit + 8 * e] : 0.0f;
}

__device__ __forceinline__ void start_at(const float (&bias)[2], Fragment& y) {
#pragma unroll
    for (int i = 0; i < 4; ++i) y[i] = bias[i / 2];
}

__device__ __forceinline__ void add_bias(const float* bias, const TensorLane& lane, Fragment& y) {
    float own[2];
    read_bias(bias, lane, own);
#pragma unroll
    for (int i = 0; i < 4; ++i) y[i] += own[i / 2];
}

__device__ __forceinline__ void add_step(const float* step, const TensorLane& lane, Fragment& y) {
    Fragment more = {};
    lane.read(step, more);
#pragma unroll
    for (int i = 0; i < 4; ++i) y[i] += more[i];
}

}  // namespace hfcore_gpu
