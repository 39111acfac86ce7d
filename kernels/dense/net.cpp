// Loss and gradient of whole nets on one minibatch, in one parallel region.
//
// Inputs, targets, states and deltas lie unit by unit, a unit's cases in vector lanes: a scalar of W
// stands against vectors of cases, and W is read in place going forward, a block of its columns copied
// going back. A task is a block of units over all cases, for the gradient a panel of a layer's inputs;
// a layer waits for the one before it. Small nets are one task each. Bits depend on the shape alone.
#include "kernels/dense/net.h"

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
// Below so many multiply-adds forward, a net of a group is left to one thread.
constexpr int64_t small_net = 1 << 23;
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

// What the phases of one net share: its layers, its arrays [unit][stride], and how a phase is run.
template <class T>
struct Pass {
    const NetDims& d;
    const std::vector<Layer>& layers;
    Region& region;
    const int alone;       // the worker that does all of it, or -1: the region shares it
    const int64_t stride;  // cases, filled up to whole vectors
    const Blocks panels;   // of cases, in vectors
    double* partial;       // losses, one a task
    T *inputs, *targets, *states, *deltas;

    Pass(const NetDims& d_, const std::vector<Layer>& layers_, Region& region_, int alone_,
         char* memory)
        : d(d_), layers(layers_), region(region_), alone(alone_), stride(round_up<T>(d_.B)),
          panels(stride / simd<T>::lanes, tile_vectors) {
        const int64_t k = last().m, hidden = last().above;
        partial = reinterpret_cast<double*>(memory);
        inputs = reinterpret_cast<T*>(memory + bytes_of_losses(d, layers));
        targets = inputs + d.sizes[0] * stride;
        states = targets + k * stride;
        deltas = states + hidden * stride;
    }

    static int64_t bytes_of_losses(const NetDims& d, const std::vector<Layer>& layers) {
        const int64_t tasks = larger(layers.back().m, d.B);
        return (tasks * static_cast<int64_t>(sizeof(double)) + 63) / 64 * 64;
    }
    static int64_t bytes(const NetDims& d, const std::vector<Layer>& layers) {
        const int64_t k = layers.back().m, hidden = layers.back().above;
        const int64_t elements = (d.sizes[0] + k + hidden + hidden + k) * round_up<T>(d.B);
        return bytes_of_losses(d, layers) +
               (elements * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
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
        if (alone < 0 && work >= serial_work) {
            region.run(tasks, use);
            return;
        }
        const WithControlWord flushed(control_word(Denormals::flush));
        for (int64_t task = 0; task < tasks; ++task) use(task, larger(alone, 0));
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
                const int64_t width = smaller(end - c, lanes);
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
        const int64_t cases = smaller(pass.d.B - b, lanes);
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
        const int64_t b = task * lanes, cases = smaller(B - b, lanes);
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
                       smaller(used - j, lanes), panel + j, width);
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

// Those of the layers with most units first, so that the threads end together.
template <class T>
std::vector<GradientTask> gradient_tasks(const std::vector<Layer>& layers) {
    std::vector<const Layer*> order;
    for (const Layer& layer : layers) {
        auto at = order.begin();
        while (at != order.end() && (*at)->m >= layer.m) ++at;
        order.insert(at, &layer);
    }
    std::vector<GradientTask> tasks;
    for (const Layer* layer : order)
        for (int64_t p = 0; p < Panels<T>(layer->n).count(); ++p) tasks.push_back({layer, p});
    return tasks;
}

// What all nets are given.
template <class T>
struct Data {
    LossKind kind;
    Grouped<T> x;
    const LossTargets<T>& targets;
    Grouped<T> theta;
    double scale;
    // The targets of an autoencoder may be its inputs: those are turned once.
    bool reconstructs(const Pass<T>& pass) const {
        return kind != LossKind::softmax && pass.last().m == pass.d.sizes[0] &&
               targets.values.data == x.data && targets.values.stride == x.stride;
    }
};

// Net g; with `turned` the arrays hold inputs and targets that all nets share.
template <class T>
double net_gradient(Pass<T>& pass, const Data<T>& data, const std::vector<GradientTask>& tasks,
                    int64_t g, bool turned, T* gradient) {
    const bool reconstructs = data.reconstructs(pass), classes = data.kind == LossKind::softmax;
    if (!turned || data.x.stride != 0)
        turn_rows(pass, data.x.at(g), pass.d.sizes[0], pass.inputs);
    if (!classes && !reconstructs && (!turned || data.targets.values.stride != 0))
        turn_rows(pass, data.targets.values.at(g), pass.last().m, pass.targets);
    const double loss =
        forward_net(pass, data.kind, reconstructs ? pass.inputs : pass.targets,
                    classes ? data.targets.classes.at(g) : nullptr, data.theta.at(g), data.scale);
    backward_deltas(pass, data.theta.at(g));
    const int64_t work = (pass.last().biases + pass.last().m) * pass.d.B;
    pass.run(static_cast<int64_t>(tasks.size()), work, [&](int64_t task, int worker) {
        layer_gradient(pass, *tasks[task].layer, tasks[task].panel, data.x.at(g), gradient, worker);
    });
    return data.scale * loss;
}

template <class T>
void gradient(const NetDims& d, LossKind kind, Grouped<T> x, const LossTargets<T>& targets,
              Grouped<T> theta, double scale, T* gradient, double* losses) {
    const std::vector<Layer> layers = layers_of(d);
    const std::vector<GradientTask> tasks = gradient_tasks<T>(layers);
    const Data<T> data{kind, x, targets, theta, scale};
    const int64_t N = layers.back().biases + layers.back().m;
    Region region(d.threads, Denormals::flush);
    // Of small nets, as many as the threads can share evenly go to one thread each; all work on the
    // others, and on each of the large ones, whose arrays fill the caches of all.
    const int64_t crew = region.threads();
    const int64_t one_each = crew > 1 && N * d.B < small_net ? d.G / crew * crew : 0;
    const int64_t bytes = Pass<T>::bytes(d, layers);
    char* memory = static_cast<char*>(region.shared((one_each ? crew : 1) * bytes));
    region.run(one_each, [&](int64_t g, int worker) {
        Pass<T> pass(d, layers, region, worker, memory + worker * bytes);
        losses[g] = net_gradient(pass, data, tasks, g, false, gradient + g * N);
    });
    Pass<T> pass(d, layers, region, -1, memory);
    for (int64_t g = one_each; g < d.G; ++g)
        losses[g] = net_gradient(pass, data, tasks, g, g > one_each, gradient + g * N);
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
