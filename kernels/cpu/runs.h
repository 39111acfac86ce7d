// Flat runs of elements, a vector at a time; lanes beyond the end are never touched.
#pragma once

#include "kernels/cpu/math.h"
#include "kernels/cpu/wide.h"

namespace hfcore {
namespace HFCORE_ISA {
namespace {

using std::int64_t;

// out[i] = f(vectors of a, b, ... at i) for i < n.
template <class T, class F, class... Arrays>
HFCORE_INLINE void map(T* out, int64_t n, const F& f, const Arrays*... from) {
    constexpr int lanes = simd<T>::lanes;
    int64_t i = 0;
    for (; i + lanes <= n; i += lanes) store<T>(out + i, f(load<T>(from + i)...));
    if (i < n) store_first<T>(out + i, f(load_first<T>(from + i, n - i)...), n - i);
}

// out[i] = f(out[i], a[i], b[i]) with T widened to double.
template <class T, class F>
HFCORE_INLINE void map_wide(double* out, int64_t n, const F& f, const T* a, const T* b) {
    constexpr int lanes = simd<double>::lanes;
    int64_t i = 0;
    for (; i + lanes <= n; i += lanes)
        store<double>(out + i, f(load<double>(out + i), widen<T>(load_narrow<T>(a + i)),
                                 widen<T>(load_narrow<T>(b + i))));
    if (i < n)
        store_first<double>(out + i,
                            f(load_first<double>(out + i, n - i),
                              widen<T>(load_narrow_first<T>(a + i, n - i)),
                              widen<T>(load_narrow_first<T>(b + i, n - i))),
                            n - i);
}

// Σ a[i] in float64.
template <class T>
HFCORE_INLINE double sum_of(const T* a, int64_t n) {
    Sums<double> sums;
    int64_t i = 0;
    for (; i + sums.count <= n; i += sums.count)
        sums.add([&](int64_t j) { return widen<T>(load_narrow<T>(a + i + j)); });
    double total = i > 0 ? sums.total() : 0.0;
    for (; i < n; ++i) total += a[i];
    return total;
}

}  // namespace
}  // namespace HFCORE_ISA
}  // namespace hfcore
