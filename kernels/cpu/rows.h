// Matrix products on batch tiles whose sequences are rows.
//
// A state of H units is an array [sequences][H] as it lies in memory, so nothing is turned and no
// sequence count is ever padded:
//
//     rows_product    C[q][·] = bias + Σ_k A[q][k] P[k][·]           A, C in rows, P packed
//     rows_outer      G[j][i] += Σ_q left[q][j] Z[q][i]              q runs over time and sequences
//
// A tile is J rows by V vectors of P. Where the last columns fill no more than half of 64 bytes, vectors
// hold them for two k at a time, and a pair of A[q] stands against it: H = 100 is 12.5 vectors of AVX2.
//
// Every element is one chain of sums, a paired one two, whatever the instruction set: AVX2 and AVX-512
// give the same bits.
#pragma once

#include "kernels/cpu/gemm.h"

namespace hfcore {
namespace HFCORE_ISA {
namespace {

// Rows of a tile of one and of two vectors; two of 13 are a whole tile of sequences.
#if defined(__AVX512F__)
constexpr int single_rows = 13, double_rows = 13;
#elif defined(__aarch64__)
constexpr int single_rows = 12, double_rows = 12;
#else
constexpr int single_rows = 12, double_rows = 6;
#endif
constexpr int rows_of(int64_t V) { return V == 1 ? single_rows : double_rows; }

// ---------------------------------------------------------------------------- packed matrices

// use(first, size) for the fewest blocks of at most `most` items; those of one item less come first.
template <class F>
void for_blocks(int64_t items, int64_t most, const F& use) {
    if (items == 0) return;
    const int64_t count = (items + most - 1) / most, size = (items + count - 1) / count;
    int64_t first = 0;
    for (int64_t left = size * count - items; left > 0; --left, first += size - 1)
        use(first, size - 1);
    for (; first < items; first += size) use(first, size);
}

// Columns of P: panels of up to tile_vectors whole vectors, then `paired` columns that take turns. Which
// are paired depends on their number alone, not on the width of a vector.
template <class T>
struct RowPanels {
    static constexpr int64_t lanes = simd<T>::lanes, wide = 64 / sizeof(T);
    int64_t columns, paired, vectors;
    explicit RowPanels(int64_t columns_)
        : columns(columns_), paired(columns_ % wide <= wide / 2 ? columns_ % wide : 0),
          vectors((columns_ - paired + lanes - 1) / lanes) {}
    int64_t first_paired() const { return columns - paired; }
    // Columns that are packed before the paired ones; only without these has the last vector padding.
    int64_t unpaired() const { return vectors * lanes; }
    int64_t paired_vectors() const { return (2 * paired + lanes - 1) / lanes; }
    // Elements of P for one k.
    int64_t width() const { return unpaired() + paired_vectors() * lanes / 2; }
    // use(first column, vectors) for every panel.
    template <class F>
    void each(const F& use) const {
        for_blocks(vectors, tile_vectors, [&](int64_t v, int64_t V) { use(v * lanes, V); });
    }
};

// Rows of P that a segment of K rows takes: pairs begin with it.
inline int64_t paired_depth(int64_t K) { return (K + 1) / 2 * 2; }

// Elements of P [K][columns].
template <class T>
int64_t packed_elements(int64_t columns, int64_t K) {
    return RowPanels<T>(columns).width() * K;
}

// One vector of columns of P, `used` of them there: [depth][width] from src, whose columns or whose rows
// lie together (column_stride or row_stride is 1).
template <class T>
void pack_vector(T* to, int64_t width, const T* src, int64_t used, int64_t depth,
                 int64_t column_stride, int64_t row_stride) {
    constexpr int64_t lanes = simd<T>::lanes;
    if (row_stride != 1) {
        for (int64_t k = 0; k < depth; ++k)
            store<T>(to + k * width, load_first<T>(src + k * row_stride, used));
        return;
    }
    vec_t<T> x[lanes];
    for (int64_t k = 0; k < depth; k += lanes) {
        const int64_t here = smaller(depth - k, lanes);
        for (int64_t j = 0; j < lanes; ++j)
            x[j] = j < used ? load_first<T>(src + j * column_stride + k, here) : vec_t<T>{};
        transpose<T>(x);
        for (int64_t i = 0; i < here; ++i) store<T>(to + (k + i) * width, x[i]);
    }
}

// Rows `offset` .. `offset + depth` of P [K][columns], offset even; element (k, j) is
// src[j·column_stride + k·row_stride], one of the strides 1.
template <class T>
void pack_rows(T* packed, int64_t columns, int64_t K, int64_t offset, const T* src, int64_t depth,
               int64_t column_stride, int64_t row_stride) {
    const RowPanels<T> panels(columns);
    panels.each([&](int64_t j0, int64_t V) {
        const int64_t width = V * panels.lanes;
        for (int64_t j = j0; j < j0 + width; j += panels.lanes)
            pack_vector(packed + j0 * K + offset * width + (j - j0), width,
                        src + j * column_stride, smaller(columns - j, panels.lanes), depth,
                        column_stride, row_stride);
    });
    if (panels.paired == 0) return;
    const int64_t half = panels.paired_vectors() * panels.lanes / 2;
    T* to = packed + panels.unpaired() * K + offset * half;
    const T* from = src + panels.first_paired() * column_stride;
    for (int64_t k = 0; k < depth; k += 2, to += 2 * half)
        for (int64_t j = 0; j < half; ++j)
            for (int64_t i = 0; i < 2; ++i)
                to[2 * j + i] = j < panels.paired && k + i < depth
                                    ? from[j * column_stride + (k + i) * row_stride]
                                    : T(0);
}

// ---------------------------------------------------------------------------- rows_product

// K columns of rows A [q][stride] and the rows of P that stand against them, from `offset` on.
template <class T>
struct RowSegment {
    const T* A;
    int64_t stride, K, offset;
};

// Where a sum begins: a row of biases (stride 0), earlier sums, or null for zero.
template <class T>
struct Start {
    const T* rows;
    int64_t stride;
};

// C [J][V·lanes] of rows i0 .. i0 + J; `panel` is that of P.
template <class T, int J, int V>
void rows_tile(T* C, int64_t C_stride, const Start<T>& start, const RowSegment<T>* segments,
               int count, int64_t i0, const T* panel) {
    using vec = vec_t<T>;
    constexpr int lanes = simd<T>::lanes;
    vec acc[J][V];
#pragma GCC unroll 16
    for (int j = 0; j < J; ++j)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v)
            acc[j][v] = start.rows ? load<T>(start.rows + j * start.stride + v * lanes) : vec{};
    for (int s = 0; s < count; ++s) {
        const RowSegment<T>& segment = segments[s];
        const T* row[J];
#pragma GCC unroll 16
        for (int j = 0; j < J; ++j) row[j] = segment.A + (i0 + j) * segment.stride;
        const T* P = panel + segment.offset * V * lanes;
        for (int64_t k = 0; k < segment.K; ++k, P += V * lanes) {
            vec p[V];
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) p[v] = load<T>(P + v * lanes);
#pragma GCC unroll 16
            for (int j = 0; j < J; ++j)
#pragma GCC unroll 4
                for (int v = 0; v < V; ++v) acc[j][v] += p[v] * row[j][k];
        }
    }
#pragma GCC unroll 16
    for (int j = 0; j < J; ++j)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) store<T>(C + j * C_stride + v * lanes, acc[j][v]);
}

