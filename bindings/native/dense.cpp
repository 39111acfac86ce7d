// Checks and unpacking for the dense kernels.
#include "kernels/dense/cpu.h"

#include <nanobind/stl/optional.h>

#include <functional>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>

#include "bindings/native/native.h"

namespace hfcore {
namespace {

using std::int64_t;

// Any strided array in CPU memory: views into flat vectors have a group stride of their own.
using Strided = nb::ndarray<nb::device::cpu>;
using MaybeStrided = std::optional<Strided>;

struct Named {
    const char* name;
    const Strided* array;
};

int64_t length(const Strided& a, std::size_t axis) { return static_cast<int64_t>(a.shape(axis)); }

int64_t elements_of_net(const Strided& a) {
    int64_t count = 1;
    for (std::size_t i = 1; i < a.ndim(); ++i) count *= length(a, i);
    return count;
}

std::string text(std::initializer_list<int64_t> shape) {
    std::string s = "[1 or G";
    for (const int64_t size : shape) s += "," + std::to_string(size);
    return s + "]";
}

// Contiguous behind a group axis of length 1 or G, where the stride is free but not negative.
void check(Named a, int64_t G, std::initializer_list<int64_t> want) {
    const Strided& array = *a.array;
    bool fits = array.ndim() == want.size() + 1 &&
                (array.shape(0) == 1 || length(array, 0) == G);
    std::size_t axis = 1;
    for (const int64_t size : want) fits = fits && length(array, axis++) == size;
    if (!fits)
        value_error(std::string(a.name) + ": wrong shape, need " + text(want) + " with G = " +
                    std::to_string(G));
    int64_t stride = 1;
    for (std::size_t i = array.ndim() - 1; i >= 1; --i) {
        if (array.shape(i) != 1 && array.stride(i) != stride)
            value_error(std::string(a.name) + ": is not contiguous behind the group axis");
        stride *= length(array, i);
    }
    if (array.shape(0) > 1 && array.stride(0) < 0)
        value_error(std::string(a.name) + ": got a negative group stride");
}

int64_t stride_of_group(const Strided& a) { return a.shape(0) == 1 ? 0 : a.stride(0); }

// First byte and one behind the last, over all nets.
std::pair<const char*, const char*> span(const Strided& a) {
    const char* from = static_cast<const char*>(a.data());
    const int64_t last = (length(a, 0) - 1) * stride_of_group(a) + elements_of_net(a);
    return {from, from + last * static_cast<int64_t>(a.itemsize())};
}

bool overlap(const Strided& a, const Strided& b) {
    const auto [from_a, to_a] = span(a);
    const auto [from_b, to_b] = span(b);
    const std::less<const char*> before;
    return before(from_a, to_b) && before(from_b, to_a);
}

// A written array: all G nets, each with memory of its own, apart from what is read.
void check_written(Named out, int64_t G, std::initializer_list<Named> inputs) {
    if (length(*out.array, 0) != G)
        value_error(std::string(out.name) + ": wrong group axis, need " + std::to_string(G));
    if (G > 1 && out.array->stride(0) < elements_of_net(*out.array))
        value_error(std::string(out.name) + ": its nets overlap");
    for (const Named& input : inputs)
        if (input.array != nullptr && overlap(*out.array, *input.array))
            value_error(std::string(out.name) + ": shares memory with " + input.name +
                        ", need its own");
}

// Two outputs that may be parts of the rows of one [G,N].
void check_interleaved(Named a, Named b, int64_t G) {
    if (!overlap(*a.array, *b.array)) return;
    const int64_t stride = a.array->stride(0), size = static_cast<int64_t>(a.array->itemsize());
    bool apart = G > 1 && stride == b.array->stride(0);
    if (apart) {
        const int64_t bytes =
            static_cast<const char*>(b.array->data()) - static_cast<const char*>(a.array->data());
        const int64_t gap = (bytes / size % stride + stride) % stride;
        apart = gap >= elements_of_net(*a.array) && gap + elements_of_net(*b.array) <= stride;
    }
    if (!apart)
        value_error(std::string(b.name) + ": shares memory with " + a.name + ", need its own");
}

template <class T>
void check_types(std::initializer_list<Named> arrays) {
    for (const Named& a : arrays)
        if (a.array != nullptr && a.array->dtype() != nb::dtype<T>())
            throw nb::type_error((std::string(a.name) + ": wrong dtype, need " +
                                  (sizeof(T) == 4 ? "float32" : "float64") + " like the others")
                                     .c_str());
}

template <class F>
void with_type_of(Named a, F&& f) {
    if (a.array->dtype() == nb::dtype<float>())
        f(static_cast<float*>(nullptr));
    else if (a.array->dtype() == nb::dtype<double>())
        f(static_cast<double*>(nullptr));
    else
        throw nb::type_error((std::string(a.name) + ": need float32 or float64").c_str());
}

template <class T>
Grouped<T> grouped(const Strided& a) {
    return {static_cast<const T*>(a.data()), stride_of_group(a)};
}

template <class T>
Grouped<T> grouped(const MaybeStrided& a) {
    return a ? grouped<T>(*a) : Grouped<T>{};
}

const Strided* pointer(const MaybeStrided& a) { return a ? &*a : nullptr; }

Activation check_activation(int activation) {
    if (activation < 0 || activation > 3)
        value_error("activation: got " + std::to_string(activation) +
                    ", need 0 (linear), 1 (logistic), 2 (tanh) or 3 (relu)");
    return static_cast<Activation>(activation);
}

// Sizes from the output [G,B,·] or a weight-like array [·,m,n]; none may be empty.
DenseDims check_dims(int64_t G, int64_t B, int64_t n, int64_t m, int threads) {
    const std::pair<const char*, int64_t> sizes[] = {{"G", G}, {"B", B}, {"n", n}, {"m", m}};
    for (const auto& [axis, size] : sizes)
        if (size < 1) value_error(std::string(axis) + ": got 0, need at least 1");
    return {G, B, n, m, threads};
}

void check_rank(Named a, std::size_t rank) {
    if (a.array->ndim() != rank)
        value_error(std::string(a.name) + ": got " + std::to_string(a.array->ndim()) +
                    " axes, need " + std::to_string(rank));
}

void dense_forward(const Strided& a, const Strided& W, const Strided& b, int activation,
                   const Strided& out, int threads) {
    const Activation e = check_activation(activation);
    check_rank({"out", &out}, 3);
    check_rank({"W", &W}, 3);
    const DenseDims d =
        check_dims(length(out, 0), length(out, 1), length(W, 2), length(W, 1), threads);
    check({"a", &a}, d.G, {d.B, d.n});
    check({"W", &W}, d.G, {d.m, d.n});
    check({"b", &b}, d.G, {d.m});
    check({"out", &out}, d.G, {d.B, d.m});
    check_written({"out", &out}, d.G, {{"a", &a}, {"W", &W}, {"b", &b}});
    with_type_of({"a", &a}, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        check_types<T>({{"W", &W}, {"b", &b}, {"out", &out}});
        nb::gil_scoped_release release;
        HFCORE_PICK(dense_kernels<T>())
            .forward(d, e, grouped<T>(a), grouped<T>(W), grouped<T>(b),
                     static_cast<T*>(out.data()));
    });
}

void dense_rforward(const Strided& a, const MaybeStrided& Ra, const Strided& W, const Strided& V,
                    const Strided& v_b, const Strided& y, int activation, const Strided& out,
                    int threads) {
    const Activation e = check_activation(activation);
    check_rank({"out", &out}, 3);
    check_rank({"W", &W}, 3);
    const DenseDims d =
        check_dims(length(out, 0), length(out, 1), length(W, 2), length(W, 1), threads);
    check({"a", &a}, d.G, {d.B, d.n});
    if (Ra) check({"Ra", &*Ra}, d.G, {d.B, d.n});
    check({"W", &W}, d.G, {d.m, d.n});
    check({"V", &V}, d.G, {d.m, d.n});
    check({"v_b", &v_b}, d.G, {d.m});
    check({"y", &y}, d.G, {d.B, d.m});
    check({"out", &out}, d.G, {d.B, d.m});
    check_written({"out", &out}, d.G,
                  {{"a", &a}, {"Ra", pointer(Ra)}, {"W", &W}, {"V", &V}, {"v_b", &v_b}, {"y", &y}});
    with_type_of({"a", &a}, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        check_types<T>({{"Ra", pointer(Ra)},
                        {"W", &W},
                        {"V", &V},
                        {"v_b", &v_b},
                        {"y", &y},
                        {"out", &out}});
        nb::gil_scoped_release release;
        HFCORE_PICK(dense_kernels<T>())
            .rforward(d, e, grouped<T>(a), grouped<T>(Ra), grouped<T>(W), grouped<T>(V),
                      grouped<T>(v_b), grouped<T>(y), static_cast<T*>(out.data()));
    });
}

