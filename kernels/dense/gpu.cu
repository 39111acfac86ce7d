// Dense ops on the GPU, true float32: a layer's product with everything around it in one launch.
//
// gpu.py chooses tiles and launches; gpu_tile.cuh multiplies. Pointers may be null, integers are long
// long, reals are float. A kernel that takes `stop` leaves its outputs as they are when *stop is not
// zero.
//
// What decides on an H200 is a warp's instructions for one chunk of k, in the SASS of sm_90; the
// copies of 4 bytes, the shared memory (two wavefronts an LDS.128, one an LDS.64) and L2 (5000 cases:
// 180 MB in the tiles' operands, 35 µs) pass beside them.
//
//   tile       threads  slices  slots  FFMA  LDS  copies   all  FFMA share
//   64x80x32     128      2       2    1280   80    36    1523     84 %
//   64x80x16     128      2       3     640   40    18     807     79 %
//   32x80x32     128      4       3     640   40    28     812     79 %
//   32x32x64     256      8       3     256   24    16     350     73 %
//   16x80x64     256      8       3     320   32    24     464     69 %
//   16x32x64     256      8       3     128   16    12     206     62 %
//
// (rows x columns of the result x k of a chunk). The rule counts blocks of the busiest of 132
// multiprocessors · warps a scheduler · chunks · instructions, at 88 % of a scheduler's cycles (70 % with
// one warp), and 2000 cycles to fill and to write; `cycles` in gpu.py. It says 20 to 60 % less than was
// measured, and orders the tiles nearly as measured: the chosen one is at most 10 % behind the best.
// Measured on an H200 from CUDA graphs, µs; beside it cuBLAS with an epilogue of torch's:
//
//   B, n, m          forward             rforward             backward            gradient
//   5000 784 400   64x80x32 89 (93)   64x80x32 165 (194)  64x80x32 96 (104)   32x80x32 106 (117)
//   5000 400 200   64x80x32 40 (36)   64x80x32 69 (80)    64x80x16 29 (37)    16x80x64 36 (46)
//   200 784 400    32x32x64 12 (28)   32x32x64 21 (44)    16x80x64 9.1 (15)   32x80x32 8.4 (14)
//   200 400 784    16x80x64 9.6 (13)  16x80x64 16 (28)    32x32x64 11 (16)    32x80x32 8.4 (14)
//   200 400 200    16x32x64 5.6 (12)  16x32x64 9.2 (21)   32x32x64 5.2 (10)   32x32x64 5.2 (11)
//   200 25 6       16x32x64 2.6 (14)  16x32x64 3.0 (23)   16x32x64 2.6 (9)    16x32x64 3.8 (15)
//
// The gradients of 5000 cases are in 2 splits.
// Flops 2 B n m, of rforward 4 B n m; bytes as in gpu_triton.py, at 4.8 TB/s 5 µs in the first row.
#include "kernels/dense/gpu_tile.cuh"
#include "kernels/gpu/activation.cuh"

using namespace hfcore_gpu;