// first, second in every pair of lanes.
template <class T>
HFCORE_INLINE vec_t<T> splat_pair(T first, T second) {
    vec_t<T> pairs;
#pragma GCC unroll 16
    for (int i = 0; i < simd<T>::lanes; i += 2) {
        pairs[i] = first;
        pairs[i + 1] = second;
    }
    return pairs;
}
#if defined(__AVX__)
HFCORE_INLINE vec_t<float> load_pair(const float* A) {
    double both;
    std::memcpy(&both, A, sizeof both);
#if defined(__AVX512F__)
    return (vec_t<float>)_mm512_set1_pd(both);
#else
    return (vec_t<float>)_mm256_set1_pd(both);
#endif
}
HFCORE_INLINE vec_t<double> load_pair(const double* A) {
    const __m128d both = _mm_loadu_pd(A);
#if defined(__AVX512F__)
    return (vec_t<double>)_mm512_broadcast_f64x2(both);
#else
    return (vec_t<double>)_mm256_broadcast_pd(&both);
#endif
}
#else
template <class T>
HFCORE_INLINE vec_t<T> load_pair(const T* A) {
    return splat_pair<T>(A[0], A[1]);
}
#endif

// C [J][columns] of the paired columns, in V vectors: a chain for even k, a chain for odd k.
template <class T, int J, int V>
void paired_tile(T* C, int64_t C_stride, int64_t columns, const Start<T>& start,
                 const RowSegment<T>* segments, int count, int64_t i0, const T* panel) {
    using vec = vec_t<T>;
    constexpr int lanes = simd<T>::lanes;
    vec acc[J][V];
#pragma GCC unroll 16
    for (int j = 0; j < J; ++j)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) acc[j][v] = vec{};
    for (int s = 0; s < count; ++s) {
        const RowSegment<T>& segment = segments[s];
        const T* A = segment.A + i0 * segment.stride;
        const T* P = panel + segment.offset * V * lanes / 2;
        const auto add = [&](const auto& pair_of, int64_t k) {
            vec p[V];
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) p[v] = load<T>(P + v * lanes);
            P += V * lanes;
#pragma GCC unroll 16
            for (int j = 0; j < J; ++j) {
                const vec pair = pair_of(A + j * segment.stride + k);
#pragma GCC unroll 4
                for (int v = 0; v < V; ++v) acc[j][v] += p[v] * pair;
            }
        };
        int64_t k = 0;
        for (; k + 2 <= segment.K; k += 2) add([](const T* a) { return load_pair(a); }, k);
        if (k < segment.K) add([](const T* a) { return splat_pair<T>(*a, T(0)); }, k);
    }
    for (int j = 0; j < J; ++j) {
        T sums[V * lanes];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) store<T>(sums + v * lanes, acc[j][v]);
        T* to = C + j * C_stride;
        const T* from = start.rows ? start.rows + j * start.stride : nullptr;
        for (int64_t i = 0; i < columns; ++i)
            to[i] = (from ? from[i] : T(0)) + (sums[2 * i] + sums[2 * i + 1]);
    }
}

