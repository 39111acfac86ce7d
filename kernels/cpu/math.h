// Vectors of the instruction set being compiled for, and exp, log1p, tanh and logistic on them.
//
// No libm call and no fast-math: NaN, infinities, signed zeros and denormals behave as in libm,
// errors stay below 3 ulp (tests/kernels/test_cpu_math.py measures them). Every name lives in the
// namespace of its instruction set, so the linker never merges code of two sets.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX__)
#include <immintrin.h>
#endif

#ifndef HFCORE_ISA
#define HFCORE_ISA baseline
#endif

#if defined(__AVX512F__)
#define HFCORE_VECTOR_BYTES 64
#elif defined(__AVX2__) || defined(__AVX__)
#define HFCORE_VECTOR_BYTES 32
#else
#define HFCORE_VECTOR_BYTES 16
#endif

#define HFCORE_INLINE __attribute__((always_inline)) static inline
#define HFCORE_INLINE_MEMBER __attribute__((always_inline)) inline

namespace hfcore {
namespace HFCORE_ISA {

// ---- vectors

template <class T>
struct simd;

template <>
struct simd<float> {
    static constexpr int lanes = HFCORE_VECTOR_BYTES / sizeof(float);
    typedef float vec __attribute__((vector_size(HFCORE_VECTOR_BYTES)));
    typedef std::int32_t ivec __attribute__((vector_size(HFCORE_VECTOR_BYTES)));
    typedef std::uint32_t uvec __attribute__((vector_size(HFCORE_VECTOR_BYTES)));
};

template <>
struct simd<double> {
    static constexpr int lanes = HFCORE_VECTOR_BYTES / sizeof(double);
    typedef double vec __attribute__((vector_size(HFCORE_VECTOR_BYTES)));
    typedef std::int64_t ivec __attribute__((vector_size(HFCORE_VECTOR_BYTES)));
    typedef std::uint64_t uvec __attribute__((vector_size(HFCORE_VECTOR_BYTES)));
};

template <class T>
using vec_t = typename simd<T>::vec;
template <class T>
using ivec_t = typename simd<T>::ivec;
template <class T>
using uvec_t = typename simd<T>::uvec;

template <class T>
HFCORE_INLINE vec_t<T> load(const T* p) {
    vec_t<T> v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

template <class T>
HFCORE_INLINE void store(T* p, vec_t<T> v) {
    std::memcpy(p, &v, sizeof v);
}

#if defined(__AVX512F__)
HFCORE_INLINE __mmask16 first_lanes(std::int64_t n) {
    return static_cast<__mmask16>((std::uint32_t{1} << n) - 1);
}
#elif defined(__AVX__)
// Ones in the first n lanes of 8 of 4 bytes.
HFCORE_INLINE __m256i first_lanes(std::int64_t n) {
    alignas(64) static constexpr std::int32_t ones[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(ones + 8 - n));
}
#endif

// The first n lanes, 0 <= n <= lanes; the others are zero. A call of memcpy takes longer than the
// rest of a short row.
template <class T>
HFCORE_INLINE vec_t<T> load_first(const T* p, std::int64_t n) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4)
        return (vec_t<T>)_mm512_maskz_loadu_ps(first_lanes(n), p);
    else
        return (vec_t<T>)_mm512_maskz_loadu_pd(first_lanes(n), p);
#else
    if (n == simd<T>::lanes) return load<T>(p);
#if defined(__AVX__)
    if constexpr (sizeof(T) == 4)
        return (vec_t<T>)_mm256_maskload_ps(p, first_lanes(n));
    else
        return (vec_t<T>)_mm256_maskload_pd(p, first_lanes(2 * n));
#else
    vec_t<T> v = {};
    std::memcpy(&v, p, static_cast<std::size_t>(n) * sizeof(T));
    return v;
#endif
#endif
}

#if defined(__AVX__) && !defined(__AVX512F__)
// The first n of 7 or 3 lanes in pieces: a masked store of AVX takes some 40 micro-operations where
// AMD makes the processor.
HFCORE_INLINE void store_pieces(float* p, __m256 x, std::int64_t n) {
    __m128 rest = _mm256_castps256_ps128(x);
    if (n & 4) {
        _mm_storeu_ps(p, rest);
        rest = _mm256_extractf128_ps(x, 1);
        p += 4;
    }
    if (n & 2) {
        _mm_storel_pi(reinterpret_cast<__m64*>(p), rest);
        rest = _mm_movehl_ps(rest, rest);
        p += 2;
    }
    if (n & 1) _mm_store_ss(p, rest);
}
HFCORE_INLINE void store_pieces(double* p, __m256d x, std::int64_t n) {
    __m128d rest = _mm256_castpd256_pd128(x);
    if (n & 2) {
        _mm_storeu_pd(p, rest);
        rest = _mm256_extractf128_pd(x, 1);
        p += 2;
    }
    if (n & 1) _mm_store_sd(p, rest);
}
#endif

template <class T>
HFCORE_INLINE void store_first(T* p, vec_t<T> v, std::int64_t n) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4)
        _mm512_mask_storeu_ps(p, first_lanes(n), (__m512)v);
    else
        _mm512_mask_storeu_pd(p, first_lanes(n), (__m512d)v);
