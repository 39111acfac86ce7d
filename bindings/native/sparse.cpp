// Checks and unpacking for the sparse kernels.
#include "kernels/sparse/cpu.h"

#include <nanobind/stl/optional.h>

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

constexpr int64_t most = std::numeric_limits<std::int32_t>::max();

int64_t length(const Array& a, std::size_t axis) { return static_cast<int64_t>(a.shape(axis)); }

template <class T>
Grouped<T> grouped(const Array& a) {
    return {static_cast<const T*>(a.data()), group_stride(a)};
}

template <class T>
Grouped<T> grouped(const MaybeArray& a) {
    return a ? grouped<T>(*a) : Grouped<T>{};
}

const Array* pointer(const MaybeArray& a) { return a ? &*a : nullptr; }

void check_positive(std::initializer_list<std::pair<const char*, int64_t>> sizes) {
    for (const auto& [name, size] : sizes)
        if (size < 1) value_error(std::string(name) + ": got 0, need at least 1");
}

// int32 indices in 0 .. end-1.
const std::int32_t* check_indices(const char* name, const Array& a, int64_t end) {
    if (a.dtype() != nb::dtype<std::int32_t>())
        throw nb::type_error((std::string(name) + ": wrong dtype, need int32").c_str());
    const auto* const values = static_cast<const std::int32_t*>(a.data());
    std::int32_t least = 0, greatest = 0;
    for (std::size_t i = 0; i < a.size(); ++i) {
        least = values[i] < least ? values[i] : least;
        greatest = values[i] > greatest ? values[i] : greatest;
    }
    if (least < 0 || (a.size() > 0 && greatest >= end))
        value_error(std::string(name) + ": got " + std::to_string(least < 0 ? least : greatest) +
                    ", need 0.." + std::to_string(end - 1));
    return values;
}

// The entries row by row; `values` is how many values a net has.
SparseRows check_rows(const Array& start, const Array& column, const MaybeArray& place,
                      int64_t rows, int64_t columns, int64_t values) {
    check_shape("start", start, {rows + 1});
    check_shape("column", column, {-1});
    const int64_t entries = length(column, 0);
    if (entries > most) value_error("column: got too many entries for int32");
    SparseRows A{rows, columns, entries, nullptr, nullptr, nullptr};
    A.start = check_indices("start", start, entries + 1);
    if (A.start[0] != 0 || A.start[rows] != entries)
        value_error("start: need 0 first and " + std::to_string(entries) + " last");
    bool falls = false;
    for (int64_t r = 0; r < rows; ++r) falls |= A.start[r + 1] < A.start[r];
    if (falls) value_error("start: falls, need it to increase");
    A.column = check_indices("column", column, columns);
    if (place) {
        check_shape("place", *place, {entries});
        A.place = check_indices("place", *place, values);
    } else if (entries != values) {
        value_error("place: got None for " + std::to_string(entries) + " entries of " +
                    std::to_string(values) + " values, need their places");
    }
    return A;
}

void ell_product(const Array& x, const Array& value, const Array& start, const Array& column,
                 const MaybeArray& place, const Array& out, int threads) {
    check_shape("x", x, {-1, -1, -1});
    check_shape("out", out, {-1, -1, -1});
    check_shape("value", value, {-1, -1});
    const SparseDims d{length(out, 0), length(x, 1), threads};
    const int64_t columns = length(x, 2), rows = length(out, 2);
    check_positive({{"G", d.G}, {"B", d.B}, {"columns", columns}, {"rows", rows}});
    check_grouped("x", x, d.G, {d.B, columns});
    check_grouped("value", value, d.G, {-1});
    check_shape("out", out, {d.G, d.B, rows});
    const SparseRows A = check_rows(start, column, place, rows, columns, length(value, 1));
    check_apart({"out", &out}, {{"x", &x}, {"value", &value}, {"start", &start},
                                {"column", &column}, {"place", pointer(place)}});
    with_float_type("x", x, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        check_dtype<T>("value", value);
        check_dtype<T>("out", out);
        nb::gil_scoped_release release;
        HFCORE_PICK(sparse_kernels<T>())
            .product(d, A, grouped<T>(value), grouped<T>(x), static_cast<T*>(out.data()));
    });
}

