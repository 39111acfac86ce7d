// What every kernel needs beside vectors: blocks of rows, whole vectors, transposing squares of lanes.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#include "kernels/cpu/math.h"

namespace hfcore {
namespace HFCORE_ISA {
namespace {

using std::int64_t;

constexpr int NV = 2;  // vectors of cases in a full tile of a sparse product

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

}  // namespace
}  // namespace HFCORE_ISA
}  // namespace hfcore
