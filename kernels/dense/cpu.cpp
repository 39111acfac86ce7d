// Dense ops: products in register tiles, epilogues while the result is still in the L2 cache.
//
// forward, rforward, backward: of few cases a task packs the weights of a panel of units and takes
// all cases through it; of many, all weights are packed once, and a task takes a chunk of cases
// through all units. Then comes the epilogue. gradient: a task owns a block of gW and runs over all
// cases, so nothing is ever summed across tasks. Bits depend on the shape alone.
#include "kernels/dense/cpu.h"

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/parallel.h"
#include "kernels/dense/activation.h"

namespace hfcore {
namespace HFCORE_ISA {
namespace {

// Cases of a chunk: with their inputs and outputs of a few hundred units they fill half the L2.
constexpr int64_t chunk_cases = 8 * tile_rows;
// Inputs of a layer up to this size stay in the caches while every panel of units reads them.
constexpr int64_t cached_cases = 2 << 20;
// Packed weights held at a time; beyond it the nets of a group take turns.
constexpr int64_t pack_bytes = 64 << 20;
// A task's block of gW: its packed operands, one block of cases deep, fill half the L2 cache. Wide,
// as every task reads all cases of its columns from memory. A minibatch is one block: a second would
// read and write the whole of gW again.
constexpr int64_t gradient_rows = 800, gradient_columns = 800, gradient_cases = 128;
constexpr int64_t minibatch = 256;
// Below this many multiply-adds, some ten microseconds, waking a second thread costs more than it
// saves.
constexpr int64_t serial_work = 1 << 22;

// Within what a region has, whatever was asked for.
inline int useful_threads(const DenseDims& d, int64_t products) {
    if (d.G * d.B * d.n * d.m * products < serial_work) return 1;
    return static_cast<int>(smaller(larger(d.threads, 1), 256));
}

// ---------------------------------------------------------------------------- cases in rows

// One product of a layer: A [B,K] times weights that lie [K,columns] or, transposed, [columns,K].
template <class T>
struct Factor {
    Grouped<T> A;
    Grouped<T> weights;
    bool transposed;
};

// out [G,B,columns] = epilogue(bias + Σ A·weights); epilogue(net, offset, elements) finishes a run.
// Here a task takes a panel of units through all cases: it packs no weights but its own, and nobody
// waits for another.
template <class T, int count, class F>
void layer_by_units(const DenseDims& d, int64_t K, const Panels<T>& panels,
                    const Factor<T> (&factors)[count], Grouped<T> bias, T* out, int threads,
                    const F& epilogue) {
    const int64_t columns = panels.columns;
    Region region(threads, Denormals::flush);
    region.run(d.G * panels.count(), [&](int64_t task, int worker) {
        const int64_t g = task / panels.count(), p = task % panels.count();
        const int64_t first = panels.first(p), width = panels.width(p), used = panels.used(p);
        T* panel = static_cast<T*>(region.scratch(worker, K * width * sizeof(T)));
        T* C = out + g * d.B * columns + first;
        Target<T> to{C, columns, bias.data ? bias.at(g) + first : nullptr, 0};
        for (const Factor<T>& factor : factors) {
            if (factor.transposed)
                pack_panel_of_columns<T>(panel, panels, p, factor.weights.at(g), K, K);
            else
                pack_panel<T, false>(panel, panels, p, factor.weights.at(g), columns, K);
            panel_product<T>(to, d.B, panels, p, factor.A.at(g), K, panel, K);
            to = {C, columns, C, columns};
        }
        for (int64_t i = 0; i < d.B; ++i) epilogue(g, i * columns + first, C + i * columns, used);
    });
}

// The same by chunks of cases, the weights packed once for all of them.
template <class T, int count, class F>
void layer_by_cases(const DenseDims& d, int64_t K, const Panels<T>& panels,
                    const Factor<T> (&factors)[count], Grouped<T> bias, T* out, int threads,
                    const F& epilogue) {
    const int64_t columns = panels.columns;
    const int64_t size = panels.elements(K);
    // A weight set that the group shares is packed once.
    int64_t slots = 0, slot_of[count];
    bool shared[count];
    for (int f = 0; f < count; ++f) shared[f] = factors[f].weights.stride == 0;
    const int64_t wanted = pack_bytes / static_cast<int64_t>(sizeof(T)) / (size * count);
    const int64_t nets = smaller(larger(wanted, 1), d.G);
    for (int f = 0; f < count; ++f) {
        slot_of[f] = slots;
        slots += shared[f] ? 1 : nets;
    }
    Region region(threads, Denormals::flush);
    T* packs = static_cast<T*>(region.shared(slots * size * sizeof(T)));
    // As many for each thread; how cases are cut does not touch their bits.
    const int64_t chunk = smaller(chunk_cases, (d.B + threads - 1) / threads);
    const int64_t each = (d.B + chunk * threads - 1) / (chunk * threads);
    const Blocks chunks(d.B, (d.B + each * threads - 1) / (each * threads));
    for (int64_t g0 = 0; g0 < d.G; g0 += nets) {
        const int64_t here = smaller(nets, d.G - g0);
        for (int f = 0; f < count; ++f) {
            if (shared[f] && g0 > 0) continue;
            const int64_t sets = shared[f] ? 1 : here;
            region.run(sets * panels.count(), [&](int64_t task, int) {
                const int64_t set = task / panels.count(), p = task % panels.count();
                T* panel = packs + (slot_of[f] + set) * size + panels.first(p) * K;
                const T* source = factors[f].weights.at(g0 + set);
                if (factors[f].transposed)
                    pack_panel_of_columns<T>(panel, panels, p, source, K, K);
                else
                    pack_panel<T, false>(panel, panels, p, source, columns, K);
            });
        }
        region.run(here * chunks.count, [&](int64_t task, int) {
            const int64_t i = task / chunks.count, g = g0 + i;
            const int64_t from = chunks.start(task % chunks.count);
            const int64_t rows = chunks.start(task % chunks.count + 1) - from;
            Operand<T> operands[count];
            for (int f = 0; f < count; ++f)
                operands[f] = {factors[f].A.at(g) + from * K, K, K,
                               packs + (slot_of[f] + (shared[f] ? 0 : i)) * size};
            T* C = out + (g * d.B + from) * columns;
            row_product<T>(C, rows, panels, bias.data ? bias.at(g) : nullptr, operands, count);
            epilogue(g, from * columns, C, rows * columns);
        });
    }
}

template <class T, int count, class F>
void layer(const DenseDims& d, int64_t K, int64_t columns, const Factor<T> (&factors)[count],
           Grouped<T> bias, T* out, const F& epilogue) {
    const Panels<T> panels(columns);
    const int threads = useful_threads(d, count);
    const bool cached = d.B * K * count * static_cast<int64_t>(sizeof(T)) <= cached_cases;
    if (cached && d.G * panels.count() >= 2 * threads)
        layer_by_units<T>(d, K, panels, factors, bias, out, threads, epilogue);
    else
        layer_by_cases<T>(d, K, panels, factors, bias, out, threads, epilogue);
}

template <class T>
void forward(const DenseDims& d, Activation e, Grouped<T> a, Grouped<T> W, Grouped<T> b, T* y) {
    const Factor<T> factors[] = {{a, W, true}};
    layer<T>(d, d.n, d.m, factors, b, y,
             [&](int64_t, int64_t, T* C, int64_t size) { activate(e, C, size); });
}

template <class T>
void rforward(const DenseDims& d, Activation e, Grouped<T> a, Grouped<T> Ra, Grouped<T> W,
              Grouped<T> V, Grouped<T> v_b, Grouped<T> y, T* Ry) {
    const auto epilogue = [&](int64_t g, int64_t offset, T* C, int64_t size) {
        scale_by_derivative<T>(e, C, y.at(g) + offset, nullptr, size);
    };
    if (Ra.data == nullptr) {
        const Factor<T> factors[] = {{a, V, true}};
        layer<T>(d, d.n, d.m, factors, v_b, Ry, epilogue);
        return;
    }
    const Factor<T> factors[] = {{a, V, true}, {Ra, W, true}};
    layer<T>(d, d.n, d.m, factors, v_b, Ry, epilogue);
}

template <class T>
void backward(const DenseDims& d, Activation e, Grouped<T> delta, Grouped<T> W, Grouped<T> y,
              Grouped<T> add, T* below) {
    const Factor<T> factors[] = {{delta, W, false}};
    layer<T>(d, d.m, d.n, factors, Grouped<T>{}, below,
             [&](int64_t g, int64_t offset, T* C, int64_t size) {
                 const T* more = add.data ? add.at(g) + offset : nullptr;
                 scale_by_derivative<T>(e, C, y.at(g) + offset, more, size);
             });
}

// ---------------------------------------------------------------------------- sums over cases

// sums[j] += Σ over rows of x[row][j], or of its squares.
template <class T, bool square>
void add_rows(T* sums, const T* x, int64_t stride, int64_t rows, int64_t columns) {
    constexpr int64_t lanes = simd<T>::lanes;
    for (int64_t j = 0; j < columns; j += lanes) {
        const int64_t left = smaller(columns - j, lanes);
        vec_t<T> sum{};
        for (int64_t i = 0; i < rows; ++i) {
            const T* at = x + i * stride + j;
            const vec_t<T> v = left == lanes ? load<T>(at) : load_first<T>(at, left);
            sum += square ? v * v : v;
        }
        store_first<T>(sums + j, load_first<T>(sums + j, left) + sum, left);
    }
}

// The rows of gW in blocks that the threads can share evenly, tile by tile; which block an element is
// in does not touch its bits.
Blocks gradient_blocks(const DenseDims& d, int64_t others, int64_t threads) {
    int64_t count = (d.m + gradient_rows - 1) / gradient_rows;
    while (count * others % threads != 0 && count * others < 4 * threads) ++count;
    const int64_t most = (d.m + count - 1) / count;
    return Blocks(d.m, larger(most, smaller(tile_rows, d.m)));
}

template <class T, bool square>
void gradient_form(const DenseDims& d, Grouped<T> delta, Grouped<T> a, T scale,
                   const DenseGradient<T>& out) {
    const int threads = useful_threads(d, 1);
    const int64_t deepest = d.B <= minibatch ? d.B : gradient_cases;
    const Blocks across(d.n, gradient_columns), depth(d.B, deepest);
    const Blocks down = gradient_blocks(d, d.G * across.count, threads);
    const int64_t blocks = down.count * across.count;
    Region region(threads, Denormals::flush);
    region.run(d.G * blocks, [&](int64_t task, int worker) {
        const int64_t g = task / blocks, r = task % blocks / across.count;
        const int64_t c = task % across.count;
        const int64_t i0 = down.start(r), rows = down.start(r + 1) - i0;
        const int64_t j0 = across.start(c);
        const int64_t columns = across.start(c + 1) - j0;
        const Panels<T> panels(columns);
        const int64_t left_size = round_up<T>(rows * deepest);
        T* left = static_cast<T*>(region.scratch(
            worker, (left_size + panels.elements(deepest)) * sizeof(T)));
        T* right = left + left_size;
        Target<T> to{out.W + g * out.W_stride + i0 * d.n + j0, d.n, nullptr, d.n};
        T* gb = out.b + g * out.b_stride + i0;
        if (c == 0)
            for (int64_t i = 0; i < rows; ++i) gb[i] = T(0);
        for (int64_t k = 0; k < depth.count; ++k) {
            const int64_t b0 = depth.start(k), K = depth.start(k + 1) - b0;
            const T* deltas = delta.at(g) + b0 * d.m + i0;
            const T* inputs = a.at(g) + b0 * d.n + j0;
            pack_left<T, square>(left, deltas, d.m, K, rows, scale);
            if (c == 0) add_rows<T, square>(gb, deltas, d.m, K, rows);
            for (int64_t p = 0; p < panels.count(); ++p)
                pack_panel<T, square>(right + panels.first(p) * K, panels, p, inputs, d.n, K);
            column_product<T>(to, rows, panels, left, right, K);
            to.start = to.C;
        }
        if (c == 0) map<T>(gb, rows, [scale](vec_t<T> x) { return x * scale; }, gb);
    });
}

template <class T>
void gradient(const DenseDims& d, Grouped<T> delta, Grouped<T> a, T scale, bool squared,
              const DenseGradient<T>& out) {
    if (squared)
        gradient_form<T, true>(d, delta, a, scale, out);
    else
        gradient_form<T, false>(d, delta, a, scale, out);
}

}  // namespace

template <class T>
const DenseKernels<T>& dense_kernels() {
    static const DenseKernels<T> kernels = {forward<T>, rforward<T>, backward<T>, gradient<T>};
    return kernels;
}
template const DenseKernels<float>& dense_kernels<float>();
template const DenseKernels<double>& dense_kernels<double>();

}  // namespace HFCORE_ISA
}  // namespace hfcore
