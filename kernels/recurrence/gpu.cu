// Recurrence ops on the GPU, true float32: forward pass, R-op and linear scan with the time loop
// inside the kernel and the weights on chip, and the epilogues of the form with one GEMM a step.
//
// gpu.py plans and launches. Pointers may be null, integers are long long, reals are float. Every
// kernel takes `stop` and leaves its outputs as they are when *stop is not zero.
//
// The kernels with the weights in registers (H <= 128) at H=100, B=1000, n=2, k=1: 125 blocks of 8
// sequences, one a multiprocessor of an H200, of 8 warps (7 for the R-op), two to a scheduler. With
// L = 13 k a slice, cycles a step:
//   FFMA     2 warps · 32 L, twice for an R-op
//   issue    2 warps · what one executes in the SASS of sm_90: FFMA, an LDS.128 a k (two for the
//            R-op), 56 to sum the slices (28 SHFL), and 150 to 220 for the rest: fetch, inputs,
//            epilogue, store
//   shared   wavefronts, 4 an LDS.128 and 1 a SHFL, of all warps: beside the issue
//   DRAM     bytes a step at 4.8 TB/s, beside the issue
//
//   kernel       FFMA  floor  issue  shared  measured µs a step (cycles at 1.98 GHz)  aim  DRAM µs
//   rnn_forward   832    640   1350     640    1.18 (2330)                            0.8  0.08 (h)
//   rnn_tangent  1664   1260   2220    1650    1.79 (3540)                            1.2  0.17 (h, Rh)
//   linear_scan   832    625   1270     640    1.15 (2270)                            0.8  0.25 (h, Rh, gt)
//
// What lies between issue and measured, about 1000 cycles a step, nobody covers: barrier, first LDS,
// SHFL after SHFL and the epilogue, with two warps a scheduler. At H=128, T=100: 1.48, 2.13 and 1.29.
// Measured were kernels whose steps loaded T, H, n and the nonlinearity anew (LDC, on the chain). Now they
// are in registers, which a model of the machine code has as 5 to 10 % fewer cycles; no GPU has run it.
//
// The form with the weights in shared memory (gpu_tile.cuh), which larger nets have, took 1.37, 2.17
// and 1.37 µs a step at the same sizes, and 1.84 (forward) and 3.33 (R-op) at H=128. Its LDS.128 take 4
// wavefronts: 80 to 90 cycles a k of the slice for 8 warps, where FFMA take 32. Two of its blocks fit
// a multiprocessor and one in registers: 28 nets of B=100 take 12 to 15 % longer in registers.
//
// A whole product at T=200 takes 0.81 ms (0.84 with weights in shared memory, aim 0.5), of which
// outer_partials 0.19, rows_product 0.02 and finish_gradient 0.01.
#include "gpu_product.cuh"
#include "gpu_registers.cuh"
#include "gpu_scan.cuh"

using namespace hfcore_gpu;

// h_t = e(W_hh h_{t-1} + W_hx x_t + u_t + b_h), b_init in the place of W_hh h_0 at the first step.
// FLOP 2·B·H·(H+n) a step; bytes 4·B·(H+n), or 4·B·n where `steps` keeps nothing.
extern "C" __global__ void __launch_bounds__(448)
    rnn_forward(const int* stop, long long distinct, long long net_stride, const float* W_hh,
                const float* W_hx, const float* b_h, const float* b_init, const float* x,
                const float* u, const long long* steps, float* h, long long T, long long B,
                long long H, long long n, long long slots, long long nonlinearity,
                long long split) {
    Scan s{stop, distinct, net_stride, W_hh, nullptr, W_hx, b_h, b_init, x, u, nullptr, nullptr,
           steps, h, T, B, H, n, slots, nonlinearity, 0.0f, split};
    scan<true, false, false, true>(s);
}

