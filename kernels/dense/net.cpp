// Loss, gradient and update of whole nets on one minibatch, in one parallel region.
//
// Inputs, targets, states and deltas lie unit by unit, a unit's cases in vector lanes: a scalar of W
// stands against vectors of cases, and W is read in place going forward, a block of its columns copied
// going back. A task is a block of units over all cases, for the gradient a panel of a layer's inputs;
// a layer waits for the one before it. Small nets are one task each. Bits depend on the shape alone.
#include "kernels/dense/net.h"

#include <limits>

#include "kernels/dense/activation.h"
#include "kernels/dense/net_pass.h"
#include "kernels/dense/net_step.h"
#include "kernels/loss/elementwise.h"

namespace hfcore {
namespace HFCORE_ISA {
namespace {

// Below so many multiply-adds forward, a net of a group is left to one thread.
constexpr int64_t small_net = 1 << 23;

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
        for (int64_t lane = 0; lane < cases; ++lane) pass.partial[b + lane] = losses[lane];
    });
    return sum_of(pass.partial, B);
}

// ---------------------------------------------------------------------------- forward

// Outputs of a layer's units of one block.
template <class T>
void forward_units(const Pass<T>& pass, const Layer& layer, const Point<T>& point,
                   const Blocks& down, int64_t block, T* units) {
    const int64_t i0 = down.start(block), J = down.start(block + 1) - i0;
    point.reach(layer.weights + i0 * layer.n, J * layer.n);
    point.reach(layer.biases + i0, J);
    const T* W = point.at() + layer.weights + i0 * layer.n;
    const T* b = point.at() + layer.biases + i0;
    // Behind the blocks of the other threads comes the next one of this.
    const int64_t next = smaller(block + pass.threads(), down.count - 1);
    const int64_t from = layer.weights + down.start(next) * layer.n;
    const int64_t size = next > block ? (down.start(next + 1) - down.start(next)) * layer.n : 0;
    const auto fetch = [&](int64_t tile, int64_t tiles) {
        point.fetch(from + size * tile / tiles, from + size * (tile + 1) / tiles);
    };
    pass.template product<false>(J, layer.n, W, layer.n, pass.inputs_of(layer), units, fetch);
    for (int64_t j = 0; j < J; ++j) {
        T* unit = units + j * pass.stride;
        const vec_t<T> bias = splat<T>(b[j]);
        map<T>(unit, pass.stride, [bias](vec_t<T> z) { return z + bias; }, unit);
    }
    activate(layer.activation, units, J * pass.stride);
}

template <class T>
void forward_layer(Pass<T>& pass, const Layer& layer, const Point<T>& point, T* to) {
    const Blocks down(layer.m, tile_rows);
    pass.run(down.count, layer.m * layer.n * pass.stride, [&](int64_t task, int) {
        forward_units(pass, layer, point, down, task, to + down.start(task) * pass.stride);
    });
}

// The last layer and its loss; leaves its delta.
template <class T>
double elementwise_loss(Pass<T>& pass, LossKind kind, const T* targets, const Point<T>& point,
                        double scale) {
    constexpr int64_t wide = sizeof(double) / sizeof(T);
    const Layer& last = pass.last();
    const Blocks down(last.m, tile_rows);
    pass.run(down.count, last.m * last.n * pass.stride, [&](int64_t task, int worker) {
        const int64_t i0 = down.start(task), J = down.start(task + 1) - i0;
        T* units = pass.delta_of(last) + i0 * pass.stride;
        forward_units(pass, last, point, down, task, units);
        T* work = pass.scratch(worker, pass.stride * (2 + wide));
        T* y = work + pass.stride * (1 + wide);
        for (int64_t j = 0; j < J; ++j) {
            T* unit = units + j * pass.stride;
            std::memcpy(y, unit, static_cast<std::size_t>(pass.stride) * sizeof(T));
            pass.partial[i0 + j] =
                elementwise_pass(kind, y, targets + (i0 + j) * pass.stride,
                                    static_cast<T>(scale), pass.d.B, pass.stride, work, unit);
            scale_by_derivative<T>(last.activation, unit, y, nullptr, pass.stride);
        }
    });
    return sum_of(pass.partial, last.m);
}

