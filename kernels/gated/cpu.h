// Gated recurrences on the CPU: what the compiled module calls. Formulas: reference.py.
#pragma once

#include <cstdint>

#include "kernels/cpu/grouped.h"

namespace hfcore {

// Blocks of H numbers at every step: i, f, g, o of an LSTM; m, r, z, n of a GRU, where m is what r
// multiplies. Which rows of W_hh and of W_ih reach a block: `hidden` and `input`, −1 for none.
enum class Cell { lstm, gru };
constexpr int gate_blocks = 4;

struct CellRows {
    int hidden[gate_blocks], input[gate_blocks], blocks;
};
constexpr CellRows rows_of(Cell cell) {
    return cell == Cell::lstm ? CellRows{{0, 1, 2, 3}, {0, 1, 2, 3}, 4}
                              : CellRows{{2, 0, 1, -1}, {-1, 0, 1, 2}, 3};
}

struct GatedDims {
    std::int64_t G, T, B, n, H;
    Cell cell;
    int threads;
};

// W_ih [G,R·H,n], W_hh [G,R·H,H] with R rows of blocks, b [G,4,H].
template <class T>
struct GatedParameters {
    Grouped<T> W_ih, W_hh, b;
};

// What a forward pass leaves: h [G,T,B,H], gates [G,4,T,B,H], and of an LSTM cells [G,2,T,B,H], c
// and tanh c.
template <class T>
struct GatedStates {
    Grouped<T> h, gates, cells;
};

// Of a layer's parameters: W_ih [G,R·H,n], W_hh [G,R·H,H], b [G,4,H].
template <class T>
struct GatedGradient {
    T *W_ih, *W_hh, *b;
};

// All arrays contiguous behind their group axis. gates and cells may be null in gated_forward, Rx
// [G,T,B,n] in gated_tangent, which then does not read W_ih.
template <class T>
struct GatedKernels {
    void (*gated_forward)(const GatedDims&, Grouped<T> x, const GatedParameters<T>& w, T* h,
                          T* gates, T* cells);
    void (*gated_tangent)(const GatedDims&, Grouped<T> x, const GatedStates<T>& at, Grouped<T> Rx,
                          const GatedParameters<T>& w, const GatedParameters<T>& v, T* Rh);
    void (*gated_backward)(const GatedDims&, Grouped<T> gh, const GatedStates<T>& at,
                           Grouped<T> W_hh, T* ga);
    // ga may be null.
    void (*gated_gradient)(const GatedDims&, Grouped<T> gh, Grouped<T> x, const GatedStates<T>& at,
                           Grouped<T> W_hh, const GatedGradient<T>& out, T* ga);
};

namespace baseline {
template <class T>
const GatedKernels<T>& gated_kernels();
}
namespace avx2 {
template <class T>
const GatedKernels<T>& gated_kernels();
}
namespace avx512 {
template <class T>
const GatedKernels<T>& gated_kernels();
}

}  // namespace hfcore