// Rh_t = e'(t_t) ⊙ (W_hh Rh_{t-1} + V_hh h_{t-1} + V_hx x_t + u_t + v_b), v_init as b_init.
// FLOP 2·B·H·(2H+n) a step; bytes 4·B·(2H+n). Without V on chip, u holds its product.
extern "C" __global__ void __launch_bounds__(448)
    rnn_tangent(const int* stop, long long distinct, long long net_stride, const float* W_hh,
                const float* V_hh, const float* V_hx, const float* v_b, const float* v_init,
                const float* x, const float* u, const float* h, const long long* steps, float* Rh,
                long long T, long long B, long long H, long long n, long long slots,
                long long nonlinearity, long long split) {
    Scan s{stop, distinct, net_stride, W_hh, V_hh, V_hx, v_b, v_init, x, u, h, nullptr, steps, Rh,
           T, B, H, n, slots, nonlinearity, 0.0f, split};
    if (V_hh != nullptr) {
        scan<false, true, false, true>(s);
    } else {
        scan<false, false, false, true>(s);
    }
}

// y_t = d_t ⊙ (y_{t-1} W + gs_t W_y + u_t) + coefficient · a_t, or with y_{t+1} when reverse.
// `steps` names the steps that have a gs_t and a u_t, in the reverse direction only.
// FLOP 2·B·H·(H+k) a step; bytes 4·B·H·(2, 3 with a, 4 with u as well) and gs.
extern "C" __global__ void __launch_bounds__(448)
    linear_scan(const int* stop, long long distinct, long long net_stride, const float* W,
                const float* W_y, const float* gs, const float* u, const float* d, const float* a,
                const long long* steps, float* y, long long T, long long B, long long H,
                long long k, long long slots, long long nonlinearity, long long reverse,
                float coefficient, long long split) {
    Scan s{stop, distinct, net_stride, W, nullptr, W_y, nullptr, nullptr, gs, u, d, a, steps, y, T,
           B, H, k, slots, nonlinearity, coefficient, split};
    if (reverse != 0) {
        scan<false, false, true, false>(s);
    } else {
        scan<false, false, false, false>(s);
    }
}

// ---- The same three with the weights in registers, for H <= 128 (gpu_registers.cuh); `length` is that
// of a slice of K. The R-op always has V.

extern "C" __global__ void __launch_bounds__(256)
    rnn_forward_registers(const int* stop, long long distinct, long long net_stride,
                          const float* W_hh, const float* W_hx, const float* b_h,
                          const float* b_init, const float* x, const float* u,
                          const long long* steps, float* h, long long T, long long B, long long H,
                          long long n, long long slots, long long nonlinearity, long long length) {
    Scan s{stop, distinct, net_stride, W_hh, nullptr, W_hx, b_h, b_init, x, u, nullptr, nullptr,
           steps, h, T, B, H, n, slots, nonlinearity, 0.0f, length};
    scan_by_length<true, true, false, false, true>(s);
}

extern "C" __global__ void __launch_bounds__(256)
    rnn_tangent_registers(const int* stop, long long distinct, long long net_stride,
                          const float* W_hh, const float* V_hh, const float* V_hx, const float* v_b,
                          const float* v_init, const float* x, const float* u, const float* h,
                          const long long* steps, float* Rh, long long T, long long B, long long H,
                          long long n, long long slots, long long nonlinearity, long long length) {
    Scan s{stop, distinct, net_stride, W_hh, V_hh, V_hx, v_b, v_init, x, u, h, nullptr, steps, Rh,
           T, B, H, n, slots, nonlinearity, 0.0f, length};
    scan_by_length<false, false, true, false, true>(s);
}

extern "C" __global__ void __launch_bounds__(256)
    linear_scan_registers(const int* stop, long long distinct, long long net_stride, const float* W,
                          const float* W_y, const float* gs, const float* u, const float* d,
                          const float* a, const long long* steps, float* y, long long T,
                          long long B, long long H, long long k, long long slots,
                          long long nonlinearity, long long reverse, float coefficient,
                          long long length) {
    Scan s{stop, distinct, net_stride, W, nullptr, W_y, nullptr, nullptr, gs, u, d, a, steps, y, T,
           B, H, k, slots, nonlinearity, coefficient, length};
    if (reverse != 0) {
        scan_by_length<true, false, false, true, false>(s);
    } else {
        scan_by_length<true, false, false, false, false>(s);
    }
}

// ---- One GEMM a step, for weights that do not fit on chip: z [G,B,H] is the product, null at the
// first step. One thread an element of [B,H], blockIdx.y is the net; bytes a step 4·B·H·(2 to 5), no
// barrier, so the model is bytes over bandwidth, and a launch of about 2 µs where that is longer.

