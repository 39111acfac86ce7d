// Sparse ops: cases lie side by side in vector lanes, so that an entry is one broadcast scalar
// against one contiguous run of cases, wherever its column is.
//
// product, gradient: cases are taken in tiles of L, transposed into a panel [columns][L] that stays
// in the L2 cache while every entry reads its column's run. scan, hidden: the panel is the state, and
// lives through time. A sum runs over a row's entries (gradient: over tiles) in order, in one task:
// bits depend on the shape alone.
#include "kernels/sparse/cpu.h"

#include "kernels/cpu/lanes.h"
#include "kernels/cpu/parallel.h"

namespace hfcore {
namespace HFCORE_ISA {
namespace {

// Rows of a product that are turned back from lanes to cases at a time.
constexpr int64_t block_rows = 64;
// A panel of two vectors of cases may take this much of the L2 cache; beyond it one vector is used.
constexpr int64_t panel_bytes = 1536 << 10;
// A product of at least so many bytes is written past the caches.
constexpr int64_t streamed_bytes = 6 << 20;
// Tiles of a gradient are summed to at most so many partial sums.
constexpr int64_t most_partial_sums = 64;
// Values that a task brings into the order of the entries, and blocks whose rows it sorts.
constexpr int64_t copied_entries = 1 << 14, sorted_blocks = 32;
// Below this many multiply-adds waking a second thread costs more than it saves.
constexpr int64_t serial_work = 1 << 17;

inline int64_t quotient_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int useful_threads(int threads, int64_t work) {
    return work < serial_work ? 1 : static_cast<int>(smaller(larger(threads, 1), 256));
}

// Vectors of cases in a tile, from the shape alone: sums of a gradient depend on it.
template <class T>
int vectors_of(int64_t B, int64_t units) {
    constexpr int64_t lanes = simd<T>::lanes;
    return B <= lanes || units * NV * lanes * static_cast<int64_t>(sizeof(T)) > panel_bytes ? 1 : NV;
}

// ---------------------------------------------------------------------------- rows <-> lanes

// panel [units][V·lanes] from rows [cases][stride]; missing cases are zeros.
template <class T, int V>
void fill_panel(T* panel, const T* rows, int64_t stride, int64_t units, int64_t cases) {
    constexpr int N = simd<T>::lanes;
    vec_t<T> x[N];
    for (int v = 0; v < V; ++v) {
        const int64_t here = smaller(larger(cases - v * N, 0), N);
        for (int64_t c = 0; c < units; c += N) {
            const int64_t width = smaller(units - c, N);
            const T* from = rows + v * N * stride + c;
            if (here == N && width == N) {
#pragma GCC unroll 16
                for (int i = 0; i < N; ++i) x[i] = load<T>(from + i * stride);
            } else {
                for (int i = 0; i < N; ++i)
                    x[i] = i < here ? load_first<T>(from + i * stride, width) : vec_t<T>{};
            }
            transpose<T>(x);
            T* to = panel + (c * V + v) * N;
            for (int64_t i = 0; i < width; ++i) store<T>(to + i * V * N, x[i]);
        }
    }
}

// rows [cases][stride] from a block of lanes [units][V·lanes]; past the caches where `streamed`.
template <class T, int V, bool streamed>
void store_rows(T* rows, int64_t stride, const T* block, int64_t units, int64_t cases) {
    constexpr int N = simd<T>::lanes;
    vec_t<T> x[N];
    for (int v = 0; v < V; ++v) {
        const int64_t here = smaller(larger(cases - v * N, 0), N);
        for (int64_t c = 0; c < units; c += N) {
            const int64_t width = smaller(units - c, N);
            const T* from = block + (c * V + v) * N;
            T* to = rows + v * N * stride + c;
            // Behind the last unit the block holds older rows, which are not stored.
#pragma GCC unroll 16
            for (int i = 0; i < N; ++i) x[i] = load<T>(from + i * V * N);
            transpose<T>(x);
            if (here == N && width == N) {
#pragma GCC unroll 16
                for (int i = 0; i < N; ++i) {
                    if constexpr (streamed)
                        stream<T>(to + i * stride, x[i]);
                    else
                        store<T>(to + i * stride, x[i]);
                }
            } else {
                for (int64_t i = 0; i < here; ++i) store_first<T>(to + i * stride, x[i], width);
            }
        }
    }
}

// ---------------------------------------------------------------------------- entries

// The rows of a block, from `first` on, those of equal length together: how long the next row is, is
// then mostly foreseen. Rows of all too different lengths stay as they are.
inline void order_rows(const SparseRows& A, int64_t first, int64_t count, std::int8_t* order) {
    constexpr int64_t most_lengths = 128;
    const auto length = [&](int64_t i) { return A.start[first + i + 1] - A.start[first + i]; };
    int64_t least = length(0), most = least;
    for (int64_t i = 1; i < count; ++i) {
        least = smaller(least, length(i));
        most = larger(most, length(i));
    }
    std::int8_t next[most_lengths + 1] = {};
    const bool sorted = most - least < most_lengths;
    if (sorted) {
        for (int64_t i = 0; i < count; ++i) ++next[length(i) - least + 1];
        for (int64_t l = 0; l < most - least; ++l) next[l + 1] += next[l];
    }
    for (int64_t i = 0; i < count; ++i)
        order[sorted ? next[length(i) - least]++ : i] = static_cast<std::int8_t>(i);
}

// out[i][·] = Σ over the entries of row first + i of value · panel[column], the rows in this order or,
// with null, one after the other.
template <class T, int V>
void sum_rows(T* out, const T* panel, const SparseRows& A, const T* value, int64_t first,
              int64_t count, const std::int8_t* order) {
    constexpr int64_t L = V * simd<T>::lanes;
    for (int64_t at = 0; at < count; ++at) {
        const int64_t i = order ? order[at] : at;
        const int64_t end = A.start[first + i + 1];
        vec_t<T> sum[V] = {};
        for (int64_t e = A.start[first + i]; e < end; ++e) {
            const T* run = panel + A.column[e] * L;
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v)
                sum[v] += load<T>(run + v * simd<T>::lanes) * value[e];
        }
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) store<T>(out + i * L + v * simd<T>::lanes, sum[v]);
    }
}

// Values of every net in the order of the entries; nets that share theirs share the copy. Behind them
// are `more` bytes for the caller.
template <class T>
Grouped<T> order_values(Region& region, const SparseRows& A, Grouped<T> value, int64_t G,
                        int64_t more, void** behind) {
    const int64_t nets = A.place == nullptr ? 0 : value.stride == 0 ? 1 : G;
    T* room = static_cast<T*>(region.shared(larger(nets * A.entries, 1) * sizeof(T) + more));
    if (behind) *behind = room + larger(nets * A.entries, 1);
    if (A.place == nullptr) return value;
    const Blocks pieces(A.entries, copied_entries);
    region.run(nets * pieces.count, [&](int64_t task, int) {
        const int64_t net = task / pieces.count, piece = task % pieces.count;
        const T* from = value.at(net);
        T* to = room + net * A.entries;
        for (int64_t e = pieces.start(piece); e < pieces.start(piece + 1); ++e)
            to[e] = from[A.place[e]];
    });
    return {room, value.stride == 0 ? 0 : A.entries};
}

// Few tiles are cut into pieces of rows as well. Each piece fills its panel anew, so there are only as
// many as the entries outweigh; which piece a row is in does not touch its bits.
inline int64_t row_cuts(const SparseRows& A, int64_t tiles, int threads) {
    const int64_t most = smaller(A.entries / A.columns / 2, quotient_up(A.rows, block_rows));
    return tiles >= 2 * threads ? 1 : larger(smaller(threads, most), 1);
}
inline Blocks row_pieces(const SparseRows& A, int64_t tiles, int threads) {
    return Blocks(A.rows, quotient_up(A.rows, row_cuts(A, tiles, threads)));
}

// ---------------------------------------------------------------------------- product

template <class T, int V, bool streamed>
void product_form(const SparseDims& d, const SparseRows& A, Grouped<T> value, Grouped<T> x,
                  T* out) {
    constexpr int64_t L = V * simd<T>::lanes;
    const int threads = useful_threads(d.threads, d.G * d.B * (A.entries + A.columns));
    const int64_t tiles = quotient_up(d.B, L);
    const int64_t blocks = quotient_up(A.rows, block_rows);
    const Blocks pieces(blocks, quotient_up(blocks, row_cuts(A, d.G * tiles, threads)));
    const auto rows_of = [&](int64_t b) { return smaller(A.rows - b * block_rows, block_rows); };
    Region region(threads, Denormals::flush);
    void* behind = nullptr;
    const Grouped<T> ordered = order_values(region, A, value, d.G, blocks * block_rows, &behind);
    std::int8_t* const order = static_cast<std::int8_t*>(behind);
    const Blocks sorted(blocks, sorted_blocks);
    region.run(sorted.count, [&](int64_t task, int) {
        for (int64_t b = sorted.start(task); b < sorted.start(task + 1); ++b)
            order_rows(A, b * block_rows, rows_of(b), order + b * block_rows);
    });
    region.run(d.G * tiles * pieces.count, [&](int64_t task, int worker) {
        const int64_t piece = task % pieces.count, tile = task / pieces.count % tiles;
        const int64_t g = task / pieces.count / tiles;
        const int64_t cases = smaller(d.B - tile * L, L);
        T* panel = static_cast<T*>(
            region.scratch(worker, (A.columns + block_rows) * L * sizeof(T)));
        T* block = panel + A.columns * L;
        fill_panel<T, V>(panel, x.at(g) + tile * L * A.columns, A.columns, A.columns, cases);
        T* y = out + (g * d.B + tile * L) * A.rows;
        for (int64_t b = pieces.start(piece); b < pieces.start(piece + 1); ++b) {
            const int64_t i = b * block_rows, count = rows_of(b);
            sum_rows<T, V>(block, panel, A, ordered.at(g), i, count, order + i);
            store_rows<T, V, streamed>(y + i, A.rows, block, count, cases);
        }
        if constexpr (streamed) end_of_stream();
    });
}

// Whether the result goes past the caches: it would drive the panel out of them. Every row of it then
// begins a cache line.
template <class T>
bool is_streamed(const SparseDims& d, int64_t rows, const T* out) {
    constexpr int64_t line = HFCORE_VECTOR_BYTES;
    const int64_t row_bytes = rows * static_cast<int64_t>(sizeof(T));
    return streams && d.G * d.B * row_bytes >= streamed_bytes && row_bytes % line == 0 &&
           reinterpret_cast<std::uintptr_t>(out) % line == 0;
}

template <class T>
void product(const SparseDims& d, const SparseRows& A, Grouped<T> value, Grouped<T> x, T* out) {
    const int V = vectors_of<T>(d.B, A.columns);
    const bool streamed = is_streamed(d, A.rows, out);
    const auto form = V == 1 ? (streamed ? product_form<T, 1, streams> : product_form<T, 1, false>)
                             : (streamed ? product_form<T, NV, streams> : product_form<T, NV, false>);
    form(d, A, value, x, out);
}

// ---------------------------------------------------------------------------- gradient

// Lane i of the result is the sum of x[i]'s lanes, added in pairs.
template <class T>
HFCORE_INLINE vec_t<T> sum_each(vec_t<T> (&x)[simd<T>::lanes]) {
    constexpr int N = simd<T>::lanes;
    const auto sequence = std::make_integer_sequence<int, N>();
#pragma GCC unroll 4
    for (int half = N / 2; half >= 1; half /= 2)
#pragma GCC unroll 8
        for (int i = 0; i < half; ++i)
            x[i] = interleave<T, 0>(x[i], x[i + half], sequence) +
                   interleave<T, 1>(x[i], x[i + half], sequence);
    return x[0];
}

// Where the sums of a row stand among those of the rows from `first` on: behind each is room for what
// its last vector writes too much.
template <class T>
inline int64_t place_of_row(const SparseRows& A, int64_t first, int64_t row) {
    return A.start[row] - A.start[first] + (row - first) * (simd<T>::lanes - 1);
}

// Vectors of cases in a tile of a gradient: those of 64 bytes of them or of 128, whatever the width of a
// vector, so that sums over cases have the same order for every instruction set.
template <class T>
constexpr int gradient_parts = 64 / sizeof(T) / simd<T>::lanes;
template <class T>
int gradient_vectors(int64_t B, int64_t units) {
    constexpr int64_t wide = 64 / sizeof(T);
    return (B <= wide || units * 128 > panel_bytes ? 1 : 2) * gradient_parts<T>;
}

// sums (+)= Σ over a tile's cases of g[row] · x[column] for the entries of `count` rows from `first`
// on; g holds those rows alone.
template <class T, int V>
void dot_rows(T* sums, const T* g, const T* x, const SparseRows& A, int64_t first, int64_t count,
              bool add) {
    constexpr int N = simd<T>::lanes, parts = gradient_parts<T>;
    constexpr int64_t L = V * N;
    for (int64_t i = 0; i < count; ++i) {
        vec_t<T> left[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) left[v] = load<T>(g + i * L + v * N);
        const int64_t end = A.start[first + i + 1];
        T* to = sums + place_of_row<T>(A, first, first + i);
        for (int64_t e = A.start[first + i]; e < end; e += N, to += N) {
            // What lies behind the row belongs to the next one and is dropped again.
            const std::int32_t* column = A.column + e;
            std::int32_t last_columns[N];
            if (e + N > A.entries) {
                for (int64_t j = 0; j < N; ++j) last_columns[j] = A.column[smaller(e + j, end - 1)];
                column = last_columns;
            }
            vec_t<T> sum[N];
#pragma GCC unroll 16
            for (int j = 0; j < N; ++j) {
                const T* run = x + column[j] * L;
                vec_t<T> part[parts];
#pragma GCC unroll 4
                for (int p = 0; p < parts; ++p) {
                    part[p] = load<T>(run + p * N) * left[p];
#pragma GCC unroll 4
                    for (int v = p + parts; v < V; v += parts)
                        part[p] += load<T>(run + v * N) * left[v];
                }
#pragma GCC unroll 4
                for (int half = parts / 2; half >= 1; half /= 2)
#pragma GCC unroll 4
                    for (int p = 0; p < half; ++p) part[p] += part[p + half];
                sum[j] = part[0];
            }
            const vec_t<T> total = sum_each<T>(sum);
            store<T>(to, add ? total + load<T>(to) : total);
        }
    }
}

// A task sums a few tiles of cases for a piece of the rows; tasks are added in order.
template <class T, int V>
void gradient_form(const SparseDims& d, const SparseRows& A, int64_t values, Grouped<T> g,
                   Grouped<T> x, T* out) {
    constexpr int64_t L = V * simd<T>::lanes;
    const int threads = useful_threads(d.threads, d.G * d.B * (A.entries + A.columns + A.rows));
    const int64_t tiles = quotient_up(d.B, L);
    const Blocks groups(tiles, quotient_up(tiles, most_partial_sums));
    const Blocks pieces = row_pieces(A, d.G * groups.count, threads);
    Region region(threads, Denormals::flush);
    T* ordered = nullptr;  // sums in the order of the entries, where out has another
    if (A.place != nullptr)
        ordered = static_cast<T*>(region.shared(larger(d.G * A.entries, 1) * sizeof(T)));
    const int64_t panel_size = (A.columns + block_rows) * L;
    const auto sums_of = [&](int64_t task, int worker) {
        const int64_t first = pieces.start(task % pieces.count);
        const int64_t size = place_of_row<T>(A, first, pieces.start(task % pieces.count + 1));
        T* panel = static_cast<T*>(
            region.scratch(worker, (panel_size + size) * sizeof(T)));
        return panel + panel_size;
    };
    const auto work = [&](int64_t task, int worker) {
        const int64_t piece = task % pieces.count, group = task / pieces.count % groups.count;
        const int64_t net = task / pieces.count / groups.count;
        T* sums = sums_of(task, worker);
        T *panel = sums - panel_size, *block = panel + A.columns * L;
        for (int64_t tile = groups.start(group); tile < groups.start(group + 1); ++tile) {
            const int64_t cases = smaller(d.B - tile * L, L);
            fill_panel<T, V>(panel, x.at(net) + tile * L * A.columns, A.columns, A.columns, cases);
            for (int64_t i = pieces.start(piece); i < pieces.start(piece + 1); i += block_rows) {
                const int64_t count = smaller(pieces.start(piece + 1) - i, block_rows);
                fill_panel<T, V>(block, g.at(net) + tile * L * A.rows + i, A.rows, count, cases);
                T* to = sums + place_of_row<T>(A, pieces.start(piece), i);
                dot_rows<T, V>(to, block, panel, A, i, count, tile > groups.start(group));
            }
        }
    };
    const auto merge = [&](int64_t task, int worker) {
        const int64_t piece = task % pieces.count, group = task / pieces.count % groups.count;
        const int64_t net = task / pieces.count / groups.count;
        const int64_t first = pieces.start(piece), last = pieces.start(piece + 1);
        const T* sums = sums_of(task, worker);
        T* to = ordered ? ordered + net * A.entries : out + net * values;
        for (int64_t row = first; row < last; ++row) {
            const T* from = sums + place_of_row<T>(A, first, row) - A.start[row];
            for (int64_t e = A.start[row]; e < A.start[row + 1]; ++e)
                to[e] = group == 0 ? from[e] : to[e] + from[e];
        }
    };
    region.run_ordered(d.G * groups.count * pieces.count, work, merge);
    if (ordered == nullptr) return;
    std::memset(out, 0, d.G * values * sizeof(T));
    for (int64_t net = 0; net < d.G; ++net)
        for (int64_t e = 0; e < A.entries; ++e)
            out[net * values + A.place[e]] = ordered[net * A.entries + e];
}

template <class T>
void gradient(const SparseDims& d, const SparseRows& A, int64_t values, Grouped<T> g, Grouped<T> x,
              T* out) {
    constexpr int parts = gradient_parts<T>;
    if (gradient_vectors<T>(d.B, A.columns) == parts)
        return gradient_form<T, parts>(d, A, values, g, x, out);
    gradient_form<T, 2 * parts>(d, A, values, g, x, out);
}

// ---------------------------------------------------------------------------- through time

// y_t = finish(t, offset, elements, y_{t∓1} Aᵀ) for tiles of L sequences; `offset` is where the unit
// lies in an array [T,B,H] and finish gives a vector of the state from one of products.
template <class T, int V, class F>
void through_time(const SparseScanDims& d, const SparseRows& A, Grouped<T> value, T* y,
                  const F& finish) {
    constexpr int N = simd<T>::lanes;
    constexpr int64_t L = V * N;
    const int threads = useful_threads(d.threads, d.G * d.T * d.B * (A.entries + d.H));
    const int64_t tiles = quotient_up(d.B, L);
    Region region(threads, Denormals::flush);
    const Grouped<T> ordered = order_values(region, A, value, d.G, 0, nullptr);
    region.run(d.G * tiles, [&](int64_t task, int worker) {
        const int64_t g = task / tiles, tile = task % tiles;
        const int64_t cases = smaller(d.B - tile * L, L);
        T* now = static_cast<T*>(region.scratch(worker, 2 * d.H * L * sizeof(T)));
        T* next = now + d.H * L;
        T block[N * L];
        vec_t<T> x[N];
        for (int64_t step = 0; step < d.T; ++step) {
            const int64_t t = d.reverse ? d.T - 1 - step : step;
            const int64_t corner = (t * d.B + tile * L) * d.H;
            T* rows = y + g * d.T * d.B * d.H + corner;
            for (int64_t i0 = 0; i0 < d.H; i0 += N) {
                const int64_t width = smaller(d.H - i0, N);
                if (step > 0)
                    sum_rows<T, V>(block, now, A, ordered.at(g), i0, width, nullptr);
                for (int v = 0; v < V; ++v) {
                    const int64_t here = smaller(larger(cases - v * N, 0), N);
                    for (int i = 0; i < N; ++i)
                        x[i] = step > 0 && i < width ? load<T>(block + i * L + v * N) : vec_t<T>{};
                    transpose<T>(x);
                    for (int i = 0; i < N; ++i) {
                        const int64_t at = (v * N + i) * d.H + i0;
                        x[i] = i < here ? finish(g, corner + at, width, x[i]) : vec_t<T>{};
                        if (i < here) store_first<T>(rows + at, x[i], width);
                    }
                    transpose<T>(x);
                    for (int64_t i = 0; i < width; ++i)
                        store<T>(next + (i0 + i) * L + v * N, x[i]);
                }
            }
            T* const spare = now;
            now = next;
            next = spare;
        }
    });
}

template <class T, class F>
void run_through_time(const SparseScanDims& d, const SparseRows& A, Grouped<T> value, T* y,
                      const F& finish) {
    // Two panels are alive; sequences that would leave threads idle are taken one vector at a time.
    const bool wide = vectors_of<T>(d.B, 2 * d.H) > 1 &&
                      d.G * quotient_up(d.B, NV * simd<T>::lanes) >= d.threads;
    if (wide)
        through_time<T, NV>(d, A, value, y, finish);
    else
        through_time<T, 1>(d, A, value, y, finish);
}

template <class T>
void scan(const SparseScanDims& d, const SparseRows& A, Grouped<T> value, Grouped<T> u,
          Grouped<T> slope, Grouped<T> a, T* y) {
    run_through_time<T>(d, A, value, y,
                        [&](int64_t g, int64_t at, int64_t width, vec_t<T> product) {
                            const vec_t<T> pre = product + load_first<T>(u.at(g) + at, width);
                            const vec_t<T> state = load_first<T>(slope.at(g) + at, width) * pre;
                            if (a.data == nullptr) return state;
                            return state + load_first<T>(a.at(g) + at, width);
                        });
}

template <class T>
void hidden(const SparseScanDims& d, Nonlinearity e, const SparseRows& A, Grouped<T> value,
            Grouped<T> u, T* h) {
    run_through_time<T>(d, A, value, h,
                        [&](int64_t g, int64_t at, int64_t width, vec_t<T> product) {
                            const vec_t<T> pre = product + load_first<T>(u.at(g) + at, width);
                            if (e == Nonlinearity::tanh) return vtanh<T>(pre);
                            if (e == Nonlinearity::logistic) return vlogistic<T>(pre);
                            return select<T>(pre < 0, vec_t<T>{}, pre);  // keeps NaN
                        });
}

}  // namespace

template <class T>
const SparseKernels<T>& sparse_kernels() {
    static const SparseKernels<T> kernels = {product<T>, gradient<T>, scan<T>, hidden<T>};
    return kernels;
}
template const SparseKernels<float>& sparse_kernels<float>();
template const SparseKernels<double>& sparse_kernels<double>();

}  // namespace HFCORE_ISA
}  // namespace hfcore
