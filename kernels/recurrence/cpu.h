// Recurrence ops on the CPU: what the compiled module calls. Formulas: reference.py.
#pragma once

#include <cstdint>

#include "kernels/cpu/grouped.h"

namespace hfcore {

enum class Nonlinearity { tanh, logistic, relu };

template <class T>
struct RnnParameters {
    Grouped<T> W_hx, W_hh, W_yh, b_h, b_init, b_y;
};

struct RnnDims {
    std::int64_t G, T, B, n, H, k, T_out;
    const std::int64_t* steps;  // T_out increasing step indices, null for every step
    Nonlinearity e;
    int threads;

    std::int64_t numel() const { return H * n + H * H + k * H + 2 * H + k; }
};

struct ScanDims {
    std::int64_t G, T, B, H;
    bool reverse;
    int threads;
};

// How L'' and the damping terms enter a Gauss-Newton product.
template <class T>
struct Curvature {
    Grouped<T> c;  // [G,T_out,B,k]
    bool rank_one;
    T scale, structural, damping;
};

// All arrays contiguous behind their group axis; h and s may be null in rnn_forward. With a null h
// rnn_gauss_newton recomputes the states in windows.
template <class T>
struct RecurrenceKernels {
    void (*rnn_forward)(const RnnDims&, Grouped<T> x, const RnnParameters<T>& w, T* h, T* s);
    void (*linear_scan)(const ScanDims&, Grouped<T> u, Grouped<T> d, Grouped<T> W, Grouped<T> a,
                        T* y);
    void (*rnn_backward)(const RnnDims&, Grouped<T> x, Grouped<T> h, const RnnParameters<T>& w,
                         Grouped<T> gs, T* out);
    void (*rnn_gauss_newton)(const RnnDims&, Grouped<T> x, Grouped<T> h,
                             const RnnParameters<T>& w, Grouped<T> v, const Curvature<T>&, T* out);
};

namespace baseline {
template <class T>
const RecurrenceKernels<T>& recurrence_kernels();
}
namespace avx2 {
template <class T>
const RecurrenceKernels<T>& recurrence_kernels();
}
namespace avx512 {
template <class T>
const RecurrenceKernels<T>& recurrence_kernels();
}

}  // namespace hfcore
