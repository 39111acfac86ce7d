// The functions of math.h on arrays, so that tests can measure their errors.
#pragma once

#include <cstdint>

namespace hfcore {

enum class MathFunction { exp, log1p, tanh, logistic };

// out[i] = f(x[i]); out may be x.
template <class T>
using Elementwise = void (*)(MathFunction, std::int64_t n, const T* x, T* out);

namespace baseline {
template <class T>
Elementwise<T> elementwise();
}
namespace avx2 {
template <class T>
Elementwise<T> elementwise();
}
namespace avx512 {
template <class T>
Elementwise<T> elementwise();
}

}  // namespace hfcore
