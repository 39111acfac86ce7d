// Sparse ops on the CPU: what the compiled module calls. Formulas: reference.py, rows: layout.py.
#pragma once

#include <cstdint>

#include "kernels/cpu/grouped.h"
#include "kernels/recurrence/cpu.h"

namespace hfcore {

// The entries of a sparse matrix row by row: row r has e = start[r] .. start[r+1]-1, entry e stands
// in column[e] and its value at place[e] (null: at e).
struct SparseRows {
    std::int64_t rows, columns, entries;
    const std::int32_t* start;
    const std::int32_t* column;
    const std::int32_t* place;
};

struct SparseDims {
    std::int64_t G, B;
    int threads;
};

struct SparseScanDims {
    std::int64_t G, T, B, H;
    bool reverse;
    int threads;
};

// Every array is contiguous behind its group axis and outputs share no memory with an input. A
// value array has `values` elements a net; in `gradient` the places without entry are set to 0.
template <class T>
struct SparseKernels {
    // out [G,B,rows] = x Aᵀ
    void (*product)(const SparseDims&, const SparseRows&, Grouped<T> value, Grouped<T> x, T* out);
    // out [G,values] = entries of gᵀx, g [G,B,rows], x [G,B,columns]
    void (*gradient)(const SparseDims&, const SparseRows&, std::int64_t values, Grouped<T> g,
                     Grouped<T> x, T* out);
    // y_t = d_t ⊙ (y_{t∓1} Aᵀ + u_t) + a_t; a may be null
    void (*scan)(const SparseScanDims&, const SparseRows&, Grouped<T> value, Grouped<T> u,
                 Grouped<T> d, Grouped<T> a, T* y);
    // h_t = e(u_t + h_{t-1} Aᵀ)
    void (*hidden)(const SparseScanDims&, Nonlinearity, const SparseRows&, Grouped<T> value,
                   Grouped<T> u, T* h);
};

namespace baseline {
template <class T>
const SparseKernels<T>& sparse_kernels();
}
namespace avx2 {
template <class T>
const SparseKernels<T>& sparse_kernels();
}
namespace avx512 {
template <class T>
const SparseKernels<T>& sparse_kernels();
}

}  // namespace hfcore
