// Matrix products on batch tiles whose sequences lie side by side in vector lanes.
//
// A tile holds L = NV·lanes sequences; a state of H units is an array [H][L]. A weight is then
// one broadcast scalar against NV vectors, so no unit count is ever padded:
//
//     lane_product    C[j][·] = bias_j + Σ_k A[j][k] R[k][·]         R, C in lanes, A packed
//     outer_product   G[j][i] += Σ_q left[j][q] Z[q][i]              q runs over time and lanes
//
// The vector tail of H is paid only in outer_product, whose rows Z are padded to whole vectors.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#include "kernels/cpu/math.h"

namespace hfcore {
namespace HFCORE_ISA {
namespace {

using std::int64_t;

// Register blocking: JR x NV accumulators of lane_product, JG x NI of outer_product, chosen to
// fill 32 vector registers (AVX-512, NEON) or 16 (AVX2, SSE) with the operands beside them.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int JR = 12, JG = 6, NI = 4;
#else
constexpr int JR = 6, JG = 6, NI = 2;
#endif
constexpr int NV = 2;  // vectors of lanes in a full tile

// Not std::min and std::max: their shared code, compiled for one instruction set, could be linked
// into the kernels of another.
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a < b ? b : a; }

template <class T>
inline int64_t round_up(int64_t count) {
    return (count + simd<T>::lanes - 1) / simd<T>::lanes * simd<T>::lanes;
}

// `rows` cut into the fewest blocks of at most `most`, as even as possible.
struct Blocks {
    int64_t rows;
    int64_t count;
    Blocks(int64_t rows_, int64_t most) : rows(rows_), count((rows_ + most - 1) / most) {}
    int64_t start(int64_t b) const { return rows * b / count; }
};

// ---------------------------------------------------------------------------- lane_product

// K consecutive rows R[k][·] and the offset of their columns in the packed matrix.
template <class T>
struct Segment {
    const T* R;
    int64_t K;
    int64_t offset;
};

// A packed matrix: for each block of rows [k][row], so that a block streams contiguously.
// Element (j, k) of A is src[j·row_stride + k·column_stride].
template <class T>
void pack(T* packed, int64_t rows, int64_t K, int64_t offset, const T* src, int64_t columns,
          int64_t row_stride, int64_t column_stride) {
    const Blocks blocks(rows, JR);
    for (int64_t b = 0; b < blocks.count; ++b) {
        const int64_t j0 = blocks.start(b), width = blocks.start(b + 1) - j0;
        T* block = packed + j0 * K + offset * width;
        for (int64_t k = 0; k < columns; ++k)
            for (int64_t j = 0; j < width; ++j)
                block[k * width + j] = src[(j0 + j) * row_stride + k * column_stride];
    }
}

template <class T, int J, int V>
void lane_block(T* C, const T* bias, const T* packed, const Segment<T>* segments, int count) {
    using vec = typename simd<T>::vec;
    constexpr int lanes = simd<T>::lanes;
    vec acc[J][V];
#pragma GCC unroll 16
    for (int j = 0; j < J; ++j)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) acc[j][v] = vec{} + (bias ? bias[j] : T(0));
    for (int s = 0; s < count; ++s) {
        const T* A = packed + segments[s].offset * J;
        const T* R = segments[s].R;
        for (int64_t k = 0; k < segments[s].K; ++k, A += J, R += V * lanes) {
            vec r[V];
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) r[v] = load<T>(R + v * lanes);
#pragma GCC unroll 16
            for (int j = 0; j < J; ++j)
#pragma GCC unroll 4
                for (int v = 0; v < V; ++v) acc[j][v] += r[v] * A[j];
        }
    }
#pragma GCC unroll 16
    for (int j = 0; j < J; ++j)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) store<T>(C + (j * V + v) * lanes, acc[j][v]);
}

template <class T>
using LaneBlock = void (*)(T*, const T*, const T*, const Segment<T>*, int);

template <class T, int V, int... J>
LaneBlock<T> lane_block_at(int64_t width, std::integer_sequence<int, J...>) {
    static constexpr LaneBlock<T> table[] = {lane_block<T, J + 1, V>...};
    return table[width - 1];
}

