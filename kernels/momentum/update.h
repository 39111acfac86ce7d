// The momentum update and its lookahead point over stretches of elements. Formulas: reference.py.
//
// An element's bits depend on neither its place nor its neighbours: what is left of a stretch behind
// the whole vectors is a vector too, so that its products and sums are fused or not as all others
// are. A net in a group and a parameter in a flat buffer come out as they do alone, and as they do
// behind a gradient.
#pragma once

#include "kernels/cpu/math.h"

namespace hfcore {
namespace HFCORE_ISA {
namespace {

using std::int64_t;

// One net's stretch of elements.
template <class T>
struct Stretch {
    T *theta, *velocity, *ahead;
    const T* gradient;
};

template <class T>
struct Coefficients {
    T learning_rate, momentum, lookahead, l2;
};

// The vector at i, of which `n` elements count: all of them, or the rest of a stretch.
template <class T, bool has_l2, bool has_ahead, bool whole>
HFCORE_INLINE void update_vector(const Stretch<T>& at, const Coefficients<T>& c, int64_t i,
                                 int64_t n) {
    const auto get = [i, n](const T* p) { return whole ? load<T>(p + i) : load_first<T>(p + i, n); };
    const auto put = [i, n](T* p, vec_t<T> x) {
        if constexpr (whole)
            store<T>(p + i, x);
        else
            store_first<T>(p + i, x, n);
    };
    const vec_t<T> theta = get(at.theta);
    vec_t<T> g = get(at.gradient);
    if constexpr (has_l2) g += (has_ahead ? get(at.ahead) : theta) * c.l2;
    const vec_t<T> v = get(at.velocity) * c.momentum - g * c.learning_rate;
    const vec_t<T> moved = theta + v;
    put(at.velocity, v);
    put(at.theta, moved);
    if constexpr (has_ahead) put(at.ahead, moved + v * c.lookahead);
}

// `rows` stretches of n elements, those of the parameters and of the gradient so far apart.
template <class T, bool has_l2, bool has_ahead>
__attribute__((noinline)) void update_rows(const Stretch<T>& first, const Coefficients<T>& c,
                                           int64_t n, int64_t rows, int64_t apart,
                                           int64_t gradients_apart) {
    constexpr int lanes = simd<T>::lanes;
    Stretch<T> at = first;
    for (int64_t row = 0; row < rows; ++row) {
        int64_t i = 0;
        for (; i + lanes <= n; i += lanes)
            update_vector<T, has_l2, has_ahead, true>(at, c, i, lanes);
        if (i < n) update_vector<T, has_l2, has_ahead, false>(at, c, i, n - i);
        at.theta += apart;
        at.velocity += apart;
        if constexpr (has_ahead) at.ahead += apart;
        at.gradient += gradients_apart;
    }
}

// out = θ + μ v, as `ahead` of an update: the same product and sum.
template <class T>
__attribute__((noinline)) void look_ahead(const T* theta, const T* velocity, T momentum, T* out,
                                          int64_t n) {
    constexpr int lanes = simd<T>::lanes;
    int64_t i = 0;
    for (; i + lanes <= n; i += lanes)
        store<T>(out + i, load<T>(theta + i) + load<T>(velocity + i) * momentum);
    if (i < n)
        store_first<T>(out + i,
                       load_first<T>(theta + i, n - i) + load_first<T>(velocity + i, n - i) * momentum,
                       n - i);
}

}  // namespace
}  // namespace HFCORE_ISA
}  // namespace hfcore
