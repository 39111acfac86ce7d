// mma.m16n8k16 on bfloat16 pairs for cuda_on_cpu.h, which includes this: all lanes of a warp hand in
// their fragments, and each computes its four elements of the result.
//
// A tensor core aligns the products and what they are added to at the largest of them, cuts what lies
// beyond the last place of that one and a few bits more, and cuts the sum to float32 (Fasi, Higham,
// Mikaitis and Pranesh 2021). How many bits, and how many products are added at once, differs between
// generations and is no promise of any: the default is pessimistic.
#pragma once

namespace cuda_on_cpu {

inline std::uint32_t to_bits(float x) {
    std::uint32_t u;
    std::memcpy(&u, &x, sizeof u);
    return u;
}

inline float from_bits(std::uint32_t u) {
    float x;
    std::memcpy(&x, &u, sizeof x);
    return x;
}

inline std::uint32_t bf16_bits(float x) {  // to nearest, ties to even
    const std::uint32_t u = to_bits(x);
    return std::isnan(x) ? 0x7fff : (u + 0x7fffu + (u >> 16 & 1u)) >> 16;
}

inline std::uint32_t pack_bf16(float low, float high) {
    return bf16_bits(low) | bf16_bits(high) << 16;
}

struct TensorCore {
    int extra_bits = 1;  // kept below the last place of the largest term
    int products = 8;    // of one addition
};

inline TensorCore& tensor_core() {
    static TensorCore only;
    return only;
}

inline float towards_zero(double x) {
    const float y = static_cast<float>(x);
    const bool beyond = std::isfinite(y) && std::fabs(static_cast<double>(y)) > std::fabs(x);
    return beyond ? std::nextafter(y, 0.0f) : y;
}

// start + the sum of the products, as one addition of a tensor core.
inline float add_truncated(const double* products, int count, float start) {
    double largest = std::fabs(static_cast<double>(start)), exact = start;
    for (int i = 0; i < count; ++i) {
        largest = std::fmax(largest, std::fabs(products[i]));
        exact += products[i];
    }
    if (!std::isfinite(exact) || largest == 0.0) return static_cast<float>(exact);
    const int place = std::ilogb(largest) - 23 - tensor_core().extra_bits;
    const double to_units = std::ldexp(1.0, -place);
    double sum = std::trunc(start * to_units);
    for (int i = 0; i < count; ++i) sum += std::trunc(products[i] * to_units);
    return towards_zero(std::ldexp(sum, place));
}

inline double half_of(std::uint32_t pair, int which) {
    return from_bits(which == 0 ? pair << 16 : pair & 0xffff0000u);
}

// d += a b; the fragments are those of the PTX manual.
inline void mma_bf16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
    Block& all = block();
    const int thread = all.running, here = thread % warp_size;
    const unsigned turn = all.fibers[thread].shuffles++ & 1u;  // a slow lane may still read the last
    std::memcpy(all.fibers[thread].fragments[turn], a, sizeof a);
    std::memcpy(all.fibers[thread].fragments[turn] + 4, b, sizeof b);
    suspend(State::at_shuffle);
    const Fiber* const warp = &all.fibers[thread - here];
    for (int i = 0; i < 4; ++i) {
        const int row = here / 4 + i / 2 * 8, column = here % 4 * 2 + i % 2;
        double products[16];
        for (int k = 0; k < 16; ++k) {
            const std::uint32_t left =
                warp[row % 8 * 4 + k % 8 / 2].fragments[turn][row / 8 + k / 8 * 2];
            const std::uint32_t right = warp[column * 4 + k % 8 / 2].fragments[turn][4 + k / 8];
            products[k] = half_of(left, k % 2) * half_of(right, k % 2);
        }
        const int at_once = tensor_core().products;
        for (int k = 0; k < 16; k += at_once) d[i] = add_truncated(products + k, at_once, d[i]);
    }
}

}  // namespace cuda_on_cpu
