// The recurrence of nets that one block cannot hold, on tensor cores (kernels/gpu/tensor_core.cuh): a
// cluster of 8 blocks takes 8 sequences through time.
//
//   pre_t = M · carry_t + u_t + bias (+ initial bias at first)
//   y_t   = e(pre_t)                          forward pass
//   y_t   = d_t ⊙ pre_t + coefficient · a_t   R-op; reverse scan, of M transposed
//
//   units      16 kTiles consecutive ones a block, 16 a tile
//   K          the units of all blocks, 16 a chunk, cut into 4 slices of kChunks chunks
//   warp       one tile x one slice: 6 kChunks mma of 16 units x 8 sequences x 16 k, its part of M in
//              registers for the whole sequence (gpu_tensor_tile.cuh; 12 a chunk)
//   thread     finishes one unit of one sequence, and asks for what this needs a step earlier
//   rows       the carry of all units as three bfloat16 each, in every block, twice by parity of the step
//
// A step:
//   1. every warp multiplies, and leaves its sums in shared memory                      __syncthreads
//   2. every thread adds up the four slices, finishes its value, and puts its pieces into the next rows
//      of its own block                                                                 __syncthreads
//   3. the block copies its tiles, which are consecutive words there, to the rows of the 7 others, 16
//      bytes a store, and arrives at the cluster's barrier
//   4. y_t goes to memory and what step t + 1 needs is asked for; then the block waits at that barrier
//
// One barrier of the cluster a step is enough: who is past that of step t knows that all blocks have
// read the rows of step t, and writes to these only in step t + 1.
//
// Shared memory in words: rows [2][4 kChunks chunks][piece][64], sums [4 slices][kTiles][152], pieces of
// M that registers do not hold. Sums of a tile lie by sequence, 16 units each, and every second sequence
// begins at a multiple of 40: the lanes of a store hold units 0..7 of sequences 0, 2, 4, 6, those of a
// load 16 units of two sequences in a row, and both fall on different banks.
#pragma once

#include "kernels/gpu/activation.cuh"
#include "kernels/gpu/cluster.cuh"
#include "gpu_scan.cuh"
#include "gpu_tensor_tile.cuh"

namespace hfcore_gpu {

constexpr int kClusterSlices = 4;
constexpr int kPairWords = 40;
constexpr int kSumWords = (kSequences / 2 - 1) * kPairWords + 2 * kUnits;

enum ClusterForm { kClusterForward, kClusterTangent, kClusterBackward };

// Null pointers leave their term out; gpu_scan.cuh says what a slot is. Arrays marked S hold slots
// only: the result, and u in its place when backward.
struct ClusterScan {
    const int* stop;
    long long distinct;
    long long net_stride;       // elements from net to net of W and the biases
    const float* W;             // [G,H,H]
    const float* bias;          // [G,H]
    const float* initial_bias;  // [G,H]
    const float* added;         // u: [G,T,B,H], S when backward
    const float* factor;        // what d is derived from: [G,T,B,H]
    const float* structural;    // a: [G,T,B,H]
    const long long* steps;     // increasing
    float* y;                   // [G,T,B,H], S unless backward
    long long T, B, H, slots, nonlinearity;
    float coefficient;
};

// A thread's place: what it finishes. Lanes are 16 units by 2 sequences of a tile; a warp finishes
// those of its own tile.
struct ClusterPlace {
    int tile, slice;  // of the warp: in the block, of K
    int chunk;        // the tile's number in the net
    int unit, within, sequence;
    long long at;  // in [B,H] of one step
    bool exists;

    __device__ __forceinline__ ClusterPlace(int tiles, int H, int B) {
        const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
        tile = warp % tiles;
        slice = warp / tiles;
        chunk = tiles * cluster_rank() + tile;
        unit = kUnits * chunk + lane % kUnits;
        within = 2 * slice + lane / kUnits;
        sequence = static_cast<int>(blockIdx.x) / kClusterBlocks * kSequences + within;
        exists = unit < H && sequence < B;
        at = static_cast<long long>(sequence) * H + unit;
    }

    // The first of the 16-bit places of its value's pieces in a buffer of rows.
    __device__ __forceinline__ int half_word() const {
        const int r = unit % 8, word = 8 * (within ^ within / 2) + 2 * (r % 4) + r / 4;
        return 2 * (kChunkWords * chunk + word) + unit % kUnits / 8;
    }
};

// What a thread needs from global memory in one step.
struct ClusterOperands {
    float added, factor, structural;
};

// The warp's sums, a D fragment of mma, and the thread's value of all slices together.
__device__ __forceinline__ void store_sums(float* sums, const Fragment& y) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int i = 0; i < 4; ++i)
        sums[kPairWords * (lane % 4) + kUnits * (i % 2) + 8 * (i / 2) + lane / 4] = y[i];
}

template <int kTiles>
__device__ __forceinline__ float total_of(const float* sums, const ClusterPlace& place) {
    const float* const at = sums + kSumWords * place.tile + kPairWords * place.slice +
                            static_cast<int>(threadIdx.x) % 32;
    float total = 0.0f;
#pragma unroll
    for (int s = 0; s < kClusterSlices; ++s) total += at[kSumWords * kTiles * s];
    return total;
}

// The pieces of the thread's value, in the rows of its own block.
__device__ __forceinline__ void store_pieces(unsigned* rows, const ClusterPlace& place, float y) {
    unsigned short* const halves = reinterpret_cast<unsigned short*>(rows) + place.half_word();
    const Pieces pieces(y, 0.0f);
#pragma unroll
    for (int p = 0; p < kPieces; ++p)
        halves[2 * kPieceWords * p] = static_cast<unsigned short>(pieces.part[p] & 0xffffu);
}