// h_t = e(z + u_t + b_h (+ b_init at the first step)).
extern "C" __global__ void rnn_forward_step(const int* stop, long long distinct,
                                            long long net_stride, const float* z, const float* u,
                                            const float* b_h, const float* b_init, float* h,
                                            long long t, long long T, long long B, long long H,
                                            long long nonlinearity) {
    if (stop != nullptr && *stop != 0) return;
    const long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= B * H) return;
    const long long g = blockIdx.y, at = t * B * H + i, column = i % H;
    float pre = group(distinct, u, kAdded, T * B * H)[at];
    pre += group(distinct, b_h, kBias, net_stride)[column];
    pre += t == 0 ? group(distinct, b_init, kInitialBias, net_stride)[column] : z[g * B * H + i];
    float value[1] = {pre};
    activate(value, nonlinearity);
    h[g * T * B * H + at] = value[0];
}

// y_t = d_t ⊙ (z + u_t + bias (+ initial bias where z is null)) + coefficient · a_t. Null terms are
// left out; u_t only at `steps`, looked up here because the host must not wait for it.
extern "C" __global__ void linear_scan_step(const int* stop, long long distinct,
                                            long long net_stride, const float* z, const float* u,
                                            const float* d, const float* a, const float* bias,
                                            const float* initial_bias, const long long* steps,
                                            float* y, long long t, long long T, long long B,
                                            long long H, long long slots, long long nonlinearity,
                                            float coefficient) {
    if (stop != nullptr && *stop != 0) return;
    const long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= B * H) return;
    const long long g = blockIdx.y, at = t * B * H + i, column = i % H;
    const long long slot = slot_of(steps, slots, t);
    float pre = z != nullptr ? z[g * B * H + i] : 0.0f;
    if (slot >= 0) pre += group(distinct, u, kAdded, slots * B * H)[slot * B * H + i];
    if (bias != nullptr) pre += group(distinct, bias, kBias, net_stride)[column];
    if (z == nullptr && initial_bias != nullptr)
        pre += group(distinct, initial_bias, kInitialBias, net_stride)[column];
    const float factor[1] = {group(distinct, d, kFactor, T * B * H)[at]};
    float derivative[1];
    differentiate(factor, nonlinearity, derivative);
    float value = derivative[0] * pre;
    if (a != nullptr) value += coefficient * group(distinct, a, kStructural, T * B * H)[at];
    y[g * T * B * H + at] = value;
}

// ---- Products over all steps at once, on either side of the chain (gpu_product.cuh).

// y [G,S,B,columns] = (a A + h V + bias) ⊙ factor; both operands may be absent from it, h with a width
// of 0. FLOP 2·S·B·columns·(a_width + h_width), bytes 4·S·B·(widths + columns, twice with factor), two
// barriers a chunk of 32 k.
// 83 instructions for 4 k (64 FFMA, 8 LDS.128). Outputs of the R-op at H=100, k=1: at every step of
// T=200, B=1000 160 MB, 0.04 ms; at the last step seven chunks of about 1 µs, waiting for DRAM.
// Three blocks a multiprocessor: for a fourth one, ptxas spills on sm_100.
extern "C" __global__ void __launch_bounds__(256, 3)
    rows_product(const int* stop, long long distinct, long long net_stride, const float* a,
                 const float* A, const float* h, const float* V, const float* bias,
                 const float* factor, const long long* steps, float* y, long long S, long long T,
                 long long B, long long a_width, long long h_width, long long columns,
                 long long a_place, long long h_place, long long transposed, long long groups) {
    if (stop != nullptr && *stop != 0) return;
    HFCORE_DYNAMIC_SHARED(float, shared);
    const RowTile tile(shared, static_cast<int>(groups));
    const int j = static_cast<int>(columns);
    const int tiles = (j + tile.columns() - 1) / tile.columns();
    const long long rows = S * B;
    const RowTask task{steps,
                       static_cast<long long>(blockIdx.x) / tiles * kRowTile,
                       rows,
                       B,
                       static_cast<int>(blockIdx.x) % tiles * tile.columns(),
                       j,
                       transposed != 0};
    const auto of_net = [&](const float* array, Distinct bit, long long place, long long width) {
        return group(distinct, array, bit, (place == kAtStep ? T : S) * B * width);
    };
    float sum[kTile][kTile] = {};
    add_product(sum, tile, task,
                {of_net(a, kInput, a_place, a_width),
                 group(distinct, A, kInputWeights, net_stride), static_cast<int>(a_width),
                 static_cast<int>(a_place)});
    add_product(sum, tile, task,
                {of_net(h, kFactor, h_place, h_width),
                 group(distinct, V, kHiddenWeights, net_stride), static_cast<int>(h_width),
                 static_cast<int>(h_place)});
    __syncthreads();  // the chunks make room for the sums
#pragma unroll
    for (int r = 0; r < kTile; ++r) {
        const float row[kTile] = {sum[0][r], sum[1][r], sum[2][r], sum[3][r]};
        write4(tile.sums + (tile.slice * kRowTile + tile.row + r) * tile.columns() + tile.column,
               row);
    }
    __syncthreads();
    const float* const bias_of = group(distinct, bias, kBias, net_stride);
    const float* const factor_of = group(distinct, factor, kAdded, rows * columns);
    const int elements = kRowTile * tile.columns();
    for (int i = static_cast<int>(threadIdx.x); i < elements; i += kProductThreads) {
        const long long row = task.first_row + i / tile.columns();
        const int column = task.first_column + i % tile.columns();
        if (row >= rows || column >= j) continue;
        float value = bias_of != nullptr ? bias_of[column] : 0.0f;
        for (int slice = 0; slice < tile.slices; ++slice) value += tile.sums[slice * elements + i];
        const long long at = row * columns + column;
        if (factor_of != nullptr) value *= factor_of[at];
        y[blockIdx.y * rows * columns + at] = value;
    }
}

