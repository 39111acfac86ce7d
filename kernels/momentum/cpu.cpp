// The momentum update and its lookahead point, one pass over memory each.
//
// An element's bits depend on neither its place nor its neighbours: what is left of a block behind
// the whole vectors is padded to one and goes through the very same loop, so that its products and
// sums are fused or not as all others are. A net in a group and a parameter in a flat buffer come
// out as they do alone.
#include "kernels/momentum/cpu.h"

#include "kernels/cpu/math.h"
#include "kernels/cpu/parallel.h"

namespace hfcore {
namespace HFCORE_ISA {
namespace {

using std::int64_t;

constexpr int64_t block_elements = 8192;
// Below this waking a second thread costs more than it saves.
constexpr int64_t serial_elements = 32768;

// One net's stretch of elements.
template <class T>
struct Stretch {
    T *theta, *velocity, *ahead;
    const T* gradient;
};

template <class T>
struct Coefficients {
    T learning_rate, momentum, lookahead, l2;
};

// n is a whole number of vectors. Not inlined: one copy of the arithmetic for vectors and rests.
template <class T, bool has_l2, bool has_ahead>
__attribute__((noinline)) void update_vectors(Stretch<T> at, const Coefficients<T> c, int64_t n) {
    constexpr int lanes = simd<T>::lanes;
    for (int64_t i = 0; i < n; i += lanes) {
        const vec_t<T> theta = load<T>(at.theta + i);
        vec_t<T> g = load<T>(at.gradient + i);
        if constexpr (has_l2) g += (has_ahead ? load<T>(at.ahead + i) : theta) * c.l2;
        const vec_t<T> v = load<T>(at.velocity + i) * c.momentum - g * c.learning_rate;
        const vec_t<T> moved = theta + v;
        store<T>(at.velocity + i, v);
        store<T>(at.theta + i, moved);
        if constexpr (has_ahead) store<T>(at.ahead + i, moved + v * c.lookahead);
    }
}

template <class T, bool has_l2, bool has_ahead>
void update_stretch(Stretch<T> at, const Coefficients<T> c, int64_t n) {
    constexpr int lanes = simd<T>::lanes;
    const int64_t rest = n % lanes, whole = n - rest;
    update_vectors<T, has_l2, has_ahead>(at, c, whole);
    if (rest == 0) return;
    const std::size_t bytes = static_cast<std::size_t>(rest) * sizeof(T);
    T theta[lanes] = {}, velocity[lanes] = {}, gradient[lanes] = {}, ahead[lanes] = {};
    std::memcpy(theta, at.theta + whole, bytes);
    std::memcpy(velocity, at.velocity + whole, bytes);
    std::memcpy(gradient, at.gradient + whole, bytes);
    if constexpr (has_l2 && has_ahead) std::memcpy(ahead, at.ahead + whole, bytes);
    update_vectors<T, has_l2, has_ahead>({theta, velocity, ahead, gradient}, c, lanes);
    std::memcpy(at.theta + whole, theta, bytes);
    std::memcpy(at.velocity + whole, velocity, bytes);
    if constexpr (has_ahead) std::memcpy(at.ahead + whole, ahead, bytes);
}

template <class T>
void update_block(const MomentumArrays<T>& a, int64_t g, int64_t from, int64_t n) {
    const int64_t offset = g * a.N + from;
    const Stretch<T> at{a.theta + offset, a.velocity + offset,
                        a.ahead ? a.ahead + offset : nullptr, a.gradient.at(g) + from};
    const Coefficients<T> c{T(a.learning_rate[g]), T(a.momentum[g]), T(a.lookahead[g]),
                            a.l2 ? T(a.l2[g]) : T(0)};
    if (a.ahead)
        (a.l2 ? update_stretch<T, true, true> : update_stretch<T, false, true>)(at, c, n);
    else
        (a.l2 ? update_stretch<T, true, false> : update_stretch<T, false, false>)(at, c, n);
}

// use(g, from, count) for every block of every active net.
template <class A, class F>
void for_blocks(const A& a, const F& use) {
    const int64_t blocks = (a.N + block_elements - 1) / block_elements;
    const auto block = [&](int64_t task, int) {
        const int64_t g = task / blocks, from = task % blocks * block_elements;
        if (a.active && !a.active[g]) return;
        use(g, from, a.N - from < block_elements ? a.N - from : block_elements);
    };
    // A velocity whose gradient is zero decays into them and stays there.
    const WithControlWord flushed(control_word(Denormals::flush));
    if (a.threads == 1 || a.N < (serial_elements + a.G - 1) / a.G) {
        for (int64_t task = 0; task < a.G * blocks; ++task) block(task, 0);
        return;
    }
    parallel_for(a.G * blocks, a.threads, block);
}

template <class T>
void update(const MomentumArrays<T>& a) {
    for_blocks(a, [&](int64_t g, int64_t from, int64_t n) { update_block(a, g, from, n); });
}

// As `ahead` of an update: the same product and sum.
template <class T>
__attribute__((noinline)) void ahead_vectors(const T* theta, const T* velocity, T momentum, T* out,
                                             int64_t n) {
    for (int64_t i = 0; i < n; i += simd<T>::lanes)
        store<T>(out + i, load<T>(theta + i) + load<T>(velocity + i) * momentum);
}

template <class T>
void lookahead(const LookaheadArrays<T>& a) {
    constexpr int lanes = simd<T>::lanes;
    for_blocks(a, [&](int64_t g, int64_t from, int64_t n) {
        const int64_t at = g * a.N + from, rest = n % lanes, whole = n - rest, end = at + whole;
        const T momentum = T(a.momentum[g]);
        ahead_vectors(a.theta + at, a.velocity + at, momentum, a.out + at, whole);
        if (rest == 0) return;
        const std::size_t bytes = static_cast<std::size_t>(rest) * sizeof(T);
        T theta[lanes] = {}, velocity[lanes] = {};
        std::memcpy(theta, a.theta + end, bytes);
        std::memcpy(velocity, a.velocity + end, bytes);
        ahead_vectors<T>(theta, velocity, momentum, theta, lanes);
        std::memcpy(a.out + end, theta, bytes);
    });
}

}  // namespace

template <class T>
const MomentumKernels<T>& momentum_kernels() {
    static const MomentumKernels<T> kernels = {update<T>, lookahead<T>};
    return kernels;
}
template const MomentumKernels<float>& momentum_kernels<float>();
template const MomentumKernels<double>& momentum_kernels<double>();

}  // namespace HFCORE_ISA
}  // namespace hfcore
