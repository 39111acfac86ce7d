// Fused recurrence ops, one batch tile at a time.
//
// A tile of sequences runs through all of time while its state stays in cache:
//   R-op forward   Rt_t = [W_hh | V_hh | V_hx]·[Rh_{t-1}; h_{t-1}; x_t] + v_b,  Rh_t = e'(t_t) ⊙ Rt_t
//   curvature      gs_t = L''·(W_yh Rh_t + V_yh h_t + v_by)            only at output steps
//   BPTT           gt_t = e'(t_t) ⊙ (W_hhᵀ gt_{t+1} + W_yhᵀ gs_t) + structural·Rh_t
//   gradient       [∂W_hh | ∂W_hx | ∂b_h | ∂b_init] += gt_tᵀ·[h_{t-1} | x_t | 1 | t=0]
// DRAM is read once a pass for h and x. Without cached h a tile makes its own states as the R-op goes
// and holds a window of them; BPTT rebuilds earlier windows from checkpoints. The partial sum of each
// tile is added to the result in the order of the tiles, so the bits depend on the shape alone.
#include "kernels/recurrence/cpu.h"

#include "kernels/recurrence/cpu_common.h"
#include "kernels/recurrence/cpu_passes.h"

namespace hfcore {
namespace HFCORE_ISA {
namespace {

template <class T>
void rnn_forward(const RnnDims& d, Grouped<T> x, const RnnParameters<T>& w, T* h, T* s) {
    const Widths width(d);
    Region region(d.threads, Denormals::flush);
    Arena<T> measure(nullptr);
    (void)ForwardPack<T>(measure, d);
    char* packs = static_cast<char*>(region.shared(measure.bytes() * d.G));
    const auto pack_of = [&](int64_t g) {
        Arena<T> arena(packs + g * measure.bytes());
        return ForwardPack<T>(arena, d);
    };
    region.run(d.G, [&](int64_t g, int) {
        const ForwardPack<T> p = pack_of(g);
        pack_rows(p.hidden, d.H, width.state(), 0, w.W_hh.at(g), d.H, d.H, 1);
        pack_rows(p.hidden, d.H, width.state(), width.hidden, w.W_hx.at(g), d.n, d.n, 1);
        pack_rows(p.output, d.k, width.hidden, 0, w.W_yh.at(g), d.H, d.H, 1);
        for (int64_t j = 0; j < d.H; ++j) p.first[j] = w.b_h.at(g)[j] + w.b_init.at(g)[j];
    });
    const Tiles<T> tiles(d.B);
    std::size_t bytes = 0;
    forward_tile<T>(d, Tile<T>(tiles, 0), nullptr, w, pack_of(0), nullptr, nullptr, nullptr,
                    &bytes);
    region.run(d.G * tiles.per_net, [&](int64_t task, int worker) {
        const Tile<T> tile(tiles, task);
        forward_tile<T>(d, tile, x.at(tile.g), w, pack_of(tile.g), region.scratch(worker, bytes),
                        h == nullptr ? nullptr : h + tile.g * d.T * d.B * d.H,
                        s + tile.g * d.T_out * d.B * d.k, nullptr);
    });
}

template <class T>
void linear_scan(const ScanDims& d, Grouped<T> u, Grouped<T> derivative, Grouped<T> W,
                 Grouped<T> a, T* y) {
    Region region(d.threads, Denormals::flush);
    // With one weight set one pack serves every net.
    const int64_t packs = W.stride == 0 ? 1 : d.G, width = paired_depth(d.H);
    const int64_t size = packed_elements<T>(d.H, width);
    T* packed = static_cast<T*>(region.shared(packs * size * sizeof(T)));
    region.run(packs, [&](int64_t g, int) {
        pack_rows(packed + g * size, d.H, width, 0, W.at(g), d.H, 1, d.H);
    });
    const Tiles<T> tiles(d.B);
    region.run(d.G * tiles.per_net, [&](int64_t task, int worker) {
        const Tile<T> tile(tiles, task);
        scan_tile<T>(d, tile, u, derivative, packed + (W.stride == 0 ? 0 : tile.g) * size, a,
                     region, worker, y);
    });
}

// out += scale·(tile's sums)
template <class T>
void add_partial(const RnnDims& d, const Workspace<T>& ws, T scale, T* result) {
    const Flat<T> out(result, d);
    const int64_t H = d.H, n = d.n;
    for (int64_t j = 0; j < H; ++j) {
        const T* row = ws.G + j * ws.z_stride;
        for (int64_t i = 0; i < H; ++i) out.W_hh[j * H + i] += scale * row[i];
        for (int64_t i = 0; i < n; ++i) out.W_hx[j * n + i] += scale * row[H + i];
        out.b_h[j] += scale * row[H + n];
        out.b_init[j] += scale * row[H + n + 1];
    }
    for (int64_t j = 0; j < d.k; ++j) {
        for (int64_t i = 0; i < H; ++i) out.W_yh[j * H + i] += scale * ws.Gy[j * ws.y_stride + i];
        out.b_y[j] += scale * ws.gb_y[j];
    }
}

// Runs `pass` over every tile and adds the partial sums in order; out must hold its start value.
template <class T, class PackFunction, class PassFunction>
void for_each_tile(Region& region, const RnnDims& d, Grouped<T> x, Grouped<T> h, bool tangent,
                   bool keep_Rh, T scale, T* out,
                   const PackFunction& pack_of, const PassFunction& pass) {
    const Tiles<T> tiles(d.B);
    const Windows windows = windows_of<T>(d, h.data == nullptr, tile_capacity<T>(d.B));
    const std::size_t bytes = Workspace<T>(nullptr, d, tangent, keep_Rh, windows).bytes;
    region.run_ordered(
        d.G * tiles.per_net,
        [&](int64_t task, int worker) {
            const Tile<T> tile(tiles, task);
            Workspace<T> ws(region.scratch(worker, bytes), d, tangent, keep_Rh, windows);
            ws.clear(d, tile);
            const ProductPack<T> packed = pack_of(tile.g);
            const T* states = h.data == nullptr ? nullptr : h.at(tile.g);
            pass(Pass<T>{d, tile, x.at(tile.g), states, packed, ws});
        },
        [&](int64_t task, int worker) {
            const Tile<T> tile(tiles, task);
            const Workspace<T> ws(region.scratch(worker, bytes), d, tangent, keep_Rh, windows);
            add_partial(d, ws, scale, out + tile.g * d.numel());
        });
}

template <class T>
void pack_reverse(const ProductPack<T>& p, const RnnDims& d, const RnnParameters<T>& w,
                  int64_t g) {
    const Widths width(d);
    pack_rows(p.reverse, d.H, width.reverse(), 0, w.W_hh.at(g), d.H, 1, d.H);
    pack_rows(p.reverse, d.H, width.reverse(), width.hidden, w.W_yh.at(g), d.k, 1, d.H);
}

template <class T>
void rnn_backward(const RnnDims& d, Grouped<T> x, Grouped<T> h, const RnnParameters<T>& w,
                  Grouped<T> gs, T* out) {
    Region region(d.threads, Denormals::flush);
    Arena<T> measure(nullptr);
    (void)ProductPack<T>(measure, d, false, false);
    char* packs = static_cast<char*>(region.shared(measure.bytes() * d.G));
    const auto pack_of = [&](int64_t g) {
        Arena<T> arena(packs + g * measure.bytes());
        return ProductPack<T>(arena, d, false, false);
    };
    region.run(d.G, [&](int64_t g, int) { pack_reverse(pack_of(g), d, w, g); });
    fill(out, out + d.G * d.numel(), T(0));
    for_each_tile<T>(region, d, x, h, false, false, T(1), out, pack_of, [&](const Pass<T>& p) {
        gather_output_gradient(p, gs.at(p.tile.g));
        reverse_pass(p, T(0));
    });
}

template <class T>
void rnn_gauss_newton(const RnnDims& d, Grouped<T> x, Grouped<T> h, const RnnParameters<T>& w,
                      Grouped<T> v, const Curvature<T>& curvature, T* out) {
    const bool keep_Rh = curvature.structural != T(0), recompute = h.data == nullptr;
    const int64_t H = d.H, n = d.n;
    const Widths width(d);
    Region region(d.threads, Denormals::flush);
    Arena<T> measure(nullptr);
    (void)ProductPack<T>(measure, d, true, recompute);
    char* packs = static_cast<char*>(region.shared(measure.bytes() * d.G));
    const auto pack_of = [&](int64_t g) {
        Arena<T> arena(packs + g * measure.bytes());
        return ProductPack<T>(arena, d, true, recompute);
    };
    region.run(d.G, [&](int64_t g, int) {
        const ProductPack<T> p = pack_of(g);
        const Flat<const T> tangent(v.at(g), d);
        pack_rows(p.hidden, H, width.tangent(), 0, w.W_hh.at(g), H, H, 1);
        pack_rows(p.hidden, H, width.tangent(), width.hidden, tangent.W_hh, H, H, 1);
        pack_rows(p.hidden, H, width.tangent(), 2 * width.hidden, tangent.W_hx, n, n, 1);
        pack_rows(p.output, d.k, width.outputs(), 0, w.W_yh.at(g), H, H, 1);
        pack_rows(p.output, d.k, width.outputs(), width.hidden, tangent.W_yh, H, H, 1);
        pack_reverse(p, d, w, g);
        for (int64_t j = 0; j < H; ++j) p.first[j] = tangent.b_h[j] + tangent.b_init[j];
        if (recompute) {
            pack_rows(p.state, H, width.state(), 0, w.W_hh.at(g), H, H, 1);
            pack_rows(p.state, H, width.state(), width.hidden, w.W_hx.at(g), n, n, 1);
            copy(p.state_bias, w.b_h.at(g), H);
            for (int64_t j = 0; j < H; ++j) p.state_first[j] = w.b_h.at(g)[j] + w.b_init.at(g)[j];
        }
        const T* from = v.at(g);
        T* to = out + g * d.numel();
        for (int64_t i = 0; i < d.numel(); ++i) to[i] = curvature.damping * from[i];
    });
    for_each_tile<T>(region, d, x, h, true, keep_Rh, curvature.scale, out, pack_of,
                     [&](const Pass<T>& p) {
                         tangent_pass(p, Flat<const T>(v.at(p.tile.g), d),
                                      curvature.c.at(p.tile.g), curvature.rank_one, keep_Rh);
                         reverse_pass(p, curvature.structural);
                     });
}

}  // namespace

template <class T>
const RecurrenceKernels<T>& recurrence_kernels() {
    static const RecurrenceKernels<T> kernels = {rnn_forward<T>, linear_scan<T>, rnn_backward<T>,
                                                 rnn_gauss_newton<T>};
    return kernels;
}
template const RecurrenceKernels<float>& recurrence_kernels<float>();
template const RecurrenceKernels<double>& recurrence_kernels<double>();

}  // namespace HFCORE_ISA
}  // namespace hfcore
