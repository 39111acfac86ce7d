#include "kernels/cpu/elementwise.h"

#include "kernels/cpu/math.h"

namespace hfcore {
namespace HFCORE_ISA {
namespace {

template <class T>
vec_t<T> apply(MathFunction f, vec_t<T> x) {
    switch (f) {
        case MathFunction::exp: return vexp<T>(x);
        case MathFunction::log1p: return vlog1p<T>(x);
        case MathFunction::tanh: return vtanh<T>(x);
        default: return vlogistic<T>(x);
    }
}

template <class T>
void apply_all(MathFunction f, std::int64_t n, const T* x, T* out) {
    constexpr int lanes = simd<T>::lanes;
    for (std::int64_t i = 0; i < n; i += lanes) {
        const std::int64_t width = n - i < lanes ? n - i : lanes;
        store_first<T>(out + i, apply<T>(f, load_first<T>(x + i, width)), width);
    }
}

}  // namespace

template <class T>
Elementwise<T> elementwise() {
    return apply_all<T>;
}
template Elementwise<float> elementwise<float>();
template Elementwise<double> elementwise<double>();

}  // namespace HFCORE_ISA
}  // namespace hfcore
