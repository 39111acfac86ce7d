// Checks and unpacking for the recurrence kernels.
#include "kernels/recurrence/cpu.h"

#include <nanobind/stl/optional.h>

#include <optional>

#include "bindings/native/memory.h"
#include "bindings/native/native.h"

namespace hfcore {
namespace {

using std::int64_t;
using MaybeArray = std::optional<Array>;

template <class T>
Grouped<T> grouped(const Array& a) {
    return {static_cast<const T*>(a.data()), group_stride(a)};
}

template <class T>
T* writable(const MaybeArray& a) {
    return a ? static_cast<T*>(a->data()) : nullptr;
}

int64_t length(const Array& a, std::size_t axis) { return static_cast<int64_t>(a.shape(axis)); }

// The six parameters as they come from Python, in the order of RnnWeights.
struct WeightArrays {
    const Array &W_hx, &W_hh, &W_yh, &b_h, &b_init, &b_y;
};

// The group size: the first axis of an output, the one array that is never shared.
int64_t group_of(const char* name, const Array& out) {
    if (out.ndim() < 1 || length(out, 0) < 1)
        value_error(std::string(name) + ": got shape " + shape_text(out) +
                    ", need a group axis of at least 1");
    return length(out, 0);
}

// An output overlaps neither what a kernel still reads nor another output.
void check_apart_from_weights(NamedArray written, const WeightArrays& w) {
    check_apart(written, {{"W_hx", &w.W_hx}, {"W_hh", &w.W_hh}, {"W_yh", &w.W_yh},
                          {"b_h", &w.b_h}, {"b_init", &w.b_init}, {"b_y", &w.b_y}});
}

// Sizes from x and the weights, checked against each other.
RnnDims check_net(const Array& x, const WeightArrays& w, const MaybeArray& steps,
                  int nonlinearity, int64_t G, int threads) {
    check_shape("x", x, {-1, -1, -1, -1});
    check_shape("W_hh", w.W_hh, {-1, -1, -1});
    check_shape("W_yh", w.W_yh, {-1, -1, -1});
    RnnDims d{};
    d.G = G;
    d.T = length(x, 1), d.B = length(x, 2), d.n = length(x, 3);
    d.H = length(w.W_hh, 1), d.k = length(w.W_yh, 1);
    const std::pair<const char*, int64_t> sizes[] = {{"G", length(x, 0)}, {"T", d.T}, {"B", d.B},
                                                     {"n", d.n},          {"H", d.H}, {"k", d.k}};
    for (const auto& [name, size] : sizes)
        if (size < 1) value_error(std::string(name) + ": got 0, need at least 1");
    check_grouped("x", x, G, {d.T, d.B, d.n});
    check_grouped("W_hx", w.W_hx, G, {d.H, d.n});
    check_grouped("W_hh", w.W_hh, G, {d.H, d.H});
    check_grouped("W_yh", w.W_yh, G, {d.k, d.H});
    check_grouped("b_h", w.b_h, G, {d.H});
    check_grouped("b_init", w.b_init, G, {d.H});
    check_grouped("b_y", w.b_y, G, {d.k});
    if (nonlinearity < 0 || nonlinearity > 2)
        value_error("nonlinearity: need 0 (tanh), 1 (logistic) or 2 (relu)");
    d.e = static_cast<Nonlinearity>(nonlinearity);
    d.threads = threads;
    d.T_out = d.T;
    if (steps) {
        if (steps->dtype() != nb::dtype<int64_t>()) throw nb::type_error("steps: need int64");
        check_shape("steps", *steps, {-1});
        d.steps = static_cast<const int64_t*>(steps->data());
        d.T_out = length(*steps, 0);
        if (d.T_out < 1) value_error("steps: got no step, need at least one output step");
        for (int64_t o = 0; o < d.T_out; ++o)
            if (d.steps[o] < 0 || d.steps[o] >= d.T || (o > 0 && d.steps[o] <= d.steps[o - 1]))
                value_error("steps: need increasing indices within 0.." + std::to_string(d.T - 1));
    }
    return d;
}

template <class T>
RnnParameters<T> parameters(const WeightArrays& w) {
    check_dtype<T>("W_hx", w.W_hx), check_dtype<T>("W_hh", w.W_hh);
    check_dtype<T>("W_yh", w.W_yh), check_dtype<T>("b_h", w.b_h);
    check_dtype<T>("b_init", w.b_init), check_dtype<T>("b_y", w.b_y);
    return {grouped<T>(w.W_hx), grouped<T>(w.W_hh),   grouped<T>(w.W_yh),
            grouped<T>(w.b_h),  grouped<T>(w.b_init), grouped<T>(w.b_y)};
}

void rnn_forward(const Array& x, const Array& W_hx, const Array& W_hh, const Array& W_yh,
                 const Array& b_h, const Array& b_init, const Array& b_y, const MaybeArray& steps,
                 int nonlinearity, const MaybeArray& out, const Array& s, int threads) {
    const WeightArrays w{W_hx, W_hh, W_yh, b_h, b_init, b_y};
    const int64_t G = group_of("s", s);
    const RnnDims d = check_net(x, w, steps, nonlinearity, G, threads);
    if (out) check_shape("out", *out, {G, d.T, d.B, d.H});
    check_shape("s", s, {G, d.T_out, d.B, d.k});
    check_apart({"s", &s}, {{"x", &x}});
    check_apart_from_weights({"s", &s}, w);
    if (out) {
        check_apart({"out", &*out}, {{"x", &x}, {"s", &s}});
        check_apart_from_weights({"out", &*out}, w);
    }
    with_float_type("x", x, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        const RnnParameters<T> p = parameters<T>(w);
        if (out) check_dtype<T>("out", *out);
        check_dtype<T>("s", s);
        nb::gil_scoped_release release;
        HFCORE_PICK(recurrence_kernels<T>())
            .rnn_forward(d, grouped<T>(x), p, writable<T>(out), static_cast<T*>(s.data()));
    });
}

void linear_scan(const Array& u, const Array& derivative, const Array& W, const MaybeArray& a,
                 bool reverse, const Array& y, int threads) {
    check_shape("u", u, {-1, -1, -1, -1});
    const int64_t G = group_of("out", y);
    const ScanDims d{G, length(u, 1), length(u, 2), length(u, 3), reverse, threads};
    if (length(u, 0) < 1 || d.T < 1 || d.B < 1 || d.H < 1)
        value_error("u: got shape " + shape_text(u) + ", need every length at least 1");
    check_grouped("u", u, G, {d.T, d.B, d.H});
    check_grouped("d", derivative, G, {d.T, d.B, d.H});
    check_grouped("W", W, G, {d.H, d.H});
    if (a) check_grouped("a", *a, G, {d.T, d.B, d.H});
    check_shape("out", y, {G, d.T, d.B, d.H});
    check_apart({"out", &y},
                {{"u", &u}, {"d", &derivative}, {"W", &W}, {"a", a ? &*a : nullptr}});
    with_float_type("u", u, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        check_dtype<T>("d", derivative), check_dtype<T>("W", W), check_dtype<T>("out", y);
        if (a) check_dtype<T>("a", *a);
        nb::gil_scoped_release release;
        HFCORE_PICK(recurrence_kernels<T>())
            .linear_scan(d, grouped<T>(u), grouped<T>(derivative), grouped<T>(W),
                         a ? grouped<T>(*a) : Grouped<T>{}, static_cast<T*>(y.data()));
    });
}

