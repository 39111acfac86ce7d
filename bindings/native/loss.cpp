// Checks and unpacking for the loss kernels.
#include "kernels/loss/cpu.h"

#include <nanobind/stl/optional.h>

#include <cmath>
#include <limits>
#include <optional>
#include <type_traits>
#include <utility>

#include "bindings/native/memory.h"
#include "bindings/native/native.h"

namespace hfcore {
namespace {

using std::int64_t;
using MaybeArray = std::optional<Array>;

int64_t length(const Array& a, std::size_t axis) { return static_cast<int64_t>(a.shape(axis)); }

template <class T>
Grouped<T> grouped(const Array& a) {
    return {static_cast<const T*>(a.data()), group_stride(a)};
}

// Sizes of a call whose group size is that of `out`; `like` is s or c.
struct LossSizes {
    int64_t G, T, B, k;
    LossDims dims(int threads) const { return {G, T * B, k, threads}; }
};

LossSizes check_sizes(const char* name, const Array& like, const Array& out) {
    check_shape(name, like, {-1, -1, -1, -1});
    if (out.ndim() < 1) value_error("out: got shape [], need a group axis");
    const LossSizes d{length(out, 0), length(like, 1), length(like, 2), length(like, 3)};
    const std::pair<const char*, int64_t> sizes[] = {
        {"G", d.G}, {"T", d.T}, {"B", d.B}, {"k", d.k}};
    for (const auto& [axis, size] : sizes)
        if (size < 1) value_error(std::string(axis) + ": got 0, need at least 1");
    check_grouped(name, like, d.G, {d.T, d.B, d.k});
    return d;
}

LossFormula check_formula(int kind, double delta) {
    if (kind < 0 || kind > 4)
        value_error("kind: got " + std::to_string(kind) +
                    ", need 0 (squared), 1 (logistic), 2 (softmax), 3 (huber) or 4 (poisson)");
    if (!(delta > 0.0) || std::isinf(delta))
        value_error("delta: got " + std::to_string(delta) + ", need a finite number above 0");
    return {static_cast<LossKind>(kind), delta};
}

LossHessian check_form(int form) {
    if (form < 0 || form > 2)
        value_error("rank_one: got " + std::to_string(form) +
                    ", need 0 (none), 1 (c c') or 2 (c c' / sum of c)");
    return static_cast<LossHessian>(form);
}

template <class T>
void check_weights(const T* values, std::size_t count) {
    const T most = std::numeric_limits<T>::max();
    // Without a branch an element: random masks cannot be predicted. NaN fails both comparisons.
    std::size_t sound = 0;
    for (std::size_t i = 0; i < count; ++i) sound += (values[i] >= T(0)) & (values[i] <= most);
    if (sound == count) return;
    for (std::size_t i = 0; i < count; ++i)
        if (!(values[i] >= T(0) && values[i] <= most))
            value_error("mask: got " + std::to_string(values[i]) +
                        ", need finite weights of at least 0");
}

template <class T>
LossMask<T> check_mask(const MaybeArray& mask, const LossSizes& d) {
    LossMask<T> unpacked{};
    if (!mask) return unpacked;
    check_grouped("mask", *mask, d.G, {d.T, d.B});
    if (mask->dtype() == nb::dtype<bool>()) {
        unpacked.bytes = grouped<std::uint8_t>(*mask);
        return unpacked;
    }
    if (mask->dtype() != nb::dtype<T>())
        throw nb::type_error("mask: wrong dtype, need bool or that of the other arguments");
    unpacked.values = grouped<T>(*mask);
    check_weights(unpacked.values.data, mask->size());
    return unpacked;
}

template <class T>
bool kept(const LossMask<T>& mask, int64_t g, int64_t p) {
    if (mask.bytes.data) return mask.bytes.at(g)[p] != 0;
    return mask.values.data == nullptr || mask.values.at(g)[p] != T(0);
}

// Every class that counts must be an output; what stands in masked positions is not looked at.
template <class T>
Grouped<int64_t> check_classes(const Array& targets, const LossMask<T>& mask, const LossSizes& d) {
    if (targets.dtype() != nb::dtype<int64_t>())
        throw nb::type_error("targets: wrong dtype, need int64 class indices");
    check_grouped("targets", targets, d.G, {d.T, d.B});
    const Grouped<int64_t> classes = grouped<int64_t>(targets);
    const bool shared = classes.stride == 0 && mask.bytes.stride == 0 && mask.values.stride == 0;
    for (int64_t g = 0; g < (shared ? 1 : d.G); ++g)
        for (int64_t p = 0; p < d.T * d.B; ++p) {
            const int64_t c = classes.at(g)[p];
            if ((c < 0 || c >= d.k) && kept(mask, g, p))
                value_error("targets: got class " + std::to_string(c) + ", need 0.." +
                            std::to_string(d.k - 1));
        }
    return classes;
}

template <class T>
LossTargets<T> check_targets(LossKind kind, const Array& targets, const LossMask<T>& mask,
                             const LossSizes& d) {
    LossTargets<T> unpacked{};
    if (kind == LossKind::softmax) {
        unpacked.classes = check_classes(targets, mask, d);
        return unpacked;
    }
    check_dtype<T>("targets", targets);
    check_grouped("targets", targets, d.G, {d.T, d.B, d.k});
    unpacked.values = grouped<T>(targets);
    return unpacked;
}

// Elementwise ops may write over an input of exactly out's extent, and share nothing else.
void check_output(const Array& out, std::initializer_list<NamedArray> inputs) {
    for (const NamedArray& input : inputs)
        if (input.array != nullptr && !same_memory(out, *input.array))
            check_apart({"out", &out}, {input});
}

void loss_value(int kind, const Array& s, const Array& targets, const MaybeArray& mask,
                double scale, const Array& out, int threads, double delta) {
    const LossFormula loss = check_formula(kind, delta);
    const LossSizes d = check_sizes("s", s, out);
    check_shape("out", out, {d.G});
    check_dtype<double>("out", out);
    check_apart({"out", &out},
                {{"s", &s}, {"targets", &targets}, {"mask", mask ? &*mask : nullptr}});
    with_float_type("s", s, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        const LossMask<T> m = check_mask<T>(mask, d);
        const LossTargets<T> y = check_targets<T>(loss.kind, targets, m, d);
        nb::gil_scoped_release release;
        HFCORE_PICK(loss_kernels<T>())
            .value(d.dims(threads), loss, grouped<T>(s), y, m, scale,
                   static_cast<double*>(out.data()));
    });
}

void loss_gradient(int kind, const Array& s, const Array& targets, const MaybeArray& mask,
                   double scale, const Array& out, int threads, double delta) {
    const LossFormula loss = check_formula(kind, delta);
    const LossSizes d = check_sizes("s", s, out);
    check_shape("out", out, {d.G, d.T, d.B, d.k});
    check_output(out, {{"s", &s}});
    check_apart({"out", &out}, {{"targets", &targets}, {"mask", mask ? &*mask : nullptr}});
    with_float_type("s", s, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        const LossMask<T> m = check_mask<T>(mask, d);
        const LossTargets<T> y = check_targets<T>(loss.kind, targets, m, d);
        check_dtype<T>("out", out);
        nb::gil_scoped_release release;
        HFCORE_PICK(loss_kernels<T>())
            .gradient(d.dims(threads), loss, grouped<T>(s), y, m, scale,
                      static_cast<T*>(out.data()));
    });
}

