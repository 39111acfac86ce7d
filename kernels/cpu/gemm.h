// Matrix products C [rows][columns] of row-major operands, in tiles held in registers.
//
//     row_product      C = start + Σ over operands of A·P        A in rows as it lies, P packed
//     column_product   C = start + AᵀP over a block of k         A and P packed
//
// A tile is J rows by V vectors; a row's element is one broadcast scalar against V vectors of P. An
// element of C is one chain over blocks of k whose ends depend on K alone: neither the number of
// threads nor the neighbours of a row change its bits.
#pragma once

#include "kernels/cpu/lanes.h"

namespace hfcore {
namespace HFCORE_ISA {
namespace {

// Tiles fill 32 vector registers (AVX-512, NEON) or 16 (AVX2, SSE).
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int tile_rows = 12, tile_vectors = 2;
#else
constexpr int tile_rows = 6, tile_vectors = 2;
#endif

// A block of k: a panel of P (tile_vectors · 64 B · block_k at most) stays in the L1 cache.
constexpr int64_t block_k = 256;

// Columns in panels of up to tile_vectors vectors, the last vector padded with zeros.
template <class T>
struct Panels {
    static constexpr int64_t lanes = simd<T>::lanes;
    int64_t columns;
    Blocks vectors;
    explicit Panels(int64_t columns_)
        : columns(columns_), vectors((columns_ + lanes - 1) / lanes, tile_vectors) {}
    int64_t count() const { return vectors.count; }
    int64_t first(int64_t p) const { return vectors.start(p) * lanes; }
    int64_t width(int64_t p) const { return first(p + 1) - first(p); }  // with padding
    int64_t used(int64_t p) const {
        const int64_t left = columns - first(p);
        return left < width(p) ? left : width(p);
    }
    int64_t elements(int64_t K) const { return first(count()) * K; }
};

// ---------------------------------------------------------------------------- one tile

// Where a tile's sum is put: C = start + sum; start may be null, C itself or a row of biases.
template <class T>
struct Target {
    T* C;
    int64_t stride;
    const T* start;
    int64_t start_stride;
    Target at(int64_t row, int64_t column) const {
        return {C + row * stride + column, stride,
                start ? start + row * start_stride + column : nullptr, start_stride};
    }
};

// Rows of P that are fetched ahead where P does not lie in the L1 cache.
constexpr int64_t fetched_rows = 24;

// A [J][stride] in rows or, packed, [K][J]; P [K][P_stride], in the L1 cache or far from it. Whole
// vectors only: one call in here, and GCC keeps the accumulators on the stack.
template <class T, int J, int V, bool packed, bool far>
void product_tile(const T* A, int64_t stride, const T* P, int64_t P_stride, int64_t K,
                  const Target<T>& to) {
    using vec = vec_t<T>;
    constexpr int lanes = simd<T>::lanes;
    vec acc[J][V];
#pragma GCC unroll 16
    for (int j = 0; j < J; ++j)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) acc[j][v] = vec{};
    const T* row[J];
#pragma GCC unroll 16
    for (int j = 0; j < J; ++j) row[j] = A + j * stride;
    for (int64_t k = 0; k < K; ++k, P += P_stride) {
        vec p[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
            p[v] = load<T>(P + v * lanes);
            if constexpr (far) __builtin_prefetch(P + fetched_rows * P_stride + v * lanes);
        }
#pragma GCC unroll 16
        for (int j = 0; j < J; ++j) {
            const T a = packed ? A[k * J + j] : row[j][k];
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) acc[j][v] += p[v] * a;
        }
    }
    if (to.start == nullptr) {
#pragma GCC unroll 16
        for (int j = 0; j < J; ++j)
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v)
                store<T>(to.C + j * to.stride + v * lanes, acc[j][v]);
        return;
    }
#pragma GCC unroll 16
    for (int j = 0; j < J; ++j)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v)
            store<T>(to.C + j * to.stride + v * lanes,
                     load<T>(to.start + j * to.start_stride + v * lanes) + acc[j][v]);
}

template <class T>
using ProductTile = void (*)(const T*, int64_t, const T*, int64_t, int64_t, const Target<T>&);

template <class T, bool packed, bool far, int... N>
ProductTile<T> product_tile_at(int64_t J, int64_t V, std::integer_sequence<int, N...>) {
    static constexpr ProductTile<T> table[] = {
        product_tile<T, N / tile_vectors + 1, N % tile_vectors + 1, packed, far>...};
    return table[(J - 1) * tile_vectors + V - 1];
}

