// Products of float32 quality on tensor cores: every float32 is the sum of three bfloat16 (8 + 8 + 8
// bits of mantissa), and of the nine products of two such sums the six down to 2^-16 are summed in
// float32.
//
// Note 1: a tensor core truncates what it adds, so sums that are to be as good as float32 are ended
// after few products and added outside, to nearest (`Sums`).
// Note 2: Inf and what rounds to it (3.39e38 and more) become NaN, as Inf - Inf does: non-finite stays
// non-finite. NaN stays.
//
// The fragments of mma.m16n8k16 (PTX ISA 9.7.14), by lane 4 r + q of a warp, r = 0..7 and q = 0..3:
//
//   A 16 x 16  register i = 0..3: row r + 8 (i % 2), columns 2 q + 8 (i / 2) and the next
//   B 16 x 8   register i = 0, 1: rows 2 q + 8 i and the next, column r
//   D 16 x 8   value    i = 0..3: row r + 8 (i / 2), column 2 q + i % 2
//
// A register of A or B is a pair of bfloat16, the first in the low half.
#pragma once

#include "kernels/gpu/platform.cuh"

namespace hfcore_gpu {

constexpr int kPieces = 3;

__device__ __forceinline__ unsigned pack_bf16(float low, float high) {
#ifdef __CUDACC__
    unsigned y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
#else
    return cuda_on_cpu::pack_bf16(low, high);
#endif
}

__device__ __forceinline__ float as_float(unsigned bits) {
#ifdef __CUDACC__
    return __uint_as_float(bits);
#else
    return cuda_on_cpu::from_bits(bits);
#endif
}

// d += a b of one warp.
__device__ __forceinline__ void mma(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef __CUDACC__
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    cuda_on_cpu::mma_bf16(d, a, b);
#endif
}

// The same on m16n8k8: registers 0 and 1 of A, and register 0 of B.
__device__ __forceinline__ void mma(float (&d)[4], const unsigned (&a)[2], unsigned b) {
#ifdef __CUDACC__
    asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(b));
#else
    cuda_on_cpu::mma_bf16(d, {a[0], a[1], 0, 0}, {b, 0});
#endif
}

// A pair of the low, and of the high halves of two registers.
__device__ __forceinline__ unsigned low_halves(unsigned first, unsigned second) {
    return (first & 0xffffu) | second << 16;
}

__device__ __forceinline__ unsigned high_halves(unsigned first, unsigned second) {
    return first >> 16 | (second & 0xffff0000u);
}

// Two floats as three pairs of bfloat16, the largest first.
struct Pieces {
    unsigned part[kPieces];

    __device__ __forceinline__ Pieces(float low, float high) {
#pragma unroll
        for (int i = 0; i < kPieces; ++i) {
            part[i] = pack_bf16(low, high);
            low -= as_float(part[i] << 16);
            high -= as_float(part[i] & 0xffff0000u);
        }
    }
};

// The sums of a warp's 16 x 8 products that are under way. The products of the largest pieces of one
// chunk of 16 k are summed by the tensor core, the chunks outside of it; the smaller products, which
// bear truncation, by the tensor core over all chunks, in `kSmall` sums: one product waits for the one
// before in its sum.
template <int kSmall>
struct Sums {
    float total[4], small[kSmall][4];

    __device__ __forceinline__ Sums() : total{}, small{} {}

    __device__ __forceinline__ explicit Sums(const float (&start)[4]) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            total[i] = start[i];
#pragma unroll
            for (int s = 0; s < kSmall; ++s) small[s][i] = 0.0f;
        }
    }

    // Chunk c, a constant; a and b by piece.
    __device__ __forceinline__ void add(int c, const unsigned (&a)[kPieces][4],
                                        const unsigned (&b)[kPieces][2]) {
        float large[4] = {};
        mma(large, a[0], b[0]);
        mma(small[5 * c % kSmall], a[1], b[0]);
        mma(small[(5 * c + 1) % kSmall], a[0], b[1]);
        mma(small[(5 * c + 2) % kSmall], a[2], b[0]);
        mma(small[(5 * c + 3) % kSmall], a[0], b[2]);
        mma(small[(5 * c + 4) % kSmall], a[1], b[1]);
#pragma unroll
        for (int i = 0; i < 4; ++i) total[i] += large[i];
    }

    __device__ __forceinline__ void finish(float (&to)[4]) const {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            float all = small[0][i];
#pragma unroll
            for (int s = 1; s < kSmall; ++s) all += small[s][i];
            to[i] = total[i] + all;
        }
    }
};

}  // namespace hfcore_gpu