namespace {

// φ is a code of activation.cuh; the one that is given is the identity.
template <int kBatch>
__device__ __forceinline__ void times_derivative(TileElements<kBatch>& some, const float* y,
                                                 long long activation) {
    if (activation == kGiven) return;
    float states[kBatch], slopes[kBatch];
    some.read(y, states);
    differentiate(states, activation, slopes);
#pragma unroll
    for (int i = 0; i < kBatch; ++i) some.value[i] *= slopes[i];
}

__device__ __forceinline__ bool raised(const int* stop) { return stop != nullptr && *stop != 0; }

// out = φ(a Wᵀ + b).
template <class T>
__device__ __forceinline__ void forward(const float* a, const float* W, const float* b, float* out,
                                        int B, int n, int m, long long activation) {
    HFCORE_DYNAMIC_SHARED(float, shared);
    const TileTask task = tile_task<T>(static_cast<int>(blockIdx.x), B, m, n);
    sum_tile<T, true, true, false>(task, a, W, false, nullptr, nullptr, n, n, shared, Unwatched{});
    finish_tile<T>(task, shared, [&](TileElements<T::batch>& some) {
        some.add_columns(b);
        if (activation != kGiven) activate(some.value, activation);
        some.write(out);
    });
}

// out = φ'(z) ⊙ (a Vᵀ + Ra Wᵀ + v_b); Ra may be null.
template <class T>
__device__ __forceinline__ void rforward(const float* a, const float* Ra, const float* W,
                                         const float* V, const float* v_b, const float* y,
                                         float* out, int B, int n, int m, long long activation) {
    HFCORE_DYNAMIC_SHARED(float, shared);
    const TileTask task = tile_task<T>(static_cast<int>(blockIdx.x), B, m, n);
    sum_tile<T, true, true, false>(task, a, V, Ra != nullptr, Ra, W, n, n, shared, Unwatched{});
    finish_tile<T>(task, shared, [&](TileElements<T::batch>& some) {
        some.add_columns(v_b);
        times_derivative(some, y, activation);
        some.write(out);
    });
}

// out = (δ W) ⊙ φ'(z) + add; add may be null.
template <class T>
__device__ __forceinline__ void backward(const float* delta, const float* W, const float* y,
                                         const float* add, float* out, int B, int n, int m,
                                         long long activation) {
    HFCORE_DYNAMIC_SHARED(float, shared);
    const TileTask task = tile_task<T>(static_cast<int>(blockIdx.x), B, n, m);
    sum_tile<T, true, false, false>(task, delta, W, false, nullptr, nullptr, m, n, shared,
                                    Unwatched{});
    finish_tile<T>(task, shared, [&](TileElements<T::batch>& some) {
        times_derivative(some, y, activation);
        if (add != nullptr) {
            float more[T::batch];
            some.read(add, more);
#pragma unroll
            for (int i = 0; i < T::batch; ++i) some.value[i] += more[i];
        }
        some.write(out);
    });
}

// gW = scale·δᵀa and gb = scale·Σδ over `cases` cases; the tiles of the first columns have gb.
template <class T, bool kSquared>
__device__ __forceinline__ void gradient(const float* delta, const float* a, float* gW, float* gb,
                                         int tile, int cases, int n, int m, float scale) {
    HFCORE_DYNAMIC_SHARED(float, shared);
    const TileTask task = tile_task<T>(tile, m, n, cases);
    RowSums<T, kSquared> sums{task.first_column == 0};
    const auto watch = [&](const float* left) { sums(left); };
    sum_tile<T, false, false, kSquared>(task, delta, a, false, nullptr, nullptr, m, n, shared,
                                        watch);
    finish_tile<T>(task, shared, [&](TileElements<T::batch>& some) {
#pragma unroll
        for (float& value : some.value) value *= scale;
        some.write(gW);
    });
    if (task.first_column != 0) return;
    const float total = sums.total(shared + T::slices * T::height * T::width);
    const int thread = static_cast<int>(threadIdx.x), unit = task.first_row + thread;
    if (thread < T::height && unit < m) gb[unit] = scale * total;
}

}  // namespace