// The tile of any J and width, in whole vectors.
template <class T, bool packed, bool far>
ProductTile<T> tile_of(int64_t J, int64_t width) {
    return product_tile_at<T, packed, far>(
        J, width / simd<T>::lanes, std::make_integer_sequence<int, tile_rows * tile_vectors>());
}

// The same for a packed P; where fewer columns are used, through a padded copy.
template <class T, bool packed>
void tile_product(int64_t J, int64_t width, int64_t used, const T* A, int64_t stride, const T* P,
                  int64_t K, const Target<T>& to) {
    constexpr int64_t lanes = simd<T>::lanes, widest = tile_vectors * lanes;
    const ProductTile<T> tile = tile_of<T, packed, false>(J, width);
    if (used == width) {
        tile(A, stride, P, width, K, to);
        return;
    }
    // Of the panel's last vector alone some lanes are not used.
    alignas(64) T padded[tile_rows * widest];
    const int64_t whole = width - lanes, rest = used - whole;
    if (to.start)
        for (int64_t j = 0; j < J; ++j) {
            const T* from = to.start + j * to.start_stride;
            for (int64_t i = 0; i < whole; i += lanes)
                store<T>(padded + j * widest + i, load<T>(from + i));
            store<T>(padded + j * widest + whole, load_first<T>(from + whole, rest));
        }
    tile(A, stride, P, width, K, {padded, widest, to.start ? padded : nullptr, widest});
    for (int64_t j = 0; j < J; ++j) {
        T* C = to.C + j * to.stride;
        for (int64_t i = 0; i < whole; i += lanes)
            store<T>(C + i, load<T>(padded + j * widest + i));
        store_first<T>(C + whole, load<T>(padded + j * widest + whole), rest);
    }
}

// ---------------------------------------------------------------------------- products

// A [rows][K] with its row stride, and P [K][columns] in panels.
template <class T>
struct Operand {
    const T* A;
    int64_t stride;
    int64_t K;
    const T* P;
};

// C [rows][columns] = bias + Σ A·P; bias may be null.
template <class T>
void row_product(T* C, int64_t rows, const Panels<T>& panels, const T* bias,
                 const Operand<T>* operands, int count) {
    const Blocks down(rows, tile_rows);
    Target<T> to{C, panels.columns, bias, 0};
    for (int o = 0; o < count; ++o) {
        const Operand<T>& operand = operands[o];
        const Blocks depth(operand.K, block_k);
        for (int64_t d = 0; d < depth.count; ++d) {
            const int64_t k0 = depth.start(d), K = depth.start(d + 1) - k0;
            for (int64_t p = 0; p < panels.count(); ++p) {
                const int64_t j0 = panels.first(p), width = panels.width(p);
                const T* P = operand.P + j0 * operand.K + k0 * width;
                for (int64_t b = 0; b < down.count; ++b) {
                    const int64_t i0 = down.start(b), J = down.start(b + 1) - i0;
                    tile_product<T, false>(J, width, panels.used(p),
                                           operand.A + i0 * operand.stride + k0, operand.stride, P,
                                           K, to.at(i0, j0));
                }
            }
            to.start = C;
            to.start_stride = to.stride;
        }
    }
}

// The columns of panel p of C [rows] = start + A·P; A [rows][stride], the panel of P as packed.
template <class T>
void panel_product(Target<T> to, int64_t rows, const Panels<T>& panels, int64_t p, const T* A,
                   int64_t stride, const T* P, int64_t K) {
    const Blocks down(rows, tile_rows), depth(K, block_k);
    const int64_t width = panels.width(p);
    for (int64_t d = 0; d < depth.count; ++d) {
        const int64_t k0 = depth.start(d), deep = depth.start(d + 1) - k0;
        for (int64_t b = 0; b < down.count; ++b) {
            const int64_t i0 = down.start(b), J = down.start(b + 1) - i0;
            tile_product<T, false>(J, width, panels.used(p), A + i0 * stride + k0, stride,
                                   P + k0 * width, deep, to.at(i0, 0));
        }
        to.start = to.C;
        to.start_stride = to.stride;
    }
}

