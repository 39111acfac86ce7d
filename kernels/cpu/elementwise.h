// The functions of math.h on arrays, so that tests can measure their errors, and the rate of products and
// sums that touch no memory, against which kernels are measured.
#pragma once

#include <cstdint>

namespace hfcore {

enum class MathFunction { exp, log1p, tanh, logistic };

// out[i] = f(x[i]); out may be x.
template <class T>
using Elementwise = void (*)(MathFunction, std::int64_t n, const T* x, T* out);

// `rounds` of float32 products and sums in registers, on each of so many threads; gives the operations of
// all of them, two for a product and its sum.
using MultiplyAdds = std::int64_t (*)(std::int64_t rounds, int threads);

namespace baseline {
template <class T>
Elementwise<T> elementwise();
MultiplyAdds multiply_adds();
}
namespace avx2 {
template <class T>
Elementwise<T> elementwise();
MultiplyAdds multiply_adds();
}
namespace avx512 {
template <class T>
Elementwise<T> elementwise();
MultiplyAdds multiply_adds();
}

}  // namespace hfcore
