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

}  // namespace HFCORE_ISA
}  // namespace hfcore