void loss_curvature(int kind, const Array& s, const MaybeArray& mask, const Array& out,
                    int threads, const MaybeArray& targets, double delta) {
    const LossFormula loss = check_formula(kind, delta);
    const bool reads_targets = loss.kind == LossKind::huber;
    if (reads_targets && !targets) value_error("targets: got None, need those of the outputs");
    const LossSizes d = check_sizes("s", s, out);
    check_shape("out", out, {d.G, d.T, d.B, d.k});
    check_output(out, {{"s", &s}});
    check_apart({"out", &out}, {{"targets", reads_targets ? &*targets : nullptr},
                                {"mask", mask ? &*mask : nullptr}});
    with_float_type("s", s, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        const LossMask<T> m = check_mask<T>(mask, d);
        LossTargets<T> y{};
        if (reads_targets) y = check_targets<T>(loss.kind, *targets, m, d);
        check_dtype<T>("out", out);
        nb::gil_scoped_release release;
        HFCORE_PICK(loss_kernels<T>())
            .curvature(d.dims(threads), loss, grouped<T>(s), y, m, static_cast<T*>(out.data()));
    });
}

void loss_hessian_product(const Array& c, const Array& Rs, int rank_one, double scale,
                          const Array& out, int threads) {
    const LossHessian form = check_form(rank_one);
    const LossSizes d = check_sizes("c", c, out);
    check_grouped("Rs", Rs, d.G, {d.T, d.B, d.k});
    check_shape("out", out, {d.G, d.T, d.B, d.k});
    check_output(out, {{"c", &c}, {"Rs", &Rs}});
    with_float_type("c", c, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        check_dtype<T>("Rs", Rs);
        check_dtype<T>("out", out);
        nb::gil_scoped_release release;
        HFCORE_PICK(loss_kernels<T>())
            .hessian_product(d.dims(threads), grouped<T>(c), grouped<T>(Rs), form, scale,
                             static_cast<T*>(out.data()));
    });
}

}  // namespace

void bind_loss(nb::module_& m) {
    const auto array = [](const char* name) { return nb::arg(name).noconvert(); };
    m.def("loss_value", &loss_value, nb::arg("kind"), array("s"), array("targets"),
          array("mask").none(), nb::arg("scale"), array("out"), nb::arg("threads"),
          nb::arg("delta") = 1.0);
    m.def("loss_gradient", &loss_gradient, nb::arg("kind"), array("s"), array("targets"),
          array("mask").none(), nb::arg("scale"), array("out"), nb::arg("threads"),
          nb::arg("delta") = 1.0);
    m.def("loss_curvature", &loss_curvature, nb::arg("kind"), array("s"), array("mask").none(),
          array("out"), nb::arg("threads"), array("targets").none() = nb::none(),
          nb::arg("delta") = 1.0);
    m.def("loss_hessian_product", &loss_hessian_product, array("c"), array("Rs"),
          nb::arg("rank_one"), nb::arg("scale"), array("out"), nb::arg("threads"));
}

}  // namespace hfcore
