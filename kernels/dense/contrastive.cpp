// CD-1 of whole machines on one minibatch, in one parallel region.
//
// A task takes a panel of units through all cases: what it makes of them (means, sampled states, sums
// over cases) is done while they are in its cache. Wᵀ is packed once for the two ways up. The last
// phase takes every piece of the gradient where it is computed. Bits depend on the shape alone.
#include "kernels/dense/contrastive.h"

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/tiles.h"
#include "kernels/dense/activation.h"
#include "kernels/dense/net_step.h"

namespace hfcore {
namespace HFCORE_ISA {
namespace {

// Below this many multiply-adds, some ten microseconds, waking a second thread costs more than it
// saves.
constexpr int64_t serial_work = 1 << 22;
// Blocks of tile_rows rows that one task packs.
constexpr int64_t packed_blocks = 4;

// sums[j] = scale·Σ over rows of a[i][j] − b[i][j], and squares[j] the sum of its squares, unless null.
template <class T>
void sum_differences(const T* a, const T* b, int64_t stride, int64_t rows, int64_t columns, T scale,
                     T* sums, double* squares) {
    constexpr int64_t lanes = simd<T>::lanes;
    for (int64_t j = 0; j < columns; j += lanes) {
        const int64_t left = smaller(columns - j, lanes);
        vec_t<T> sum{}, square{};
        for (int64_t i = 0; i < rows; ++i) {
            const vec_t<T> x = load_first<T>(a + i * stride + j, left) -
                               load_first<T>(b + i * stride + j, left);
            sum += x;
            square += x * x;
        }
        store_first<T>(sums + j, sum * scale, left);
        if (squares)
            for (int64_t lane = 0; lane < left; ++lane) squares[j + lane] = double(square[lane]);
    }
}

// One machine's arrays, and its phases, each of which waits for the one before it.
template <class T>
struct Machine {
    const ContrastiveDims& d;
    Region& region;
    const Panels<T> hidden, visible;
    const Blocks rows;  // of W, tile by tile
    const T *v0, *noise, *theta;
    const Outcome<T> weights, biases;
    double* squares;                       // [n]
    T *upward, *p0, *p1, *h, *v1, *left;  // Wᵀ packed; [B][m], [B][m], [B][m], [B][n], [2B][m] packed

    Machine(const ContrastiveDims& d_, Region& region_, const T* v_, const T* noise_,
            const T* theta_, const Outcome<T>& weights_, const Outcome<T>& biases_, char* memory)
        : d(d_), region(region_), hidden(d.m), visible(d.n), rows(d.m, tile_rows), v0(v_),
          noise(noise_), theta(theta_), weights(weights_), biases(biases_) {
        Arena<double> wide(memory);
        squares = wide.take(d.n);
        Arena<T> arena(memory ? memory + wide.bytes() : nullptr);
        upward = arena.take(hidden.elements(d.n));
        p0 = arena.take(d.B * d.m);
        p1 = arena.take(d.B * d.m);
        h = arena.take(d.B * d.m);
        v1 = arena.take(d.B * d.n);
        left = arena.take(2 * d.B * d.m);
        bytes = wide.bytes() + arena.bytes();
    }
    std::size_t bytes;

    T mean() const { return T(1) / static_cast<T>(d.B); }

    // The panel p of φ(a Wᵀ + b), Wᵀ packed.
    void up(int64_t p, const T* a, bool gaussian, T* out) const {
        const int64_t first = hidden.first(p), used = hidden.used(p);
        const Target<T> to{out + first, d.m, theta + d.m * d.n + first, 0};
        panel_product<T>(to, d.B, hidden, p, a, d.n, upward + first * d.n, d.n);
        if (gaussian) return;
        for (int64_t i = 0; i < d.B; ++i)
            activate(Activation::logistic, out + i * d.m + first, used);
    }

    // Hidden units given the data, and their states.
    void first_way_up() const {
        region.run(hidden.count(), [&](int64_t p, int) {
            const int64_t first = hidden.first(p), used = hidden.used(p);
            pack_panel_of_columns<T>(upward + first * d.n, hidden, p, theta, d.n, d.n);
            up(p, v0, d.hidden_gaussian, p0);
            for (int64_t i = 0; i < d.B; ++i) {
                const int64_t at = i * d.m + first;
                if (d.hidden_gaussian)
                    map<T>(h + at, used, [](vec_t<T> p, vec_t<T> u) { return p + u; }, p0 + at,
                           noise + at);
                else
                    map<T>(h + at, used,
                           [](vec_t<T> p, vec_t<T> u) {
                               return select<T>(u < p, splat<T>(1), vec_t<T>{});
                           },
                           p0 + at, noise + at);
            }
        });
    }

    // The reconstruction, its error, and the gradient of the visible biases.
    void way_down() const {
        const T* b_v = theta + d.m * d.n + d.m;
        region.run(visible.count(), [&](int64_t p, int worker) {
            const int64_t first = visible.first(p), used = visible.used(p);
            const int64_t width = visible.width(p);
            T* panel = scratch(worker, (d.m + 1) * width);
            pack_panel<T, false>(panel, visible, p, theta, d.n, d.m);
            panel_product<T>({v1 + first, d.n, b_v + first, 0}, d.B, visible, p, h, d.m, panel, d.m);
            if (!d.visible_gaussian)
                for (int64_t i = 0; i < d.B; ++i)
                    activate(Activation::logistic, v1 + i * d.n + first, used);
            T* sums = panel + d.m * width;
            sum_differences(v1 + first, v0 + first, d.n, d.B, used, mean(), sums, squares + first);
            keep(d.m * d.n + d.m + first, used, sums);
        });
    }

