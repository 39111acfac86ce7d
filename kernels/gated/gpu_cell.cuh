// What one unit of one sequence does at one step, in every op of the gated cells. Formulas:
// reference.py; blocks: i, f, g, o of an LSTM, m, r, z, n of a GRU, where m is what r multiplies.
//
// An op is a struct. `fetch` reads what is known before the step, `finish` takes the sums of the
// step's product to the results. Rows of blocks (R of them) are in torch's order: i, f, g, o of an
// LSTM, r, z, n of a GRU.
//
//   kBack      from the last step to the first
//   kSums      numbers that the step's product gives a unit: R, or 1 on the way back
//   kCarried   numbers that the next step's product reads of it: 1, or R on the way back
//   state      one more number, which stays with the unit from step to step; it starts as zero
#pragma once

#include "kernels/gpu/activation.cuh"
#include "kernels/gpu/platform.cuh"

namespace hfcore_gpu {

constexpr int kBlocks = 4;

// Bits of `distinct`: which arrays have a group axis; the others are shared. gpu.py has this order.
enum Distinct : int { kWeights, kOutside, kKnown, kBias, kStates, kGates, kCells };

// This block's net in an array of `size` elements a net.
__device__ __forceinline__ const float* group(long long distinct, const float* array, Distinct bit,
                                              long long size) {
    const bool own = (distinct >> bit & 1) != 0;
    return array == nullptr || !own ? array : array + blockIdx.y * size;
}

// The arrays of all nets, or of one. Null pointers are zeros, or not asked for.
struct Arrays {
    const float* outside;  // W_ih x_t (V_ih x_t + W_ih Rx_t) [T,B,R·H]; on the way back ∂L/∂h [T,B,H]
    const float* known;    // V_hh h_t of every step but the last [T-1,B,R·H]
    const float* bias;     // [4,H] of the blocks
    const float* h;        // [T,B,H]
    const float* gates;    // [4,T,B,H]
    const float* cells;    // [2,T,B,H], c and tanh c
    float* y;              // h or Rh [T,B,H], or ∂L/∂a [4,T,B,H]
    float* to_gates;
    float* to_cells;
    long long T, B, H;

    __device__ __forceinline__ long long plane() const { return T * B * H; }

    // Those of this block's net; `Op` says how wide `outside` and y are.
    template <class Op>
    __device__ __forceinline__ Arrays of_net(long long distinct) const {
        const long long rows = Op::kBack ? 1 : Op::kSums, net = blockIdx.y;
        Arrays own = *this;
        own.outside = group(distinct, outside, kOutside, rows * plane());
        own.known = group(distinct, known, kKnown, rows * (plane() - B * H));
        own.bias = group(distinct, bias, kBias, kBlocks * H);
        own.h = group(distinct, h, kStates, plane());
        own.gates = group(distinct, gates, kGates, kBlocks * plane());
        own.cells = group(distinct, cells, kCells, 2 * plane());
        own.y = y + net * (Op::kBack ? kBlocks : 1) * plane();
        own.to_gates = to_gates == nullptr ? nullptr : to_gates + net * kBlocks * plane();
        own.to_cells = to_cells == nullptr ? nullptr : to_cells + net * 2 * plane();
        return own;
    }
};

// A unit of a sequence at a step.
struct Element {
    long long row;  // t · B + the sequence
    int unit;
    bool exists, first;  // within the batch; at t = 0

    __device__ __forceinline__ long long at(const Arrays& a) const { return row * a.H + unit; }

    // Of an array [T,B,H]; zero where there is no such element.
    __device__ __forceinline__ float read(const Arrays& a, const float* array) const {
        return exists ? array[at(a)] : 0.0f;
    }

    // The same of the step before.
    __device__ __forceinline__ float read_back(const Arrays& a, const float* array) const {
        return exists && !first ? array[at(a) - a.B * a.H] : 0.0f;
    }

    // Of an array [4,T,B,H].
    __device__ __forceinline__ void read_blocks(const Arrays& a, const float* array,
                                                float (&to)[kBlocks]) const {
#pragma unroll
        for (int k = 0; k < kBlocks; ++k) to[k] = read(a, array + k * a.plane());
    }

    __device__ __forceinline__ void write_blocks(const Arrays& a, float* array,
                                                 const float (&from)[kBlocks]) const {
        if (!exists) return;
#pragma unroll
        for (int k = 0; k < kBlocks; ++k) array[k * a.plane() + at(a)] = from[k];
    }

    // Of an array [T,B,R·H].
    template <int R>
    __device__ __forceinline__ void read_rows(const Arrays& a, const float* array,
                                              float (&to)[R]) const {
#pragma unroll
        for (int r = 0; r < R; ++r) to[r] = exists ? array[(row * R + r) * a.H + unit] : 0.0f;
    }

