// Loss ops on the CPU: what the compiled module calls. Formulas: reference.py.
#pragma once

#include <cstdint>

#include "kernels/cpu/grouped.h"

namespace hfcore {

enum class LossKind { squared, logistic, softmax, huber, poisson };

// A loss with its parameter: Huber's error is quadratic up to delta.
struct LossFormula {
    LossKind kind;
    double delta;
    LossFormula(LossKind kind, double delta = 1.0) : kind(kind), delta(delta) {}
};

// How L'' is made of its diagonal c: diag(c), diag(c) - c c', diag(c) - c c' / sum(c).
enum class LossHessian { diagonal, rank_one, weighted_rank_one };

struct LossDims {
    std::int64_t G, P, k;  // nets, positions (T·B), outputs a position
    int threads;
};

// What positions [P] count: bytes 0/1, or weights >= 0 in T, or neither for 1.
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

// s, c, Rs and out are [P,k] behind their group axis. Nothing is read from masked positions (those
// of weight 0) except s; what is found there never reaches a result. The curvature of Huber's loss
// alone reads targets.
template <class T>
struct LossKernels {
    void (*value)(const LossDims&, const LossFormula&, Grouped<T> s, const LossTargets<T>&,
                  const LossMask<T>&, double scale, double* out);
    void (*gradient)(const LossDims&, const LossFormula&, Grouped<T> s, const LossTargets<T>&,
                     const LossMask<T>&, double scale, T* out);
    void (*curvature)(const LossDims&, const LossFormula&, Grouped<T> s, const LossTargets<T>&,
                      const LossMask<T>&, T* out);
    void (*hessian_product)(const LossDims&, Grouped<T> c, Grouped<T> Rs, LossHessian form,
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