    // Hidden units given the reconstruction, and the gradient of their biases.
    void second_way_up() const {
        region.run(hidden.count(), [&](int64_t p, int worker) {
            const int64_t first = hidden.first(p), used = hidden.used(p);
            up(p, v1, d.hidden_gaussian, p1);
            T* sums = scratch(worker, hidden.width(p));
            sum_differences(p1 + first, p0 + first, d.m, d.B, used, mean(), sums, nullptr);
            keep(d.m * d.n + first, used, sums);
        });
    }

    // Σ (E[h|v₁] v₁ᵀ − E[h|v₀] v₀ᵀ)/B: both phases are one product of 2B cases.
    void gradient_of_weights() const {
        const Blocks shares(rows.count, packed_blocks);
        const int64_t K = 2 * d.B;
        region.run(shares.count, [&](int64_t task, int) {
            for (int64_t b = shares.start(task); b < shares.start(task + 1); ++b) {
                const int64_t i0 = rows.start(b), J = rows.start(b + 1) - i0;
                T* block = left + i0 * K;
                pack_left<T, false>(block, p0 + i0, d.m, d.B, J, -mean());
                pack_left<T, false>(block + d.B * J, p1 + i0, d.m, d.B, J, mean());
            }
        });
        const Blocks depth(K, block_k);
        region.run(visible.count(), [&](int64_t p, int worker) {
            const int64_t first = visible.first(p), width = visible.width(p);
            const int64_t used = visible.used(p);
            T* panel = scratch(worker, (K + tile_rows) * width);
            T* sums = panel + K * width;
            pack_panel<T, false>(panel, visible, p, v0, d.n, d.B);
            pack_panel<T, false>(panel + d.B * width, visible, p, v1, d.n, d.B);
            const bool moves = weights.moves();
            for (int64_t i = 0; i < rows.count; ++i) {
                const int64_t i0 = rows.start(i), J = rows.start(i + 1) - i0;
                const int64_t at = i0 * d.n + first;
                Target<T> to = moves ? Target<T>{sums, width, nullptr, 0}
                                     : Target<T>{weights.gradient + at, d.n, nullptr, 0};
                if (moves) weights.fetch(at, used, J, d.n);
                for (int64_t b = 0; b < depth.count; ++b) {
                    const int64_t k0 = depth.start(b), deep = depth.start(b + 1) - k0;
                    tile_product<T, true>(J, width, moves ? width : used, left + i0 * K + k0 * J, J,
                                          panel + k0 * width, deep, to);
                    to = {to.C, to.stride, to.C, to.stride};
                }
                if (moves) weights.take(at, used, J, d.n, sums, width);
            }
        });
    }

private:
    T* scratch(int worker, int64_t elements) const {
        return static_cast<T*>(
            region.scratch(worker, static_cast<std::size_t>(elements) * sizeof(T)));
    }
    // A piece of the biases' gradient.
    void keep(int64_t at, int64_t n, const T* g) const {
        if (biases.moves())
            biases.take(at, n, 1, 0, g, 0);
        else
            copy(biases.gradient + at, g, n);
    }
};

template <class T>
void step(const ContrastiveDims& d, Grouped<T> v, Grouped<T> noise, Grouped<T> theta,
          const ContrastiveUpdate<T>& u, T* gradient, double* errors) {
    const bool alone = d.B * d.n * d.m < serial_work;
    Region region(alone ? 1 : d.threads, Denormals::flush);
    const Outcome<T> none{gradient};
    const std::size_t bytes =
        Machine<T>(d, region, nullptr, nullptr, nullptr, none, none, nullptr).bytes;
    char* memory = static_cast<char*>(region.shared(bytes));
    const Coefficients<T> rates{T(u.learning_rate), T(u.momentum), T(0), T(u.weight_cost)};
    for (int64_t g = 0; g < d.G; ++g) {
        const int64_t at = g * (d.m * d.n + d.m + d.n);
        Outcome<T> weights{gradient ? gradient + at : nullptr};
        if (u.theta) weights = {weights.gradient, u.theta + at, u.velocity + at, nullptr, rates, true};
        Outcome<T> biases = weights;
        biases.has_l2 = false;
        const Machine<T> machine(d, region, v.at(g), noise.at(g), theta.at(g), weights, biases,
                                 memory);
        machine.first_way_up();
        machine.way_down();
        machine.second_way_up();
        machine.gradient_of_weights();
        errors[g] = sum_of(machine.squares, d.n);
    }
}

}  // namespace

template <class T>
const ContrastiveKernels<T>& contrastive_kernels() {
    static const ContrastiveKernels<T> kernels = {step<T>};
    return kernels;
}
template const ContrastiveKernels<float>& contrastive_kernels<float>();
template const ContrastiveKernels<double>& contrastive_kernels<double>();

}  // namespace HFCORE_ISA
}  // namespace hfcore
