// Checks and unpacking for the CG kernels.
#include "kernels/conjugate_gradient/cpu.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>

#include <optional>
#include <tuple>
#include <type_traits>

#include "bindings/native/memory.h"
#include "bindings/native/native.h"

namespace hfcore {
namespace {

using std::int64_t;
using MaybeArray = std::optional<Array>;

template <class T>
T* data(const Array& a) {
    return static_cast<T*>(a.data());
}

int64_t check_vectors(std::initializer_list<NamedArray> vectors) {
    const NamedArray& first = *vectors.begin();
    check_shape(first.name, *first.array, {-1});
    const int64_t N = static_cast<int64_t>(first.array->shape(0));
    if (N < 1) value_error("N: got 0, need at least 1");
    for (const NamedArray& v : vectors)
        if (v.array != nullptr) check_shape(v.name, *v.array, {N});
    return N;
}

std::tuple<double, double, double> cg_update(const Array& x, const Array& r, const Array& z,
                                             const Array& p, const Array& Ap, const Array& b,
                                             double rz, const MaybeArray& preconditioner,
                                             int threads) {
    const Array* M = preconditioner ? &*preconditioner : nullptr;
    const NamedArray nx{"x", &x}, nr{"r", &r}, nz{"z", &z}, np{"p", &p}, nAp{"Ap", &Ap},
        nb_{"b", &b}, nM{"preconditioner", M};
    const int64_t N = check_vectors({nx, nr, nz, np, nAp, nb_, nM});
    check_apart(nx, {nr, nz, np, nAp, nb_, nM});
    check_apart(nr, {np, nAp, nb_, nM});
    check_apart(nz, {np, nAp, nb_, nM});
    if (M != nullptr || !same_memory(z, r)) check_apart(nz, {nr});
    CgScalars result{};
    with_float_type("x", x, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        for (const NamedArray& v : {nr, nz, np, nAp, nb_, nM})
            if (v.array != nullptr) check_dtype<T>(v.name, *v.array);
        const CgVectors<T> vectors{N,           data<T>(x),  data<T>(r), data<T>(z),
                                   data<T>(p),  data<T>(Ap), data<T>(b), M ? data<T>(*M) : nullptr,
                                   threads};
        nb::gil_scoped_release release;
        result = HFCORE_PICK(conjugate_gradient_kernels<T>()).update(vectors, rz);
    });
    return {result.pAp, result.rz, result.phi};
}

void cg_direction(const Array& p, const Array& z, double beta, int threads) {
    const int64_t N = check_vectors({{"p", &p}, {"z", &z}});
    check_apart({"p", &p}, {{"z", &z}});
    with_float_type("p", p, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        check_dtype<T>("z", z);
        nb::gil_scoped_release release;
        HFCORE_PICK(conjugate_gradient_kernels<T>())
            .direction(N, data<T>(p), data<T>(z), beta, threads);
    });
}

double dot(const Array& a, const Array& b, int threads) {
    const int64_t N = check_vectors({{"a", &a}, {"b", &b}});
    double result = 0.0;
    with_float_type("a", a, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        check_dtype<T>("b", b);
        nb::gil_scoped_release release;
        result = HFCORE_PICK(conjugate_gradient_kernels<T>()).dot(data<T>(a), data<T>(b), N, threads);
    });
    return result;
}

}  // namespace

void bind_conjugate_gradient(nb::module_& m) {
    const auto array = [](const char* name) { return nb::arg(name).noconvert(); };
    m.def("cg_update", &cg_update, array("x"), array("r"), array("z"), array("p"), array("Ap"),
          array("b"), nb::arg("rz"), array("preconditioner").none(), nb::arg("threads"));
    m.def("cg_direction", &cg_direction, array("p"), array("z"), nb::arg("beta"),
          nb::arg("threads"));
    m.def("dot", &dot, array("a"), array("b"), nb::arg("threads"));
}

}  // namespace hfcore
