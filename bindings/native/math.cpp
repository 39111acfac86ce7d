// `_math`: the kernels' elementary functions on flat arrays, for tests; `_multiply_adds`: a loop in
// registers, for benchmarks.
#include <nanobind/stl/string.h>

#include <string>
#include <type_traits>

#include "bindings/native/native.h"
#include "kernels/cpu/elementwise.h"

namespace hfcore {
namespace {

MathFunction function_of(const std::string& name) {
    if (name == "exp") return MathFunction::exp;
    if (name == "log1p") return MathFunction::log1p;
    if (name == "tanh") return MathFunction::tanh;
    if (name == "logistic") return MathFunction::logistic;
    value_error("function: got " + name + ", need exp, log1p, tanh or logistic");
}

void math(const std::string& function, const Array& x, const Array& out) {
    const MathFunction f = function_of(function);
    check_shape("x", x, {-1});
    const auto n = static_cast<std::int64_t>(x.shape(0));
    check_shape("out", out, {n});
    with_float_type("x", x, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        check_dtype<T>("out", out);
        HFCORE_PICK(elementwise<T>())
        (f, n, static_cast<const T*>(x.data()), static_cast<T*>(out.data()));
    });
}

std::int64_t multiply_adds(std::int64_t rounds, int threads) {
    if (rounds < 0) value_error("rounds: got " + std::to_string(rounds) + ", need at least 0");
    if (threads < 1) value_error("threads: got " + std::to_string(threads) + ", need at least 1");
    const nb::gil_scoped_release release;
    return HFCORE_PICK(multiply_adds())(rounds, threads);
}

}  // namespace

void bind_math(nb::module_& m) {
    m.def("_multiply_adds", &multiply_adds, nb::arg("rounds"), nb::arg("threads"));
    m.def("_math", &math, nb::arg("function"), nb::arg("x").noconvert(),
          nb::arg("out").noconvert());
}

}  // namespace hfcore