template <class T>
using RowsTile = void (*)(T*, int64_t, const Start<T>&, const RowSegment<T>*, int, int64_t,
                          const T*);
template <class T>
using PairedTile = void (*)(T*, int64_t, int64_t, const Start<T>&, const RowSegment<T>*, int,
                            int64_t, const T*);

template <class T, int V, int... N>
RowsTile<T> rows_tile_at(int64_t J, std::integer_sequence<int, N...>) {
    static constexpr RowsTile<T> table[] = {rows_tile<T, N + 1, V>...};
    return table[J - 1];
}
template <class T>
RowsTile<T> rows_tile_of(int64_t J, int64_t V) {
    if (V == 1) return rows_tile_at<T, 1>(J, std::make_integer_sequence<int, single_rows>());
    return rows_tile_at<T, 2>(J, std::make_integer_sequence<int, double_rows>());
}
template <class T, int V, int... N>
PairedTile<T> paired_tile_at(int64_t J, std::integer_sequence<int, N...>) {
    static constexpr PairedTile<T> table[] = {paired_tile<T, N + 1, V>...};
    return table[J - 1];
}

// One tile, its last vector perhaps in part, through a padded copy.
template <class T>
void partial_tile(RowsTile<T> tile, int64_t J, int64_t used, T* C, int64_t C_stride,
                  const Start<T>& start, const RowSegment<T>* segments, int count, int64_t i0,
                  const T* panel) {
    constexpr int64_t widest = tile_vectors * simd<T>::lanes;
    alignas(64) T padded[single_rows * widest], begin[single_rows * widest] = {};
    if (start.rows)
        for (int64_t j = 0; j < J; ++j)
            std::memcpy(begin + j * widest, start.rows + j * start.stride, used * sizeof(T));
    tile(padded, widest, {begin, widest}, segments, count, i0, panel);
    for (int64_t j = 0; j < J; ++j)
        std::memcpy(C + j * C_stride, padded + j * widest, used * sizeof(T));
}

// What will be read next, fetched a little with every tile.
class Fetch {
public:
    Fetch() = default;
    template <class T>
    Fetch(const T* from, int64_t elements)
        : at_(reinterpret_cast<const char*>(from)),
          left_(elements * static_cast<int64_t>(sizeof(T))) {}
    void some(int64_t lines) {
        for (; lines > 0 && left_ > 0; --lines, at_ += 64, left_ -= 64) __builtin_prefetch(at_);
    }
    int64_t lines_each(int64_t turns) const {
        return turns > 0 ? (left_ + 64 * turns - 1) / (64 * turns) : 0;
    }

private:
    const char* at_ = nullptr;
    int64_t left_ = 0;
};

// Packed weights of so many bytes stay in the L2 cache.
constexpr int64_t near_bytes = 256 << 10;

// The paired columns of C [rows][·], from the first of them on, where they fill V vectors.
template <class T, int V>
void paired_columns(T* C, int64_t rows, const RowPanels<T>& panels, const Start<T>& start,
                    const RowSegment<T>* segments, int count, const T* panel) {
    if constexpr (V < RowPanels<T>::wide / simd<T>::lanes)
        if (panels.paired_vectors() > V)
            return paired_columns<T, V + 1>(C, rows, panels, start, segments, count, panel);
    constexpr int most = single_rows / V;
    for_blocks(rows, most, [&](int64_t i0, int64_t J) {
        const Start<T> from{start.rows ? start.rows + i0 * start.stride : nullptr, start.stride};
        paired_tile_at<T, V>(J, std::make_integer_sequence<int, most>())(
            C + i0 * panels.columns, panels.columns, panels.paired, from, segments, count, i0,
            panel);
    });
}

