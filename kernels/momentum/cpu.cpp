// The momentum update and its lookahead point, one pass over memory each.
#include "kernels/momentum/cpu.h"

#include "kernels/cpu/parallel.h"
#include "kernels/momentum/update.h"

namespace hfcore {
namespace HFCORE_ISA {
namespace {

using std::int64_t;

constexpr int64_t block_elements = 8192;

template <class T>
void update_block(const MomentumArrays<T>& a, int64_t g, int64_t from, int64_t n) {
    const int64_t offset = g * a.N + from;
    const Stretch<T> at{a.theta + offset, a.velocity + offset,
                        a.ahead ? a.ahead + offset : nullptr, a.gradient.at(g) + from};
    const Coefficients<T> c{T(a.learning_rate[g]), T(a.momentum[g]), T(a.lookahead[g]),
                            a.l2 ? T(a.l2[g]) : T(0)};
    const auto rows = a.ahead ? (a.l2 ? update_rows<T, true, true> : update_rows<T, false, true>)
                              : (a.l2 ? update_rows<T, true, false> : update_rows<T, false, false>);
    rows(at, c, n, 1, 0, 0);
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

template <class T>
void lookahead(const LookaheadArrays<T>& a) {
    for_blocks(a, [&](int64_t g, int64_t from, int64_t n) {
        const int64_t at = g * a.N + from;
        look_ahead(a.theta + at, a.velocity + at, T(a.momentum[g]), a.out + at, n);
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
