// Loss and gradient of whole nets on one minibatch, in one parallel region.
//
// Inputs, targets, states and deltas lie unit by unit, a unit's cases in vector lanes: then every
// product reads its weights in place, a scalar of W against vectors of cases, and only the inputs of
// the gradient are packed. A task is a block of units over all cases, for the gradient of a layer's
// inputs; a layer waits for the one before it. Bits depend on the shape alone.
#include "kernels/dense/net.h"

#include <algorithm>
#include <vector>

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/parallel.h"
#include "kernels/dense/activation.h"
#include "kernels/loss/elementwise.h"

namespace hfcore {
namespace HFCORE_ISA {
namespace {

// Multiply-adds of a phase below which a second thread is not worth waiting for.
constexpr int64_t serial_work = 1 << 17;
// Units of one transposing task.
constexpr int64_t turned_units = 64;

struct Layer {
    int64_t n, m;
    int64_t weights, biases;  // where they begin in theta
    int64_t below, above;     // first unit of its inputs, behind 0 for the net's own, and outputs
    Activation activation;
};

std::vector<Layer> layers_of(const NetDims& d) {
    std::vector<Layer> layers;
    int64_t offset = 0, units = -d.sizes[0];
    for (int l = 0; l < d.layers; ++l) {
        const int64_t n = d.sizes[l], m = d.sizes[l + 1];
        layers.push_back({n, m, offset, offset + m * n, units, units + n, d.activations[l]});
        offset += m * n + m;
        units += n;
    }
    return layers;
}

// What the phases share: the net's layers, its arrays [unit][stride], and how a phase is run.
template <class T>
struct Pass {
    const NetDims& d;
    const std::vector<Layer> layers;
    const int64_t stride;  // cases, filled up to whole vectors
    const Blocks panels;   // of cases, in vectors
    Region region;
    T *inputs, *targets, *states, *deltas;
    double* partial;  // losses, one a task

    explicit Pass(const NetDims& d_)
        : d(d_), layers(layers_of(d_)), stride(round_up<T>(d_.B)),
          panels(stride / simd<T>::lanes, tile_vectors), region(d_.threads, Denormals::flush) {
        const int64_t k = last().m, hidden = last().above;
        const int64_t parts = std::max(k, stride) * static_cast<int64_t>(sizeof(double));
        const int64_t units = d.sizes[0] + k + hidden + hidden + k;
        char* memory = static_cast<char*>(
            region.shared(parts + units * stride * static_cast<int64_t>(sizeof(T)) + 64));
        partial = reinterpret_cast<double*>(memory);
        inputs = reinterpret_cast<T*>(memory + (parts + 63) / 64 * 64);
        targets = inputs + d.sizes[0] * stride;
        states = targets + k * stride;
        deltas = states + hidden * stride;
    }

    const Layer& last() const { return layers.back(); }
    const T* inputs_of(const Layer& layer) const {
        return layer.below < 0 ? inputs : states + layer.below * stride;
    }
    T* delta_of(const Layer& layer) const { return deltas + layer.above * stride; }
    T* scratch(int worker, int64_t elements) {
        return static_cast<T*>(
            region.scratch(worker, static_cast<std::size_t>(elements) * sizeof(T)));
    }

    // use(task, worker), on one thread where there is little to do.
    void run(int64_t tasks, int64_t work, TaskRef use) {
        if (work >= serial_work) {
            region.run(tasks, use);
            return;
        }
        const WithControlWord flushed(control_word(Denormals::flush));
        for (int64_t task = 0; task < tasks; ++task) use(task, 0);
    }