// C [rows][columns] = start + Σ over segments that fill a panel in the L1 cache.
template <class T>
void rows_block(const RowPanels<T>& panels, T* C, int64_t rows, const Start<T>& start,
                const T* packed, int64_t K, const RowSegment<T>* segments, int count,
                Fetch& fetch) {
    const int64_t columns = panels.columns;
    const int64_t across = (panels.vectors + tile_vectors - 1) / tile_vectors;
    const int64_t down = (rows + double_rows - 1) / double_rows;
    const int64_t lines = fetch.lines_each(across * down);
    const auto from = [&](int64_t i0, int64_t j0) {
        return Start<T>{start.rows ? start.rows + i0 * start.stride + j0 : nullptr, start.stride};
    };
    // The rows of P that this run of segments stands against, of the next panel while this one is used.
    const int64_t first = count > 0 ? segments[0].offset : 0;
    const int64_t last = count > 0 ? segments[count - 1].offset + segments[count - 1].K : 0;
    const bool far = packed_elements<T>(columns, K) * static_cast<int64_t>(sizeof(T)) > near_bytes;
    panels.each([&](int64_t j0, int64_t V) {
        const int64_t width = V * panels.lanes, used = smaller(columns - j0, width);
        const T* panel = packed + j0 * K;
        Fetch ahead;
        if (far && j0 + width < panels.unpaired())
            ahead = {panel + width * K + first * width, (last - first) * width};
        const int64_t ahead_lines = ahead.lines_each(down);
        for_blocks(rows, rows_of(V), [&](int64_t i0, int64_t J) {
            ahead.some(ahead_lines);
            const RowsTile<T> tile = rows_tile_of<T>(J, V);
            T* to = C + i0 * columns + j0;
            fetch.some(lines);
            if (used == width)
                tile(to, columns, from(i0, j0), segments, count, i0, panel);
            else
                partial_tile(tile, J, used, to, columns, from(i0, j0), segments, count, i0, panel);
        });
    });
    if (panels.paired == 0) return;
    const int64_t j0 = panels.first_paired();
    paired_columns<T, 1>(C + j0, rows, panels, from(0, j0), segments, count,
                         packed + panels.unpaired() * K);
}

// C [rows][columns] = bias + Σ over segments; bias may be null, and so may the sum be empty.
template <class T>
void rows_product(T* C, int64_t rows, int64_t columns, const T* bias, const T* packed, int64_t K,
                  const RowSegment<T>* segments, int count, Fetch fetch = {}) {
    constexpr int most = 4;
    const RowPanels<T> panels(columns);
    RowSegment<T> run[most];
    int filled = 0;
    int64_t depth = 0;
    Start<T> start{bias, 0};
    const auto flush = [&] {
        rows_block(panels, C, rows, start, packed, K, run, filled, fetch);
        start = {C, columns};
        filled = 0;
        depth = 0;
    };
    for (int s = 0; s < count; ++s)
        for (int64_t k = 0; k < segments[s].K;) {
            const RowSegment<T>& all = segments[s];
            const int64_t take = smaller(all.K - k, block_k - depth);
            run[filled++] = {all.A + k, all.stride, take, all.offset + k};
            k += take;
            depth += paired_depth(take);
            if (depth == block_k || filled == most) flush();
        }
    if (filled > 0 || start.rows == bias) flush();
}

// ---------------------------------------------------------------------------- rows_outer

// One term: Z [sequences][stride].
template <class T>
struct OuterRows {
    const T* Z;
    int64_t stride;
};