#else
    if (n == simd<T>::lanes) return store<T>(p, v);
#if defined(__AVX__)
    if constexpr (sizeof(T) == 4)
        store_pieces(p, (__m256)v, n);
    else
        store_pieces(p, (__m256d)v, n);
#else
    std::memcpy(p, &v, static_cast<std::size_t>(n) * sizeof(T));
#endif
#endif
}

// A store past the caches, for results too large to stay there. p is the start of a cache line where
// `streams` holds, that is where a vector is a whole line; elsewhere this is `store`. A thread ends with
// `end_of_stream` before another one reads.
constexpr bool streams = HFCORE_VECTOR_BYTES == 64;
template <class T>
HFCORE_INLINE void stream(T* p, vec_t<T> v) {
#if defined(__AVX512F__)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(p), (__m512i)v);
#else
    store<T>(p, v);
#endif
}
HFCORE_INLINE void end_of_stream() {
#if defined(__AVX512F__)
    _mm_sfence();
#endif
}

template <class T>
HFCORE_INLINE vec_t<T> splat(T a) {
    return vec_t<T>{} + a;  // -0.0 becomes +0.0; no caller depends on it
}

template <class T>
HFCORE_INLINE vec_t<T> select(ivec_t<T> where, vec_t<T> yes, vec_t<T> no) {
    return where ? yes : no;
}

// ---- constants

template <class T>
struct math;

template <>
struct math<float> {
    static constexpr int mantissa_bits = 23;
    static constexpr std::int32_t bias = 127;
    // 1.5*2^23: adding it leaves the rounded integer in the low mantissa bits.
    static constexpr float round_magic = 0x1.8p23f;
    static constexpr std::int32_t round_magic_bits = 0x4b400000;
    static constexpr float log2_e = 0x1.715476p0f;
    // ln2 split so that n*hi is exact for every exponent n.
    static constexpr float ln2_hi = 0x1.62e4p-1f;
    static constexpr float ln2_lo = 0x1.7f7d1cp-20f;
    // Outside, exp is 0 or infinite.
    static constexpr float exp_low = -104.0f;
    static constexpr float exp_high = 89.0f;
    // Beyond it tanh rounds to 1.
    static constexpr float tanh_high = 10.0f;
    // Below it log1p(u) rounds to u.
    static constexpr float log1p_tiny = 0x1p-26f;
    static constexpr std::int32_t sqrt_half_bits = 0x3f3504f3;
    // Bits of 1 less those of sqrt(1/2); unsigned, as the sum wraps for NaN.
    static constexpr std::uint32_t one_above_sqrt_half = 0x3f800000 - 0x3f3504f3;
    static constexpr std::int32_t mantissa_mask = 0x007fffff;
    static constexpr std::uint32_t magnitude_mask = 0x7fffffff;
    // (exp(r) - 1 - r)/r^2 on |r| <= ln2/2, lowest order first; error 1.7e-10.
    static constexpr int exp_terms = 6;
    static constexpr float exp_poly[exp_terms] = {
        0.50000000134658092f,   0.16666666681623231f,  0.041666464925285905f,
        0.0083333109254809008f, 0.001393364999630925f, 0.00019890990824673654f};
    // (log((1+s)/(1-s)) - 2s)/s^3 in z = s^2 for sqrt(1/2) <= (1+s)/(1-s) <= sqrt(2); error 5.5e-9.
    static constexpr int log_terms = 3;
    static constexpr float log_poly[log_terms] = {
        0.66666685045156029f, 0.39988778282162808f, 0.29580053043188442f};
};

