// One net's way through a minibatch: its layers, its arrays, and how its phases share the threads.
#pragma once

#include <vector>

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/parallel.h"
#include "kernels/dense/net.h"

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

inline std::vector<Layer> layers_of(const NetDims& d) {
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

inline int64_t parameters(const std::vector<Layer>& layers) {
    return layers.back().biases + layers.back().m;
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
    double* partial;       // losses, one an output or, of softmax, a case
    T *inputs, *targets, *states, *deltas;
    T* ahead;  // [N], a point beside the parameters

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
        ahead = deltas + (hidden + k) * stride;
    }

    static int64_t bytes_of_losses(const NetDims& d, const std::vector<Layer>& layers) {
        const int64_t tasks = larger(layers.back().m, d.B);
        return (tasks * static_cast<int64_t>(sizeof(double)) + 63) / 64 * 64;
    }
    static int64_t bytes(const NetDims& d, const std::vector<Layer>& layers) {
        const int64_t k = layers.back().m, hidden = layers.back().above;
        const int64_t elements =
            (d.sizes[0] + k + hidden + hidden + k) * round_up<T>(d.B) + parameters(layers);
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

    int64_t threads() const { return alone < 0 ? region.threads() : 1; }

    // use(task, worker), on one thread where there is little to do.
    void run(int64_t tasks, int64_t work, TaskRef use) {
        if (alone < 0 && work >= serial_work) {
            region.run(tasks, use);
            return;
        }
        const WithControlWord flushed(control_word(Denormals::flush));
        for (int64_t task = 0; task < tasks; ++task) use(task, larger(alone, 0));
    }

    // to [J][stride] = A·P over all cases, P [K][stride]; A in rows, or packed [K][J]. Before each of
    // its `tiles` tiles comes before(tile, tiles).
    template <bool packed, class F>
    void product(int64_t J, int64_t K, const T* A, int64_t A_stride, const T* P, T* to,
                 const F& before) const {
        const Blocks depth(K, block_k);
        for (int64_t b = 0; b < depth.count; ++b) {
            const int64_t k0 = depth.start(b), deep = depth.start(b + 1) - k0;
            const T* A_block = packed ? A + k0 * J : A + k0;
            for (int64_t p = 0; p < panels.count; ++p) {
                before(b * panels.count + p, depth.count * panels.count);
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

}  // namespace
}  // namespace HFCORE_ISA
}  // namespace hfcore
