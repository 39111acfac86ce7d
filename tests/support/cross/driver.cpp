// The recurrence kernels against plain loops, on whatever machine this is compiled for: prints the worst
// relative error of every result and returns 1 when one is beyond what rounding allows.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <random>
#include <vector>

#include "kernels/recurrence/cpu.h"

using namespace hfcore;
using std::int64_t;
template <class T>
using Vec = std::vector<T>;

struct Net {
    RnnDims d;
    Vec<double> W_hx, W_hh, W_yh, b_h, b_init, b_y, x, v, c;
    std::mt19937 draws{1};

    Vec<double> draw(int64_t count, double scale) {
        std::normal_distribution<double> normal(0.0, scale);
        Vec<double> values(count);
        for (double& value : values) value = static_cast<float>(normal(draws));
        return values;
    }
    explicit Net(const RnnDims& dims) : d(dims) {
        W_hx = draw(d.H * d.n, 0.5), W_hh = draw(d.H * d.H, 0.9 / std::sqrt(double(d.H)));
        W_yh = draw(d.k * d.H, 0.3), b_h = draw(d.H, 0.1), b_init = draw(d.H, 0.1);
        b_y = draw(d.k, 0.1), x = draw(d.T * d.B * d.n, 1.0), v = draw(d.numel(), 0.3);
        c = draw(d.T * d.B * d.k, 1.0);
        for (double& value : c) value = std::fabs(value);
    }
};

// Σ_i M[row][i]·z[i]
double dot(const double* row, const double* z, int64_t n) {
    double sum = 0.0;
    for (int64_t i = 0; i < n; ++i) sum += row[i] * z[i];
    return sum;
}

// h [T][B][H], s [T][B][k] and the Gauss-Newton product of v with L'' = diag(c).
void plain(const Net& net, Vec<double>& h, Vec<double>& s, Vec<double>& product) {
    const RnnDims& d = net.d;
    const int64_t H = d.H, n = d.n, k = d.k;
    const double *v_hx = net.v.data(), *v_hh = v_hx + H * n, *v_yh = v_hh + H * H,
                 *v_bh = v_yh + k * H, *v_init = v_bh + H, *v_by = v_init + H;
    product.assign(d.numel(), 0.0);
    double *g_hx = product.data(), *g_hh = g_hx + H * n, *g_yh = g_hh + H * H, *g_bh = g_yh + k * H,
           *g_init = g_bh + H, *g_by = g_init + H;
    h.assign(d.T * d.B * H, 0.0), s.assign(d.T * d.B * k, 0.0);
    const Vec<double> none(H, 0.0);
    for (int64_t b = 0; b < d.B; ++b) {
        Vec<double> Rh(d.T * H), gs(d.T * k), gt(H, 0.0), above(H, 0.0);
        const auto state = [&](int64_t t) { return h.data() + (t * d.B + b) * H; };
        for (int64_t t = 0; t < d.T; ++t) {
            const double* x = net.x.data() + (t * d.B + b) * n;
            const double* back = t ? state(t - 1) : none.data();
            const double* R_back = t ? Rh.data() + (t - 1) * H : none.data();
            for (int64_t j = 0; j < H; ++j) {
                const double first = t ? 0.0 : net.b_init[j], v_first = t ? 0.0 : v_init[j];
                const double z = std::tanh(net.b_h[j] + first + dot(&net.W_hh[j * H], back, H) +
                                           dot(&net.W_hx[j * n], x, n));
                state(t)[j] = z;
                Rh[t * H + j] = (1 - z * z) * (v_bh[j] + v_first + dot(&net.W_hh[j * H], R_back, H) +
                                               dot(v_hh + j * H, back, H) + dot(v_hx + j * n, x, n));
            }
            for (int64_t o = 0; o < k; ++o) {
                const int64_t at = (t * d.B + b) * k + o;
                s[at] = net.b_y[o] + dot(&net.W_yh[o * H], state(t), H);
                gs[t * k + o] = net.c[at] * (v_by[o] + dot(&net.W_yh[o * H], &Rh[t * H], H) +
                                             dot(v_yh + o * H, state(t), H));
            }
        }
        for (int64_t t = d.T - 1; t >= 0; --t) {
            const double* x = net.x.data() + (t * d.B + b) * n;
            const double* back = t ? state(t - 1) : none.data();
            for (int64_t j = 0; j < H; ++j) {
                double sum = 0.0;
                for (int64_t i = 0; i < H; ++i) sum += net.W_hh[i * H + j] * above[i];
                for (int64_t o = 0; o < k; ++o) sum += net.W_yh[o * H + j] * gs[t * k + o];
                gt[j] = (1 - state(t)[j] * state(t)[j]) * sum;
                for (int64_t i = 0; i < H; ++i) g_hh[j * H + i] += gt[j] * back[i];
                for (int64_t i = 0; i < n; ++i) g_hx[j * n + i] += gt[j] * x[i];
                g_bh[j] += gt[j];
                if (t == 0) g_init[j] += gt[j];
            }
            for (int64_t o = 0; o < k; ++o) {
                for (int64_t i = 0; i < H; ++i) g_yh[o * H + i] += gs[t * k + o] * state(t)[i];
                g_by[o] += gs[t * k + o];
            }
            above = gt;
        }
    }
}