// C[rows][V·lanes] = bias + A·R over all segments; `K` is the packed matrix's whole width.
template <class T>
void lane_product(int V, T* C, int64_t rows, const T* bias, const T* packed, int64_t K,
                  const Segment<T>* segments, int count) {
    const Blocks blocks(rows, JR);
    const int64_t L = V * simd<T>::lanes;
    for (int64_t b = 0; b < blocks.count; ++b) {
        const int64_t j0 = blocks.start(b), width = blocks.start(b + 1) - j0;
        const auto sequence = std::make_integer_sequence<int, JR>();
        const LaneBlock<T> block = V == 1 ? lane_block_at<T, 1>(width, sequence)
                                          : lane_block_at<T, NV>(width, sequence);
        block(C + j0 * L, bias ? bias + j0 : nullptr, packed + j0 * K, segments, count);
    }
}

// ---------------------------------------------------------------------------- outer_product

// One term of the sum: left [rows][L] in lanes and Z [sequences][z_stride] in padded rows.
template <class T>
struct OuterTerm {
    const T* left;
    const T* Z;
};

template <class T, int J, int I>
void outer_block(T* G, int64_t g_stride, const OuterTerm<T>* terms, int count, int64_t j0,
                 int64_t i0, int64_t L, int64_t z_stride, int64_t sequences) {
    using vec = typename simd<T>::vec;
    constexpr int lanes = simd<T>::lanes;
    vec acc[J][I];
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j)
#pragma GCC unroll 8
        for (int i = 0; i < I; ++i) acc[j][i] = vec{};
    for (int s = 0; s < count; ++s) {
        const T* left = terms[s].left + j0 * L;
        const T* Z = terms[s].Z + i0;
        for (int64_t q = 0; q < sequences; ++q, Z += z_stride, ++left) {
            vec z[I];
#pragma GCC unroll 8
            for (int i = 0; i < I; ++i) z[i] = load<T>(Z + i * lanes);
#pragma GCC unroll 8
            for (int j = 0; j < J; ++j)
#pragma GCC unroll 8
                for (int i = 0; i < I; ++i) acc[j][i] += z[i] * left[j * L];
        }
    }
    T* g = G + j0 * g_stride + i0;
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j)
#pragma GCC unroll 8
        for (int i = 0; i < I; ++i) {
            T* at = g + j * g_stride + i * lanes;
            store<T>(at, load<T>(at) + acc[j][i]);
        }
}

template <class T>
using OuterBlock = void (*)(T*, int64_t, const OuterTerm<T>*, int, int64_t, int64_t, int64_t,
                            int64_t, int64_t);

template <class T, int... N>
OuterBlock<T> outer_block_at(int64_t J, int64_t I, std::integer_sequence<int, N...>) {
    static constexpr OuterBlock<T> table[] = {outer_block<T, N / NI + 1, N % NI + 1>...};
    return table[(J - 1) * NI + I - 1];
}

// G[rows][columns] += Σ over terms and sequences; columns, z_stride, g_stride in whole vectors.
template <class T>
void outer_product(T* G, int64_t g_stride, int64_t rows, int64_t columns,
                   const OuterTerm<T>* terms, int count, int64_t L, int64_t z_stride,
                   int64_t sequences) {
    constexpr int lanes = simd<T>::lanes;
    const Blocks down(rows, JG), across(columns / lanes, NI);
    for (int64_t a = 0; a < across.count; ++a) {
        const int64_t i0 = across.start(a), I = across.start(a + 1) - i0;
        for (int64_t b = 0; b < down.count; ++b) {
            const int64_t j0 = down.start(b), J = down.start(b + 1) - j0;
            outer_block_at<T>(J, I, std::make_integer_sequence<int, JG * NI>())(
                G, g_stride, terms, count, j0, i0 * lanes, L, z_stride, sequences);
        }
    }
}

// ---------------------------------------------------------------------------- rows <-> lanes

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define HFCORE_HAS_SHUFFLEVECTOR 1
#endif
#endif

