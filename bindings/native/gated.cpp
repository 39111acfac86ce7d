// Checks and unpacking for the kernels of gated recurrences.
#include "kernels/gated/cpu.h"

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
Grouped<T> grouped(const MaybeArray& a) {
    return a ? grouped<T>(*a) : Grouped<T>{};
}

template <class T>
T* writable(const MaybeArray& a) {
    return a ? static_cast<T*>(a->data()) : nullptr;
}

int64_t length(const Array& a, std::size_t axis) { return static_cast<int64_t>(a.shape(axis)); }

const Array* pointer(const MaybeArray& a) { return a ? &*a : nullptr; }

// Sizes from h [G,T,B,H], or what has its shape, and n.
GatedDims dims_of(const char* name, const Array& h, int64_t n, int cell, int threads) {
    check_shape(name, h, {-1, -1, -1, -1});
    if (cell < 0 || cell > 1) value_error("cell: need 0 (LSTM) or 1 (GRU)");
    const GatedDims d{length(h, 0), length(h, 1),           length(h, 2), n,
                      length(h, 3), static_cast<Cell>(cell), threads};
    const std::pair<const char*, int64_t> sizes[] = {
        {"G", d.G}, {"T", d.T}, {"B", d.B}, {"n", d.n}, {"H", d.H}};
    for (const auto& [axis, size] : sizes)
        if (size < 1) value_error(std::string(axis) + ": got 0, need at least 1");
    if (threads < 1) value_error("threads: need at least 1");
    return d;
}

int64_t inputs_of(const Array& x) {
    check_shape("x", x, {-1, -1, -1, -1});
    return length(x, 3);
}

void check_weights(const GatedDims& d, const char* prefix, const Array* W_ih, const Array& W_hh,
                   const Array* b) {
    const std::string p = prefix;
    const int64_t rows = rows_of(d.cell).blocks * d.H;
    if (W_ih) check_grouped((p + "_ih").c_str(), *W_ih, d.G, {rows, d.n});
    check_grouped((p + "_hh").c_str(), W_hh, d.G, {rows, d.H});
    if (b) check_grouped((p + "_b").c_str(), *b, d.G, {gate_blocks, d.H});
}

// Needs the cells of an LSTM, and of nothing else.
void check_states(const GatedDims& d, const Array& h, const Array& gates, const MaybeArray& cells) {
    check_grouped("h", h, d.G, {d.T, d.B, d.H});
    check_grouped("gates", gates, d.G, {gate_blocks, d.T, d.B, d.H});
    if (cells.has_value() != (d.cell == Cell::lstm))
        value_error("cells: need those of an LSTM, and None of a GRU");
    if (cells) check_grouped("cells", *cells, d.G, {2, d.T, d.B, d.H});
}

template <class T>
void check_dtypes(std::initializer_list<NamedArray> arrays) {
    for (const NamedArray& a : arrays)
        if (a.array != nullptr) check_dtype<T>(a.name, *a.array);
}

void gated_forward(const Array& x, const Array& W_ih, const Array& W_hh, const Array& b, int cell,
                   const Array& h, const MaybeArray& gates, const MaybeArray& cells, int threads) {
    const GatedDims d = dims_of("h", h, inputs_of(x), cell, threads);
    check_grouped("x", x, d.G, {d.T, d.B, d.n});
    check_weights(d, "W", &W_ih, W_hh, &b);
    if (gates) check_shape("gates", *gates, {d.G, gate_blocks, d.T, d.B, d.H});
    if (cells) check_shape("cells", *cells, {d.G, 2, d.T, d.B, d.H});
    if (cells.has_value() != (gates.has_value() && d.cell == Cell::lstm))
        value_error("cells: need those of an LSTM beside its gates, and None elsewhere");
    const NamedArray in[] = {{"x", &x}, {"W_ih", &W_ih}, {"W_hh", &W_hh}, {"W_b", &b}};
    check_apart({"h", &h}, {in[0], in[1], in[2], in[3], {"gates", pointer(gates)},
                            {"cells", pointer(cells)}});
    if (gates)
        check_apart({"gates", &*gates}, {in[0], in[1], in[2], in[3], {"cells", pointer(cells)}});
    if (cells) check_apart({"cells", &*cells}, {in[0], in[1], in[2], in[3]});
    with_float_type("x", x, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        check_dtypes<T>({in[1], in[2], in[3], {"h", &h}, {"gates", pointer(gates)},
                         {"cells", pointer(cells)}});
        nb::gil_scoped_release release;
        HFCORE_PICK(gated_kernels<T>())
            .gated_forward(d, grouped<T>(x), {grouped<T>(W_ih), grouped<T>(W_hh), grouped<T>(b)},
                           static_cast<T*>(h.data()), writable<T>(gates), writable<T>(cells));
    });
}

