// One step of an LSTM or a GRU on all units of a tile: forward, R-op and the step back.
//
// Arrays are flat: the units of some sequences, one after the other. Formulas: reference.py.
#pragma once

#include <cstring>

#include "kernels/cpu/math.h"
#include "kernels/gated/cpu.h"

namespace hfcore {
namespace HFCORE_ISA {
namespace {

using std::int64_t;

// A step on whole vectors: `in` may hold nulls, `out` may be read.
template <class T>
using Step = void (*)(int64_t count, const T* const* in, T* const* out);

// The step on any count; the last few go through the same code, so that no element's bits depend on
// where it stands.
template <class T, int In, int Out>
void on_all(Step<T> step, int64_t count, const T* const (&in)[In], T* const (&out)[Out]) {
    constexpr int64_t lanes = simd<T>::lanes;
    const int64_t left = count % lanes, whole = count - left;
    if (whole > 0) step(whole, in, out);
    if (left == 0) return;
    const std::size_t bytes = static_cast<std::size_t>(left) * sizeof(T);
    alignas(64) T copies[In + Out][lanes] = {};
    const T* last_in[In];
    T* last_out[Out];
    for (int i = 0; i < In; ++i) {
        last_in[i] = in[i] == nullptr ? nullptr : copies[i];
        if (in[i] != nullptr) std::memcpy(copies[i], in[i] + whole, bytes);
    }
    for (int i = 0; i < Out; ++i) {
        last_out[i] = copies[In + i];
        std::memcpy(copies[In + i], out[i] + whole, bytes);
    }
    step(lanes, last_in, last_out);
    for (int i = 0; i < Out; ++i) std::memcpy(out[i] + whole, last_out[i], bytes);
}

#define HFCORE_STEP template <class T> __attribute__((noinline)) void
#define HFCORE_EACH_VECTOR for (int64_t at = 0; at < count; at += simd<T>::lanes)

// in: c_{t-1}, null at the first step; out: the four blocks, pre-activations that are left activated,
// c, tanh c and h.
HFCORE_STEP lstm_step(int64_t count, const T* const* in, T* const* out) {
    HFCORE_EACH_VECTOR {
        const vec_t<T> i = vlogistic<T>(load<T>(out[0] + at)), f = vlogistic<T>(load<T>(out[1] + at)),
                       g = vtanh<T>(load<T>(out[2] + at)), o = vlogistic<T>(load<T>(out[3] + at));
        const vec_t<T> back = in[0] ? load<T>(in[0] + at) : vec_t<T>{};
        const vec_t<T> c = f * back + i * g, y = vtanh<T>(c);
        store<T>(out[0] + at, i), store<T>(out[1] + at, f);
        store<T>(out[2] + at, g), store<T>(out[3] + at, o);
        store<T>(out[4] + at, c), store<T>(out[5] + at, y), store<T>(out[6] + at, o * y);
    }
}

// in: h_{t-1}, null at the first step; out: the four blocks and h. m is left as it is.
HFCORE_STEP gru_step(int64_t count, const T* const* in, T* const* out) {
    HFCORE_EACH_VECTOR {
        const vec_t<T> r = vlogistic<T>(load<T>(out[1] + at)), z = vlogistic<T>(load<T>(out[2] + at));
        const vec_t<T> n = vtanh<T>(load<T>(out[3] + at) + r * load<T>(out[0] + at));
        const vec_t<T> back = in[0] ? load<T>(in[0] + at) : vec_t<T>{};
        store<T>(out[1] + at, r), store<T>(out[2] + at, z), store<T>(out[3] + at, n);
        store<T>(out[4] + at, n + z * (back - n));
    }
}

// in: the four blocks, the four of Ra, tanh c, and c_{t-1}, null at the first step; out: Rc, which
// holds that of the step before, and Rh.
HFCORE_STEP lstm_tangent(int64_t count, const T* const* in, T* const* out) {
    HFCORE_EACH_VECTOR {
        const vec_t<T> i = load<T>(in[0] + at), f = load<T>(in[1] + at), g = load<T>(in[2] + at),
                       o = load<T>(in[3] + at), y = load<T>(in[8] + at);
        const vec_t<T> Ri = i * (1 - i) * load<T>(in[4] + at);
        const vec_t<T> Rg = (1 - g * g) * load<T>(in[6] + at);
        const vec_t<T> Ro = o * (1 - o) * load<T>(in[7] + at);
        vec_t<T> Rc = Ri * g + i * Rg;
        if (in[9]) {
            const vec_t<T> Rf = f * (1 - f) * load<T>(in[5] + at);
            Rc += Rf * load<T>(in[9] + at) + f * load<T>(out[0] + at);
        }
        store<T>(out[0] + at, Rc);
        store<T>(out[1] + at, Ro * y + o * (1 - y * y) * Rc);
    }
}

// in: the four blocks, the four of Ra, h_{t-1} and Rh_{t-1}, null at the first step; out: Rh.
HFCORE_STEP gru_tangent(int64_t count, const T* const* in, T* const* out) {
    HFCORE_EACH_VECTOR {
        const vec_t<T> m = load<T>(in[0] + at), r = load<T>(in[1] + at), z = load<T>(in[2] + at),
                       n = load<T>(in[3] + at);
        const vec_t<T> Rr = r * (1 - r) * load<T>(in[5] + at);
        const vec_t<T> Rz = z * (1 - z) * load<T>(in[6] + at);
        const vec_t<T> inner = load<T>(in[7] + at) + Rr * m + r * load<T>(in[4] + at);
        const vec_t<T> back = in[8] ? load<T>(in[8] + at) : vec_t<T>{};
        const vec_t<T> R_back = in[9] ? load<T>(in[9] + at) : vec_t<T>{};
        const vec_t<T> Rn = (1 - n * n) * inner;
        store<T>(out[0] + at, Rz * (back - n) + ((1 - z) * Rn + z * R_back));
    }
}

// in: the four blocks, ∂L/∂h from outputs, what came through W_hh from the step after, null at the
// last step, tanh c, and c_{t-1}, null at the first; out: the four of ga, and ∂L/∂c_{t-1} past the
// blocks, which holds that of this step.
HFCORE_STEP lstm_back(int64_t count, const T* const* in, T* const* out) {
    HFCORE_EACH_VECTOR {
        const vec_t<T> i = load<T>(in[0] + at), f = load<T>(in[1] + at), g = load<T>(in[2] + at),
                       o = load<T>(in[3] + at), y = load<T>(in[6] + at);
        vec_t<T> gh = load<T>(in[4] + at), past{};
        if (in[5]) {
            gh += load<T>(in[5] + at);
            past = load<T>(out[4] + at);
        }
        const vec_t<T> gc = gh * o * (1 - y * y) + past;
        const vec_t<T> back = in[7] ? load<T>(in[7] + at) : vec_t<T>{};
        store<T>(out[0] + at, gc * g * i * (1 - i)), store<T>(out[1] + at, gc * back * f * (1 - f));
        store<T>(out[2] + at, gc * i * (1 - g * g)), store<T>(out[3] + at, gh * y * o * (1 - o));
        store<T>(out[4] + at, f * gc);
    }
}

// in: the four blocks, ∂L/∂h from outputs, what came through W_hh from the step after, null at the
// last step, and h_{t-1}, null at the first; out: the four of ga, and ∂L/∂h_{t-1} past the blocks,
// which holds that of this step.
HFCORE_STEP gru_back(int64_t count, const T* const* in, T* const* out) {
    HFCORE_EACH_VECTOR {
        const vec_t<T> m = load<T>(in[0] + at), r = load<T>(in[1] + at), z = load<T>(in[2] + at),
                       n = load<T>(in[3] + at);
        vec_t<T> gh = load<T>(in[4] + at);
        if (in[5]) gh += load<T>(in[5] + at) + load<T>(out[4] + at);
        const vec_t<T> back = in[6] ? load<T>(in[6] + at) : vec_t<T>{};
        const vec_t<T> gn = gh * (1 - z) * (1 - n * n);
        store<T>(out[0] + at, gn * r), store<T>(out[1] + at, gn * m * r * (1 - r));
        store<T>(out[2] + at, gh * (back - n) * z * (1 - z)), store<T>(out[3] + at, gn);
        store<T>(out[4] + at, z * gh);
    }
}

#undef HFCORE_STEP
#undef HFCORE_EACH_VECTOR

}  // namespace
}  // namespace HFCORE_ISA
}  // namespace hfcore
