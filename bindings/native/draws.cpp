// Checks and unpacking for the counted random numbers.
#include "kernels/draws/cpu.h"

#include <type_traits>

#include "bindings/native/native.h"

namespace hfcore {
namespace {

void philox(std::uint64_t seed, std::uint64_t number, const Array& out, int threads) {
    check_shape("out", out, {-1});
    if (out.dtype() != nb::dtype<std::int64_t>())
        throw nb::type_error("out: wrong dtype, need int64");
    nb::gil_scoped_release release;
    philox_words(seed, number, static_cast<std::int64_t>(out.size()),
                 static_cast<std::int64_t*>(out.data()), threads);
}

void uniform(std::uint64_t seed, std::uint64_t number, const Array& out, int threads) {
    with_float_type("out", out, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        nb::gil_scoped_release release;
        philox_uniform(seed, number, static_cast<std::int64_t>(out.size()),
                       static_cast<T*>(out.data()), threads);
    });
}

}  // namespace

void bind_draws(nb::module_& m) {
    const auto array = [](const char* name) { return nb::arg(name).noconvert(); };
    m.def("philox", &philox, nb::arg("seed"), nb::arg("number"), array("out"), nb::arg("threads"));
    m.def("uniform", &uniform, nb::arg("seed"), nb::arg("number"), array("out"),
          nb::arg("threads"));
}

}  // namespace hfcore
