// Recurrence ops on tensor cores in float32 quality, for H <= 128: forward pass, R-op, and
// backpropagation through time with the weights' gradient.
//
// gpu_tensor.py plans and launches. Pointers may be null, integers are long long, reals are float. Every
// kernel takes `stop` and leaves its outputs as they are when *stop is not zero. A kernel's last number
// is that of the chunks of 16 units that it is compiled for.
//
// No GPU has run these kernels yet: they pass the gates that need none (tests/gates), and run where
// hf.set_matmul_precision("bf16x6") asks for them.
#include "gpu_tensor_backward.cuh"
#include "gpu_tensor_forward.cuh"
#include "gpu_tensor_tangent.cuh"

using namespace hfcore_gpu;

// h_t = e(W_hh h_{t-1} + W_hx x_t + u_t + b_h), b_init in the place of W_hh h_0 at the first step. At
// H=100: 42 mma of 16 x 8 x 16 a warp and step, 7 warps.
#define HFCORE_FORWARD(CHUNKS)                                                                  \
    extern "C" __global__ void __launch_bounds__(32 * CHUNKS, 1)                                   \
        rnn_forward_tensor_##CHUNKS(                                                            \
            const int* stop, long long distinct, long long net_stride, const float* W_hh,       \
            const float* W_hx, const float* b_h, const float* b_init, const float* x,           \
            const float* u, const long long* steps, float* h, long long T, long long B,         \
            long long H, long long n, long long slots, long long nonlinearity) {                \
        forward_on_tensor_cores<CHUNKS>(                                                        \
            stop, distinct, net_stride, W_hh, W_hx, b_h, b_init, x, u, steps, h, T, B, H, n,    \
            slots, nonlinearity);                                                               \
    }
HFCORE_FORWARD(2)
HFCORE_FORWARD(4)
HFCORE_FORWARD(7)
HFCORE_FORWARD(8)

// Rh_t = e'(t_t) ⊙ (W_hh Rh_{t-1} + V_hh h_{t-1} + V_hx x_t + u_t + v_b), v_init as b_init. At H=100: 42
// mma a warp and step, 14 warps. ALL: chunks whose smallest pieces are in registers, the others in
// shared memory; as many as 128 registers a thread hold.
#define HFCORE_TANGENT(CHUNKS, ALL)                                                             \
    extern "C" __global__ void __launch_bounds__(64 * CHUNKS, 1)                                   \
        rnn_tangent_tensor_##CHUNKS(                                                            \
            const int* stop, long long distinct, long long net_stride, const float* W_hh,       \
            const float* V_hh, const float* V_hx, const float* v_b, const float* v_init,        \
            const float* x, const float* u, const float* h, const long long* steps, float* Rh,  \
            long long T, long long B, long long H, long long n, long long slots,                \
            long long nonlinearity) {                                                           \
        tangent_on_tensor_cores<CHUNKS, ALL>(                                                   \
            stop, distinct, net_stride, W_hh, V_hh, V_hx, v_b, v_init, x, u, h, steps, Rh, T,   \
            B, H, n, slots, nonlinearity);                                                      \
    }
HFCORE_TANGENT(2, 2)
HFCORE_TANGENT(4, 4)
HFCORE_TANGENT(7, 1)
HFCORE_TANGENT(8, 1)

// gt_t = e'(t_t) ⊙ (gt_{t+1} W_hh + gs_t W_yh + u_t) + coefficient · a_t, and of every block
// partial [G,blocks,H,n+H+2] = Σ_t gt_tᵀ [x_t | h_{t-1} | 1 | first step?]. `steps` are those of gs and u.
// At H=100: 42 mma a warp and step in the chain, 84 of 16 x 8 x 8 beside it, 7 warps each. The sums of 8
// chunks and what goes with them do not fit 128 registers.
#define HFCORE_BACKWARD(CHUNKS, ALL)                                                            \
    extern "C" __global__ void __launch_bounds__(64 * CHUNKS, 1)                                \
        rnn_backward_tensor_##CHUNKS(                                                           \
            const int* stop, long long distinct, long long net_stride, const float* W_hh,       \
            const float* W_yh, const float* x, const float* h, const float* gs, const float* u, \
            const float* a, const long long* steps, float* partial, long long T, long long B,   \
            long long H, long long n, long long k, long long slots, long long nonlinearity,     \
            float coefficient) {                                                                \
        if (stop != nullptr && *stop != 0) return;                                              \
        backward_on_tensor_cores<CHUNKS, ALL>(                                                  \
            {distinct, net_stride, T, B, H, n, k, slots, nonlinearity, coefficient}, W_hh,      \
            W_yh, x, h, gs, u, a, steps, partial);                                              \
    }
HFCORE_BACKWARD(2, 2)
HFCORE_BACKWARD(4, 4)
HFCORE_BACKWARD(7, 1)
