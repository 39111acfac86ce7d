// Ops of LSTM and GRU layers on the GPU, true float32: forward pass, R-op and backpropagation through
// time, each in three forms. gpu.py plans and launches. Pointers may be null, integers are long long.
//
//   lstm_forward and so on   all steps in one kernel, W_hh in shared memory (gpu_scan.cuh)
//   lstm_forward_held        the same, a part of W_hh in registers
//   lstm_forward_step        what follows the product of one step, which torch's GEMM gives; any H
//
// Cycles of a step with W_hh on chip, 8 sequences a block, at H=100 (LSTM): FFMA 8·H·4H / 128 = 2500;
// shared memory 6 wavefronts for 32 FFMA of a warp beside it (1880), then the sums of the slices, about
// 900 wavefronts. From global memory 4 + 7 arrays [B,H] forward, 8 + 6 + 1 for the R-op, 1 + 6 + 4
// back: 4.4 to 6 MB at B=1000, 0.9 to 1.3 µs at 4.8 TB/s, about as long as the product. This is a
// model: no GPU has run these kernels yet.
#include "gpu_cell.cuh"
#include "gpu_scan.cuh"

using namespace hfcore_gpu;

namespace hfcore_gpu {

// z [G,B,kSums·H] is the step's product, null at the first; `state` [G,B,H] goes from step to step.
// `rows` [G,B,R·H], or null: what the next product reads, where y does not hold it so. One thread an
// element of [B,H], blockIdx.y is the net.
template <class Op>
__device__ __forceinline__ void one_step(long long distinct, const float* z, float* state,
                                         float* rows, const Arrays& all, long long t) {
    const long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    const long long B = all.B, H = all.H, net = blockIdx.y;
    if (i >= B * H) return;
    const long long b = i / H;
    const int unit = static_cast<int>(i % H);
    const Arrays a = all.of_net<Op>(distinct);
    const Element e{t * B + b, unit, true, t == 0};
    typename Op::Operands now;
    Op::fetch(a, e, now);
    float sum[Op::kSums], carried[Op::kCarried];
#pragma unroll
    for (int k = 0; k < Op::kSums; ++k)
        sum[k] = z == nullptr ? 0.0f : z[((net * B + b) * Op::kSums + k) * H + unit];
    float kept = z == nullptr ? 0.0f : state[net * B * H + i];
    Op::finish(a, e, Bias(a, unit, true), now, sum, kept, carried);
    state[net * B * H + i] = kept;
    if (rows == nullptr) return;
#pragma unroll
    for (int k = 0; k < Op::kCarried; ++k)
        rows[((net * B + b) * Op::kCarried + k) * H + unit] = carried[k];
}

}  // namespace hfcore_gpu

// FLOP of a step 2·B·H·R·H in the product; bytes 4·B·H·(what `fetch` reads + what `finish` writes),
// and in the form by steps z, state and rows on top.
#define GATED_SCAN(name, Op, held)                                                                  \
    extern "C" __global__ void __launch_bounds__(256, 1)                                           \
        name(long long distinct, long long net_stride, const float* W_hh, const float* outside,    \
             const float* known, const float* bias, const float* h, const float* gates,            \
             const float* cells, float* y, float* to_gates, float* to_cells, long long T,          \
             long long B, long long H, long long split) {                                          \
        scan<Op, held>(                                                                            \
            distinct, net_stride, W_hh,                                                            \
            Arrays{outside, known, bias, h, gates, cells, y, to_gates, to_cells, T, B, H}, split); \
    }
#define GATED_STEP(name, Op)                                                                        \
    extern "C" __global__ void __launch_bounds__(256)                                              \
        name(long long distinct, const float* z, float* state, float* rows, const float* outside,  \
             const float* known, const float* bias, const float* h, const float* gates,            \
             const float* cells, float* y, float* to_gates, float* to_cells, long long T,          \
             long long B, long long H, long long t) {                                              \
        one_step<Op>(distinct, z, state, rows,                                                     \
                     Arrays{outside, known, bias, h, gates, cells, y, to_gates, to_cells, T, B, H},\
                     t);                                                                           \
    }
#define GATED_KERNELS(name, Op)                                                                     \
    GATED_SCAN(name, Op, 0)                                                                        \
    GATED_SCAN(name##_held, Op, 24)                                                                \
    GATED_STEP(name##_step, Op)

GATED_KERNELS(lstm_forward, LstmForward)
GATED_KERNELS(lstm_tangent, LstmTangent)
GATED_KERNELS(lstm_backward, LstmBackward)
GATED_KERNELS(gru_forward, GruForward)
GATED_KERNELS(gru_tangent, GruTangent)
GATED_KERNELS(gru_backward, GruBackward)
