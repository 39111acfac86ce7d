// Loss and gradient of whole nets on one minibatch: what the compiled module calls. Formulas:
// reference.py.
#pragma once

#include <cstdint>

#include "kernels/cpu/grouped.h"
#include "kernels/dense/cpu.h"
#include "kernels/loss/cpu.h"

namespace hfcore {

// G nets and B cases; layer l takes sizes[l] inputs to sizes[l+1] outputs.
struct NetDims {
    std::int64_t G, B;
    int layers;
    const std::int64_t* sizes;
    const Activation* activations;
    int threads;
};

// An update with momentum (kernels/momentum): theta, velocity, gradient [G,N], coefficients [G]. The
// gradient is taken at θ + lookahead·v.
template <class T>
struct NetUpdate {
    T *theta, *velocity;
    T* gradient;  // or null
    const double *learning_rate, *momentum, *lookahead;
    const double* l2;            // or null
    const std::uint8_t* active;  // or null: all; the others are left alone, their losses NaN
};

// theta and gradient: the layers' weights [m,n] and biases [m] one after the other; gradient
// [G,N] shares no memory with an input. x [B,n], targets [B,k] or for softmax classes [B].
template <class T>
struct NetKernels {
    // scale · the losses [G] and scale · their gradients, summed over cases.
    void (*gradient)(const NetDims&, LossKind, Grouped<T> x, const LossTargets<T>& targets,
                     Grouped<T> theta, double scale, T* gradient, double* losses);
    // The same losses, and a step along the gradient of each net whose loss is finite.
    void (*update)(const NetDims&, LossKind, Grouped<T> x, const LossTargets<T>& targets,
                   double scale, const NetUpdate<T>&, double* losses);
};

namespace baseline {
template <class T>
const NetKernels<T>& net_kernels();
}
namespace avx2 {
template <class T>
const NetKernels<T>& net_kernels();
}
namespace avx512 {
template <class T>
const NetKernels<T>& net_kernels();
}

}  // namespace hfcore
