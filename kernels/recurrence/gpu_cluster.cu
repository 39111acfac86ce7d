// Recurrence ops on tensor cores in float32 quality, for 128 < H <= 512: forward pass, R-op, and the
// scan of backpropagation through time, by clusters of blocks.
//
// gpu_cluster.py plans and launches. Pointers may be null, integers are long long, reals are float. Every
// kernel takes `stop` and leaves its outputs as they are when *stop is not zero. A kernel's last number
// is that of the chunks of 16 units in a slice, of which there are four. FLOP 2·6·T·B·H², beside what
// padding costs. Bytes: 4·(arrays of T·B·H elements, each once); 7·384·tiles from every block to
// the others, a step.
//
// At H=300 (5 chunks a slice, 3 tiles a block; B=100 are 13 clusters, 104 multiprocessors) a step is 289
// instructions a warp in the SASS of sm_90, 30 of them mma, three warps a scheduler: 870 cycles of issue
// beside 540 of tensor cores. With two barriers of the block and one of the cluster 1,200 to 1,500 cycles,
// 0.6 to 0.75 µs, are expected; today's GEMM and epilogue take 9.1 µs (measured on an H200).
//
// No GPU has run these kernels yet: they pass the gates that need none (tests/gates), and run where
// hf.set_matmul_precision("bf16x6") asks for them.
#include "gpu_cluster_scan.cuh"

using namespace hfcore_gpu;

// TILES of 16 units a block, CHUNKS a slice; ALL: chunks whose smallest pieces are in registers, the
// others in shared memory; BLOCKS that a multiprocessor is to hold.
#define HFCORE_CLUSTER(TILES, CHUNKS, ALL, BLOCKS)                                                \
    /* h_t = e(W_hh h_{t-1} + u_t + b_h), b_init in the place of W_hh h_0 at the first step. */   \
    extern "C" __global__ void __cluster_dims__(8, 1, 1) __launch_bounds__(128 * TILES, BLOCKS)   \
        rnn_forward_cluster_##CHUNKS(                                                             \
            const int* stop, long long distinct, long long net_stride, const float* W_hh,         \
            const float* b_h, const float* b_init, const float* u, const long long* steps,        \
            float* h, long long T, long long B, long long H, long long slots,                     \
            long long nonlinearity) {                                                             \
        scan_on_cluster<TILES, CHUNKS, ALL, kClusterForward>(                                     \
            {stop, distinct, net_stride, W_hh, b_h, b_init, u, nullptr, nullptr, steps, h, T, B,  \
             H, slots, nonlinearity, 0.0f});                                                      \
    }                                                                                             \
    /* Rh_t = e'(t_t) ⊙ (W_hh Rh_{t-1} + u_t + v_b), v_init as b_init. */                         \
    extern "C" __global__ void __cluster_dims__(8, 1, 1) __launch_bounds__(128 * TILES, BLOCKS)   \
        rnn_tangent_cluster_##CHUNKS(                                                             \
            const int* stop, long long distinct, long long net_stride, const float* W_hh,         \
            const float* v_b, const float* v_init, const float* u, const float* h,                \
            const long long* steps, float* Rh, long long T, long long B, long long H,             \
            long long slots, long long nonlinearity) {                                            \
        scan_on_cluster<TILES, CHUNKS, ALL, kClusterTangent>(                                     \
            {stop, distinct, net_stride, W_hh, v_b, v_init, u, h, nullptr, steps, Rh, T, B, H,    \
             slots, nonlinearity, 0.0f});                                                         \
    }                                                                                             \
    /* gt_t = e'(t_t) ⊙ (gt_{t+1} W_hh + u_t) + coefficient · a_t; `steps` are those of u. */     \
    extern "C" __global__ void __cluster_dims__(8, 1, 1) __launch_bounds__(128 * TILES, BLOCKS)   \
        rnn_backward_cluster_##CHUNKS(                                                            \
            const int* stop, long long distinct, long long net_stride, const float* W_hh,         \
            const float* u, const float* h, const float* a, const long long* steps, float* gt,    \
            long long T, long long B, long long H, long long slots, long long nonlinearity,       \
            float coefficient) {                                                                  \
        scan_on_cluster<TILES, CHUNKS, ALL, kClusterBackward>(                                    \
            {stop, distinct, net_stride, W_hh, nullptr, nullptr, u, h, a, steps, gt, T, B, H,     \
             slots, nonlinearity, coefficient});                                                  \
    }
HFCORE_CLUSTER(2, 3, 3, 2)
HFCORE_CLUSTER(2, 4, 4, 2)
HFCORE_CLUSTER(3, 5, 5, 1)
HFCORE_CLUSTER(3, 6, 6, 1)
HFCORE_CLUSTER(4, 7, 1, 1)
HFCORE_CLUSTER(4, 8, 1, 1)
