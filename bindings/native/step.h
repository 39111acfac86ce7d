// What the calls that move parameters are given beside arrays: coefficients, and which nets.
#pragma once

#include <nanobind/stl/optional.h>

#include <cstdint>
#include <optional>
#include <utility>

#include "bindings/native/memory.h"
#include "bindings/native/native.h"

namespace hfcore {

using MaybeArray = std::optional<Array>;

inline const Array* pointer(const MaybeArray& a) { return a ? &*a : nullptr; }

template <class T>
T* data(const Array* a) {
    return a == nullptr ? nullptr : static_cast<T*>(a->data());
}

inline void check_coefficients(std::int64_t G, std::initializer_list<NamedArray> coefficients) {
    for (const NamedArray& c : coefficients) {
        if (c.array == nullptr) continue;
        check_shape(c.name, *c.array, {G});
        if (c.array->dtype() != nb::dtype<double>())
            throw nb::type_error((std::string(c.name) + ": wrong dtype, need float64").c_str());
    }
}

// G and N of theta; `active` belongs to them.
inline std::pair<std::int64_t, std::int64_t> check_step(const Array& theta,
                                                        const MaybeArray& active) {
    check_shape("theta", theta, {-1, -1});
    const auto G = static_cast<std::int64_t>(theta.shape(0));
    const auto N = static_cast<std::int64_t>(theta.shape(1));
    if (G < 1) value_error("G: got 0, need at least 1");
    if (N < 1) value_error("N: got 0, need at least 1");
    if (active) {
        check_shape("active", *active, {G});
        if (active->dtype() != nb::dtype<bool>())
            throw nb::type_error("active: wrong dtype, need bool");
    }
    return {G, N};
}

}  // namespace hfcore
