// One step of the recurrence by many blocks, on tensor cores (kernels/gpu/tensor_core.cuh): the product
// of all units by all sequences, K cut into splits, and what is done with it.
//
//   block      4 tiles of 16 units by 2 groups of 7 tiles of 8 sequences, over one split of K
//   warp       one tile of units by one group: 42 mma for every 3 loads of 16 bytes of weights and 21 of
//              8 bytes of rows, both in the order of fragments, from L2; the warps of a block share them
//              in L1
//   splits     the sums of all splits meet in memory. The last warp to bring them adds them up, in their
//              order, and finishes the tiles: nobody waits for anybody, so any number of blocks will do
//
// Weights are packed once a pass, rows by whoever finishes a step for the next one, both as three
// bfloat16 a number, 16 slots a chunk in the order of gpu_tensor_tile.cuh:
//
//   weights    [tile][chunk][piece][lane], 16 bytes
//   rows       [chunk][tile of sequences][piece][lane], 8 bytes; twice, by parity of the step
//   partial    [tile][tile of sequences][split][value][lane]
#pragma once

#include "kernels/gpu/activation.cuh"
#include "gpu_scan.cuh"
#include "gpu_tensor_tile.cuh"

namespace hfcore_gpu {

constexpr int kStepTiles = 4;    // of units a block
constexpr int kStepGroups = 2;   // of tiles of sequences a block
constexpr int kStepColumns = 7;  // tiles of sequences of a group
constexpr int kPackWarps = 8;

__device__ __forceinline__ int tiles_of(long long size, int tile) {
    return (static_cast<int>(size) + tile - 1) / tile;
}

// Where one net's product comes from and goes to.
struct StepProduct {
    const uint4* weights;
    const uint2* rows;  // null: nothing is carried
    unsigned* next;
    float* partial;
    int* counters;  // of every tile and group, zero between two steps
    int tiles, columns, splits;

    __device__ __forceinline__ StepProduct(long long distinct, const unsigned* packed,
                                           const unsigned* from, unsigned* to, float* sums,
                                           int* arrived, long long B, long long H,
                                           long long splits_)
        : tiles(tiles_of(H, kUnits)),
          columns(tiles_of(B, kSequences)),
          splits(static_cast<int>(splits_)) {
        const long long net = blockIdx.y, row_words = 1ll * tiles * columns * kChunkWords;
        const bool own = (distinct >> kCarryWeights & 1) != 0;
        weights = reinterpret_cast<const uint4*>(packed) +
                  (own ? net : 0) * tiles * tiles * (kPieces * 32);
        rows = from == nullptr ? nullptr : reinterpret_cast<const uint2*>(from + net * row_words);
        next = to + net * row_words;
        partial = sums + net * tiles * columns * splits * (4 * 32);
        counters = arrived + net * tiles * groups();
    }

    __device__ __forceinline__ int groups() const { return tiles_of(columns, kStepColumns); }
};

// A warp's place.
struct StepPlace {
    int tile, group, split;
    int first, count;  // tiles of sequences

    __device__ __forceinline__ explicit StepPlace(const StepProduct& product) {
        const int warp = static_cast<int>(threadIdx.x) / 32;
        const int blocks = tiles_of(product.groups(), kStepGroups);
        const int block = static_cast<int>(blockIdx.x) / product.splits;
        split = static_cast<int>(blockIdx.x) % product.splits;
        tile = block / blocks * kStepTiles + warp % kStepTiles;
        group = block % blocks * kStepGroups + warp / kStepTiles;
        first = group * kStepColumns;
        const int left = product.columns - first;
        count = left < kStepColumns ? left : kStepColumns;
    }