void ell_gradient(const Array& g, const Array& x, const Array& start, const Array& column,
                  const MaybeArray& place, const Array& out, int threads) {
    check_shape("g", g, {-1, -1, -1});
    check_shape("x", x, {-1, -1, -1});
    check_shape("out", out, {-1, -1});
    const SparseDims d{length(out, 0), length(x, 1), threads};
    const int64_t columns = length(x, 2), rows = length(g, 2), values = length(out, 1);
    check_positive({{"G", d.G}, {"B", d.B}, {"columns", columns}, {"rows", rows}});
    check_grouped("g", g, d.G, {d.B, rows});
    check_grouped("x", x, d.G, {d.B, columns});
    const SparseRows A = check_rows(start, column, place, rows, columns, values);
    check_apart({"out", &out}, {{"g", &g}, {"x", &x}, {"start", &start}, {"column", &column},
                                {"place", pointer(place)}});
    with_float_type("g", g, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        check_dtype<T>("x", x);
        check_dtype<T>("out", out);
        nb::gil_scoped_release release;
        HFCORE_PICK(sparse_kernels<T>())
            .gradient(d, A, values, grouped<T>(g), grouped<T>(x), static_cast<T*>(out.data()));
    });
}

// What both passes through time check: u, value, the entries and out.
struct ThroughTime {
    SparseScanDims d;
    SparseRows A;
};

ThroughTime check_through_time(const Array& u, const Array& value, const Array& start,
                               const Array& column, const MaybeArray& place, bool reverse,
                               const Array& out, int threads) {
    check_shape("u", u, {-1, -1, -1, -1});
    check_shape("out", out, {-1, -1, -1, -1});
    check_shape("value", value, {-1, -1});
    const SparseScanDims d{length(out, 0), length(u, 1), length(u, 2), length(u, 3), reverse,
                           threads};
    check_positive({{"G", d.G}, {"T", d.T}, {"B", d.B}, {"H", d.H}});
    check_grouped("u", u, d.G, {d.T, d.B, d.H});
    check_grouped("value", value, d.G, {-1});
    check_shape("out", out, {d.G, d.T, d.B, d.H});
    check_apart({"out", &out}, {{"u", &u}, {"value", &value}, {"start", &start},
                                {"column", &column}, {"place", pointer(place)}});
    return {d, check_rows(start, column, place, d.H, d.H, length(value, 1))};
}

void ell_scan(const Array& u, const Array& slope, const Array& value, const Array& start,
              const Array& column, const MaybeArray& place, const MaybeArray& a, bool reverse,
              const Array& out, int threads) {
    const auto [d, A] =
        check_through_time(u, value, start, column, place, reverse, out, threads);
    check_grouped("d", slope, d.G, {d.T, d.B, d.H});
    if (a) check_grouped("a", *a, d.G, {d.T, d.B, d.H});
    check_apart({"out", &out}, {{"d", &slope}, {"a", pointer(a)}});
    with_float_type("u", u, [&, &d = d, &A = A](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        check_dtype<T>("d", slope);
        check_dtype<T>("value", value);
        if (a) check_dtype<T>("a", *a);
        check_dtype<T>("out", out);
        nb::gil_scoped_release release;
        HFCORE_PICK(sparse_kernels<T>())
            .scan(d, A, grouped<T>(value), grouped<T>(u), grouped<T>(slope), grouped<T>(a),
                  static_cast<T*>(out.data()));
    });
}

void ell_hidden(const Array& u, const Array& value, const Array& start, const Array& column,
                const MaybeArray& place, int nonlinearity, const Array& out, int threads) {
    if (nonlinearity < 0 || nonlinearity > 2)
        value_error("nonlinearity: got " + std::to_string(nonlinearity) +
                    ", need 0 (tanh), 1 (logistic) or 2 (relu)");
    const auto [d, A] = check_through_time(u, value, start, column, place, false, out, threads);
    with_float_type("u", u, [&, &d = d, &A = A](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        check_dtype<T>("value", value);
        check_dtype<T>("out", out);
        nb::gil_scoped_release release;
        HFCORE_PICK(sparse_kernels<T>())
            .hidden(d, static_cast<Nonlinearity>(nonlinearity), A, grouped<T>(value),
                    grouped<T>(u), static_cast<T*>(out.data()));
    });
}

}  // namespace

void bind_sparse(nb::module_& m) {
    const auto array = [](const char* name) { return nb::arg(name).noconvert(); };
    m.def("ell_product", &ell_product, array("x"), array("value"), array("start"),
          array("column"), array("place").none(), array("out"), nb::arg("threads"));
    m.def("ell_gradient", &ell_gradient, array("g"), array("x"), array("start"), array("column"),
          array("place").none(), array("out"), nb::arg("threads"));
    m.def("ell_scan", &ell_scan, array("u"), array("d"), array("value"), array("start"),
          array("column"), array("place").none(), array("a").none(), nb::arg("reverse"),
          array("out"), nb::arg("threads"));
    m.def("ell_hidden", &ell_hidden, array("u"), array("value"), array("start"), array("column"),
          array("place").none(), nb::arg("nonlinearity"), array("out"), nb::arg("threads"));
}

}  // namespace hfcore