void gated_tangent(const Array& x, const Array& h, const Array& gates, const MaybeArray& cells,
                   const MaybeArray& Rx, const Array& W_ih, const Array& W_hh, const Array& V_ih,
                   const Array& V_hh, const Array& V_b, int cell, const Array& out, int threads) {
    const GatedDims d = dims_of("out", out, inputs_of(x), cell, threads);
    check_grouped("x", x, d.G, {d.T, d.B, d.n});
    if (Rx) check_grouped("Rx", *Rx, d.G, {d.T, d.B, d.n});
    check_states(d, h, gates, cells);
    check_weights(d, "W", &W_ih, W_hh, nullptr);
    check_weights(d, "V", &V_ih, V_hh, &V_b);
    check_apart({"out", &out},
                {{"x", &x}, {"h", &h}, {"gates", &gates}, {"cells", pointer(cells)},
                 {"Rx", pointer(Rx)}, {"W_ih", &W_ih}, {"W_hh", &W_hh}, {"V_ih", &V_ih},
                 {"V_hh", &V_hh}, {"V_b", &V_b}});
    with_float_type("x", x, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        check_dtypes<T>({{"h", &h}, {"gates", &gates}, {"cells", pointer(cells)},
                         {"Rx", pointer(Rx)}, {"W_ih", &W_ih}, {"W_hh", &W_hh}, {"V_ih", &V_ih},
                         {"V_hh", &V_hh}, {"V_b", &V_b}, {"out", &out}});
        nb::gil_scoped_release release;
        HFCORE_PICK(gated_kernels<T>())
            .gated_tangent(d, grouped<T>(x),
                           {grouped<T>(h), grouped<T>(gates), grouped<T>(cells)}, grouped<T>(Rx),
                           {grouped<T>(W_ih), grouped<T>(W_hh), {}},
                           {grouped<T>(V_ih), grouped<T>(V_hh), grouped<T>(V_b)},
                           static_cast<T*>(out.data()));
    });
}

void gated_backward(const Array& gh, const Array& h, const Array& gates, const MaybeArray& cells,
                    const Array& W_hh, int cell, const Array& out, int threads) {
    check_shape("out", out, {-1, gate_blocks, -1, -1, -1});
    check_shape("gh", gh, {-1, -1, -1, -1});
    GatedDims d = dims_of("gh", gh, 1, cell, threads);
    d.G = length(out, 0);
    if (d.G < 1) value_error("G: got 0, need at least 1");
    check_grouped("gh", gh, d.G, {d.T, d.B, d.H});
    check_shape("out", out, {d.G, gate_blocks, d.T, d.B, d.H});
    check_states(d, h, gates, cells);
    check_weights(d, "W", nullptr, W_hh, nullptr);
    check_apart({"out", &out}, {{"gh", &gh}, {"h", &h}, {"gates", &gates},
                                {"cells", pointer(cells)}, {"W_hh", &W_hh}});
    with_float_type("gh", gh, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        check_dtypes<T>({{"h", &h}, {"gates", &gates}, {"cells", pointer(cells)}, {"W_hh", &W_hh},
                         {"out", &out}});
        nb::gil_scoped_release release;
        HFCORE_PICK(gated_kernels<T>())
            .gated_backward(d, grouped<T>(gh),
                            {grouped<T>(h), grouped<T>(gates), grouped<T>(cells)},
                            grouped<T>(W_hh), static_cast<T*>(out.data()));
    });
}

