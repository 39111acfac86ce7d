// e(t) and e'(t) from h = e(t); the numbers are those of bindings.recurrence.NONLINEARITIES.
#pragma once

#include "kernels/gpu/platform.cuh"

namespace hfcore_gpu {

constexpr int kTanh = 0;
constexpr int kLogistic = 1;
constexpr int kRelu = 2;
// The factor array already holds d; nothing to derive.
constexpr int kGiven = 3;

// tanh to about 3 ulp without a branch, so that a thread's values overlap: tanhf takes one of two
// ways, and the lanes of a warp wait for both. NaN stays.
__device__ __forceinline__ float hyperbolic_tangent(float t) {
    const float size = fabsf(t), square = t * t;
    constexpr float kTwoLog2E = 2.885390082f;
    const float far = 1.0f - 2.0f * fast_reciprocal(fast_exp2(kTwoLog2E * size) + 1.0f);
    // Below 0.55 a fit of tanh(t) / t, off by 4e-8.
    float near = 0.016458701f;
    near = near * square - 0.05268411f;
    near = near * square + 0.13320941f;
    near = near * square - 0.33332959f;
    near = near * square * t + t;
    return size < 0.55f ? near : copysignf(far, t);
}

// In place, on what one thread holds; which function it is is asked once.
template <int kCount>
__device__ __forceinline__ void activate(float (&t)[kCount], long long nonlinearity) {
    const int which = static_cast<int>(nonlinearity);
    if (which == kTanh) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) t[i] = hyperbolic_tangent(t[i]);
    } else if (which == kLogistic) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) t[i] = 1.0f / (1.0f + expf(-t[i]));
    } else {
#pragma unroll
        for (int i = 0; i < kCount; ++i) t[i] = t[i] < 0.0f ? 0.0f : t[i];  // NaN stays
    }
}

// d from h, or from d itself.
template <int kCount>
__device__ __forceinline__ void differentiate(const float (&h)[kCount], long long nonlinearity,
                                              float (&d)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) d[i] = h[i];
    const int which = static_cast<int>(nonlinearity);
    if (which == kTanh) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) d[i] = 1.0f - h[i] * h[i];
    } else if (which == kLogistic) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) d[i] = h[i] * (1.0f - h[i]);
    } else if (which == kRelu) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) d[i] = h[i] > 0.0f ? 1.0f : 0.0f;
    }
}

}  // namespace hfcore_gpu
