// Contrastive divergence with one step (CD-1) of Boltzmann machines on one minibatch: what the compiled
// module calls. Formulas: reference.py.
#pragma once

#include <cstdint>

#include "kernels/cpu/grouped.h"

namespace hfcore {

// G machines of n visible and m hidden units, B cases.
struct ContrastiveDims {
    std::int64_t G, B, n, m;
    bool visible_gaussian, hidden_gaussian;
    int threads;
};

// The update v = μ v − ε (g + cost·W), θ = θ + v, on the biases without a cost.
template <class T>
struct ContrastiveUpdate {
    T *theta, *velocity;  // [G,N]; null: nothing moves
    double learning_rate, momentum, weight_cost;
};

// theta [1 or G,N]: W [m,n], the hidden biases [m], the visible ones [n]; v [1 or G,B,n] the data;
// noise [1 or G,B,m]; gradient [G,N] or null; errors [G] of the reconstructions, before the update.
template <class T>
struct ContrastiveKernels {
    void (*step)(const ContrastiveDims&, Grouped<T> v, Grouped<T> noise, Grouped<T> theta,
                 const ContrastiveUpdate<T>&, T* gradient, double* errors);
};

namespace baseline {
template <class T>
const ContrastiveKernels<T>& contrastive_kernels();
}
namespace avx2 {
template <class T>
const ContrastiveKernels<T>& contrastive_kernels();
}
namespace avx512 {
template <class T>
const ContrastiveKernels<T>& contrastive_kernels();
}

}  // namespace hfcore