void dense_backward(const Strided& delta, const Strided& W, const Strided& y, int activation,
                    const MaybeStrided& add, const Strided& out, int threads) {
    const Activation e = check_activation(activation);
    check_rank({"out", &out}, 3);
    check_rank({"W", &W}, 3);
    const DenseDims d =
        check_dims(length(out, 0), length(out, 1), length(W, 2), length(W, 1), threads);
    check({"delta", &delta}, d.G, {d.B, d.m});
    check({"W", &W}, d.G, {d.m, d.n});
    check({"y", &y}, d.G, {d.B, d.n});
    if (add) check({"add", &*add}, d.G, {d.B, d.n});
    check({"out", &out}, d.G, {d.B, d.n});
    check_written({"out", &out}, d.G,
                  {{"delta", &delta}, {"W", &W}, {"y", &y}, {"add", pointer(add)}});
    with_type_of({"delta", &delta}, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        check_types<T>({{"W", &W}, {"y", &y}, {"add", pointer(add)}, {"out", &out}});
        nb::gil_scoped_release release;
        HFCORE_PICK(dense_kernels<T>())
            .backward(d, e, grouped<T>(delta), grouped<T>(W), grouped<T>(y), grouped<T>(add),
                      static_cast<T*>(out.data()));
    });
}

void dense_gradient(const Strided& delta, const Strided& a, double scale, bool squared,
                    const Strided& gW, const Strided& gb, int threads) {
    check_rank({"delta", &delta}, 3);
    check_rank({"gW", &gW}, 3);
    check_rank({"gb", &gb}, 2);
    const DenseDims d =
        check_dims(length(gW, 0), length(delta, 1), length(gW, 2), length(gW, 1), threads);
    check({"delta", &delta}, d.G, {d.B, d.m});
    check({"a", &a}, d.G, {d.B, d.n});
    check({"gW", &gW}, d.G, {d.m, d.n});
    check({"gb", &gb}, d.G, {d.m});
    check_written({"gW", &gW}, d.G, {{"delta", &delta}, {"a", &a}});
    check_written({"gb", &gb}, d.G, {{"delta", &delta}, {"a", &a}});
    check_interleaved({"gW", &gW}, {"gb", &gb}, d.G);
    with_type_of({"delta", &delta}, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        check_types<T>({{"a", &a}, {"gW", &gW}, {"gb", &gb}});
        const DenseGradient<T> out{static_cast<T*>(gW.data()), stride_of_group(gW),
                                   static_cast<T*>(gb.data()), stride_of_group(gb)};
        nb::gil_scoped_release release;
        HFCORE_PICK(dense_kernels<T>())
            .gradient(d, grouped<T>(delta), grouped<T>(a), static_cast<T>(scale), squared, out);
    });
}

}  // namespace

void bind_dense(nb::module_& m) {
    const auto array = [](const char* name) { return nb::arg(name).noconvert(); };
    m.def("dense_forward", &dense_forward, array("a"), array("W"), array("b"),
          nb::arg("activation"), array("out"), nb::arg("threads"));
    m.def("dense_rforward", &dense_rforward, array("a"), array("Ra").none(), array("W"),
          array("V"), array("v_b"), array("y"), nb::arg("activation"), array("out"),
          nb::arg("threads"));
    m.def("dense_backward", &dense_backward, array("delta"), array("W"), array("y"),
          nb::arg("activation"), array("add").none(), array("out"), nb::arg("threads"));
    m.def("dense_gradient", &dense_gradient, array("delta"), array("a"), nb::arg("scale"),
          nb::arg("squared"), array("gW"), array("gb"), nb::arg("threads"));
}

}  // namespace hfcore
