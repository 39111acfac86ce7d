// Checks and unpacking for the gradient and the update of whole nets.
#include "kernels/dense/net.h"

#include <nanobind/stl/vector.h>

#include <type_traits>
#include <vector>

#include "bindings/native/memory.h"
#include "bindings/native/native.h"
#include "bindings/native/step.h"

namespace hfcore {
namespace {

using std::int64_t;

struct Net {
    std::vector<Activation> activations;
    int64_t parameters = 0;
};

// theta [1 or G,N] must hold exactly the parameters of a net of these sizes.
Net check_net(const std::vector<int64_t>& sizes, const std::vector<int>& activations,
              const Array& theta) {
    check_shape("theta", theta, {-1, -1});
    const int64_t N = static_cast<int64_t>(theta.shape(1));
    if (sizes.size() < 2) value_error("sizes: got fewer than two, need inputs and outputs");
    if (activations.size() + 1 != sizes.size())
        value_error("activations: got " + std::to_string(activations.size()) + ", need " +
                    std::to_string(sizes.size() - 1));
    Net net;
    for (const int e : activations) {
        if (e < 0 || e > 3)
            value_error("activations: got " + std::to_string(e) +
                        ", need 0 (linear), 1 (logistic), 2 (tanh) or 3 (relu)");
        net.activations.push_back(static_cast<Activation>(e));
    }
    // No size above N: then no product of sizes is beyond what int64 holds before it is refused.
    for (std::size_t l = 0; l < sizes.size(); ++l) {
        if (sizes[l] < 1) value_error("sizes: got " + std::to_string(sizes[l]) + ", need at least 1");
        bool fits = sizes[l] <= N;
        if (l > 0) {
            fits = fits && sizes[l - 1] + 1 <= (N - net.parameters) / sizes[l];
            if (fits) net.parameters += sizes[l] * (sizes[l - 1] + 1);
        }
        if (!fits)
            value_error("theta: got " + std::to_string(N) +
                        " parameters, fewer than the net of these sizes has");
    }
    if (net.parameters != N)
        value_error("theta: got " + std::to_string(N) + " parameters, need " +
                    std::to_string(net.parameters));
    return net;
}

template <class T>
Grouped<T> grouped(const Array& a) {
    return {static_cast<const T*>(a.data()), group_stride(a)};
}

// Targets [B,k], for softmax classes [B] of the k outputs.
template <class T>
LossTargets<T> check_targets(LossKind kind, const Array& targets, int64_t G, int64_t B, int64_t k) {
    LossTargets<T> unpacked{};
    if (kind != LossKind::softmax) {
        check_dtype<T>("targets", targets);
        check_grouped("targets", targets, G, {B, k});
        unpacked.values = grouped<T>(targets);
        return unpacked;
    }
    if (targets.dtype() != nb::dtype<int64_t>())
        throw nb::type_error("targets: wrong dtype, need int64 class indices");
    check_grouped("targets", targets, G, {B});
    unpacked.classes = grouped<int64_t>(targets);
    for (std::size_t i = 0; i < targets.size(); ++i) {
        const int64_t c = unpacked.classes.data[i];
        if (c < 0 || c >= k)
            value_error("targets: got class " + std::to_string(c) + ", need 0.." +
                        std::to_string(k - 1));
    }
    return unpacked;
}

// Cases of a call for G nets, after checking what the gradient and the update have in common.
int64_t check_cases(int kind, const Array& x, const std::vector<int64_t>& sizes, int64_t G,
                    const Array& losses) {
    if (kind < 0 || kind > 2)
        value_error("kind: got " + std::to_string(kind) +
                    ", need 0 (squared), 1 (logistic) or 2 (softmax)");
    check_shape("x", x, {-1, -1, sizes.front()});
    const int64_t B = static_cast<int64_t>(x.shape(1));
    if (G < 1) value_error("G: got 0, need at least 1");
    if (B < 1) value_error("B: got 0, need at least 1");
    check_grouped("x", x, G, {B, sizes.front()});
    check_shape("losses", losses, {G});
    check_dtype<double>("losses", losses);
    return B;
}

void net_gradient(int kind, const Array& x, const Array& targets, const Array& theta,
                  const std::vector<int64_t>& sizes, const std::vector<int>& activations,
                  double scale, const Array& out, const Array& losses, int threads) {
    const Net net = check_net(sizes, activations, theta);
    check_shape("out", out, {-1, net.parameters});
    const int64_t G = static_cast<int64_t>(out.shape(0));
    const int64_t B = check_cases(kind, x, sizes, G, losses);
    check_grouped("theta", theta, G, {net.parameters});
    check_apart({"out", &out},
                {{"x", &x}, {"targets", &targets}, {"theta", &theta}, {"losses", &losses}});
    check_apart({"losses", &losses}, {{"x", &x}, {"targets", &targets}, {"theta", &theta}});
    with_float_type("x", x, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        const LossKind which = static_cast<LossKind>(kind);
        const LossTargets<T> y = check_targets<T>(which, targets, G, B, sizes.back());
        check_dtype<T>("theta", theta);
        check_dtype<T>("out", out);
        const NetDims d{G, B, static_cast<int>(net.activations.size()), sizes.data(),
                        net.activations.data(), threads};
        nb::gil_scoped_release release;
        HFCORE_PICK(net_kernels<T>())
            .gradient(d, which, grouped<T>(x), y, grouped<T>(theta), scale,
                      static_cast<T*>(out.data()), static_cast<double*>(losses.data()));
    });
}

void net_update(int kind, const Array& x, const Array& targets, const Array& theta,
                const Array& velocity, const std::vector<int64_t>& sizes,
                const std::vector<int>& activations, double scale, const Array& learning_rate,
                const Array& momentum, const Array& lookahead, const MaybeArray& l2,
                const MaybeArray& active, const MaybeArray& out, const Array& losses,
                int threads) {
    const Net net = check_net(sizes, activations, theta);
    const int64_t G = check_step(theta, active).first;
    const int64_t B = check_cases(kind, x, sizes, G, losses);
    check_shape("velocity", velocity, {G, net.parameters});
    if (out) check_shape("out", *out, {G, net.parameters});
    const NamedArray rates[] = {{"learning_rate", &learning_rate},
                                {"momentum", &momentum},
                                {"lookahead", &lookahead},
                                {"l2", pointer(l2)}};
    check_coefficients(G, {rates[0], rates[1], rates[2], rates[3]});
    const NamedArray t{"theta", &theta}, v{"velocity", &velocity}, g{"out", pointer(out)},
        loss{"losses", &losses}, in{"x", &x}, wanted{"targets", &targets},
        on{"active", pointer(active)};
    check_apart(t, {v, g, loss, in, wanted, rates[0], rates[1], rates[2], rates[3], on});
    check_apart(v, {g, loss, in, wanted, rates[0], rates[1], rates[2], rates[3], on});
    if (out) check_apart(g, {loss, in, wanted, rates[0], rates[1], rates[2], rates[3], on});
    check_apart(loss, {in, wanted, rates[0], rates[1], rates[2], rates[3], on});
    with_float_type("x", x, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        const LossKind which = static_cast<LossKind>(kind);
        const LossTargets<T> y = check_targets<T>(which, targets, G, B, sizes.back());
        for (const NamedArray& array : {t, v, g})
            if (array.array != nullptr) check_dtype<T>(array.name, *array.array);
        const NetDims d{G, B, static_cast<int>(net.activations.size()), sizes.data(),
                        net.activations.data(), threads};
        const NetUpdate<T> step{data<T>(&theta),
                                data<T>(&velocity),
                                data<T>(pointer(out)),
                                data<const double>(&learning_rate),
                                data<const double>(&momentum),
                                data<const double>(&lookahead),
                                data<const double>(pointer(l2)),
                                data<const std::uint8_t>(pointer(active))};
        nb::gil_scoped_release release;
        HFCORE_PICK(net_kernels<T>())
            .update(d, which, grouped<T>(x), y, scale, step, static_cast<double*>(losses.data()));
    });
}

}  // namespace

void bind_net(nb::module_& m) {
    const auto array = [](const char* name) { return nb::arg(name).noconvert(); };
    m.def("net_gradient", &net_gradient, nb::arg("kind"), array("x"), array("targets"),
          array("theta"), nb::arg("sizes"), nb::arg("activations"), nb::arg("scale"), array("out"),
          array("losses"), nb::arg("threads"));
    m.def("net_update", &net_update, nb::arg("kind"), array("x"), array("targets"), array("theta"),
          array("velocity"), nb::arg("sizes"), nb::arg("activations"), nb::arg("scale"),
          array("learning_rate"), array("momentum"), array("lookahead"), array("l2").none(),
          array("active").none(), array("out").none(), array("losses"), nb::arg("threads"));
}

}  // namespace hfcore
