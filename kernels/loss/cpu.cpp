// Loss ops over tiles of whole positions.
//
// A tile is computed as one flat run of vectors, whatever k is; only row sums, row maxima and the
// mask look at positions. Sums: a tile in vectors, tiles of a block in order, blocks in order;
// where a tile or a block ends depends on k and P alone, so the bits do not depend on the number
// of threads or on the other nets of the group.
#include "kernels/loss/cpu.h"

#include "kernels/cpu/parallel.h"
#include "kernels/loss/elementwise.h"

namespace hfcore {
namespace HFCORE_ISA {
namespace {

using std::int64_t;

constexpr int64_t tile_elements = 1024;
constexpr int64_t tiles_per_block = 8;

// The blocks of every net of the group, numbered net by net.
struct Blocks {
    int64_t P, k, rows_per_tile, rows_per_block, per_net;
    explicit Blocks(const LossDims& d)
        : P(d.P), k(d.k), rows_per_tile(d.k < tile_elements ? tile_elements / d.k : 1),
          rows_per_block(rows_per_tile * tiles_per_block),
          per_net((d.P + rows_per_block - 1) / rows_per_block) {}
    int64_t tile_size() const { return rows_per_tile * k; }
};

// `rows` positions of net g from position `row` on.
struct Tile {
    int64_t g, row, rows, k;
    int64_t first() const { return row * k; }
    int64_t elements() const { return rows * k; }
};

template <class F>
void for_each_tile(const Blocks& blocks, int64_t task, const F& use) {
    const int64_t g = task / blocks.per_net;
    const int64_t from = task % blocks.per_net * blocks.rows_per_block;
    const int64_t to = blocks.P - from < blocks.rows_per_block ? blocks.P
                                                               : from + blocks.rows_per_block;
    for (int64_t row = from; row < to; row += blocks.rows_per_tile) {
        const int64_t left = to - row;
        use(Tile{g, row, left < blocks.rows_per_tile ? left : blocks.rows_per_tile, blocks.k});
    }
}

inline int useful_threads(const LossDims& d) {
    return d.G * d.P * d.k < serial_elements ? 1 : d.threads;
}

template <class F>
void for_every_tile(const LossDims& d, const F& use) {
    const Blocks blocks(d);
    parallel_for(d.G * blocks.per_net, useful_threads(d),
                 [&](int64_t task, int) { for_each_tile(blocks, task, use); });
}

// ---------------------------------------------------------------------------- flat runs

// Σ a[i] b[i] in float64.
template <class T>
HFCORE_INLINE double dot_of(const T* a, const T* b, int64_t n) {
    Sums<double> sums;
    int64_t i = 0;
    for (; i + sums.count <= n; i += sums.count)
        sums.add_product([&](int64_t j) { return widen<T>(load_narrow<T>(a + i + j)); },
                         [&](int64_t j) { return widen<T>(load_narrow<T>(b + i + j)); });
    double total = i > 0 ? sums.total() : 0.0;
    for (; i < n; ++i) total = multiply_add(double(a[i]), double(b[i]), total);
    return total;
}

// The largest a[i]; NaN may be passed over, a[i] - max is NaN there all the same.
template <class T>
HFCORE_INLINE T max_of(const T* a, int64_t n) {
    constexpr int lanes = simd<T>::lanes;
    T most = a[0];
    int64_t i = 0;
    if (n >= lanes) {
        vec_t<T> m = load<T>(a);
        for (i = lanes; i + lanes <= n; i += lanes) {
            const vec_t<T> x = load<T>(a + i);
            m = select<T>(x > m, x, m);
        }
        most = m[0];
        for (int lane = 1; lane < lanes; ++lane) most = m[lane] > most ? m[lane] : most;
    }
    for (; i < n; ++i) most = a[i] > most ? a[i] : most;
    return most;
}

// ---------------------------------------------------------------------------- masks

template <class T>
HFCORE_INLINE bool kept(const LossMask<T>& mask, int64_t g, int64_t row) {
    if (mask.bytes.data) return mask.bytes.at(g)[row] != 0;
    if (mask.values.data) return mask.values.at(g)[row] != T(0);
    return true;
}

template <class W>
HFCORE_INLINE void drop_rows(const std::uint8_t* keep, int64_t rows, W* values, int64_t width) {
    if (width == 1) {  // no branch: which position counts may be hard to predict
        for (int64_t i = 0; i < rows; ++i) values[i] = keep[i] != 0 ? values[i] : W(0);
        return;
    }
    for (int64_t i = 0; i < rows; ++i)
        if (keep[i] == 0)
            for (int64_t j = 0; j < width; ++j) values[i * width + j] = W(0);
}

template <class T, class W>
HFCORE_INLINE void weigh_rows(const T* weights, int64_t rows, W* values, int64_t width) {
    for (int64_t i = 0; i < rows; ++i) {
        const W w = W(weights[i]);
        W* row = values + i * width;
        for (int64_t j = 0; j < width; ++j) row[j] = w == W(0) ? W(0) : row[j] * w;
    }
}

// Weighs the rows of a tile; those of weight 0 become zero, NaN included.
template <class T, class W>
void weigh(const LossMask<T>& mask, const Tile& tile, W* values, int64_t width) {
    if (mask.bytes.data)
        drop_rows(mask.bytes.at(tile.g) + tile.row, tile.rows, values, width);
    else if (mask.values.data)
        weigh_rows(mask.values.at(tile.g) + tile.row, tile.rows, values, width);
}

// ---------------------------------------------------------------------------- softmax

// e[row][j] = exp(s[row][j] - max of the row), in W = T or double.
template <class T, class W>
void shifted_exp(const Tile& tile, const T* s, W* e) {
    const int64_t k = tile.k;
    for (int64_t i = 0; i < tile.rows; ++i) {
        const W most = W(max_of(s + i * k, k));
        for (int64_t j = 0; j < k; ++j) e[i * k + j] = W(s[i * k + j]) - most;
    }
    map<W>(e, tile.elements(), [](vec_t<W> x) { return vexp<W>(x); }, e);
}

template <class T>
void softmax(const Tile& tile, const T* s, T* p) {
    shifted_exp<T, T>(tile, s, p);
    for (int64_t i = 0; i < tile.rows; ++i) {
        T* row = p + i * tile.k;
        const T inverse = T(1.0 / sum_of(row, tile.k));
        for (int64_t j = 0; j < tile.k; ++j) row[j] *= inverse;
    }
}

// ---------------------------------------------------------------------------- value

// The weighted losses of a tile in float64; gives how many numbers they are.
template <class T>
int64_t tile_losses(const Tile& tile, const LossFormula& loss, const T* s,
                    const LossTargets<T>& targets, const LossMask<T>& mask, double* losses) {
    const int64_t n = tile.elements(), k = tile.k;
    if (loss.kind == LossKind::softmax) {
        shifted_exp<T, double>(tile, s, losses);
        for (int64_t i = 0; i < tile.rows; ++i) losses[i] = sum_of(losses + i * k, k) - 1.0;
        map<double>(losses, tile.rows, [](vec_t<double> x) { return vlog1p<double>(x); }, losses);
        const int64_t* classes = targets.classes.at(tile.g) + tile.row;
        for (int64_t i = 0; i < tile.rows; ++i)
            if (kept(mask, tile.g, tile.row + i))
                losses[i] += double(max_of(s + i * k, k)) - double(s[i * k + classes[i]]);
        weigh(mask, tile, losses, 1);
        return tile.rows;
    }
    const T* y = targets.values.at(tile.g) + tile.first();
    elementwise_losses(loss, s, y, n, losses);
    weigh(mask, tile, losses, k);
    return n;
}

template <class T>
void value(const LossDims& d, const LossFormula& loss, Grouped<T> s, const LossTargets<T>& targets,
           const LossMask<T>& mask, double scale, double* out) {
    const Blocks blocks(d);
    Region region(useful_threads(d));
    const int64_t tasks = d.G * blocks.per_net;
    double* partial = static_cast<double*>(region.shared(tasks * sizeof(double)));
    region.run(tasks, [&](int64_t task, int worker) {
        void* scratch = region.scratch(worker, blocks.tile_size() * sizeof(double));
        double* losses = static_cast<double*>(scratch);
        double sum = 0.0;
        for_each_tile(blocks, task, [&](const Tile& tile) {
            const T* tile_s = s.at(tile.g) + tile.first();
            sum += sum_of(losses, tile_losses(tile, loss, tile_s, targets, mask, losses));
        });
        partial[task] = sum;
    });
    for (int64_t g = 0; g < d.G; ++g) {
        double total = 0.0;
        for (int64_t b = 0; b < blocks.per_net; ++b) total += partial[g * blocks.per_net + b];
        out[g] = scale * total;
    }
}

// ---------------------------------------------------------------------------- derivatives

template <class T>
void gradient_tile(const Tile& tile, const LossFormula& loss, const T* s,
                   const LossTargets<T>& targets, const LossMask<T>& mask, T scale, T* out) {
    using vec = vec_t<T>;
    const int64_t n = tile.elements(), k = tile.k;
    if (loss.kind == LossKind::softmax) {
        softmax(tile, s, out);
        const int64_t* classes = targets.classes.at(tile.g) + tile.row;
        for (int64_t i = 0; i < tile.rows; ++i)
            if (kept(mask, tile.g, tile.row + i)) out[i * k + classes[i]] -= T(1);
        map<T>(out, n, [scale](vec a) { return a * scale; }, out);
        return;
    }
    const T* y = targets.values.at(tile.g) + tile.first();
    elementwise_gradient(loss, s, y, scale, n, out);
}

template <class T>
void gradient(const LossDims& d, const LossFormula& loss, Grouped<T> s,
              const LossTargets<T>& targets, const LossMask<T>& mask, double scale, T* out) {
    for_every_tile(d, [&](const Tile& tile) {
        T* to = out + tile.g * d.P * d.k + tile.first();
        gradient_tile(tile, loss, s.at(tile.g) + tile.first(), targets, mask, T(scale), to);
        weigh(mask, tile, to, tile.k);
    });
}

template <class T>
void curvature(const LossDims& d, const LossFormula& loss, Grouped<T> s,
               const LossTargets<T>& targets, const LossMask<T>& mask, T* out) {
    for_every_tile(d, [&](const Tile& tile) {
        const T* from = s.at(tile.g) + tile.first();
        T* to = out + tile.g * d.P * d.k + tile.first();
        if (loss.kind == LossKind::softmax) {
            softmax(tile, from, to);
        } else {
            const T* y = targets.values.data ? targets.values.at(tile.g) + tile.first() : nullptr;
            elementwise_curvature(loss, from, y, tile.elements(), to);
        }
        weigh(mask, tile, to, tile.k);
    });
}

template <class T>
void hessian_product(const LossDims& d, Grouped<T> c, Grouped<T> Rs, LossHessian form,
                     double scale, T* out) {
    using vec = vec_t<T>;
    const T factor = T(scale);
    for_every_tile(d, [&](const Tile& tile) {
        const int64_t k = tile.k;
        const T* ct = c.at(tile.g) + tile.first();
        const T* Rt = Rs.at(tile.g) + tile.first();
        T* to = out + tile.g * d.P * k + tile.first();
        if (form == LossHessian::diagonal) {
            map<T>(to, tile.elements(), [factor](vec a, vec b) { return a * b * factor; }, ct, Rt);
            return;
        }
        for (int64_t i = 0; i < tile.rows; ++i) {
            double projected = dot_of(ct + i * k, Rt + i * k, k);
            if (form == LossHessian::weighted_rank_one) {
                const double total = sum_of(ct + i * k, k);
                projected = total == 0.0 ? 0.0 : projected / total;
            }
            const T dot = T(projected);
            for (int64_t j = i * k; j < (i + 1) * k; ++j) to[j] = ct[j] * (Rt[j] - dot) * factor;
        }
    });
}

}  // namespace

template <class T>
const LossKernels<T>& loss_kernels() {
    static const LossKernels<T> kernels = {value<T>, gradient<T>, curvature<T>, hessian_product<T>};
    return kernels;
}
template const LossKernels<float>& loss_kernels<float>();
template const LossKernels<double>& loss_kernels<double>();

}  // namespace HFCORE_ISA
}  // namespace hfcore