// The loss; leaves the states and the last layer's delta.
template <class T>
double forward_net(Pass<T>& pass, LossKind kind, const T* targets, const int64_t* classes,
                   const Point<T>& point, double scale) {
    for (const Layer& layer : pass.layers)
        if (&layer != &pass.last())
            forward_layer(pass, layer, point, pass.states + layer.above * pass.stride);
    if (kind != LossKind::softmax) return elementwise_loss(pass, kind, targets, point, scale);
    T* outputs = pass.delta_of(pass.last());
    forward_layer(pass, pass.last(), point, outputs);
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
            pass.template product<true>(J, layer.m, columns, J, delta, units,
                                        [](int64_t, int64_t) {});
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
        Sums<T> all;
        int64_t b = 0;
        for (; b + all.count <= pass.d.B; b += all.count)
            all.add([&](int64_t i) { return load<T>(units + b + i); });
        if (b < pass.d.B)
            all.add([&](int64_t i) {
                return load_first<T>(units + b + i, lanes_left(pass.d.B - b, i, lanes));
            });
        sums[j] = all.total();
    }
}

// A layer's gradient for one panel of its inputs; with the first of them come the biases.
template <class T>
void layer_gradient(Pass<T>& pass, const Layer& layer, int64_t p, const T* x,
                    const Outcome<T>& outcome, int worker) {
    constexpr int64_t lanes = simd<T>::lanes;
    const int64_t B = pass.d.B;
    const Panels<T> panels(layer.n);
    const int64_t j0 = panels.first(p), width = panels.width(p), used = panels.used(p);
    const T* delta = pass.delta_of(layer);
    const bool moves = outcome.moves();
    const Blocks down(layer.m, tile_rows), depth(B, block_k);
    // Of one block of cases, what moves takes its sums as they come: one tile of them, or the biases.
    const bool whole = depth.count > 1;
    const int64_t rows = whole ? layer.m : larger(tile_rows, (layer.m + width - 1) / width);
    T* panel = pass.scratch(worker, B * width + (moves ? rows * width : 0));
    T* sums = panel + B * width;
    if (layer.below < 0)
        pack_panel<T, false>(panel, panels, p, x, layer.n, B);
    else
        for (int64_t j = 0; j < width; j += lanes)
            turn_units(pass, pass.inputs_of(layer) + (j0 + j) * pass.stride,
                       smaller(used - j, lanes), panel + j, width);
    for (int64_t b = 0; b < depth.count; ++b) {
        const int64_t k0 = depth.start(b), K = depth.start(b + 1) - k0;
        const bool last = b + 1 == depth.count;
        for (int64_t i = 0; i < down.count; ++i) {
            const int64_t i0 = down.start(i), J = down.start(i + 1) - i0;
            const int64_t at = layer.weights + i0 * layer.n + j0;
            Target<T> C = moves ? Target<T>{whole ? sums + i0 * width : sums, width, nullptr, 0}
                                : Target<T>{outcome.gradient + at, layer.n, nullptr, 0};
            if (b) C = {C.C, C.stride, C.C, C.stride};
            if (moves && last) outcome.fetch(at, used, J, layer.n);
            tile_product<T, false>(J, width, moves ? width : used,
                                   delta + i0 * pass.stride + k0, pass.stride, panel + k0 * width,
                                   K, C);
            if (moves && last) outcome.take(at, used, J, layer.n, C.C, width);
        }
    }
    if (p > 0) return;
    T* biases = moves ? sums : outcome.gradient + layer.biases;
    sum_cases(pass, delta, layer.m, biases);
    if (moves) outcome.take(layer.biases, layer.m, 1, 0, biases, 0);
}

struct GradientTask {
    const Layer* layer;
    int64_t panel;
};

// Those of the layers with most units first, so that the threads end together, and of a layer in
// turns from as many places as there are threads: what neighbouring panels write shares cache lines,
// which would go back and forth.
template <class T>
std::vector<GradientTask> gradient_tasks(const std::vector<Layer>& layers, int64_t threads) {
    std::vector<const Layer*> order;
    for (const Layer& layer : layers) {
        auto at = order.begin();
        while (at != order.end() && (*at)->m >= layer.m) ++at;
        order.insert(at, &layer);
    }
    std::vector<GradientTask> tasks;
    for (const Layer* layer : order) {
        const int64_t panels = Panels<T>(layer->n).count();
        const int64_t apart = (panels + threads - 1) / threads;
        for (int64_t first = 0; first < apart; ++first)
            for (int64_t p = first; p < panels; p += apart) tasks.push_back({layer, p});
    }
    return tasks;
}

// What all nets are given.
template <class T>
struct Data {
    LossKind kind;
    Grouped<T> x;
    const LossTargets<T>& targets;
    double scale;
    // The targets of an autoencoder may be its inputs: those are turned once.
    bool reconstructs(const Pass<T>& pass) const {
        return kind != LossKind::softmax && pass.last().m == pass.d.sizes[0] &&
               targets.values.data == x.data && targets.values.stride == x.stride;
    }
};