// y [G,rows,k] -= c [1 or G,rows,k] · Σ_k y; one warp a row. Bytes 4·4·rows·k, no barrier.
extern "C" __global__ void __launch_bounds__(256)
    subtract_rank_one(const int* stop, long long distinct, const float* c, float* y, long long rows,
                      long long k) {
    if (stop != nullptr && *stop != 0) return;
    const long long row = static_cast<long long>(blockIdx.x) * (kProductThreads / 32) +
                          static_cast<int>(threadIdx.x) / 32;
    if (row >= rows) return;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const float* const factor = group(distinct, c, kFactor, rows * k) + row * k;
    float* const values = y + blockIdx.y * rows * k + row * k;
    float sum = 0.0f;
    for (long long i = lane; i < k; i += 32) sum += values[i];
#pragma unroll
    for (int apart = 16; apart > 0; apart /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, apart);
    for (long long i = lane; i < k; i += 32) values[i] -= factor[i] * sum;
}

// partial [G,splits,I,J]: Σ over a split's rows of left ⊗ [x | h | 1 (| first step)], J columns.
// FLOP 2·S·B·I·J, bytes 4·S·B·(I + J) and 4·splits·I·J, one barrier a chunk of 8 rows or more.
// At H=100, n=2: 264 blocks of 758 rows, two a multiprocessor; 6 of 8 warps multiply, 3 a scheduler.
//   issue      a chunk of 8 rows: 549 instructions for 512 FFMA in the SASS of sm_90 (32 LDS.128),
//              and 114 for every warp to fetch and store
//   cycles     95 chunks · (3 · 549 + 4 · 114) = 200,000
//   predicted  0.10 ms at T=200, B=1000 and 1.98 GHz, 41 TFLOP/s
//   measured   0.169 ms on an H200: the model leaves out that 12 warps · 4 LDS.128 of 4 wavefronts
//              a row take as long as their FFMA, and that a chunk is fetched only one ahead
extern "C" __global__ void __launch_bounds__(256, 2)
    outer_partials(const int* stop, long long distinct, const float* left, const float* x,
                   const float* h, const long long* steps, float* partial, long long S, long long T,
                   long long B, long long I, long long n, long long H, long long previous,
                   long long split_rows, long long splits, long long high, long long wide) {
    if (stop != nullptr && *stop != 0) return;
    HFCORE_DYNAMIC_SHARED(float, shared);
    const int J = static_cast<int>(n + H) + (previous != 0 ? 2 : 1);
    const int tiles_j = (J + static_cast<int>(wide) * kOuter - 1) / (static_cast<int>(wide) * kOuter);
    const int split = static_cast<int>(blockIdx.x % splits);
    const int tile = static_cast<int>(blockIdx.x / splits);
    const int first_i = tile / tiles_j * static_cast<int>(high) * kOuter;
    const int first_j = tile % tiles_j * static_cast<int>(wide) * kOuter;
    const int rows = static_cast<int>(S * B), begin = split * static_cast<int>(split_rows);
    const int end = rows - begin < split_rows ? rows : begin + static_cast<int>(split_rows);
    const Outer o{group(distinct, left, kAdded, S * B * I),
                  group(distinct, x, kInput, T * B * n),
                  group(distinct, h, kFactor, T * B * H),
                  steps,
                  static_cast<int>(I),
                  static_cast<int>(n),
                  static_cast<int>(H),
                  static_cast<int>(B),
                  begin,
                  end,
                  previous != 0};
    float sum[kOuter][kOuter] = {};
    sum_outer(o, shared, static_cast<int>(high), static_cast<int>(wide), first_i, first_j, sum);
    const int thread = outer_thread();
    if (thread >= high * wide) return;
    const int i_at = first_i + thread / static_cast<int>(wide) * kOuter;
    const int j_at = first_j + thread % static_cast<int>(wide) * kTile;
    float* const to = partial + (blockIdx.y * splits + split) * I * J;
#pragma unroll
    for (int a = 0; a < kOuter; ++a) {
        const int i = i_at + a;
        if (i >= I) continue;
#pragma unroll
        for (int b = 0; b < kOuter; ++b) {
            const int j = j_at + b % kTile + b / kTile * kTile * static_cast<int>(wide);
            if (j < J) to[static_cast<long long>(i) * J + j] = sum[a][b];
        }
    }
}

