// Dense ops on the CPU: what the compiled module calls. Formulas: reference.py.
#pragma once

#include <cstdint>

#include "kernels/cpu/grouped.h"

namespace hfcore {

enum class Activation { linear, logistic, tanh, relu };

// G nets, B cases, n inputs and m outputs of the layer.
struct DenseDims {
    std::int64_t G, B, n, m;
    int threads;
};

// A gradient's two parts, each contiguous behind its group stride.
template <class T>
struct DenseGradient {
    T* W;
    std::int64_t W_stride;
    T* b;
    std::int64_t b_stride;
};

// Every array is contiguous behind its group axis; outputs [G,B,·] are contiguous altogether and
// share no memory with an input. Ra and add may be null.
template <class T>
struct DenseKernels {
    void (*forward)(const DenseDims&, Activation, Grouped<T> a, Grouped<T> W, Grouped<T> b, T* y);
    void (*rforward)(const DenseDims&, Activation, Grouped<T> a, Grouped<T> Ra, Grouped<T> W,
                     Grouped<T> V, Grouped<T> v_b, Grouped<T> y, T* Ry);
    void (*backward)(const DenseDims&, Activation, Grouped<T> delta, Grouped<T> W, Grouped<T> y,
                     Grouped<T> add, T* below);
    void (*gradient)(const DenseDims&, Grouped<T> delta, Grouped<T> a, T scale, bool squared,
                     const DenseGradient<T>& out);
};

namespace baseline {
template <class T>
const DenseKernels<T>& dense_kernels();
}
namespace avx2 {
template <class T>
const DenseKernels<T>& dense_kernels();
}
namespace avx512 {
template <class T>
const DenseKernels<T>& dense_kernels();
}

}  // namespace hfcore