    // to [J][stride] = A·P over all cases, P [K][stride]; A in rows, or packed [K][J].
    template <bool packed>
    void product(int64_t J, int64_t K, const T* A, int64_t A_stride, const T* P, T* to) const {
        const Blocks depth(K, block_k);
        for (int64_t b = 0; b < depth.count; ++b) {
            const int64_t k0 = depth.start(b), deep = depth.start(b + 1) - k0;
            const T* A_block = packed ? A + k0 * J : A + k0;
            for (int64_t p = 0; p < panels.count; ++p) {
                const int64_t j0 = panels.start(p) * simd<T>::lanes;
                const int64_t width = panels.start(p + 1) * simd<T>::lanes - j0;
                const Target<T> C{to + j0, stride, b ? to + j0 : nullptr, stride};
                tile_of<T, packed, true>(J, width)(A_block, A_stride, P + k0 * stride + j0, stride,
                                                   deep, C);
            }
        }
    }
};

// units [columns][stride] from rows [B][columns]; behind the B cases are zeros.
template <class T>
void turn_rows(Pass<T>& pass, const T* rows, int64_t columns, T* units) {
    constexpr int64_t lanes = simd<T>::lanes;
    const Blocks blocks(columns, turned_units);
    pass.run(blocks.count, columns * pass.d.B, [&](int64_t task, int) {
        const int64_t end = blocks.start(task + 1);
        vec_t<T> x[lanes];
        for (int64_t b = 0; b < pass.stride; b += lanes)
            for (int64_t c = blocks.start(task); c < end; c += lanes) {
                const int64_t width = std::min<int64_t>(end - c, lanes);
                const T* from = rows + b * columns + c;
#pragma GCC unroll 16
                for (int64_t i = 0; i < lanes; ++i)
                    x[i] = b + i >= pass.d.B ? vec_t<T>{}
                           : width == lanes  ? load<T>(from + i * columns)
                                             : load_first<T>(from + i * columns, width);
                transpose<T>(x);
                for (int64_t i = 0; i < width; ++i)
                    store<T>(units + (c + i) * pass.stride + b, x[i]);
            }
    });
}

// A vector's width of columns of a panel [B][width] from `count` units, the missing ones zero.
template <class T>
void turn_units(const Pass<T>& pass, const T* units, int64_t count, T* panel, int64_t width) {
    constexpr int64_t lanes = simd<T>::lanes;
    vec_t<T> x[lanes];
    for (int64_t b = 0; b < pass.d.B; b += lanes) {
#pragma GCC unroll 16
        for (int64_t i = 0; i < lanes; ++i)
            x[i] = i < count ? load<T>(units + i * pass.stride + b) : vec_t<T>{};
        transpose<T>(x);
        const int64_t cases = std::min<int64_t>(pass.d.B - b, lanes);
        for (int64_t i = 0; i < cases; ++i) store<T>(panel + (b + i) * width, x[i]);
    }
}

// ---------------------------------------------------------------------------- outputs and loss

// Losses of a vector of cases, whose outputs s [k][stride] become scale·∂L/∂s.
template <class T>
vec_t<double> softmax_cases(int64_t k, int64_t stride, const int64_t* classes, int64_t cases,
                            double scale, T* s) {
    using vec = vec_t<double>;
    constexpr int lanes = simd<double>::lanes;
    const auto at = [&](int64_t u) { return widen<T>(load_narrow<T>(s + u * stride)); };
    vec most = at(0);
    for (int64_t u = 1; u < k; ++u) {
        const vec x = at(u);
        most = select<double>(x > most, x, most);
    }
    vec sum{}, right{};
    for (int64_t u = 0; u < k; ++u) sum += vexp<double>(at(u) - most);
    for (int lane = 0; lane < lanes && lane < cases; ++lane)
        right[lane] = double(s[classes[lane] * stride + lane]);
    for (int64_t u = 0; u < k; ++u) {
        vec p = vexp<double>(at(u) - most) / sum;
        for (int lane = 0; lane < lanes && lane < cases; ++lane)
            if (classes[lane] == u) p[lane] -= 1.0;
        store_narrow<T>(s + u * stride, __builtin_convertvector(p * scale, narrow_t<T>));
    }
    return vlog1p<double>(sum - 1.0) + (most - right);
}

template <class T>
double softmax_loss(Pass<T>& pass, const int64_t* classes, double scale, T* outputs) {
    constexpr int64_t lanes = simd<double>::lanes;
    const Layer& last = pass.last();
    const int64_t B = pass.d.B, vectors = (B + lanes - 1) / lanes;
    pass.run(vectors, 16 * last.m * B, [&](int64_t task, int worker) {
        const int64_t b = task * lanes, cases = std::min(B - b, lanes);
        T* s = outputs + b;
        T* y = pass.scratch(worker, last.m * lanes);
        for (int64_t u = 0; u < last.m; ++u)
            store_narrow<T>(y + u * lanes, load_narrow<T>(s + u * pass.stride));
        const vec_t<double> losses =
            softmax_cases<T>(last.m, pass.stride, classes + b, cases, scale, s);
        for (int64_t u = 0; u < last.m; ++u)
            scale_by_derivative<T>(last.activation, s + u * pass.stride, y + u * lanes, nullptr,
                                   lanes);
        double sum = 0.0;
        for (int64_t lane = 0; lane < cases; ++lane) sum += losses[lane];
        pass.partial[task] = sum;
    });
    double total = 0.0;
    for (int64_t task = 0; task < vectors; ++task) total += pass.partial[task];
    return total;
}

// ---------------------------------------------------------------------------- forward

// Outputs of the J units of a layer from i0 on.
template <class T>
void forward_units(const Pass<T>& pass, const Layer& layer, const T* theta, int64_t i0, int64_t J,
                   T* units) {
    const T* W = theta + layer.weights + i0 * layer.n;
    const T* b = theta + layer.biases + i0;
    pass.template product<false>(J, layer.n, W, layer.n, pass.inputs_of(layer), units);
    for (int64_t j = 0; j < J; ++j) {
        T* unit = units + j * pass.stride;
        const vec_t<T> bias = splat<T>(b[j]);
        map<T>(unit, pass.stride, [bias](vec_t<T> z) { return z + bias; }, unit);
    }
    activate(layer.activation, units, J * pass.stride);
}

template <class T>
void forward_layer(Pass<T>& pass, const Layer& layer, const T* theta, T* to) {
    const Blocks down(layer.m, tile_rows);
    pass.run(down.count, layer.m * layer.n * pass.stride, [&](int64_t task, int) {
        const int64_t i0 = down.start(task), J = down.start(task + 1) - i0;
        forward_units(pass, layer, theta, i0, J, to + i0 * pass.stride);
    });
}

// The last layer and its loss; leaves its delta.
template <class T>
double elementwise_loss(Pass<T>& pass, LossKind kind, const T* targets, const T* theta,
                        double scale) {
    constexpr int64_t wide = sizeof(double) / sizeof(T);
    const Layer& last = pass.last();
    const Blocks down(last.m, tile_rows);
    pass.run(down.count, last.m * last.n * pass.stride, [&](int64_t task, int worker) {
        const int64_t i0 = down.start(task), J = down.start(task + 1) - i0;
        T* units = pass.delta_of(last) + i0 * pass.stride;
        forward_units(pass, last, theta, i0, J, units);
        T* work = pass.scratch(worker, pass.stride * (2 + wide));
        T* y = work + pass.stride * (1 + wide);
        double sum = 0.0;
        for (int64_t j = 0; j < J; ++j) {
            T* unit = units + j * pass.stride;
            std::memcpy(y, unit, static_cast<std::size_t>(pass.stride) * sizeof(T));
            sum += elementwise_pass(kind, y, targets + (i0 + j) * pass.stride,
                                    static_cast<T>(scale), pass.d.B, pass.stride, work, unit);
            scale_by_derivative<T>(last.activation, unit, y, nullptr, pass.stride);
        }
        pass.partial[task] = sum;
    });
    double total = 0.0;
    for (int64_t task = 0; task < down.count; ++task) total += pass.partial[task];
    return total;
}

// The loss; leaves the states and the last layer's delta.
template <class T>
double forward_net(Pass<T>& pass, LossKind kind, const T* targets, const int64_t* classes,
                   const T* theta, double scale) {
    for (const Layer& layer : pass.layers)
        if (&layer != &pass.last())
            forward_layer(pass, layer, theta, pass.states + layer.above * pass.stride);
    if (kind != LossKind::softmax) return elementwise_loss(pass, kind, targets, theta, scale);
    T* outputs = pass.delta_of(pass.last());
    forward_layer(pass, pass.last(), theta, outputs);
    return softmax_loss(pass, classes, scale, outputs);
}

// ---------------------------------------------------------------------------- backward

// Deltas of the hidden layers from the last one's: below = (δ W) ⊙ φ'(z).
template <class T>
void backward_deltas(Pass<T>& pass, const T* theta) {
    for (std::size_t l = pass.layers.size() - 1; l > 0; --l) {
        const Layer &layer = pass.layers[l], &below = pass.layers[l - 1];
        const T* W = theta + layer.weights;
        const T* delta = pass.delta_of(layer);
        const T* y = pass.inputs_of(layer);
        T* to = pass.delta_of(below);
        const Blocks down(layer.n, tile_rows);
        pass.run(down.count, layer.m * layer.n * pass.stride, [&](int64_t task, int worker) {
            const int64_t i0 = down.start(task), J = down.start(task + 1) - i0;
            T* columns = pass.scratch(worker, layer.m * J);
            pack_left<T, false>(columns, W + i0, layer.n, layer.m, J, T(1));
            T* units = to + i0 * pass.stride;
            pass.template product<true>(J, layer.m, columns, J, delta, units);
            scale_by_derivative<T>(below.activation, units, y + i0 * pass.stride, nullptr,
                                   J * pass.stride);
        });
    }
}

// Σ over cases of each of the units.
template <class T>
void sum_cases(const Pass<T>& pass, const T* units, int64_t count, T* sums) {
    constexpr int64_t lanes = simd<T>::lanes;
    for (int64_t j = 0; j < count; ++j, units += pass.stride) {
        vec_t<T> sum{};
        int64_t b = 0;
        for (; b + lanes <= pass.d.B; b += lanes) sum += load<T>(units + b);
        if (b < pass.d.B) sum += load_first<T>(units + b, pass.d.B - b);
        T total = 0;
        for (int64_t i = 0; i < lanes; ++i) total += sum[i];
        sums[j] = total;
    }
}

// A layer's gradient for one panel of its inputs; with the first of them come the biases.
template <class T>
void layer_gradient(Pass<T>& pass, const Layer& layer, int64_t p, const T* x, T* gradient,
                    int worker) {
    constexpr int64_t lanes = simd<T>::lanes;
    const int64_t B = pass.d.B;
    const Panels<T> panels(layer.n);
    const int64_t j0 = panels.first(p), width = panels.width(p), used = panels.used(p);
    const T* delta = pass.delta_of(layer);
    T* panel = pass.scratch(worker, B * width);
    if (layer.below < 0)
        pack_panel<T, false>(panel, panels, p, x, layer.n, B);
    else
        for (int64_t j = 0; j < width; j += lanes)
            turn_units(pass, pass.inputs_of(layer) + (j0 + j) * pass.stride,
                       std::min(used - j, lanes), panel + j, width);
    const Target<T> to{gradient + layer.weights + j0, layer.n, nullptr, layer.n};
    const Blocks down(layer.m, tile_rows), depth(B, block_k);
    for (int64_t b = 0; b < depth.count; ++b) {
        const int64_t k0 = depth.start(b), K = depth.start(b + 1) - k0;
        for (int64_t i = 0; i < down.count; ++i) {
            const int64_t i0 = down.start(i), J = down.start(i + 1) - i0;
            Target<T> C = to.at(i0, 0);
            if (b) C.start = C.C;
            tile_product<T, false>(J, width, used, delta + i0 * pass.stride + k0, pass.stride,
                                   panel + k0 * width, K, C);
        }
    }
    if (p == 0) sum_cases(pass, delta, layer.m, gradient + layer.biases);
}

struct GradientTask {
    const Layer* layer;
    int64_t panel;
};

// The largest first, so that the threads end together.
template <class T>
std::vector<GradientTask> gradient_tasks(const Pass<T>& pass) {
    std::vector<GradientTask> tasks;
    for (const Layer& layer : pass.layers)
        for (int64_t p = 0; p < Panels<T>(layer.n).count(); ++p) tasks.push_back({&layer, p});
    std::stable_sort(tasks.begin(), tasks.end(), [](const auto& a, const auto& b) {
        return a.layer->m > b.layer->m;
    });
    return tasks;
}

template <class T>
void gradient(const NetDims& d, LossKind kind, Grouped<T> x, const LossTargets<T>& targets,
              Grouped<T> theta, double scale, T* gradient, double* losses) {
    Pass<T> pass(d);
    const Layer& last = pass.last();
    const std::vector<GradientTask> tasks = gradient_tasks(pass);
    const int64_t N = last.biases + last.m;
    const bool reconstructs = last.m == d.sizes[0] && targets.values.data == x.data &&
                              targets.values.stride == x.stride;
    for (int64_t g = 0; g < d.G; ++g) {
        if (g == 0 || x.stride != 0) turn_rows(pass, x.at(g), d.sizes[0], pass.inputs);
        if (kind != LossKind::softmax && !reconstructs && (g == 0 || targets.values.stride != 0))
            turn_rows(pass, targets.values.at(g), last.m, pass.targets);
        losses[g] = scale * forward_net(pass, kind, reconstructs ? pass.inputs : pass.targets,
                                        kind == LossKind::softmax ? targets.classes.at(g) : nullptr,
                                        theta.at(g), scale);
        backward_deltas(pass, theta.at(g));
        T* own = gradient + g * N;
        pass.run(static_cast<int64_t>(tasks.size()), N * d.B, [&](int64_t task, int worker) {
            layer_gradient(pass, *tasks[task].layer, tasks[task].panel, x.at(g), own, worker);
        });
    }
}

}  // namespace

template <class T>
const NetKernels<T>& net_kernels() {
    static const NetKernels<T> kernels = {gradient<T>};
    return kernels;
}
template const NetKernels<float>& net_kernels<float>();
template const NetKernels<double>& net_kernels<double>();

}  // namespace HFCORE_ISA
}  // namespace hfcore