// out [G,N] (+)= scale · gradient + damping · v [1 or G,N], v may be null. The gradient is the sum of
// the partials hidden [1 or G,splits,H,n+H+2] and outputs [1 or G,output_splits,k,H+1]; 8 threads an
// element. Bytes 4·splits·H·(n+H+2), mostly from L2; one barrier. At H=100: 11 MB, 10 µs measured on
// an H200.
extern "C" __global__ void __launch_bounds__(256)
    finish_gradient(const int* stop, long long distinct, long long net_stride, const float* hidden,
                    const float* outputs, const float* v, float* out, long long n, long long H,
                    long long k, long long splits, long long output_splits, float scale,
                    float damping, long long accumulate) {
    if (stop != nullptr && *stop != 0) return;
    HFCORE_DYNAMIC_SHARED(float, shared);
    constexpr int kElements = 32, kAdders = kProductThreads / kElements;
    const long long N = H * n + H * H + k * H + 2 * H + k;
    const int lane = static_cast<int>(threadIdx.x) % kElements;
    const int sharer = static_cast<int>(threadIdx.x) / kElements;
    const long long element = static_cast<long long>(blockIdx.x) * kElements + lane;
    // The element as one of W_hx, W_hh, W_yh, b_h, b_init, b_y, and where it is in the partials.
    const long long J = n + H + 2;
    const float* from = group(distinct, hidden, kFactor, splits * H * J);
    long long size = H * J, count = splits;
    const auto of_outputs = [&](long long at) {
        from = group(distinct, outputs, kInput, output_splits * k * (H + 1)) + at;
        size = k * (H + 1);
        count = output_splits;
    };
    long long at = element;
    if (at < H * n) {
        from += at / n * J + at % n;
    } else if ((at -= H * n) < H * H) {
        from += at / H * J + n + at % H;
    } else if ((at -= H * H) < k * H) {
        of_outputs(at / H * (H + 1) + at % H);
    } else if ((at -= k * H) < 2 * H) {
        from += at % H * J + n + H + at / H;
    } else {
        of_outputs((at - 2 * H) * (H + 1) + H);
    }
    float sum = 0.0f;
    if (element < N) {
#pragma unroll 4
        for (long long split = sharer; split < count; split += kAdders) sum += from[split * size];
    }
    shared[threadIdx.x] = sum;
    __syncthreads();
    if (sharer != 0 || element >= N) return;
    sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kAdders; ++i) sum += shared[i * kElements + lane];
    float value = scale * sum;
    if (v != nullptr) value += damping * group(distinct, v, kAdded, net_stride)[element];
    float* const to = out + blockIdx.y * N + element;
    *to = accumulate != 0 ? *to + value : value;
}