// C [rows][columns] (of the target) = start + AᵀP for A packed by pack_left, K at most a block.
template <class T>
void column_product(const Target<T>& to, int64_t rows, const Panels<T>& panels, const T* A,
                    const T* P, int64_t K) {
    const Blocks down(rows, tile_rows);
    for (int64_t p = 0; p < panels.count(); ++p) {
        const int64_t j0 = panels.first(p);
        for (int64_t b = 0; b < down.count; ++b) {
            const int64_t i0 = down.start(b), J = down.start(b + 1) - i0;
            tile_product<T, true>(J, panels.width(p), panels.used(p), A + i0 * K, J, P + j0 * K, K,
                                  to.at(i0, j0));
        }
    }
}

// ---------------------------------------------------------------------------- packing

// One panel [K][width] of P from the rows of P: source [K][stride].
template <class T, bool square>
void pack_panel(T* panel, const Panels<T>& panels, int64_t p, const T* source, int64_t stride,
                int64_t K) {
    constexpr int64_t lanes = simd<T>::lanes;
    const int64_t width = panels.width(p), used = panels.used(p);
    source += panels.first(p);
    for (int64_t k = 0; k < K; ++k, source += stride, panel += width)
        for (int64_t j = 0; j < width; j += lanes) {
            const vec_t<T> x = used - j >= lanes ? load<T>(source + j)
                                                 : load_first<T>(source + j, used - j);
            store<T>(panel + j, square ? x * x : x);
        }
}

// The same from the columns of P: source [columns][stride].
template <class T>
void pack_panel_of_columns(T* panel, const Panels<T>& panels, int64_t p, const T* source,
                           int64_t stride, int64_t K) {
    constexpr int64_t lanes = simd<T>::lanes;
    const int64_t width = panels.width(p), used = panels.used(p);
    source += panels.first(p) * stride;
    vec_t<T> x[lanes];
    for (int64_t j = 0; j < width; j += lanes)
        for (int64_t k = 0; k < K; k += lanes) {
            const int64_t depth = K - k < lanes ? K - k : lanes;
#pragma GCC unroll 16
            for (int64_t i = 0; i < lanes; ++i) {
                const T* from = source + (j + i) * stride + k;
                x[i] = j + i >= used  ? vec_t<T>{}
                       : depth == lanes ? load<T>(from)
                                        : load_first<T>(from, depth);
            }
            transpose<T>(x);
            for (int64_t i = 0; i < depth; ++i) store<T>(panel + (k + i) * width + j, x[i]);
        }
}

// Whole vectors where the memory behind a row allows it: what they write too much, the next row
// overwrites.
template <class T, int J, bool square>
void pack_left_block(T* packed, const T* A, int64_t stride, int64_t K, T scale) {
    constexpr int lanes = simd<T>::lanes, V = (J + lanes - 1) / lanes, whole = V * lanes;
    const auto scaled = [scale](vec_t<T> x) { return square ? x * x * scale : x * scale; };
    int64_t k = 0;
    for (; (K - 1 - k) * stride + J >= whole && (K - k) * J >= whole; ++k, A += stride, packed += J)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v)
            store<T>(packed + v * lanes, scaled(load<T>(A + v * lanes)));
    for (; k < K; ++k, A += stride, packed += J)
        for (int v = 0; v < V; ++v) {
            const int64_t left = J - v * lanes < lanes ? J - v * lanes : lanes;
            store_first<T>(packed + v * lanes, scaled(load_first<T>(A + v * lanes, left)), left);
        }
}

template <class T>
using PackLeftBlock = void (*)(T*, const T*, int64_t, int64_t, T);

template <class T, bool square, int... N>
PackLeftBlock<T> pack_left_block_at(int64_t J, std::integer_sequence<int, N...>) {
    static constexpr PackLeftBlock<T> table[] = {pack_left_block<T, N + 1, square>...};
    return table[J - 1];
}

// scale·A [K][rows] of this stride, or scale·A², in blocks of up to tile_rows rows, each [K][J].
template <class T, bool square>
void pack_left(T* packed, const T* A, int64_t stride, int64_t K, int64_t rows, T scale) {
    const Blocks down(rows, tile_rows);
    for (int64_t b = 0; b < down.count; ++b) {
        const int64_t i0 = down.start(b), J = down.start(b + 1) - i0;
        pack_left_block_at<T, square>(J, std::make_integer_sequence<int, tile_rows>())(
            packed + i0 * K, A + i0, stride, K, scale);
    }
}

}  // namespace
}  // namespace HFCORE_ISA
}  // namespace hfcore
