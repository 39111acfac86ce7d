// What the recurrence ops share whatever the layout of a tile: packed weights, flat vectors, windows of
// recomputed states, and the functions of one element.
#pragma once

#include "kernels/cpu/parallel.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/runs.h"
#include "kernels/cpu/tiles.h"
#include "kernels/recurrence/cpu.h"

namespace hfcore {
namespace HFCORE_ISA {
namespace {

// Bytes of recomputed states that a tile holds at once, in windows of no fewer than √T steps.
constexpr int64_t window_bytes = int64_t{8} << 20;

template <class T>
inline void prefetch_rows(const T* rows, int64_t elements) {
    constexpr int64_t line = 64 / sizeof(T);
    for (int64_t i = 0; i < elements; i += line) __builtin_prefetch(rows + i);
}

// h = e(t) in place.
template <class T>
void activate(T* t, int64_t elements, Nonlinearity e) {
    using vec = vec_t<T>;
    if (e == Nonlinearity::tanh)
        map<T>(t, elements, [](vec v) { return vtanh<T>(v); }, t);
    else if (e == Nonlinearity::logistic)
        map<T>(t, elements, [](vec v) { return vlogistic<T>(v); }, t);
    else  // keeps NaN
        map<T>(t, elements, [](vec v) { return v < vec{} ? vec{} : v; }, t);
}

// y = e'(t) ⊙ y + structural·Rh, with e' recomputed from h; Rh may be null.
template <Nonlinearity e, class T>
void scale_by_derivative(T* y, const T* h, const T* Rh, T structural, int64_t elements) {
    using vec = vec_t<T>;
    const vec zero{}, one = zero + T(1);
    const auto scaled = [zero, one](vec yi, vec hi) {
        if constexpr (e == Nonlinearity::tanh)
            return (one - hi * hi) * yi;
        else if constexpr (e == Nonlinearity::logistic)
            return hi * (one - hi) * yi;
        else
            return (hi > zero ? one : zero) * yi;
    };
    if (Rh == nullptr)
        map<T>(y, elements, scaled, y, h);
    else
        map<T>(
            y, elements,
            [scaled, structural](vec yi, vec hi, vec Ri) { return scaled(yi, hi) + structural * Ri; },
            y, h, Rh);
}

template <class T>
void apply_derivative(Nonlinearity e, T* y, const T* h, const T* Rh, T structural,
                      int64_t elements) {
    if (e == Nonlinearity::tanh)
        scale_by_derivative<Nonlinearity::tanh>(y, h, Rh, structural, elements);
    else if (e == Nonlinearity::logistic)
        scale_by_derivative<Nonlinearity::logistic>(y, h, Rh, structural, elements);
    else
        scale_by_derivative<Nonlinearity::relu>(y, h, Rh, structural, elements);
}

template <class T>
bool all_zero(const T* rows, int64_t count) {
    for (int64_t i = 0; i < count; ++i)
        if (!(rows[i] == T(0))) return false;
    return true;
}

// ------------------------------------------------------------------------- packed weights

// Where the segments of h and x begin, and how wide the matrices are.
struct Widths {
    int64_t hidden, input, output;  // segments of h, x and s
    explicit Widths(const RnnDims& d)
        : hidden(paired_depth(d.H)), input(paired_depth(d.n)), output(paired_depth(d.k)) {}
    int64_t state() const { return hidden + input; }        // [W_hh | W_hx]
    int64_t tangent() const { return 2 * hidden + input; }  // [W_hh | V_hh | V_hx]
    int64_t outputs() const { return 2 * hidden; }          // [W_yh | V_yh]
    int64_t reverse() const { return hidden + output; }     // [W_hhᵀ | W_yhᵀ]
};

// Of one net, for the forward pass.
template <class T>
struct ForwardPack {
    T* hidden;  // [W_hh | W_hx]
    T* output;  // [W_yh]
    T* first;   // b_h + b_init
    ForwardPack(Arena<T>& arena, const RnnDims& d) {
        const Widths width(d);
        hidden = arena.take(packed_elements<T>(d.H, width.state()));
        output = arena.take(packed_elements<T>(d.k, width.hidden));
        first = arena.take(d.H);
    }
};

// Of one net, for the R-op, its outputs and the reverse pass.
template <class T>
struct ProductPack {
    T* hidden;       // [W_hh | V_hh | V_hx]
    T* output;       // [W_yh | V_yh]
    T* reverse;      // [W_hhᵀ | W_yhᵀ]
    T* first;        // v_bh + v_binit
    T* state;        // [W_hh | W_hx], to recompute states
    T* state_first;  // b_h + b_init
    T* state_bias;   // b_h
    ProductPack(Arena<T>& arena, const RnnDims& d, bool tangent, bool recompute) {
        const Widths width(d);
        hidden = arena.take(tangent ? packed_elements<T>(d.H, width.tangent()) : 0);
        output = arena.take(tangent ? packed_elements<T>(d.k, width.outputs()) : 0);
        reverse = arena.take(packed_elements<T>(d.H, width.reverse()));
        first = arena.take(tangent ? d.H : 0);
        state = arena.take(recompute ? packed_elements<T>(d.H, width.state()) : 0);
        state_first = arena.take(recompute ? d.H : 0);
        state_bias = arena.take(recompute ? d.H : 0);
    }
};

// A tangent or a gradient as flat vector, in the order of the parameters.
template <class T>
struct Flat {
    T *W_hx, *W_hh, *W_yh, *b_h, *b_init, *b_y;
    Flat(T* p, const RnnDims& d)
        : W_hx(p), W_hh(W_hx + d.H * d.n), W_yh(W_hh + d.H * d.H), b_h(W_yh + d.k * d.H),
          b_init(b_h + d.H), b_y(b_init + d.H) {}
};

// How states that are not cached come back: windows of `steps`, the last one ending at T, each but
// the last rebuilt from the checkpoint before it. No steps: the states are cached.
struct Windows {
    int64_t T, steps;
    int64_t checkpoints() const { return steps == 0 ? 0 : (T - 1) / steps; }
    // Whether a window begins behind step t, and the number of its checkpoint.
    bool at_checkpoint(int64_t t) const { return t + 1 < T && (T - t - 1) % steps == 0; }
    int64_t checkpoint(int64_t t) const { return (T - t - 1) / steps - 1; }
};

// `full` sequences a tile.
template <class T>
Windows windows_of(const RnnDims& d, bool recompute, int64_t full) {
    if (!recompute) return {d.T, 0};
    int64_t root = 1;
    while (root * root < d.T) ++root;
    const int64_t fit = window_bytes / (full * d.H * static_cast<int64_t>(sizeof(T)));
    return {d.T, smaller(d.T, larger(root, fit))};
}

}  // namespace
}  // namespace HFCORE_ISA
}  // namespace hfcore
