// CG vector updates, each one pass over memory after the pass for pᵀAp.
//
// Dots are summed in float64: a block in vectors, then the blocks in order. Where a block ends
// depends on N alone, so the bits do not depend on the number of threads.
#include "kernels/conjugate_gradient/cpu.h"

#include "kernels/cpu/parallel.h"
#include "kernels/cpu/wide.h"

namespace hfcore {
namespace HFCORE_ISA {
namespace {

using std::int64_t;

constexpr int64_t max_blocks = 256;
constexpr int64_t min_block = 4096;

// At most max_blocks blocks of whole cache lines.
struct Blocks {
    int64_t N, size, count;
    explicit Blocks(int64_t N_) : N(N_) {
        const int64_t even = ((N + max_blocks - 1) / max_blocks + 63) / 64 * 64;
        size = even < min_block ? min_block : even;
        count = (N + size - 1) / size;
    }
    int64_t start(int64_t b) const { return b * size; }
    int64_t end(int64_t b) const { return N - start(b) < size ? N : start(b) + size; }
};

// use(from, to, block) for every block.
template <class F>
void for_blocks(const Blocks& blocks, int threads, const F& use) {
    if (threads == 1 || blocks.N < serial_elements) {
        for (int64_t b = 0; b < blocks.count; ++b) use(blocks.start(b), blocks.end(b), b);
        return;
    }
    parallel_for(blocks.count, threads,
                 [&](int64_t b, int) { use(blocks.start(b), blocks.end(b), b); });
}

// Two at once hide the latency of an addition.
struct Sum {
    static constexpr int64_t count = Sums<double>::count;
    Sums<double> even, odd;
    double total() {
        even.add(odd);
        return even.total();
    }
};

inline double in_order(const double* partial, int64_t count) {
    double total = 0.0;
    for (int64_t i = 0; i < count; ++i) total += partial[i];
    return total;
}

template <class T>
double dot(const T* a, const T* b, int64_t N, int threads) {
    constexpr int lanes = simd<double>::lanes;
    const Blocks blocks(N);
    double partial[max_blocks];
    for_blocks(blocks, threads, [&](int64_t i, int64_t to, int64_t block) {
        const auto all_of = [&i](const T* from) {
            return [from, &i](int64_t j) { return widen<T>(load_narrow<T>(from + i + j)); };
        };
        const auto first_of = [&i, to](const T* from) {
            return [from, &i, to](int64_t j) {
                return widen<T>(load_narrow_first<T>(from + i + j, lanes_left(to - i, j, lanes)));
            };
        };
        Sum sum;
        while (i + 2 * Sum::count <= to) {
            sum.even.add_product(all_of(a), all_of(b));
            i += Sum::count;
            sum.odd.add_product(all_of(a), all_of(b));
            i += Sum::count;
        }
        for (; i < to; i += Sum::count) sum.even.add_product(first_of(a), first_of(b));
        partial[block] = sum.total();
    });
    return in_order(partial, blocks.count);
}

// New x, r and z of a few neighbours and their terms of rᵀz and xᵀ(r + b).
template <class T, bool preconditioned, class Load, class Store>
HFCORE_INLINE void update_lanes(const CgVectors<T>& v, int64_t i, T alpha, const Load& get,
                                const Store& put, vec_t<double>& rz, vec_t<double>& xrb) {
    const narrow_t<T> x = get(v.x + i) + get(v.p + i) * alpha;
    const narrow_t<T> r = get(v.r + i) - get(v.Ap + i) * alpha;
    const narrow_t<T> b = get(v.b + i);
    put(v.x + i, x);
    put(v.r + i, r);
    const vec_t<double> wide_r = widen<T>(r);
    if constexpr (preconditioned) {
        const narrow_t<T> z = r / get(v.M + i);
        put(v.z + i, z);
        rz += wide_r * widen<T>(z);
    } else {
        if (v.z != v.r) put(v.z + i, r);
        rz += wide_r * wide_r;
    }
    xrb += widen<T>(x) * (wide_r + widen<T>(b));
}

// v by value: the stores through its pointers cannot change a local copy of them.
template <class T, bool preconditioned>
void update_block(CgVectors<T> v, int64_t i, int64_t to, T alpha, double& rz, double& xrb) {
    constexpr int lanes = simd<double>::lanes;
    const auto get = [](const T* p) { return load_narrow<T>(p); };
    const auto put = [](T* p, narrow_t<T> a) { store_narrow<T>(p, a); };
    const auto eight = [&](Sums<double>& rz_sums, Sums<double>& xrb_sums) {
#pragma GCC unroll 4
        for (int p = 0; p < rz_sums.parts; ++p, i += lanes)
            update_lanes<T, preconditioned>(v, i, alpha, get, put, rz_sums.part[p],
                                            xrb_sums.part[p]);
    };
    Sum rz_sum, xrb_sum;
    while (i + 2 * Sum::count <= to) {
        eight(rz_sum.even, xrb_sum.even);
        eight(rz_sum.odd, xrb_sum.odd);
    }
    double rz_tail = 0.0, xrb_tail = 0.0;
    for (; i < to; ++i) {
        v.x[i] += alpha * v.p[i];
        const T r = v.r[i] - alpha * v.Ap[i];
        v.r[i] = r;
        T z = r;
        if constexpr (preconditioned) z /= v.M[i];
        if (preconditioned || v.z != v.r) v.z[i] = z;
        rz_tail = multiply_add(double(r), double(z), rz_tail);
        xrb_tail = multiply_add(double(v.x[i]), double(r) + double(v.b[i]), xrb_tail);
    }
    rz = rz_sum.total() + rz_tail;
    xrb = xrb_sum.total() + xrb_tail;
}

template <class T>
CgScalars update(const CgVectors<T>& v, double rz) {
    const double pAp = dot(v.p, v.Ap, v.N, v.threads);
    if (!(pAp > 0.0 && pAp < __builtin_inf())) return {pAp, rz, __builtin_nan("")};
    const T alpha = T(rz / pAp);
    const Blocks blocks(v.N);
    double rz_partial[max_blocks], xrb_partial[max_blocks];
    const auto block = v.M ? update_block<T, true> : update_block<T, false>;
    for_blocks(blocks, v.threads, [&](int64_t i, int64_t to, int64_t b) {
        block(v, i, to, alpha, rz_partial[b], xrb_partial[b]);
    });
    return {pAp, in_order(rz_partial, blocks.count), -0.5 * in_order(xrb_partial, blocks.count)};
}

template <class T>
void direction(int64_t N, T* p, const T* z, double beta, int threads) {
    constexpr int lanes = simd<T>::lanes;
    const T factor = T(beta);
    for_blocks(Blocks(N), threads, [&](int64_t i, int64_t to, int64_t) {
        for (; i + lanes <= to; i += lanes)
            store<T>(p + i, load<T>(p + i) * factor + load<T>(z + i));
        for (; i < to; ++i) p[i] = p[i] * factor + z[i];
    });
}

}  // namespace

template <class T>
const ConjugateGradientKernels<T>& conjugate_gradient_kernels() {
    static const ConjugateGradientKernels<T> kernels = {update<T>, direction<T>,
                                                         dot<T>};
    return kernels;
}
template const ConjugateGradientKernels<float>& conjugate_gradient_kernels<float>();
template const ConjugateGradientKernels<double>& conjugate_gradient_kernels<double>();

}  // namespace HFCORE_ISA
}  // namespace hfcore
