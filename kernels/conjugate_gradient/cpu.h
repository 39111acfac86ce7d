// CG vector updates on the CPU: what the compiled module calls. Formulas: reference.py.
#pragma once

#include <cstdint>

namespace hfcore {

// Flat vectors of N elements. x, r, z and the others lie apart; only z may be r itself, and only
// without a preconditioner M.
template <class T>
struct CgVectors {
    std::int64_t N;
    T *x, *r, *z;
    const T *p, *Ap, *b;
    const T* M;  // diagonal of the preconditioner or null
    int threads;
};

struct CgScalars {
    double pAp, rz, phi;
};

template <class T>
struct ConjugateGradientKernels {
    CgScalars (*update)(const CgVectors<T>&, double rz);
    void (*direction)(std::int64_t N, T* p, const T* z, double beta, int threads);
    double (*dot)(const T* a, const T* b, std::int64_t N, int threads);
};

namespace baseline {
template <class T>
const ConjugateGradientKernels<T>& conjugate_gradient_kernels();
}
namespace avx2 {
template <class T>
const ConjugateGradientKernels<T>& conjugate_gradient_kernels();
}
namespace avx512 {
template <class T>
const ConjugateGradientKernels<T>& conjugate_gradient_kernels();
}

}  // namespace hfcore