// The block's own tiles of `rows` to the rows of all other blocks.
template <int kTiles, int kChunks>
__device__ __forceinline__ void share_rows(unsigned* rows) {
    constexpr int kMost = kTiles * kChunkWords / 4, kThreads = 32 * kTiles * kClusterSlices;
    constexpr int kStores = kMost * (kClusterBlocks - 1);
    const int rank = cluster_rank(), left = kClusterSlices * kChunks - kTiles * rank;
    uint4* const from = reinterpret_cast<uint4*>(rows + kTiles * rank * kChunkWords);
#pragma unroll
    for (int first = 0; first < kStores; first += kThreads) {
        const int i = first + static_cast<int>(threadIdx.x), vector = i % kMost;
        const bool exists = i < kStores && vector * 4 < left * kChunkWords;
        if (exists) store_remote(from + vector, (rank + 1 + i / kMost) % kClusterBlocks, from[vector]);
    }
}

// H <= 64 kChunks <= 128 kTiles.
template <int kTiles, int kChunks, int kAllInRegisters, ClusterForm kForm>
__device__ __forceinline__ void scan_on_cluster(const ClusterScan& s) {
    if (s.stop != nullptr && *s.stop != 0) return;
    HFCORE_DYNAMIC_SHARED(unsigned, shared);
    constexpr bool kBackward = kForm == kClusterBackward;
    constexpr int kRowWords = kClusterSlices * kChunks * kChunkWords;
    const int T = static_cast<int>(s.T), H = static_cast<int>(s.H);
    const long long BH = s.B * s.H;
    const ClusterPlace place(kTiles, H, static_cast<int>(s.B));
    float* const sums = reinterpret_cast<float*>(shared + 2 * kRowWords);
    float* const own_sums = sums + kSumWords * (kTiles * place.slice + place.tile);

    const float* const W = group(s.distinct, s.W, kCarryWeights, s.net_stride);
    TensorWeights<kChunks, kAllInRegisters> weights;
    unsigned* const beside = shared + 2 * kRowWords + kSumWords * kTiles * kClusterSlices +
                             static_cast<int>(threadIdx.x) / 32 * weights.kWords;
    weights.load(place.chunk, beside, [&](int row, int slot) {
        const int column = kUnits * kChunks * place.slice + slot;
        if (row >= H || column >= H) return 0.0f;
        return kBackward ? W[column * H + row] : W[row * H + column];
    });

    const float* const factor = group(s.distinct, s.factor, kFactor, s.T * BH);
    const float* const structural = group(s.distinct, s.structural, kStructural, s.T * BH);
    const float* const added =
        group(s.distinct, s.added, kAdded, (kBackward && s.steps ? s.slots : s.T) * BH);
    float* const out = s.y + blockIdx.y * (!kBackward && s.steps ? s.slots : s.T) * BH;
    Cursor slots(s.steps, s.slots, kBackward);  // of u when backward, else of y
    float bias = 0.0f, initial = 0.0f;
    if (!kBackward && place.unit < H) {
        const float* const every = group(s.distinct, s.bias, kBias, s.net_stride);
        const float* const first = group(s.distinct, s.initial_bias, kInitialBias, s.net_stride);
        if (every != nullptr) bias = every[place.unit];
        if (first != nullptr) initial = first[place.unit];
    }

    // Units and sequences that do not exist have zeros in place of all this. What they carry is finite
    // or their own, and meets weights of zero.
    const auto time = [T](int step) { return kBackward ? T - 1 - step : step; };
    const auto fetch = [&](int t, ClusterOperands& to) {
        to = {};
        if (!place.exists) return;
        const long long at = t * BH + place.at;
        if (factor != nullptr) to.factor = factor[at];
        if (structural != nullptr) to.structural = structural[at];
        if (added == nullptr) return;
        if (!kBackward) {
            to.added = added[at];
        } else if (slots.has(t)) {
            to.added = added[slots.slot(t) * BH + place.at];
        }
    };

    ClusterOperands now;
    fetch(time(0), now);
    cluster_arrive();
    cluster_wait();  // all blocks have started
    for (int step = 0; step < T; ++step) {
        unsigned* const rows = shared + step % 2 * kRowWords;
        unsigned* const next = shared + (step + 1) % 2 * kRowWords;
        float y = now.added + bias;
        if (step == 0) {  // nothing is carried into the first step
            y += initial;
        } else {
            Fragment sum = {};
            weights.multiply(rows + kChunks * kChunkWords * place.slice, sum);
            store_sums(own_sums, sum);
            __syncthreads();  // the sums are complete
            y += total_of<kTiles>(sums, place);
        }
        if (kForm == kClusterForward) {
            float value[1] = {y};
            activate(value, s.nonlinearity);
            y = value[0];
        } else {
            const float h[1] = {now.factor};
            float d[1];
            differentiate(h, s.nonlinearity, d);
            y = d[0] * y;
            if (kBackward) y += s.coefficient * now.structural;
        }
        const bool more = step + 1 < T;
        if (more) {
            if (place.chunk < kClusterSlices * kChunks) store_pieces(next, place, y);
            __syncthreads();  // the block's own rows of the next step are complete
            share_rows<kTiles, kChunks>(next);
            cluster_arrive();
        }
        const int t = time(step);
        if (place.exists && (kBackward || slots.has(t)))
            out[(kBackward ? t : slots.slot(t)) * BH + place.at] = y;
        if (more) {
            fetch(time(step + 1), now);
            cluster_wait();  // the rows of the next step are complete
        }
    }
}

}  // namespace hfcore_gpu
