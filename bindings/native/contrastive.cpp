// Checks and unpacking for contrastive divergence.
#include "kernels/dense/contrastive.h"

#include <algorithm>
#include <type_traits>

#include "bindings/native/memory.h"
#include "bindings/native/native.h"
#include "bindings/native/step.h"

namespace hfcore {
namespace {

using std::int64_t;

template <class T>
Grouped<T> grouped(const Array& a) {
    return {static_cast<const T*>(a.data()), group_stride(a)};
}

void contrastive_step(const Array& v, const Array& noise, const Array& theta,
                      const MaybeArray& velocity, const MaybeArray& out, bool visible_gaussian,
                      bool hidden_gaussian, double learning_rate, double momentum,
                      double weight_cost, const Array& errors, int threads) {
    check_shape("v", v, {-1, -1, -1});
    check_shape("noise", noise, {-1, static_cast<int64_t>(v.shape(1)), -1});
    check_shape("errors", errors, {-1});
    check_dtype<double>("errors", errors);
    const auto G = static_cast<int64_t>(errors.shape(0));
    const auto B = static_cast<int64_t>(v.shape(1)), n = static_cast<int64_t>(v.shape(2));
    const auto m = static_cast<int64_t>(noise.shape(2));
    if (std::min({G, B, n, m}) < 1) value_error("G, B, n, m: need at least 1 of each");
    check_shape("theta", theta, {-1, -1});
    const auto N = static_cast<int64_t>(theta.shape(1));
    // No product of sizes beyond what int64 holds.
    if (m > N || n > N || n + 1 > (N - n) / m || m * (n + 1) + n != N)
        value_error("theta: got " + std::to_string(N) + " parameters, need m (n + 1) + n for n = " +
                    std::to_string(n) + ", m = " + std::to_string(m));
    check_grouped("v", v, G, {B, n});
    check_grouped("noise", noise, G, {B, m});
    check_grouped("theta", theta, G, {N});
    if (!velocity && !out) value_error("velocity and out: got neither, need one of them");
    const NamedArray t{"theta", &theta}, moving{"velocity", pointer(velocity)},
        kept{"out", pointer(out)}, missed{"errors", &errors}, data_{"v", &v}, drawn{"noise", &noise};
    if (velocity) {
        check_shape("theta", theta, {G, N});
        check_shape("velocity", *velocity, {G, N});
        check_apart(moving, {t, kept, missed, data_, drawn});
        check_apart(t, {kept, missed, data_, drawn});
    }
    if (out) {
        check_shape("out", *out, {G, N});
        check_apart(kept, {t, missed, data_, drawn});
    }
    check_apart(missed, {t, data_, drawn});
    with_float_type("v", v, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        for (const NamedArray& array : {t, moving, kept, drawn})
            if (array.array != nullptr) check_dtype<T>(array.name, *array.array);
        const ContrastiveDims d{G, B, n, m, visible_gaussian, hidden_gaussian, threads};
        const ContrastiveUpdate<T> update{velocity ? data<T>(&theta) : nullptr,
                                          data<T>(pointer(velocity)), learning_rate, momentum,
                                          weight_cost};
        nb::gil_scoped_release release;
        HFCORE_PICK(contrastive_kernels<T>())
            .step(d, grouped<T>(v), grouped<T>(noise), grouped<T>(theta), update,
                  data<T>(pointer(out)), static_cast<double*>(errors.data()));
    });
}

}  // namespace

void bind_contrastive(nb::module_& m) {
    const auto array = [](const char* name) { return nb::arg(name).noconvert(); };
    m.def("contrastive_step", &contrastive_step, array("v"), array("noise"), array("theta"),
          array("velocity").none(), array("out").none(), nb::arg("visible_gaussian"),
          nb::arg("hidden_gaussian"), nb::arg("learning_rate"), nb::arg("momentum"),
          nb::arg("weight_cost"), array("errors"), nb::arg("threads"));
}

}  // namespace hfcore
