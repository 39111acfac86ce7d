#include "kernels/cpu/elementwise.h"

#include "kernels/cpu/math.h"
#include "kernels/cpu/parallel.h"

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

// As many chains as hide the latency of a sum: two a cycle, four cycles each, and a few to spare.
std::int64_t run_multiply_adds(std::int64_t rounds, int threads) {
    constexpr int chains = 12;
    parallel_for(threads, threads, [rounds](std::int64_t task, int) {
        vec_t<float> sum[chains];
        // Sums come to rest at 1 or more: denormal ones would take a hundred times as long.
        const vec_t<float> factor = splat(0.999f);
        const vec_t<float> term = splat(0.001f * static_cast<float>(task + 1));
#pragma GCC unroll 16
        for (int i = 0; i < chains; ++i) sum[i] = splat(static_cast<float>(i));
        for (std::int64_t r = 0; r < rounds; ++r)
#pragma GCC unroll 16
            for (int i = 0; i < chains; ++i) sum[i] = sum[i] * factor + term;
        volatile float kept = 0.0f;
        for (int i = 0; i < chains; ++i) kept = kept + sum[i][0];
    });
    return 2 * rounds * chains * simd<float>::lanes * threads;
}

}  // namespace

MultiplyAdds multiply_adds() { return run_multiply_adds; }

template <class T>
Elementwise<T> elementwise() {
    return apply_all<T>;
}
template Elementwise<float> elementwise<float>();
template Elementwise<double> elementwise<double>();

}  // namespace HFCORE_ISA
}  // namespace hfcore