template <class T>
Vec<T> as(const Vec<double>& values) {
    return Vec<T>(values.begin(), values.end());
}

template <class T>
double error(const Vec<T>& got, const Vec<double>& want) {
    double worst = 0.0, scale = 0.0;
    for (std::size_t i = 0; i < want.size(); ++i) {
        if (!std::isfinite(double(got[i]))) return HUGE_VAL;
        worst = std::fmax(worst, std::fabs(double(got[i]) - want[i]));
        scale = std::fmax(scale, std::fabs(want[i]));
    }
    return worst / scale;
}

template <class T>
bool agrees(const Net& net) {
    const RnnDims& d = net.d;
    Vec<double> h, s, product;
    plain(net, h, s, product);
    const Vec<T> W_hx = as<T>(net.W_hx), W_hh = as<T>(net.W_hh), W_yh = as<T>(net.W_yh),
                 b_h = as<T>(net.b_h), b_init = as<T>(net.b_init), b_y = as<T>(net.b_y),
                 x = as<T>(net.x), v = as<T>(net.v), c = as<T>(net.c);
    const RnnParameters<T> w{{W_hx.data(), 0}, {W_hh.data(), 0},   {W_yh.data(), 0},
                             {b_h.data(), 0},  {b_init.data(), 0}, {b_y.data(), 0}};
    const T nan = std::numeric_limits<T>::quiet_NaN();
    Vec<T> h_got(h.size(), nan), s_got(s.size(), nan);
    const auto& kernels = HFCORE_DRIVER_ISA::recurrence_kernels<T>();
    kernels.rnn_forward(d, {x.data(), 0}, w, h_got.data(), s_got.data());
    const double bound = 50.0 * double(d.T) * std::numeric_limits<T>::epsilon();
    const double forward = std::fmax(error(h_got, h), error(s_got, s));
    bool good = forward < bound;
    std::printf("forward %.1e", forward);
    for (const bool cached : {true, false}) {
        Vec<T> out(product.size(), nan);
        kernels.rnn_gauss_newton(d, {x.data(), 0}, {cached ? h_got.data() : nullptr, 0}, w,
                                 {v.data(), 0}, {{c.data(), 0}, false, T(1), T(0), T(0)},
                                 out.data());
        const double off = error(out, product);
        std::printf(", product %.1e", off);
        good = good && off < bound;
    }
    std::printf(" (bound %.1e)\n", bound);
    return good;
}

int main() {
    bool good = true;
    for (const int64_t H : {1, 3, 12, 21, 100, 300})
        for (const int64_t B : {1, 7, 53}) {
            const Net net({1, 6, B, 2, H, 1 + H % 3, 6, nullptr, Nonlinearity::tanh, 2});
            good = agrees<float>(net) && good;
            good = agrees<double>(net) && good;
        }
    return good ? 0 : 1;
}