    // Of `known`, which lacks the last step and is that of the step before; zero if there is none.
    template <int R>
    __device__ __forceinline__ void read_known(const Arrays& a, float (&to)[R]) const {
        const Element back{row - a.B, unit, exists && !first && a.known != nullptr, false};
        back.read_rows<R>(a, a.known, to);
    }
};

// Of the blocks of one unit; zero without the array.
struct Bias {
    float of[kBlocks];

    __device__ __forceinline__ Bias(const Arrays& a, int unit, bool exists) {
#pragma unroll
        for (int k = 0; k < kBlocks; ++k)
            of[k] = a.bias != nullptr && exists ? a.bias[k * a.H + unit] : 0.0f;
    }
};

// σ(t) to about 3 ulp where |t| < 4, without a branch; further out e^-t is off by |t| ulp. NaN stays.
__device__ __forceinline__ float logistic(float t) {
    constexpr float kLog2E = 1.442695041f;
    return fast_reciprocal(1.0f + fast_exp2(-kLog2E * t));
}

// Of a value σ(t).
__device__ __forceinline__ float logistic_slope(float s) { return s * (1.0f - s); }

// Of a value tanh t.
__device__ __forceinline__ float tanh_slope(float y) { return 1.0f - y * y; }

// ---------------------------------------------------------------------------- LSTM

// State: c.
struct LstmForward {
    static constexpr bool kBack = false;
    static constexpr int kSums = 4, kCarried = 1;

    struct Operands {
        float outside[4];
    };

    static __device__ __forceinline__ void fetch(const Arrays& a, const Element& e, Operands& to) {
        e.read_rows<4>(a, a.outside, to.outside);
    }

    static __device__ __forceinline__ void finish(const Arrays& a, const Element& e,
                                                  const Bias& bias, const Operands& now,
                                                  const float (&sum)[4], float& c, float (&h)[1]) {
        float pre[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) pre[k] = sum[k] + now.outside[k] + bias.of[k];
        const float gates[kBlocks] = {logistic(pre[0]), logistic(pre[1]),
                                      hyperbolic_tangent(pre[2]), logistic(pre[3])};
        c = gates[1] * c + gates[0] * gates[2];
        const float y = hyperbolic_tangent(c);
        h[0] = gates[3] * y;
        if (e.exists) a.y[e.at(a)] = h[0];
        if (a.to_gates != nullptr) e.write_blocks(a, a.to_gates, gates);
        if (a.to_cells != nullptr && e.exists) {
            a.to_cells[e.at(a)] = c;
            a.to_cells[a.plane() + e.at(a)] = y;
        }
    }
};

// State: Rc.
struct LstmTangent {
    static constexpr bool kBack = false;
    static constexpr int kSums = 4, kCarried = 1;

    struct Operands {
        float outside[4], gates[kBlocks], y, c_back;
    };

    static __device__ __forceinline__ void fetch(const Arrays& a, const Element& e, Operands& to) {
        float known[4];
        e.read_known<4>(a, known);
        e.read_rows<4>(a, a.outside, to.outside);
#pragma unroll
        for (int k = 0; k < 4; ++k) to.outside[k] += known[k];
        e.read_blocks(a, a.gates, to.gates);
        to.y = e.read(a, a.cells + a.plane());
        to.c_back = e.read_back(a, a.cells);
    }

    static __device__ __forceinline__ void finish(const Arrays& a, const Element& e,
                                                  const Bias& bias, const Operands& now,
                                                  const float (&sum)[4], float& Rc,
                                                  float (&Rh)[1]) {
        float Ra[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) Ra[k] = sum[k] + now.outside[k] + bias.of[k];
        const float i = now.gates[0], f = now.gates[1], g = now.gates[2], o = now.gates[3];
        const float Ri = logistic_slope(i) * Ra[0], Rf = logistic_slope(f) * Ra[1],
                    Rg = tanh_slope(g) * Ra[2], Ro = logistic_slope(o) * Ra[3];
        Rc = Ri * g + i * Rg + Rf * now.c_back + f * Rc;
        Rh[0] = Ro * now.y + o * tanh_slope(now.y) * Rc;
        if (e.exists) a.y[e.at(a)] = Rh[0];
    }
};

// State: ∂L/∂c past the blocks.
struct LstmBackward {
    static constexpr bool kBack = true;
    static constexpr int kSums = 1, kCarried = 4;

    struct Operands {
        float gh, gates[kBlocks], y, c_back;
    };

    static __device__ __forceinline__ void fetch(const Arrays& a, const Element& e, Operands& to) {
        to.gh = e.read(a, a.outside);
        e.read_blocks(a, a.gates, to.gates);
        to.y = e.read(a, a.cells + a.plane());
        to.c_back = e.read_back(a, a.cells);
    }

