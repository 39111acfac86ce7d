// The momentum update and its lookahead point on the CPU: what the compiled module calls. Formulas: reference.py.
#pragma once

#include <cstdint>

#include "kernels/cpu/grouped.h"

namespace hfcore {

// Arrays [G,N], coefficients [G]. No two of theta, velocity, gradient and ahead share memory.
template <class T>
struct MomentumArrays {
    std::int64_t G, N;
    T *theta, *velocity;
    Grouped<T> gradient;
    T* ahead;  // or null
    const double *learning_rate, *momentum, *lookahead;
    const double* l2;            // or null
    const std::uint8_t* active;  // or null: all
    int threads;
};

template <class T>
struct LookaheadArrays {
    std::int64_t G, N;
    const T *theta, *velocity;
    const double* momentum;
    T* out;
    const std::uint8_t* active;  // or null: all
    int threads;
};

template <class T>
struct MomentumKernels {
    void (*update)(const MomentumArrays<T>&);
    void (*lookahead)(const LookaheadArrays<T>&);
};

namespace baseline {
template <class T>
const MomentumKernels<T>& momentum_kernels();
}
namespace avx2 {
template <class T>
const MomentumKernels<T>& momentum_kernels();
}
namespace avx512 {
template <class T>
const MomentumKernels<T>& momentum_kernels();
}

}  // namespace hfcore