void rnn_backward(const Array& x, const Array& h, const Array& W_hx, const Array& W_hh,
                  const Array& W_yh, const Array& b_h, const Array& b_init, const Array& b_y,
                  const Array& gs, const MaybeArray& steps, int nonlinearity, const Array& out,
                  int threads) {
    const WeightArrays w{W_hx, W_hh, W_yh, b_h, b_init, b_y};
    const int64_t G = group_of("out", out);
    const RnnDims d = check_net(x, w, steps, nonlinearity, G, threads);
    check_grouped("h", h, G, {d.T, d.B, d.H});
    check_grouped("gs", gs, G, {d.T_out, d.B, d.k});
    check_shape("out", out, {G, d.numel()});
    check_apart({"out", &out}, {{"x", &x}, {"h", &h}, {"gs", &gs}});
    check_apart_from_weights({"out", &out}, w);
    with_float_type("x", x, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        const RnnParameters<T> p = parameters<T>(w);
        check_dtype<T>("h", h), check_dtype<T>("gs", gs), check_dtype<T>("out", out);
        nb::gil_scoped_release release;
        HFCORE_PICK(recurrence_kernels<T>())
            .rnn_backward(d, grouped<T>(x), grouped<T>(h), p, grouped<T>(gs),
                          static_cast<T*>(out.data()));
    });
}

