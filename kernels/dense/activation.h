// The activations of dense layers and their derivatives, over runs of elements.
#pragma once

#include "kernels/cpu/runs.h"
#include "kernels/dense/cpu.h"

namespace hfcore {
namespace HFCORE_ISA {
namespace {

// z = φ(z).
template <class T>
void activate(Activation e, T* z, int64_t n) {
    using vec = vec_t<T>;
    if (e == Activation::logistic)
        map<T>(z, n, [](vec x) { return vlogistic<T>(x); }, z);
    else if (e == Activation::tanh)
        map<T>(z, n, [](vec x) { return vtanh<T>(x); }, z);
    else if (e == Activation::relu)
        map<T>(z, n, [](vec x) { return select<T>(x < 0, vec{}, x); }, z);  // keeps NaN
}

template <Activation e, class T>
HFCORE_INLINE vec_t<T> derivative(vec_t<T> y) {
    if constexpr (e == Activation::logistic) return y * (1 - y);
    if constexpr (e == Activation::tanh) return 1 - y * y;
    return select<T>(y > 0, splat<T>(1), vec_t<T>{});
}

template <Activation e, class T>
void scale_run(T* x, const T* y, const T* add, int64_t n) {
    using vec = vec_t<T>;
    if (add == nullptr)
        map<T>(x, n, [](vec x, vec y) { return x * derivative<e, T>(y); }, x, y);
    else
        map<T>(x, n, [](vec x, vec y, vec a) { return x * derivative<e, T>(y) + a; }, x, y, add);
}

// x = x ⊙ φ'(y) + add; add may be null.
template <class T>
void scale_by_derivative(Activation e, T* x, const T* y, const T* add, int64_t n) {
    if (e == Activation::logistic)
        scale_run<Activation::logistic>(x, y, add, n);
    else if (e == Activation::tanh)
        scale_run<Activation::tanh>(x, y, add, n);
    else if (e == Activation::relu)
        scale_run<Activation::relu>(x, y, add, n);
    else if (add != nullptr)
        map<T>(x, n, [](vec_t<T> x, vec_t<T> a) { return x + a; }, x, add);
}

}  // namespace
}  // namespace HFCORE_ISA
}  // namespace hfcore