// Every op on one shape of tile. Grid (tiles, G), of a gradient (splits·tiles, G); an array's _net
// is its distance from one net of the group to the next, 0 where all share it.
#define DENSE_KERNELS(NAME, ...)                                                                   \
    using Tile_##NAME = TileShape<__VA_ARGS__>;                                                    \
                                                                                                   \
    extern "C" __global__ void __launch_bounds__(Tile_##NAME::threads, Tile_##NAME::resident)      \
        dense_forward_##NAME(const float* a, const float* W, const float* b, float* out,           \
                             long long B, long long n, long long m, long long a_net,               \
                             long long W_net, long long b_net, long long activation) {             \
        const long long g = blockIdx.y;                                                            \
        forward<Tile_##NAME>(a + g * a_net, W + g * W_net, b + g * b_net, out + g * B * m,         \
                             static_cast<int>(B), static_cast<int>(n), static_cast<int>(m),        \
                             activation);                                                          \
    }                                                                                              \
                                                                                                   \
    extern "C" __global__ void __launch_bounds__(Tile_##NAME::threads, Tile_##NAME::resident)      \
        dense_rforward_##NAME(const int* stop, const float* a, const float* Ra, const float* W,    \
                              const float* V, const float* v_b, const float* y, float* out,        \
                              long long B, long long n, long long m, long long a_net,              \
                              long long Ra_net, long long W_net, long long V_net,                  \
                              long long v_b_net, long long y_net, long long activation) {          \
        if (raised(stop)) return;                                                                  \
        const long long g = blockIdx.y;                                                            \
        rforward<Tile_##NAME>(a + g * a_net, Ra == nullptr ? Ra : Ra + g * Ra_net, W + g * W_net,  \
                              V + g * V_net, v_b + g * v_b_net, y + g * y_net, out + g * B * m,    \
                              static_cast<int>(B), static_cast<int>(n), static_cast<int>(m),       \
                              activation);                                                         \
    }                                                                                              \
                                                                                                   \
    extern "C" __global__ void __launch_bounds__(Tile_##NAME::threads, Tile_##NAME::resident)      \
        dense_backward_##NAME(const int* stop, const float* delta, const float* W, const float* y, \
                              const float* add, float* out, long long B, long long n, long long m, \
                              long long delta_net, long long W_net, long long y_net,               \
                              long long add_net, long long activation) {                           \
        if (raised(stop)) return;                                                                  \
        const long long g = blockIdx.y;                                                            \
        backward<Tile_##NAME>(delta + g * delta_net, W + g * W_net, y + g * y_net,                 \
                              add == nullptr ? add : add + g * add_net, out + g * B * n,           \
                              static_cast<int>(B), static_cast<int>(n), static_cast<int>(m),       \
                              activation);                                                         \
    }                                                                                              \
                                                                                                   \
    DENSE_GRADIENT(NAME, dense_gradient, false)                                                    \
    DENSE_GRADIENT(NAME, dense_squares, true)

// gW and gb of one split of `per_split` cases; the results of splits lie split_net apart.
#define DENSE_GRADIENT(NAME, OP, SQUARED)                                                          \
    extern "C" __global__ void __launch_bounds__(Tile_##NAME::threads, Tile_##NAME::resident)      \
        OP##_##NAME(const int* stop, const float* delta, const float* a, float* gW, float* gb,     \
                    long long B, long long n, long long m, long long splits, long long per_split,  \
                    long long delta_net, long long a_net, long long gW_net, long long gb_net,      \
                    long long split_net, float scale) {                                            \
        if (raised(stop)) return;                                                                  \
        const int tiles = static_cast<int>(gridDim.x) / static_cast<int>(splits);                  \
        const int tile = static_cast<int>(blockIdx.x) % tiles;                                     \
        const long long split = static_cast<int>(blockIdx.x) / tiles, g = blockIdx.y;              \
        const long long first = split * per_split;                                                 \
        const long long cases = per_split < B - first ? per_split : B - first;                     \
        gradient<Tile_##NAME, SQUARED>(delta + g * delta_net + first * m,                          \
                                       a + g * a_net + first * n, gW + g * gW_net + split * split_net, \
                                       gb + g * gb_net + split * split_net, tile,                  \
                                       static_cast<int>(cases), static_cast<int>(n),               \
                                       static_cast<int>(m), scale);                                \
    }

DENSE_KERNELS(64x80x32, 64, 80, 8, 2, 16, 2)
DENSE_KERNELS(64x80x16, 64, 80, 8, 2, 8, 3)
DENSE_KERNELS(32x80x32, 32, 80, 8, 4, 8, 3)
DENSE_KERNELS(32x32x64, 32, 32, 8, 8, 8, 3)
DENSE_KERNELS(16x80x64, 16, 80, 4, 8, 8, 3)
DENSE_KERNELS(16x32x64, 16, 32, 4, 8, 8, 3)

// gW, gb = scale·Σ over the splits, in order: partial [splits][G][size], gb behind gW.
extern "C" __global__ void __launch_bounds__(256)
    dense_gradient_finish(const int* stop, const float* partial, float* gW, float* gb,
                          long long size, long long weights, long long splits, long long gW_net,
                          long long gb_net, long long split_net, float scale) {
    if (raised(stop)) return;
    const long long at = blockIdx.x * 256ll + threadIdx.x, g = blockIdx.y;
    if (at >= size) return;
    const float* from = partial + g * size + at;
    float total = 0.0f;
#pragma unroll 8
    for (long long split = 0; split < splits; ++split) total += from[split * split_net];
    float* const to = at < weights ? gW + g * gW_net + at : gb + g * gb_net + (at - weights);
    *to = scale * total;
}
