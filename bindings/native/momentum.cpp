// Checks and unpacking for the momentum update and its lookahead point.
#include "kernels/momentum/cpu.h"

#include <type_traits>

#include "bindings/native/memory.h"
#include "bindings/native/native.h"
#include "bindings/native/step.h"

namespace hfcore {
namespace {

using std::int64_t;

void momentum_update(const Array& theta, const Array& velocity, const Array& gradient,
                     const Array& learning_rate, const Array& momentum, const Array& lookahead,
                     const MaybeArray& l2, const MaybeArray& ahead, const MaybeArray& active,
                     int threads) {
    const auto [G, N] = check_step(theta, active);
    check_shape("velocity", velocity, {G, N});
    check_grouped("gradient", gradient, G, {N});
    if (ahead) check_shape("ahead", *ahead, {G, N});
    const NamedArray rates[] = {{"learning_rate", &learning_rate},
                                {"momentum", &momentum},
                                {"lookahead", &lookahead},
                                {"l2", pointer(l2)}};
    check_coefficients(G, {rates[0], rates[1], rates[2], rates[3]});
    const NamedArray v{"velocity", &velocity}, g{"gradient", &gradient}, a{"ahead", pointer(ahead)},
        on{"active", pointer(active)};
    check_apart({"theta", &theta}, {v, g, a, rates[0], rates[1], rates[2], rates[3], on});
    check_apart(v, {g, a, rates[0], rates[1], rates[2], rates[3], on});
    if (ahead) check_apart(a, {g, rates[0], rates[1], rates[2], rates[3], on});
    const int64_t sizes[] = {G, N};  // a structured binding cannot be captured
    with_float_type("theta", theta, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        for (const NamedArray& array : {v, g, a})
            if (array.array != nullptr) check_dtype<T>(array.name, *array.array);
        const MomentumArrays<T> arrays{sizes[0],
                                       sizes[1],
                                       data<T>(&theta),
                                       data<T>(&velocity),
                                       {data<const T>(&gradient), group_stride(gradient)},
                                       data<T>(pointer(ahead)),
                                       data<const double>(&learning_rate),
                                       data<const double>(&momentum),
                                       data<const double>(&lookahead),
                                       data<const double>(pointer(l2)),
                                       data<const std::uint8_t>(pointer(active)),
                                       threads};
        nb::gil_scoped_release release;
        HFCORE_PICK(momentum_kernels<T>()).update(arrays);
    });
}

void lookahead_point(const Array& theta, const Array& velocity, const Array& momentum,
                     const Array& out, const MaybeArray& active, int threads) {
    const auto [G, N] = check_step(theta, active);
    check_shape("velocity", velocity, {G, N});
    check_coefficients(G, {{"momentum", &momentum}});
    check_shape("out", out, {G, N});
    check_apart({"out", &out}, {{"theta", &theta},
                                {"velocity", &velocity},
                                {"momentum", &momentum},
                                {"active", pointer(active)}});
    const int64_t sizes[] = {G, N};
    with_float_type("theta", theta, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        check_dtype<T>("velocity", velocity);
        check_dtype<T>("out", out);
        const LookaheadArrays<T> arrays{sizes[0],
                                        sizes[1],
                                        data<const T>(&theta),
                                        data<const T>(&velocity),
                                        data<const double>(&momentum),
                                        data<T>(&out),
                                        data<const std::uint8_t>(pointer(active)),
                                        threads};
        nb::gil_scoped_release release;
        HFCORE_PICK(momentum_kernels<T>()).lookahead(arrays);
    });
}

}  // namespace

void bind_momentum(nb::module_& m) {
    const auto array = [](const char* name) { return nb::arg(name).noconvert(); };
    m.def("momentum_update", &momentum_update, array("theta"), array("velocity"),
          array("gradient"), array("learning_rate"), array("momentum"), array("lookahead"),
          array("l2").none(), array("ahead").none(), array("active").none(), nb::arg("threads"));
    m.def("lookahead_point", &lookahead_point, array("theta"), array("velocity"),
          array("momentum"), array("out"), array("active").none(), nb::arg("threads"));
}

}  // namespace hfcore