void rnn_gauss_newton(const Array& x, const MaybeArray& h, const Array& W_hx, const Array& W_hh,
                      const Array& W_yh, const Array& b_h, const Array& b_init, const Array& b_y,
                      const Array& v, const Array& c, bool rank_one, const MaybeArray& steps,
                      int nonlinearity, double scale, double structural, double damping,
                      const Array& out, int threads) {
    const WeightArrays w{W_hx, W_hh, W_yh, b_h, b_init, b_y};
    const int64_t G = group_of("out", out);
    const RnnDims d = check_net(x, w, steps, nonlinearity, G, threads);
    if (h) check_grouped("h", *h, G, {d.T, d.B, d.H});
    check_grouped("v", v, G, {d.numel()});
    check_grouped("c", c, G, {d.T_out, d.B, d.k});
    check_shape("out", out, {G, d.numel()});
    check_apart({"out", &out}, {{"x", &x}, {"h", h ? &*h : nullptr}, {"v", &v}, {"c", &c}});
    check_apart_from_weights({"out", &out}, w);
    with_float_type("x", x, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        const RnnParameters<T> p = parameters<T>(w);
        if (h) check_dtype<T>("h", *h);
        check_dtype<T>("v", v), check_dtype<T>("c", c), check_dtype<T>("out", out);
        const Curvature<T> curvature{grouped<T>(c), rank_one, static_cast<T>(scale),
                                     static_cast<T>(structural), static_cast<T>(damping)};
        nb::gil_scoped_release release;
        HFCORE_PICK(recurrence_kernels<T>())
            .rnn_gauss_newton(d, grouped<T>(x), h ? grouped<T>(*h) : Grouped<T>{}, p,
                              grouped<T>(v), curvature, static_cast<T*>(out.data()));
    });
}

}  // namespace

void bind_recurrence(nb::module_& m) {
    using namespace nb::literals;
    // A conversion would hand the kernel a copy, and lose what is written to it.
    const auto array = [](const char* name) { return nb::arg(name).noconvert(); };
    const auto maybe = [](const char* name) { return nb::arg(name).noconvert().none(); };
    m.def("rnn_forward", &rnn_forward, array("x"), array("W_hx"), array("W_hh"), array("W_yh"),
          array("b_h"), array("b_init"), array("b_y"), maybe("steps"), "nonlinearity"_a,
          maybe("out"), array("s"), "threads"_a);
    m.def("linear_scan", &linear_scan, array("u"), array("d"), array("W"), maybe("a"),
          "reverse"_a, array("out"), "threads"_a);
    m.def("rnn_backward", &rnn_backward, array("x"), array("h"), array("W_hx"), array("W_hh"),
          array("W_yh"), array("b_h"), array("b_init"), array("b_y"), array("gs"),
          maybe("steps"), "nonlinearity"_a, array("out"), "threads"_a);
    m.def("rnn_gauss_newton", &rnn_gauss_newton, array("x"), maybe("h"), array("W_hx"),
          array("W_hh"), array("W_yh"), array("b_h"), array("b_init"), array("b_y"), array("v"),
          array("c"), "rank_one"_a, maybe("steps"), "nonlinearity"_a, "scale"_a, "structural"_a,
          "damping"_a, array("out"), "threads"_a);
}

}  // namespace hfcore