template <>
struct math<double> {
    static constexpr int mantissa_bits = 52;
    static constexpr std::int64_t bias = 1023;
    static constexpr double round_magic = 0x1.8p52;
    static constexpr std::int64_t round_magic_bits = 0x4338000000000000;
    static constexpr double log2_e = 0x1.71547652b82fep0;
    static constexpr double ln2_hi = 0x1.62e42feep-1;
    static constexpr double ln2_lo = 0x1.a39ef35793c76p-33;
    static constexpr double exp_low = -746.0;
    static constexpr double exp_high = 710.0;
    static constexpr double tanh_high = 20.0;
    static constexpr double log1p_tiny = 0x1p-55;
    static constexpr std::int64_t sqrt_half_bits = 0x3fe6a09e667f3bcd;
    static constexpr std::uint64_t one_above_sqrt_half = 0x3ff0000000000000 - 0x3fe6a09e667f3bcd;
    static constexpr std::int64_t mantissa_mask = 0x000fffffffffffff;
    static constexpr std::uint64_t magnitude_mask = 0x7fffffffffffffff;
    static constexpr int exp_terms = 10;  // error 1.3e-17
    static constexpr double exp_poly[exp_terms] = {
        0.50000000000000010221,   0.16666666666666667453,   0.041666666666624127873,
        0.0083333333333300618325, 0.0013888888917213716901, 0.00019841269863053616878,
        2.4801521295954375131e-5, 2.7557268459997064772e-6, 2.7620088445409748161e-7,
        2.5100385495510319078e-8};
    static constexpr int log_terms = 7;  // error 9.1e-18
    static constexpr double log_poly[log_terms] = {
        0.66666666666666696883, 0.39999999999899443233, 0.28571428626003268742,
        0.22222211130259877029, 0.18182889455674946039, 0.15331710618210771568,
        0.14616585424888621989};
};

template <class T>
HFCORE_INLINE vec_t<T> vabs(vec_t<T> x) {
    return (vec_t<T>)((uvec_t<T>)x & math<T>::magnitude_mask);
}

template <class T, int terms>
HFCORE_INLINE vec_t<T> polynomial(vec_t<T> x, const T (&c)[terms]) {
    vec_t<T> y = splat<T>(c[terms - 1]);
    for (int i = terms - 2; i >= 0; --i) y = y * x + c[i];
    return y;
}

// ---- exp, tanh, logistic

// e^x = 2^n (1 + p) with |p| < 0.42; x within math<T>::exp_low .. exp_high or NaN.
template <class T>
struct ReducedExp {
    vec_t<T> p;
    ivec_t<T> n;
};

template <class T>
HFCORE_INLINE ReducedExp<T> reduce_exp(vec_t<T> x) {
    using M = math<T>;
    const vec_t<T> shifted = x * M::log2_e + M::round_magic;
    const vec_t<T> n = shifted - M::round_magic;
    const vec_t<T> r = (x - n * M::ln2_hi) - n * M::ln2_lo;
    const vec_t<T> p = r + r * r * polynomial<T>(r, M::exp_poly);
    return {p, (ivec_t<T>)shifted - M::round_magic_bits};
}