void gated_gradient(const Array& gh, const Array& x, const Array& h, const Array& gates,
                    const MaybeArray& cells, const Array& W_hh, int cell, const Array& out_W_ih,
                    const Array& out_W_hh, const Array& out_b, const MaybeArray& ga, int threads) {
    check_shape("gh", gh, {-1, -1, -1, -1});
    GatedDims d = dims_of("gh", gh, inputs_of(x), cell, threads);
    check_shape("out_b", out_b, {-1, gate_blocks, d.H});
    d.G = length(out_b, 0);
    if (d.G < 1) value_error("G: got 0, need at least 1");
    const int64_t rows = rows_of(d.cell).blocks * d.H;
    check_grouped("gh", gh, d.G, {d.T, d.B, d.H});
    check_grouped("x", x, d.G, {d.T, d.B, d.n});
    check_shape("out_W_ih", out_W_ih, {d.G, rows, d.n});
    check_shape("out_W_hh", out_W_hh, {d.G, rows, d.H});
    if (ga) check_shape("ga", *ga, {d.G, gate_blocks, d.T, d.B, d.H});
    check_states(d, h, gates, cells);
    check_weights(d, "W", nullptr, W_hh, nullptr);
    const NamedArray outs[] = {{"out_W_ih", &out_W_ih}, {"out_W_hh", &out_W_hh}, {"out_b", &out_b},
                               {"ga", pointer(ga)}};
    for (int i = 0; i < 4; ++i) {
        if (outs[i].array == nullptr) continue;
        check_apart(outs[i], {{"gh", &gh}, {"x", &x}, {"h", &h}, {"gates", &gates},
                              {"cells", pointer(cells)}, {"W_hh", &W_hh}});
        for (int j = i + 1; j < 4; ++j) check_apart(outs[i], {outs[j]});
    }
    with_float_type("gh", gh, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        check_dtypes<T>({{"x", &x}, {"h", &h}, {"gates", &gates}, {"cells", pointer(cells)},
                         {"W_hh", &W_hh}, outs[0], outs[1], outs[2], outs[3]});
        nb::gil_scoped_release release;
        HFCORE_PICK(gated_kernels<T>())
            .gated_gradient(d, grouped<T>(gh), grouped<T>(x),
                            {grouped<T>(h), grouped<T>(gates), grouped<T>(cells)},
                            grouped<T>(W_hh),
                            {static_cast<T*>(out_W_ih.data()), static_cast<T*>(out_W_hh.data()),
                             static_cast<T*>(out_b.data())},
                            writable<T>(ga));
    });
}

}  // namespace

void bind_gated(nb::module_& m) {
    using namespace nb::literals;
    // A conversion would hand the kernel a copy, and lose what is written to it.
    const auto array = [](const char* name) { return nb::arg(name).noconvert(); };
    const auto maybe = [](const char* name) { return nb::arg(name).noconvert().none(); };
    m.def("gated_forward", &gated_forward, array("x"), array("W_ih"), array("W_hh"), array("b"),
          "cell"_a, array("h"), maybe("gates"), maybe("cells"), "threads"_a);
    m.def("gated_tangent", &gated_tangent, array("x"), array("h"), array("gates"), maybe("cells"),
          maybe("Rx"), array("W_ih"), array("W_hh"), array("V_ih"), array("V_hh"), array("V_b"),
          "cell"_a, array("out"), "threads"_a);
    m.def("gated_backward", &gated_backward, array("gh"), array("h"), array("gates"),
          maybe("cells"), array("W_hh"), "cell"_a, array("out"), "threads"_a);
    m.def("gated_gradient", &gated_gradient, array("gh"), array("x"), array("h"), array("gates"),
          maybe("cells"), array("W_hh"), "cell"_a, array("out_W_ih"), array("out_W_hh"),
          array("out_b"), maybe("ga"), "threads"_a);
}

}  // namespace hfcore
