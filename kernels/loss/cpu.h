// Loss ops on the CPU: what the compiled module calls. Formulas: reference.py.
#pragma once

#include <cstdint>

#include "kernels/cpu/grouped.h"

namespace hfcore {

enum class LossKind { squared, logistic, softmax };

struct LossDims {
    std::int64_t G, P, k;  // nets, positions (T·B), outputs a position
    int threads;
};

// Which positions [P] count: bytes 0/1, or 0/1 in T, or neither for all.
template <class T>
struct LossMask {
    Grouped<std::uint8_t> bytes;
    Grouped<T> values;
};

// Targets [P,k], or for softmax classes [P] that lie in 0 .. k-1 wherever the mask keeps them.
template <class T>
struct LossTargets {
    Grouped<T> values;
    Grouped<std::int64_t> classes;
};

// s, c, Rs and out are [P,k] behind their group axis. Nothing is read from masked positions
// except s; what is found there never reaches a result.
template <class T>
struct LossKernels {
    void (*value)(const LossDims&, LossKind, Grouped<T> s, const LossTargets<T>&,
                  const LossMask<T>&, double scale, double* out);
    void (*gradient)(const LossDims&, LossKind, Grouped<T> s, const LossTargets<T>&,
                     const LossMask<T>&, double scale, T* out);
    void (*curvature)(const LossDims&, LossKind, Grouped<T> s, const LossMask<T>&, T* out);
    void (*hessian_product)(const LossDims&, Grouped<T> c, Grouped<T> Rs, bool rank_one,
                            double scale, T* out);
};

namespace baseline {
template <class T>
const LossKernels<T>& loss_kernels();
}
namespace avx2 {
template <class T>
const LossKernels<T>& loss_kernels();
}
namespace avx512 {
template <class T>
const LossKernels<T>& loss_kernels();
}

}  // namespace hfcore