// Net g; with `turned` the arrays hold inputs and targets that all nets share. A net whose loss is not
// finite does not move.
template <class T>
double net_pass(Pass<T>& pass, const Data<T>& data, const std::vector<GradientTask>& tasks,
                int64_t g, bool turned, const Point<T>& point, const Outcome<T>& wanted) {
    const bool reconstructs = data.reconstructs(pass), classes = data.kind == LossKind::softmax;
    if (!turned || data.x.stride != 0)
        turn_rows(pass, data.x.at(g), pass.d.sizes[0], pass.inputs);
    if (!classes && !reconstructs && (!turned || data.targets.values.stride != 0))
        turn_rows(pass, data.targets.values.at(g), pass.last().m, pass.targets);
    const double loss =
        forward_net(pass, data.kind, reconstructs ? pass.inputs : pass.targets,
                    classes ? data.targets.classes.at(g) : nullptr, point, data.scale);
    const double scaled = data.scale * loss;
    const Outcome<T> outcome = __builtin_isfinite(scaled) ? wanted : wanted.kept();
    if (!outcome.moves() && outcome.gradient == nullptr) return scaled;
    backward_deltas(pass, point.at());
    const int64_t work = parameters(pass.layers) * pass.d.B;
    pass.run(static_cast<int64_t>(tasks.size()), work, [&](int64_t task, int worker) {
        layer_gradient(pass, *tasks[task].layer, tasks[task].panel, data.x.at(g), outcome, worker);
    });
    return scaled;
}

// use(pass, tasks, g, turned) for every net, of the tasks of its gradient; gives whether the arrays
// now hold what all nets share. Of small nets, as many as the threads can share evenly go to one
// thread each; all work on the others, and on each of the large ones, whose arrays fill the caches
// of all.
template <class T, class F>
void for_nets(const NetDims& d, const F& use) {
    const std::vector<Layer> layers = layers_of(d);
    Region region(d.threads, Denormals::flush);
    const int64_t crew = region.threads();
    const std::vector<GradientTask> tasks = gradient_tasks<T>(layers, crew);
    const bool small = crew > 1 && parameters(layers) * d.B < small_net;
    const int64_t one_each = small ? d.G / crew * crew : 0;
    const int64_t bytes = Pass<T>::bytes(d, layers);
    char* memory = static_cast<char*>(region.shared((one_each ? crew : 1) * bytes));
    region.run(one_each, [&](int64_t g, int worker) {
        Pass<T> pass(d, layers, region, worker, memory + worker * bytes);
        use(pass, tasks, g, false);
    });
    Pass<T> pass(d, layers, region, -1, memory);
    bool turned = false;
    for (int64_t g = one_each; g < d.G; ++g) turned = use(pass, tasks, g, turned);
}

template <class T>
void gradient(const NetDims& d, LossKind kind, Grouped<T> x, const LossTargets<T>& targets,
              Grouped<T> theta, double scale, T* gradient, double* losses) {
    const Data<T> data{kind, x, targets, scale};
    for_nets<T>(d, [&](Pass<T>& pass, const auto& tasks, int64_t g, bool turned) {
        const Point<T> point{theta.at(g)};
        const Outcome<T> outcome{gradient + g * parameters(pass.layers)};
        losses[g] = net_pass(pass, data, tasks, g, turned, point, outcome);
        return true;
    });
}

template <class T>
void update(const NetDims& d, LossKind kind, Grouped<T> x, const LossTargets<T>& targets,
            double scale, const NetUpdate<T>& u, double* losses) {
    const Data<T> data{kind, x, targets, scale};
    for_nets<T>(d, [&](Pass<T>& pass, const auto& tasks, int64_t g, bool turned) {
        if (u.active && !u.active[g]) {
            losses[g] = std::numeric_limits<double>::quiet_NaN();
            return turned;
        }
        const int64_t N = parameters(pass.layers);
        T *theta = u.theta + g * N, *velocity = u.velocity + g * N;
        const bool ahead = u.lookahead[g] != 0.0;
        const Point<T> point{theta, ahead ? velocity : nullptr, T(u.lookahead[g]), pass.ahead};
        const T rate = T(u.learning_rate[g]), momentum = T(u.momentum[g]);
        const Outcome<T> outcome{u.gradient ? u.gradient + g * N : nullptr,
                                 theta,
                                 velocity,
                                 ahead ? pass.ahead : nullptr,
                                 {rate, momentum, T(0), u.l2 ? T(u.l2[g]) : T(0)},
                                 u.l2 != nullptr};
        losses[g] = net_pass(pass, data, tasks, g, turned, point, outcome);
        return true;
    });
}

}  // namespace

template <class T>
const NetKernels<T>& net_kernels() {
    static const NetKernels<T> kernels = {gradient<T>, update<T>};
    return kernels;
}
template const NetKernels<float>& net_kernels<float>();
template const NetKernels<double>& net_kernels<double>();

}  // namespace HFCORE_ISA
}  // namespace hfcore