    __device__ __forceinline__ bool exists(const StepProduct& product) const {
        return tile < product.tiles && count > 0;
    }
};

__device__ __forceinline__ void multiply_step(const StepProduct& product, const StepPlace& place,
                                              Fragment (&y)[kStepColumns]) {
    if (product.rows == nullptr) return;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int length = tiles_of(product.tiles, product.splits), begin = place.split * length;
    const int end = begin + length < product.tiles ? begin + length : product.tiles;
    Sums<1> sums[kStepColumns];
    for (int c = begin; c < end; ++c) {
        unsigned a[kPieces][4];
#pragma unroll
        for (int p = 0; p < kPieces; ++p) {
            const uint4 w = product.weights[((place.tile * product.tiles + c) * kPieces + p) * 32 + lane];
            a[p][0] = w.x;
            a[p][1] = w.y;
            a[p][2] = w.z;
            a[p][3] = w.w;
        }
        const uint2* const from =
            product.rows + (c * product.columns + place.first) * (kPieces * 32) + lane;
#pragma unroll
        for (int j = 0; j < kStepColumns; ++j) {
            if (j >= place.count) continue;
            unsigned b[kPieces][2];
#pragma unroll
            for (int p = 0; p < kPieces; ++p) {
                const uint2 pair = from[(j * kPieces + p) * 32];
                b[p][0] = pair.x;
                b[p][1] = pair.y;
            }
            sums[j].add(0, a, b);
        }
    }
#pragma unroll
    for (int j = 0; j < kStepColumns; ++j) sums[j].finish(y[j]);
}

// Whether this warp finishes its tiles: it has brought its sums last, and has those of all splits.
__device__ __forceinline__ bool add_splits(const StepProduct& product, const StepPlace& place,
                                           Fragment (&y)[kStepColumns]) {
    if (product.splits == 1) return true;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    float* const at =
        product.partial + (place.tile * product.columns + place.first) * product.splits * 128 + lane;
#pragma unroll
    for (int j = 0; j < kStepColumns; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (j < place.count) at[(j * product.splits + place.split) * 128 + 32 * i] = y[j][i];
    __threadfence();
    __syncwarp();  // all lanes' sums are in memory
    int* const counter = product.counters + place.tile * product.groups() + place.group;
    int before = 0;
    if (lane == 0) before = atomicAdd(counter, 1);
    before = __shfl_sync(0xffffffffu, before, 0);
    if (before != product.splits - 1) return false;
    __threadfence();
    if (lane == 0) *counter = 0;
#pragma unroll
    for (int j = 0; j < kStepColumns; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (j >= place.count) continue;
            float total = 0.0f;
            for (int s = 0; s < product.splits; ++s)
                total += __ldcg(at + (j * product.splits + s) * 128 + 32 * i);
            y[j][i] = total;
        }
    return true;
}

// Where the values of a tile of sequences are in [B,H] of one step.
struct StepLane {
    int unit, sequence;  // of value 0
    int H, B;

    __device__ __forceinline__ StepLane(const StepPlace& place, int j, long long B_, long long H_)
        : H(static_cast<int>(H_)), B(static_cast<int>(B_)) {
        const int lane = static_cast<int>(threadIdx.x) % 32;
        unit = kUnits * place.tile + lane / 4;
        sequence = kSequences * (place.first + j) + 2 * (lane % 4);
    }

    __device__ __forceinline__ bool exists(int i) const {
        return column(i) < H && sequence + i % 2 < B;
    }
    __device__ __forceinline__ int column(int i) const { return unit + i / 2 * 8; }
    __device__ __forceinline__ long long at(int i) const {
        return static_cast<long long>(sequence + i % 2) * H + column(i);
    }
};

// The values of a tile into the rows of the next step.
__device__ __forceinline__ void pack_rows(const StepProduct& product, const StepPlace& place, int j,
                                          const Fragment& y) {
    const int r = static_cast<int>(threadIdx.x) % 32 / 4, q = static_cast<int>(threadIdx.x) % 4;
    unsigned* const to =
        product.next + (place.tile * product.columns + place.first + j) * kChunkWords;
#pragma unroll
    for (int e = 0; e < 2; ++e) {
        const Pieces pieces(y[e], y[2 + e]);
#pragma unroll
        for (int p = 0; p < kPieces; ++p)
            to[kPieceWords * p + 2 * (4 * (2 * q + e) + r % 4) + r / 4] = pieces.part[p];
    }
}

// All of a step; `finish(lane, y)` makes a tile's values of its sums, where they exist.
template <class Finish>
__device__ __forceinline__ void run_step(const StepProduct& product, float* out, long long B,
                                         long long H, Finish finish) {
    const StepPlace place(product);
    if (!place.exists(product)) return;
    Fragment y[kStepColumns] = {};
    multiply_step(product, place, y);
    if (!add_splits(product, place, y)) return;
#pragma unroll
    for (int j = 0; j < kStepColumns; ++j) {
        if (j >= place.count) continue;
        const StepLane lane(place, j, B, H);
        finish(lane, y[j]);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (lane.exists(i)) {
                out[lane.at(i)] = y[j][i];
            } else {
                y[j][i] = 0.0f;
            }
        }
        pack_rows(product, place, j, y[j]);
    }
}

// One warp packs one tile and chunk.
__device__ __forceinline__ void pack_weights(const float* W, uint4* packed, int H, bool transposed) {
    const int tiles = tiles_of(H, kUnits), lane = static_cast<int>(threadIdx.x) % 32;
    const int which = static_cast<int>(blockIdx.x) * kPackWarps + static_cast<int>(threadIdx.x) / 32;
    if (which >= tiles * tiles) return;
    const int tile = which / tiles, chunk = which % tiles;
    const auto element = [&](int row, int column) {
        if (row >= H || column >= H) return 0.0f;
        return transposed ? W[column * H + row] : W[row * H + column];
    };
    unsigned part[kPieces][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int row = kUnits * tile + lane / 4 + i % 2 * 8;
        const int column = kUnits * chunk + lane % 4 + i / 2 * 4;
        const Pieces w(element(row, column), element(row, column + 8));
#pragma unroll
        for (int p = 0; p < kPieces; ++p) part[p][i] = w.part[p];
    }
#pragma unroll
    for (int p = 0; p < kPieces; ++p)
        packed[(which * kPieces + p) * 32 + lane] =
            make_uint4(part[p][0], part[p][1], part[p][2], part[p][3]);
}

}  // namespace hfcore_gpu
