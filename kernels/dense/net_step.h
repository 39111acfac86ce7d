// Where one net's gradient is taken, and what becomes of it.
#pragma once

#include "kernels/cpu/gemm.h"
#include "kernels/momentum/update.h"

namespace hfcore {
namespace HFCORE_ISA {
namespace {

// Parameters of one net, or the point θ + μv, which the units make as they go forward.
template <class T>
struct Point {
    const T* theta;
    const T* velocity = nullptr;  // null: θ itself
    T momentum = 0;
    T* ahead = nullptr;
    const T* at() const { return velocity ? ahead : theta; }
    void reach(int64_t from, int64_t n) const {
        if (velocity) look_ahead(theta + from, velocity + from, momentum, ahead + from, n);
    }
    // What reach() will read, on its way into the cache.
    void fetch(int64_t from, int64_t to) const {
        for (int64_t i = from; i < to; i += 64 / sizeof(T)) {
            __builtin_prefetch(theta + i, 0, 2);
            if (velocity) __builtin_prefetch(velocity + i, 0, 2);
        }
    }
};

// What becomes of one net's gradient: it is kept, or moves the parameters, or both.
template <class T>
struct Outcome {
    T* gradient;         // or null
    T* theta = nullptr;  // null: nothing moves
    T* velocity = nullptr;
    T* point = nullptr;  // where the gradient was taken, beside theta; null: at theta
    Coefficients<T> rates = {};
    bool has_l2 = false;

    bool moves() const { return theta != nullptr; }
    Outcome kept() const { return {gradient}; }
    // g [rows][apart] of n parameters a row, the first from `at` on, the next `stride` behind.
    void take(int64_t at, int64_t n, int64_t rows, int64_t stride, const T* g, int64_t apart) const {
        if (gradient)
            for (int64_t j = 0; j < rows; ++j)
                std::memcpy(gradient + at + j * stride, g + j * apart,
                            static_cast<std::size_t>(n) * sizeof(T));
        const Stretch<T> here{theta + at, velocity + at, point ? point + at : nullptr, g};
        const auto update = !has_l2 ? update_rows<T, false, false>
                            : point ? update_rows<T, true, true>
                                    : update_rows<T, true, false>;
        update(here, rates, n, rows, stride, apart);
    }
    // What take() will touch, on its way while the gradient is computed.
    void fetch(int64_t at, int64_t n, int64_t rows, int64_t stride) const {
        constexpr int64_t line = 64 / sizeof(T);
        for (int64_t j = 0; j < rows; ++j, at += stride)
            for (int64_t i = 0; i < n; i += line) {
                __builtin_prefetch(theta + at + i, 1);
                __builtin_prefetch(velocity + at + i, 1);
            }
    }
};

}  // namespace
}  // namespace HFCORE_ISA
}  // namespace hfcore
