// LSTM and GRU through time, a tile of sequences at a time: states, tangents and gradients at the
// pre-activations.
//
//   forward   a_t = W_hh h_{t-1} + W_ih x_t + b                       then the cell (cell.h)
//   R-op      Ra_t = W_hh Rh_{t-1} + V_hh h_{t-1} + V_ih x_t + W_ih Rx_t + v_b
//   BPTT      gh_t = ∂L/∂h_t + Σ over blocks of ga_{t+1} W_hh
//
// Rows are sequences, which lie as the arrays have them; weights are packed once a call. The products
// are those of gemm.h: the bits of a sequence depend neither on its neighbours nor on threads.
#include "kernels/gated/cpu.h"

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/parallel.h"
#include "kernels/gated/cell.h"

namespace hfcore {
namespace HFCORE_ISA {
namespace {

// Sequences of a tile at most: more share a load of the packed weights, fewer fit beside them.
constexpr int64_t tile_sequences = 96;

template <class T>
int64_t line(int64_t count) {
    constexpr int64_t whole = 64 / sizeof(T);
    return (count + whole - 1) / whole * whole;
}

// Tiles of every net, numbered net by net, so many that each thread has about as much.
struct GatedTiles {
    int64_t B, per_net;
    explicit GatedTiles(const GatedDims& d) : B(d.B) {
        const int64_t least = (d.B + tile_sequences - 1) / tile_sequences;
        const int64_t most = (d.B + tile_rows - 1) / tile_rows;
        const int64_t even = (least * d.G + d.threads - 1) / d.threads * d.threads;
        per_net = smaller(larger(least, (even + d.G - 1) / d.G), larger(most, 1));
    }
    int64_t start(int64_t i) const { return B * i / per_net; }
};

struct GatedTile {
    int64_t g, b0, rows;
    GatedTile(const GatedTiles& tiles, int64_t task)
        : g(task / tiles.per_net), b0(tiles.start(task % tiles.per_net)),
          rows(tiles.start(task % tiles.per_net + 1) - b0) {}
};

// The four blocks of a tile at one step.
template <class T>
struct FourBlocks {
    T* at[gate_blocks];
};

// Where a tile's part of block k of step t begins in an array [blocks,T,B,H].
struct At {
    const GatedDims& d;
    int64_t b0;
    int64_t operator()(int64_t block, int64_t t) const {
        return ((block * d.T + t) * d.B + b0) * d.H;
    }
    template <class T>
    FourBlocks<T> blocks(T* base, int64_t t) const {
        return {{base + (*this)(0, t), base + (*this)(1, t), base + (*this)(2, t),
                 base + (*this)(3, t)}};
    }
};

// ---------------------------------------------------------------------------- packed weights

// A weight [R·H, K] of every net that has one of its own, as right sides of products: block r as
// [K][H] (its transpose, for what flows forward) or [H][K].
template <class T>
struct Packed {
    Panels<T> panels;
    int64_t K, each, nets, R, H;
    bool forward;
    T* data = nullptr;
    Packed(const GatedDims& d, Grouped<T> W, int64_t K_, bool forward_)
        : panels(forward_ ? d.H : K_), K(forward_ ? K_ : d.H), each(line<T>(panels.elements(K))),
          nets(W.data == nullptr ? 0 : W.stride == 0 ? 1 : d.G), R(rows_of(d.cell).blocks), H(d.H),
          forward(forward_) {}
    int64_t elements() const { return nets * R * each; }
    const T* of(int64_t g, int64_t r) const { return data + ((nets == 1 ? 0 : g) * R + r) * each; }
    void fill(Region& region, Grouped<T> W) const {
        region.run(nets * R, [&](int64_t task, int) {
            T* to = data + task * each;
            const int64_t columns = forward ? K : panels.columns;
            const T* from = W.at(task / R) + task % R * H * columns;
            for (int64_t p = 0; p < panels.count(); ++p) {
                T* panel = to + panels.first(p) * K;
                if (forward)
                    pack_panel_of_columns<T>(panel, panels, p, from, columns, K);
                else
                    pack_panel<T, false>(panel, panels, p, from, columns, K);
            }
        });
    }
};

// Memory for several of them, one after the other.
template <class T, class... Packs>
void pack_all(Region& region, Packs&... packs) {
    T* at = static_cast<T*>(
        region.shared(static_cast<std::size_t>((packs.first.elements() + ...)) * sizeof(T)));
    ((packs.first.data = at, at += packs.first.elements()), ...);
    (packs.first.fill(region, packs.second), ...);
}

template <class T>
struct WithWeights {
    Packed<T> first;
    Grouped<T> second;
    WithWeights(const GatedDims& d, Grouped<T> W, int64_t K, bool forward)
        : first(d, W, K, forward), second(W) {}
};

// C [rows][H] = bias + Σ of the operands; bias may be null.
template <class T>
void block_product(T* C, int64_t rows, const Panels<T>& panels, const T* bias,
                   const Operand<T>* operands, int count) {
    if (count > 0) {
        row_product<T>(C, rows, panels, bias, operands, count);
        return;
    }
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < panels.columns; ++j)
            C[i * panels.columns + j] = bias == nullptr ? T(0) : bias[j];
}

// ---------------------------------------------------------------------------- forward

template <class T>
void gated_forward(const GatedDims& d, Grouped<T> x, const GatedParameters<T>& w, T* h, T* gates,
                   T* cells) {
    Region region(d.threads, Denormals::flush);
    WithWeights<T> hidden(d, w.W_hh, d.H, true), input(d, w.W_ih, d.n, true);
    pack_all<T>(region, hidden, input);
    const GatedTiles tiles(d);
    const CellRows rows = rows_of(d.cell);
    const int64_t plane = d.T * d.B * d.H;
    region.run(d.G * tiles.per_net, [&](int64_t task, int worker) {
        const GatedTile tile(tiles, task);
        const At at{d, tile.b0};
        const int64_t count = tile.rows * d.H, piece = line<T>(count);
        T* scratch = static_cast<T*>(region.scratch(worker, 7 * piece * sizeof(T)));
        T* h_net = h + tile.g * plane;
        for (int64_t t = 0; t < d.T; ++t) {
            const T* back = t == 0 ? nullptr : h_net + at(0, t - 1);
            const T* x_t = x.at(tile.g) + (t * d.B + tile.b0) * d.n;
            FourBlocks<T> a = {{scratch, scratch + piece, scratch + 2 * piece, scratch + 3 * piece}};
            if (gates != nullptr) a = at.blocks(gates + tile.g * gate_blocks * plane, t);
            for (int k = 0; k < gate_blocks; ++k) {
                Operand<T> operands[2];
                int used = 0;
                if (back != nullptr && rows.hidden[k] >= 0)
                    operands[used++] = {back, d.H, d.H, hidden.first.of(tile.g, rows.hidden[k])};
                if (rows.input[k] >= 0)
                    operands[used++] = {x_t, d.n, d.n, input.first.of(tile.g, rows.input[k])};
                block_product<T>(a.at[k], tile.rows, hidden.first.panels, w.b.at(tile.g) + k * d.H,
                                 operands, used);
            }
            if (d.cell == Cell::gru) {
                on_all<T, 1, 5>(gru_step<T>, count, {back},
                                {a.at[0], a.at[1], a.at[2], a.at[3], h_net + at(0, t)});
                continue;
            }
            T* own = cells == nullptr ? nullptr : cells + tile.g * 2 * plane;
            T* c = own == nullptr ? scratch + (4 + t % 2) * piece : own + at(0, t);
            const T* c_back = nullptr;
            if (t > 0) c_back = own == nullptr ? scratch + (5 - t % 2) * piece : own + at(0, t - 1);
            T* y = own == nullptr ? scratch + 6 * piece : own + at(1, t);
            on_all<T, 1, 7>(lstm_step<T>, count, {c_back},
                            {a.at[0], a.at[1], a.at[2], a.at[3], c, y, h_net + at(0, t)});
        }
    });
}

// ---------------------------------------------------------------------------- R-op

template <class T>
void gated_tangent(const GatedDims& d, Grouped<T> x, const GatedStates<T>& states, Grouped<T> Rx,
                   const GatedParameters<T>& w, const GatedParameters<T>& v, T* Rh) {
    Region region(d.threads, Denormals::flush);
    const Grouped<T> below = Rx.data == nullptr ? Grouped<T>{} : w.W_ih;
    WithWeights<T> W_hh(d, w.W_hh, d.H, true), V_hh(d, v.W_hh, d.H, true),
        V_ih(d, v.W_ih, d.n, true), W_ih(d, below, d.n, true);
    pack_all<T>(region, W_hh, V_hh, V_ih, W_ih);
    const GatedTiles tiles(d);
    const CellRows rows = rows_of(d.cell);
    const int64_t plane = d.T * d.B * d.H;
    region.run(d.G * tiles.per_net, [&](int64_t task, int worker) {
        const GatedTile tile(tiles, task);
        const At at{d, tile.b0};
        const int64_t g = tile.g, count = tile.rows * d.H, piece = line<T>(count);
        T* scratch = static_cast<T*>(region.scratch(worker, 5 * piece * sizeof(T)));
        T* const Ra[] = {scratch, scratch + piece, scratch + 2 * piece, scratch + 3 * piece};
        T* Rc = scratch + 4 * piece;
        T* Rh_net = Rh + g * plane;
        for (int64_t t = 0; t < d.T; ++t) {
            const T* back = t == 0 ? nullptr : states.h.at(g) + at(0, t - 1);
            const T* R_back = t == 0 ? nullptr : Rh_net + at(0, t - 1);
            const int64_t at_x = (t * d.B + tile.b0) * d.n;
            for (int k = 0; k < gate_blocks; ++k) {
                Operand<T> operands[4];
                int used = 0;
                if (t > 0 && rows.hidden[k] >= 0) {
                    operands[used++] = {R_back, d.H, d.H, W_hh.first.of(g, rows.hidden[k])};
                    operands[used++] = {back, d.H, d.H, V_hh.first.of(g, rows.hidden[k])};
                }
                if (rows.input[k] >= 0) {
                    operands[used++] = {x.at(g) + at_x, d.n, d.n, V_ih.first.of(g, rows.input[k])};
                    if (Rx.data != nullptr)
                        operands[used++] = {Rx.at(g) + at_x, d.n, d.n,
                                            W_ih.first.of(g, rows.input[k])};
                }
                block_product<T>(Ra[k], tile.rows, W_hh.first.panels, v.b.at(g) + k * d.H,
                                 operands, used);
            }
            const FourBlocks<const T> a = at.blocks(states.gates.at(g), t);
            if (d.cell == Cell::gru) {
                on_all<T, 10, 1>(gru_tangent<T>, count,
                                 {a.at[0], a.at[1], a.at[2], a.at[3], Ra[0], Ra[1], Ra[2], Ra[3],
                                  back, R_back},
                                 {Rh_net + at(0, t)});
                continue;
            }
            const T* cells = states.cells.at(g);
            on_all<T, 10, 2>(lstm_tangent<T>, count,
                             {a.at[0], a.at[1], a.at[2], a.at[3], Ra[0], Ra[1], Ra[2], Ra[3],
                              cells + at(1, t), t == 0 ? nullptr : cells + at(0, t - 1)},
                             {Rc, Rh_net + at(0, t)});
        }
    });
}

// ---------------------------------------------------------------------------- back through time

template <class T>
void gated_backward(const GatedDims& d, Grouped<T> gh, const GatedStates<T>& states,
                    Grouped<T> W_hh, T* ga) {
    Region region(d.threads, Denormals::flush);
    WithWeights<T> weights(d, W_hh, d.H, false);
    pack_all<T>(region, weights);
    const GatedTiles tiles(d);
    const CellRows rows = rows_of(d.cell);
    const int64_t plane = d.T * d.B * d.H;
    region.run(d.G * tiles.per_net, [&](int64_t task, int worker) {
        const GatedTile tile(tiles, task);
        const At at{d, tile.b0};
        const int64_t g = tile.g, count = tile.rows * d.H, piece = line<T>(count);
        T* through = static_cast<T*>(region.scratch(worker, 2 * piece * sizeof(T)));
        T* carry = through + piece;
        T* ga_net = ga + g * gate_blocks * plane;
        for (int64_t t = d.T - 1; t >= 0; --t) {
            const bool last = t + 1 == d.T;
            if (!last) {
                Operand<T> operands[gate_blocks];
                int used = 0;
                for (int k = 0; k < gate_blocks; ++k)
                    if (rows.hidden[k] >= 0)
                        operands[used++] = {ga_net + at(k, t + 1), d.H, d.H,
                                            weights.first.of(g, rows.hidden[k])};
                block_product<T>(through, tile.rows, weights.first.panels, nullptr, operands, used);
            }
            const FourBlocks<const T> a = at.blocks(states.gates.at(g), t);
            const FourBlocks<T> out = at.blocks(ga_net, t);
            const T* gh_t = gh.at(g) + at(0, t);
            const T* later = last ? nullptr : through;
            if (d.cell == Cell::gru) {
                const T* back = t == 0 ? nullptr : states.h.at(g) + at(0, t - 1);
                on_all<T, 7, 5>(gru_back<T>, count,
                                {a.at[0], a.at[1], a.at[2], a.at[3], gh_t, later, back},
                                {out.at[0], out.at[1], out.at[2], out.at[3], carry});
                continue;
            }
            const T* cells = states.cells.at(g);
            on_all<T, 8, 5>(lstm_back<T>, count,
                            {a.at[0], a.at[1], a.at[2], a.at[3], gh_t, later, cells + at(1, t),
                             t == 0 ? nullptr : cells + at(0, t - 1)},
                            {out.at[0], out.at[1], out.at[2], out.at[3], carry});
        }
    });
}

}  // namespace

template <class T>
const GatedKernels<T>& gated_kernels() {
    static const GatedKernels<T> kernels = {gated_forward<T>, gated_tangent<T>, gated_backward<T>};
    return kernels;
}
template const GatedKernels<float>& gated_kernels<float>();
template const GatedKernels<double>& gated_kernels<double>();

}  // namespace HFCORE_ISA
}  // namespace hfcore
