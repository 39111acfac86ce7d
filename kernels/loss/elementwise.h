// The losses that are sums over outputs, over runs of elements.
#pragma once

#include "kernels/cpu/runs.h"
#include "kernels/loss/cpu.h"

namespace hfcore {
namespace HFCORE_ISA {
namespace {

// Losses of outputs s at targets y in float64, of any kind but softmax.
template <class T>
void elementwise_losses(const LossFormula& loss, const T* s, const T* y, int64_t n, double* losses) {
    using vec = vec_t<double>;
    if (loss.kind == LossKind::squared) {
        map_wide<T>(
            losses, n, [](vec, vec a, vec b) { return 0.5 * (a - b) * (a - b); }, s, y);
        return;
    }
    if (loss.kind == LossKind::huber) {
        const double delta = loss.delta;
        map_wide<T>(
            losses, n,
            [delta](vec, vec a, vec b) {
                const vec d = vabs<double>(a - b);
                return select<double>(d <= delta, 0.5 * d * d, delta * (d - 0.5 * delta));
            },
            s, y);
        return;
    }
    if (loss.kind == LossKind::poisson) {
        map_wide<T>(
            losses, n, [](vec, vec a, vec b) { return vexp<double>(a) - b * a; }, s, y);
        return;
    }
    // softplus(s) - y s, with softplus(s) = max(s, 0) + log1p(exp(-|s|)); exp runs by itself
    // because one chain of both is too long to overlap with the next.
    map_wide<T>(
        losses, n, [](vec, vec a, vec) { return vexp<double>(-vabs<double>(a)); }, s, y);
    map_wide<T>(
        losses, n,
        [](vec e, vec a, vec b) {
            return select<double>(a > 0.0, a, vec{}) - b * a + vlog1p<double>(e);
        },
        s, y);
}

// scale·∂L/∂s; out may be s.
template <class T>
void elementwise_gradient(const LossFormula& loss, const T* s, const T* y, T scale, int64_t n,
                          T* out) {
    using vec = vec_t<T>;
    const T delta = T(loss.delta);
    switch (loss.kind) {
    case LossKind::squared:
        map<T>(out, n, [scale](vec a, vec b) { return (a - b) * scale; }, s, y);
        break;
    case LossKind::huber:
        map<T>(
            out, n,
            [scale, delta](vec a, vec b) {
                const vec d = a - b;
                const vec end = select<T>(d > T(0), splat<T>(delta), splat<T>(-delta));
                return select<T>(vabs<T>(d) > delta, end, d) * scale;
            },
            s, y);
        break;
    case LossKind::poisson:
        map<T>(out, n, [scale](vec a, vec b) { return (vexp<T>(a) - b) * scale; }, s, y);
        break;
    default:
        map<T>(out, n, [scale](vec a, vec b) { return (vlogistic<T>(a) - b) * scale; }, s, y);
    }
}

// The diagonal of L''; out may be s. Targets are read for Huber's loss alone.
template <class T>
void elementwise_curvature(const LossFormula& loss, const T* s, const T* y, int64_t n, T* out) {
    using vec = vec_t<T>;
    const T delta = T(loss.delta);
    switch (loss.kind) {
    case LossKind::squared:
        map<T>(out, n, [](vec) { return splat<T>(1); }, s);
        break;
    case LossKind::huber:
        map<T>(
            out, n,
            [delta](vec a, vec b) {
                const vec d = a - b, inside = select<T>(vabs<T>(d) <= delta, splat<T>(1), vec{});
                return select<T>(d == d, inside, d);  // NaN stays
            },
            s, y);
        break;
    case LossKind::poisson:
        map<T>(out, n, [](vec a) { return vexp<T>(a); }, s);
        break;
    default:
        // p(1 - p) without the cancellation of 1 - p
        map<T>(
            out, n,
            [](vec a) {
                const vec e = vexp<T>(-vabs<T>(a));
                return e / ((1 + e) * (1 + e));
            },
            s);
    }
}

// Σ of the logistic losses of outputs s with e = exp(-|s|): the logarithms of a run are one, that of
// the product of the 1 + e, kept as what it is above 1 so that small losses are not rounded away.
template <class T>
double sum_of_logistic_losses(const T* s, const T* y, const T* e, int64_t n) {
    using vec = vec_t<double>;
    constexpr int64_t lanes = simd<double>::lanes, count = Sums<double>::count;
    constexpr int64_t run = 512 * count;  // (1 + e)^512 is at most 2^512
    double total = 0.0;
    for (int64_t from = 0; from < n; from += run) {
        const int64_t end = n - from < run ? n : from + run;
        Sums<double> linear, above[2];
        const auto add = [&](Sums<double>& products, int64_t i, const auto& at) {
#pragma GCC unroll 4
            for (int p = 0; p < linear.parts; ++p) {
                const vec a = at(s, i + p * lanes), b = at(y, i + p * lanes);
                const vec x = at(e, i + p * lanes);
                vec& product = products.part[p];
                linear.part[p] += select<double>(a > 0.0, a, vec{}) - b * a;
                product += x + product * x;
            }
        };
        const auto all = [](const T* p, int64_t i) { return widen<T>(load_narrow<T>(p + i)); };
        const auto first = [end](const T* p, int64_t i) {
            return widen<T>(load_narrow_first<T>(p + i, lanes_left(end, i, lanes)));
        };
        int64_t i = from;
        for (; i + 2 * count <= end; i += 2 * count) {
            add(above[0], i, all);
            add(above[1], i + count, all);
        }
        for (; i < end; i += count) add(above[0], i, first);
#pragma GCC unroll 4
        for (int p = 0; p < linear.parts; ++p)
            linear.part[p] = linear.part[p] + vlog1p<double>(above[0].part[p]) +
                             vlog1p<double>(above[1].part[p]);
        total += linear.total();
    }
    return total;
}

// Σ of the losses of the first `counted` of n outputs s, and scale·∂L/∂s of all; out may be s, work
// is n elements, in whole vectors, and n float64 behind them.
template <class T>
double elementwise_pass(LossKind kind, const T* s, const T* y, T scale, int64_t counted, int64_t n,
                        T* work, T* out) {
    using vec = vec_t<T>;
    if (kind == LossKind::squared) {
        double* losses = reinterpret_cast<double*>(work + n);
        elementwise_losses(kind, s, y, counted, losses);
        elementwise_gradient(kind, s, y, scale, n, out);
        return sum_of(losses, counted);
    }
    map<T>(work, n, [](vec a) { return vexp<T>(-vabs<T>(a)); }, s);
    const double sum = sum_of_logistic_losses(s, y, work, counted);
    map<T>(
        out, n,
        [scale](vec a, vec b, vec e) {
            return (select<T>(a < T(0), e, splat<T>(1)) / (1 + e) - b) * scale;
        },
        s, y, work);
    return sum;
}

}  // namespace
}  // namespace HFCORE_ISA
}  // namespace hfcore
