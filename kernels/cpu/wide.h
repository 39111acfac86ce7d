// float or double elements taken a double vector's worth at a time, for sums in float64.
#pragma once

#include "kernels/cpu/math.h"

namespace hfcore {
namespace HFCORE_ISA {

template <class T>
struct narrow;

template <>
struct narrow<double> {
    typedef vec_t<double> vec;
};

template <>
struct narrow<float> {
    typedef float vec __attribute__((vector_size(HFCORE_VECTOR_BYTES / 2)));
};

// simd<double>::lanes elements of T.
template <class T>
using narrow_t = typename narrow<T>::vec;

template <class T>
HFCORE_INLINE narrow_t<T> load_narrow(const T* p) {
    narrow_t<T> v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

// The first n lanes; the others are zero.
template <class T>
HFCORE_INLINE narrow_t<T> load_narrow_first(const T* p, std::int64_t n) {
    narrow_t<T> v = {};
    std::memcpy(&v, p, static_cast<std::size_t>(n) * sizeof(T));
    return v;
}

template <class T>
HFCORE_INLINE void store_narrow(T* p, narrow_t<T> v) {
    std::memcpy(p, &v, sizeof v);
}

template <class T>
HFCORE_INLINE vec_t<double> widen(narrow_t<T> v) {
    return __builtin_convertvector(v, vec_t<double>);
}

// Sums side by side in 64 bytes, whatever the width of a vector, so that every instruction set adds in
// the same order: eight of double, sixteen of float.
template <class W>
struct Sums {
    static constexpr int lanes = simd<W>::lanes, count = 64 / sizeof(W), parts = count / lanes;
    vec_t<W> part[parts] = {};

    // of(i) gives the terms of the sums from the i-th on, a vector of them.
    template <class F>
    HFCORE_INLINE_MEMBER void add(const F& of) {
#pragma GCC unroll 4
        for (int p = 0; p < parts; ++p) part[p] += of(std::int64_t(p) * lanes);
    }
    // The same of products.
    template <class F, class G>
    HFCORE_INLINE_MEMBER void add_product(const F& left, const G& right) {
#pragma GCC unroll 4
        for (int p = 0; p < parts; ++p)
            part[p] += left(std::int64_t(p) * lanes) * right(std::int64_t(p) * lanes);
    }
    HFCORE_INLINE_MEMBER void add(const Sums& other) {
#pragma GCC unroll 4
        for (int p = 0; p < parts; ++p) part[p] += other.part[p];
    }
    HFCORE_INLINE_MEMBER W total() const {
        W total = part[0][0];
#pragma GCC unroll 4
        for (int p = 0; p < parts; ++p)
            for (int i = p == 0; i < lanes; ++i) total += part[p][i];
        return total;
    }
};

// a·b + c, rounded once where the instruction set can: in a sum of scalars compilers may do either.
HFCORE_INLINE double multiply_add(double a, double b, double c) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
    return __builtin_fma(a, b, c);
#else
    return a * b + c;
#endif
}

// How many of `lanes` lanes are among the first n, from lane `at` on.
HFCORE_INLINE std::int64_t lanes_left(std::int64_t n, std::int64_t at, std::int64_t lanes) {
    const std::int64_t left = n - at;
    return left < 0 ? 0 : left < lanes ? left : lanes;
}

}  // namespace HFCORE_ISA
}  // namespace hfcore