// 2^n for -bias < n <= bias.
template <class T>
HFCORE_INLINE vec_t<T> power_of_two(ivec_t<T> n) {
    return (vec_t<T>)((uvec_t<T>)(n + math<T>::bias) << math<T>::mantissa_bits);
}

template <class T>
HFCORE_INLINE vec_t<T> vexp(vec_t<T> x) {
    using M = math<T>;
    // Comparisons keep NaN on the unclamped side.
    x = select<T>(x > M::exp_high, splat<T>(M::exp_high), x);
    x = select<T>(x < M::exp_low, splat<T>(M::exp_low), x);
    const ReducedExp<T> e = reduce_exp<T>(x);
    // Two factors: the result may be denormal or infinite where 2^n alone is not a number.
    const ivec_t<T> half = e.n >> 1;
    return (1 + e.p) * power_of_two<T>(half) * power_of_two<T>(e.n - half);
}

template <class T>
HFCORE_INLINE vec_t<T> vtanh(vec_t<T> x) {
    using M = math<T>;
    vec_t<T> a = vabs<T>(x);
    const uvec_t<T> sign = (uvec_t<T>)x ^ (uvec_t<T>)a;
    a = select<T>(a > M::tanh_high, splat<T>(M::tanh_high), a);
    // tanh a = u/(u + 2), u = e^{2a} - 1 = 2^n p + (2^n - 1): no cancellation near zero.
    const ReducedExp<T> e = reduce_exp<T>(a + a);
    const vec_t<T> scale = power_of_two<T>(e.n);
    const vec_t<T> u = scale * e.p + (scale - 1);
    return (vec_t<T>)((uvec_t<T>)(u / (u + 2)) | sign);
}

template <class T>
HFCORE_INLINE vec_t<T> vlogistic(vec_t<T> x) {
    const vec_t<T> e = vexp<T>(-vabs<T>(x));
    return select<T>(x < 0, e, splat<T>(1)) / (1 + e);
}

// ---- log1p

template <class T>
HFCORE_INLINE vec_t<T> vlog1p(vec_t<T> u) {
    using M = math<T>;
    const vec_t<T> w = 1 + u;
    // w = 2^k m with sqrt(1/2) <= m < sqrt(2).
    const ivec_t<T> bits = (ivec_t<T>)((uvec_t<T>)w + M::one_above_sqrt_half);
    const ivec_t<T> k = (bits >> M::mantissa_bits) - M::bias;
    const vec_t<T> m = (vec_t<T>)((bits & M::mantissa_mask) + M::sqrt_half_bits);
    // What rounding 1 + u lost, to first order; with k = 0 nothing is lost as u itself is used.
    const vec_t<T> lost = select<T>(u > 1, 1 - (w - u), u - (w - 1));
    const ivec_t<T> exact = k == 0;
    const vec_t<T> f = select<T>(exact, u, m - 1);
    const vec_t<T> correction = select<T>(exact, vec_t<T>{}, lost / w);
    const vec_t<T> s = f / (2 + f);
    const vec_t<T> z = s * s;
    const vec_t<T> half = f * f * T(0.5);
    const vec_t<T> kf = __builtin_convertvector(k, vec_t<T>);
    const vec_t<T> tail = s * (half + z * polynomial<T>(z, M::log_poly)) +
                                                (kf * M::ln2_lo + correction);
    vec_t<T> y = kf * M::ln2_hi - ((half - tail) - f);
    // Tiny arguments keep their sign and denormals, infinity stays.
    y = select<T>((vabs<T>(u) < M::log1p_tiny) | (u == T(__builtin_inf())), u, y);
    const vec_t<T> outside = select<T>(u == T(-1), splat<T>(T(-__builtin_inf())),
                                     splat<T>(T(__builtin_nan(""))));
    return select<T>(u > T(-1), y, outside);
}

}  // namespace HFCORE_ISA
}  // namespace hfcore