    static __device__ __forceinline__ void finish(const Arrays& a, const Element& e, const Bias&,
                                                  const Operands& now, const float (&sum)[1],
                                                  float& past, float (&rows)[4]) {
        const float i = now.gates[0], f = now.gates[1], g = now.gates[2], o = now.gates[3];
        const float gh = now.gh + sum[0];
        const float gc = gh * o * tanh_slope(now.y) + past;
        rows[0] = gc * g * logistic_slope(i);
        rows[1] = gc * now.c_back * logistic_slope(f);
        rows[2] = gc * i * tanh_slope(g);
        rows[3] = gh * now.y * logistic_slope(o);
        past = f * gc;
        e.write_blocks(a, a.y, rows);
    }
};

// ---------------------------------------------------------------------------- GRU

// State: h.
struct GruForward {
    static constexpr bool kBack = false;
    static constexpr int kSums = 3, kCarried = 1;

    struct Operands {
        float outside[3];
    };

    static __device__ __forceinline__ void fetch(const Arrays& a, const Element& e, Operands& to) {
        e.read_rows<3>(a, a.outside, to.outside);
    }

    static __device__ __forceinline__ void finish(const Arrays& a, const Element& e,
                                                  const Bias& bias, const Operands& now,
                                                  const float (&sum)[3], float& state,
                                                  float (&h)[1]) {
        const float m = sum[2] + bias.of[0];
        const float r = logistic(sum[0] + now.outside[0] + bias.of[1]);
        const float z = logistic(sum[1] + now.outside[1] + bias.of[2]);
        const float n = hyperbolic_tangent(now.outside[2] + bias.of[3] + r * m);
        h[0] = n + z * (state - n);
        state = h[0];
        if (e.exists) a.y[e.at(a)] = h[0];
        const float gates[kBlocks] = {m, r, z, n};
        if (a.to_gates != nullptr) e.write_blocks(a, a.to_gates, gates);
    }
};

// State: Rh.
struct GruTangent {
    static constexpr bool kBack = false;
    static constexpr int kSums = 3, kCarried = 1;

    struct Operands {
        float Ra[kBlocks], gates[kBlocks], h_back;  // Ra less the product of this step
    };

    static __device__ __forceinline__ void fetch(const Arrays& a, const Element& e, Operands& to) {
        float known[3], outside[3];
        e.read_known<3>(a, known);
        e.read_rows<3>(a, a.outside, outside);
        to.Ra[0] = known[2];
        to.Ra[1] = known[0] + outside[0];
        to.Ra[2] = known[1] + outside[1];
        to.Ra[3] = outside[2];
        e.read_blocks(a, a.gates, to.gates);
        to.h_back = e.read_back(a, a.h);
    }

    static __device__ __forceinline__ void finish(const Arrays& a, const Element& e,
                                                  const Bias& bias, const Operands& now,
                                                  const float (&sum)[3], float& state,
                                                  float (&Rh)[1]) {
        const float m = now.gates[0], r = now.gates[1], z = now.gates[2], n = now.gates[3];
        const float Rm = sum[2] + now.Ra[0] + bias.of[0];
        const float Rr = logistic_slope(r) * (sum[0] + now.Ra[1] + bias.of[1]);
        const float Rz = logistic_slope(z) * (sum[1] + now.Ra[2] + bias.of[2]);
        const float Rn = tanh_slope(n) * (now.Ra[3] + bias.of[3] + Rr * m + r * Rm);
        Rh[0] = Rz * (now.h_back - n) + (1.0f - z) * Rn + z * state;
        state = Rh[0];
        if (e.exists) a.y[e.at(a)] = Rh[0];
    }
};

// State: ∂L/∂h past the blocks.
struct GruBackward {
    static constexpr bool kBack = true;
    static constexpr int kSums = 1, kCarried = 3;

    struct Operands {
        float gh, gates[kBlocks], h_back;
    };

    static __device__ __forceinline__ void fetch(const Arrays& a, const Element& e, Operands& to) {
        to.gh = e.read(a, a.outside);
        e.read_blocks(a, a.gates, to.gates);
        to.h_back = e.read_back(a, a.h);
    }

    static __device__ __forceinline__ void finish(const Arrays& a, const Element& e, const Bias&,
                                                  const Operands& now, const float (&sum)[1],
                                                  float& past, float (&rows)[3]) {
        const float m = now.gates[0], r = now.gates[1], z = now.gates[2], n = now.gates[3];
        const float gh = now.gh + sum[0] + past;
        const float gn = gh * (1.0f - z) * tanh_slope(n);
        rows[0] = gn * m * logistic_slope(r);
        rows[1] = gh * (now.h_back - n) * logistic_slope(z);
        rows[2] = gn * r;
        past = z * gh;
        const float ga[kBlocks] = {rows[2], rows[0], rows[1], gn};
        e.write_blocks(a, a.y, ga);
    }
};

}  // namespace hfcore_gpu