// The first (half = 0) or second (half = 1) half of a and b interleaved: a0 b0 a1 b1 ...
template <class T, int half, int... I>
inline typename simd<T>::vec interleave(typename simd<T>::vec a, typename simd<T>::vec b,
                                        std::integer_sequence<int, I...>) {
    constexpr int N = simd<T>::lanes;
#ifdef HFCORE_HAS_SHUFFLEVECTOR
    return __builtin_shufflevector(a, b, (I % 2 * N + I / 2 + half * N / 2)...);
#else
    return __builtin_shuffle(a, b, typename simd<T>::ivec{(I % 2 * N + I / 2 + half * N / 2)...});
#endif
}

// Transposes a square of lanes x lanes elements by log2(lanes) rounds of interleaving.
template <class T>
inline void transpose(typename simd<T>::vec (&x)[simd<T>::lanes]) {
    constexpr int N = simd<T>::lanes;
    const auto sequence = std::make_integer_sequence<int, N>();
    typename simd<T>::vec y[N];
#pragma GCC unroll 4
    for (int round = 1; round < N; round *= 2) {
#pragma GCC unroll 16
        for (int i = 0; i < N / 2; ++i) {
            y[2 * i] = interleave<T, 0>(x[i], x[i + N / 2], sequence);
            y[2 * i + 1] = interleave<T, 1>(x[i], x[i + N / 2], sequence);
        }
#pragma GCC unroll 16
        for (int i = 0; i < N; ++i) x[i] = y[i];
    }
}

// out[columns][L] from rows [L][stride] that are padded to whole vectors.
template <class T>
void rows_to_lanes(int V, T* out, const T* rows, int64_t stride, int64_t columns) {
    constexpr int N = simd<T>::lanes;
    const int64_t L = V * N;
    typename simd<T>::vec x[N];
    for (int v = 0; v < V; ++v)
        for (int64_t c = 0; c < columns; c += N) {
#pragma GCC unroll 16
            for (int i = 0; i < N; ++i) x[i] = load<T>(rows + (v * N + i) * stride + c);
            transpose<T>(x);
            T* to = out + c * L + v * N;
            if (columns - c >= N) {
#pragma GCC unroll 16
                for (int i = 0; i < N; ++i) store<T>(to + i * L, x[i]);
            } else {
                for (int64_t i = 0; i < columns - c; ++i) store<T>(to + i * L, x[i]);
            }
        }
}

// rows [sequences][stride] (not padded) from lanes [columns][L].
template <class T>
void lanes_to_rows(int V, T* rows, int64_t stride, const T* lanes, int64_t columns,
                   int64_t sequences) {
    constexpr int N = simd<T>::lanes;
    const int64_t L = V * N;
    typename simd<T>::vec x[N];
    for (int v = 0; v < V; ++v)
        for (int64_t c = 0; c < columns; c += N) {
            const int64_t width = columns - c < N ? columns - c : N;
            const int64_t count = sequences - v * N < N ? sequences - v * N : N;
            if (count <= 0) break;
#pragma GCC unroll 16
            for (int i = 0; i < N; ++i)
                x[i] = i < width ? load<T>(lanes + (c + i) * L + v * N) : typename simd<T>::vec{};
            transpose<T>(x);
            T* to = rows + v * N * stride + c;
            if (width == N && count == N) {  // a memcpy of any width is a call for every row
#pragma GCC unroll 16
                for (int i = 0; i < N; ++i) store<T>(to + i * stride, x[i]);
            } else {
                for (int64_t i = 0; i < count; ++i) store_first<T>(to + i * stride, x[i], width);
            }
        }
}

// Copies rows of `columns` elements into a padded buffer; the padding is left alone.
template <class T>
inline void copy_rows(T* to, int64_t to_stride, const T* from, int64_t from_stride, int64_t rows,
                      int64_t columns) {
    for (int64_t i = 0; i < rows; ++i)
        std::memcpy(to + i * to_stride, from + i * from_stride, columns * sizeof(T));
}

}  // namespace
}  // namespace HFCORE_ISA
}  // namespace hfcore