// G [J][I vectors] += Σ over terms; left [terms·sequences][J].
template <class T, int J, int I>
void rows_outer_tile(T* G, int64_t G_stride, const T* left, const OuterRows<T>* terms, int count,
                     int64_t i0, int64_t sequences) {
    using vec = vec_t<T>;
    constexpr int lanes = simd<T>::lanes;
    vec acc[J][I];
#pragma GCC unroll 16
    for (int j = 0; j < J; ++j)
#pragma GCC unroll 4
        for (int i = 0; i < I; ++i) acc[j][i] = vec{};
    for (int s = 0; s < count; ++s) {
        const T* Z = terms[s].Z + i0;
        const int64_t stride = terms[s].stride;
        for (int64_t q = 0; q < sequences; ++q, Z += stride, left += J) {
            vec z[I];
#pragma GCC unroll 4
            for (int i = 0; i < I; ++i) z[i] = load<T>(Z + i * lanes);
#pragma GCC unroll 16
            for (int j = 0; j < J; ++j)
#pragma GCC unroll 4
                for (int i = 0; i < I; ++i) acc[j][i] += z[i] * left[j];
        }
    }
#pragma GCC unroll 16
    for (int j = 0; j < J; ++j)
#pragma GCC unroll 4
        for (int i = 0; i < I; ++i) {
            T* at = G + j * G_stride + i * lanes;
            store<T>(at, load<T>(at) + acc[j][i]);
        }
}

template <class T>
using RowsOuterTile = void (*)(T*, int64_t, const T*, const OuterRows<T>*, int, int64_t, int64_t);

template <class T, int... N>
RowsOuterTile<T> rows_outer_tile_at(int64_t J, int64_t I, std::integer_sequence<int, N...>) {
    static constexpr RowsOuterTile<T> table[] = {
        rows_outer_tile<T, N / tile_vectors + 1, N % tile_vectors + 1>...};
    return table[(J - 1) * tile_vectors + I - 1];
}

template <class T, int J>
void pack_outer_block(T* packed, const T* rows, int64_t units, int64_t sequences) {
    for (int64_t q = 0; q < sequences; ++q)
        std::memcpy(packed + q * J, rows + q * units, J * sizeof(T));
}

template <class T, int... N>
void pack_outer_block_at(int64_t J, std::integer_sequence<int, N...>, T* packed, const T* rows,
                         int64_t units, int64_t sequences) {
    static constexpr void (*table[])(T*, const T*, int64_t, int64_t) = {
        pack_outer_block<T, N + 1>...};
    table[J - 1](packed, rows, units, sequences);
}

// Rows [sequences][units] of gradients as rows_outer wants them: blocks of up to double_rows units, each
// [depth][J], of which these are `at` .. `at + sequences`.
template <class T>
void pack_outer_left(T* packed, int64_t depth, int64_t at, const T* rows, int64_t units,
                     int64_t sequences) {
    for_blocks(units, double_rows, [&](int64_t j0, int64_t J) {
        pack_outer_block_at(J, std::make_integer_sequence<int, double_rows>(),
                            packed + j0 * depth + at * J, rows + j0, units, sequences);
    });
}

// From so many units on a strip of Z is copied first: its rows may lie a power of two apart, and then
// they drive each other out of the L1 cache.
constexpr int64_t copied_units = 192;
constexpr int64_t strip_rows = 128;

// The strip of `width` columns from i0 on, in `strip`, and terms of it.
template <class T>
void copy_strip(T* strip, OuterRows<T>* copied, const OuterRows<T>* terms, int count, int64_t i0,
                int64_t width, int64_t sequences) {
    constexpr int64_t lanes = simd<T>::lanes;
    for (int s = 0; s < count; ++s) {
        copied[s] = {strip, width};
        const T* from = terms[s].Z + i0;
        for (int64_t q = 0; q < sequences; ++q, from += terms[s].stride, strip += width)
            for (int64_t i = 0; i < width; i += lanes) store<T>(strip + i, load<T>(from + i));
    }
}

// G [units][columns] += Σ; columns and G's rows in whole vectors, left [block][depth][J].
template <class T>
void rows_outer(T* G, int64_t G_stride, int64_t units, int64_t columns, const T* left,
                int64_t depth, const OuterRows<T>* terms, int count, int64_t sequences) {
    constexpr int64_t lanes = simd<T>::lanes;
    constexpr int most = 4;
    constexpr auto sizes = std::make_integer_sequence<int, double_rows * tile_vectors>();
    if (count == 0) return;
    alignas(64) T strip[strip_rows * tile_vectors * lanes];
    OuterRows<T> copied[most];
    const bool copies = units >= copied_units && count <= most && depth <= strip_rows;
    for_blocks(columns / lanes, tile_vectors, [&](int64_t i, int64_t I) {
        if (copies) copy_strip(strip, copied, terms, count, i * lanes, I * lanes, sequences);
        for_blocks(units, double_rows, [&](int64_t j0, int64_t J) {
            rows_outer_tile_at<T>(J, I, sizes)(G + j0 * G_stride + i * lanes, G_stride,
                                               left + j0 * depth, copies ? copied : terms, count,
                                               copies ? 0 : i * lanes, sequences);
        });
    });
}

}  // namespace
}  // namespace HFCORE_ISA
}  // namespace hfcore
