// LSTM and GRU through time, a tile of sequences at a time: states, tangents and gradients at the
// pre-activations.
//
//   forward   a_t = W_hh h_{t-1} + W_ih x_t + b                       then the cell (cell.h)
//   R-op      Ra_t = W_hh Rh_{t-1} + V_hh h_{t-1} + V_ih x_t + W_ih Rx_t + v_b
//   BPTT      gh_t = ∂L/∂h_t + Σ over blocks of ga_{t+1} W_hh
//   gradient  [∂W_hh | ∂b | ∂W_ih] += ga_tᵀ·[h_{t-1} | 1 | x_t]
//
// Rows are sequences, which lie as the arrays have them; weights are packed once a call. The products
// are those of rows.h: the bits of a sequence depend neither on its neighbours nor on threads.
#include "kernels/gated/cpu.h"

#include "kernels/cpu/parallel.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/runs.h"
#include "kernels/cpu/tiles.h"
#include "kernels/gated/cell.h"

namespace hfcore {
namespace HFCORE_ISA {
namespace {

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

// What flows forward into a block: the weights of its operands, one below the other, as a right side of
// rows_product. An operand of h stands in `hidden` rows, one of x in `input`.
template <class T>
struct Forwards {
    const GatedDims& d;
    CellRows rows;
    int64_t hidden, input, depth, each;
    T* data = nullptr;
    Forwards(const GatedDims& d_, int of_h, int of_x)
        : d(d_), rows(rows_of(d_.cell)), hidden(paired_depth(d_.H)), input(paired_depth(d_.n)),
          depth(of_h * hidden + of_x * input), each(whole_lines<T>(packed_elements<T>(d_.H, depth))) {}
    int64_t elements() const { return d.G * gate_blocks * each; }
    const T* of(int64_t g, int k) const { return data + (g * gate_blocks + k) * each; }
    // The rows of a weight [R·H,K] that block k hears from row `offset` on, of net g.
    void fill(int64_t g, int k, int row, Grouped<T> W, int64_t K, int64_t offset) const {
        if (row < 0) return;
        pack_rows(data + (g * gate_blocks + k) * each, d.H, depth, offset, W.at(g) + row * d.H * K, K, K,
                  1);
    }
};

template <class T>
int64_t scratch_elements(const GatedDims& d, int64_t pieces) {
    return pieces * whole_lines<T>(tile_capacity<T>(d.B) * d.H);
}

// run(tile, scratch) for every tile; scratch has room for so many states of a tile.
template <class T, class F>
void for_tiles(Region& region, const GatedDims& d, int64_t pieces, const F& run) {
    const Tiles<T> tiles(d.B);
    const std::size_t bytes = static_cast<std::size_t>(scratch_elements<T>(d, pieces)) * sizeof(T);
    region.run(d.G * tiles.per_net, [&](int64_t task, int worker) {
        run(Tile<T>(tiles, task), static_cast<T*>(region.scratch(worker, bytes)));
    });
}

// ---------------------------------------------------------------------------- forward

template <class T>
void gated_forward(const GatedDims& d, Grouped<T> x, const GatedParameters<T>& w, T* h, T* gates,
                   T* cells) {
    Region region(d.threads, Denormals::flush);
    Forwards<T> pack(d, 1, 1);
    pack.data = static_cast<T*>(region.shared(pack.elements() * sizeof(T)));
    const CellRows& rows = pack.rows;
    region.run(d.G * gate_blocks, [&](int64_t task, int) {
        const int64_t g = task / gate_blocks;
        const int k = task % gate_blocks;
        pack.fill(g, k, rows.hidden[k], w.W_hh, d.H, 0);
        pack.fill(g, k, rows.input[k], w.W_ih, d.n, pack.hidden);
    });
    const int64_t plane = d.T * d.B * d.H, piece = scratch_elements<T>(d, 1);
    for_tiles<T>(region, d, 7, [&](const Tile<T>& tile, T* scratch) {
        const At at{d, tile.b0};
        const int64_t g = tile.g, count = tile.sequences * d.H;
        T* h_net = h + g * plane;
        for (int64_t t = 0; t < d.T; ++t) {
            const T* back = t == 0 ? nullptr : h_net + at(0, t - 1);
            const T* x_t = x.at(g) + (t * d.B + tile.b0) * d.n;
            FourBlocks<T> a = {{scratch, scratch + piece, scratch + 2 * piece, scratch + 3 * piece}};
            if (gates != nullptr) a = at.blocks(gates + g * gate_blocks * plane, t);
            for (int k = 0; k < gate_blocks; ++k) {
                RowSegment<T> segments[2];
                int used = 0;
                if (back != nullptr && rows.hidden[k] >= 0)
                    segments[used++] = {back, d.H, d.H, 0};
                if (rows.input[k] >= 0) segments[used++] = {x_t, d.n, d.n, pack.hidden};
                rows_product<T>(a.at[k], tile.sequences, d.H, w.b.at(g) + k * d.H, pack.of(g, k),
                                pack.depth, segments, used);
            }
            if (d.cell == Cell::gru) {
                on_all<T, 1, 5>(gru_step<T>, count, {back},
                                {a.at[0], a.at[1], a.at[2], a.at[3], h_net + at(0, t)});
                continue;
            }
            T* own = cells == nullptr ? nullptr : cells + g * 2 * plane;
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
    const bool below = Rx.data != nullptr;
    Forwards<T> pack(d, 2, below ? 2 : 1);
    pack.data = static_cast<T*>(region.shared(pack.elements() * sizeof(T)));
    const CellRows& rows = pack.rows;
    const int64_t at_V = pack.hidden, at_x = 2 * pack.hidden, at_Rx = at_x + pack.input;
    region.run(d.G * gate_blocks, [&](int64_t task, int) {
        const int64_t g = task / gate_blocks;
        const int k = task % gate_blocks;
        pack.fill(g, k, rows.hidden[k], w.W_hh, d.H, 0);
        pack.fill(g, k, rows.hidden[k], v.W_hh, d.H, at_V);
        pack.fill(g, k, rows.input[k], v.W_ih, d.n, at_x);
        if (below) pack.fill(g, k, rows.input[k], w.W_ih, d.n, at_Rx);
    });
    const int64_t plane = d.T * d.B * d.H, piece = scratch_elements<T>(d, 1);
    for_tiles<T>(region, d, 5, [&](const Tile<T>& tile, T* scratch) {
        const At at{d, tile.b0};
        const int64_t g = tile.g, count = tile.sequences * d.H;
        T* const Ra[] = {scratch, scratch + piece, scratch + 2 * piece, scratch + 3 * piece};
        T* Rc = scratch + 4 * piece;
        T* Rh_net = Rh + g * plane;
        for (int64_t t = 0; t < d.T; ++t) {
            const T* back = t == 0 ? nullptr : states.h.at(g) + at(0, t - 1);
            const T* R_back = t == 0 ? nullptr : Rh_net + at(0, t - 1);
            const int64_t x_t = (t * d.B + tile.b0) * d.n;
            const FourBlocks<const T> a = at.blocks(states.gates.at(g), t);
            for (int k = 0; k < gate_blocks; ++k) {
                RowSegment<T> segments[4];
                int used = 0;
                if (t > 0 && rows.hidden[k] >= 0) {
                    segments[used++] = {R_back, d.H, d.H, 0};
                    segments[used++] = {back, d.H, d.H, at_V};
                }
                if (rows.input[k] >= 0) {
                    segments[used++] = {x.at(g) + x_t, d.n, d.n, at_x};
                    if (below) segments[used++] = {Rx.at(g) + x_t, d.n, d.n, at_Rx};
                }
                rows_product<T>(Ra[k], tile.sequences, d.H, v.b.at(g) + k * d.H, pack.of(g, k),
                                pack.depth, segments, used, Fetch(a.at[k], count));
            }
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

// A tile's sums of gaᵀ·[h_{t-1} | 1 | x_t] of every block. The columns of h that fill whole vectors are
// read in place, the others lie in `rest`.
template <class T>
struct TileSums {
    static constexpr int64_t lanes = simd<T>::lanes;
    const GatedDims& d;
    CellRows rows;
    int64_t in_place, stride, rest_stride, left_size;
    T* G;     // [blocks][H][stride]
    T* left;  // [blocks], ga of a chunk, packed
    T* rest[chunk_steps];
    OuterRows<T> states[chunk_steps], others[chunk_steps];
    int states_count = 0, count = 0;

    TileSums(const GatedDims& d_, Arena<T>& arena)
        : d(d_), rows(rows_of(d_.cell)), in_place(d_.H / lanes * lanes),
          stride(round_up<T>(d_.H + 1 + d_.n)), rest_stride(stride - in_place),
          left_size(whole_lines<T>(chunk_steps * tile_capacity<T>(d_.B) * d_.H)),
          G(arena.take(gate_blocks * d_.H * stride)), left(arena.take(gate_blocks * left_size)) {
        // a row's last vector may be written whole
        for (T*& at : rest) at = arena.take(tile_capacity<T>(d.B) * rest_stride + lanes);
    }

    void clear() const { fill(G, G + gate_blocks * d.H * stride, T(0)); }

    // A step's ga against h_{t-1} [m][H], null for zeros, and x_t [m][n].
    void add(const FourBlocks<T>& ga, const T* back, const T* x_t, int64_t m) {
        const int64_t tail = d.H - in_place, n = d.n;
        T* row = rest[count];
        for (int64_t q = 0; q < m; ++q, row += rest_stride) {
            store<T>(row, back ? load_first<T>(back + q * d.H + in_place, tail) : vec_t<T>{});
            row[tail] = T(1);
            for (int64_t i = 0; i < n; i += lanes)
                store<T>(row + tail + 1 + i, load_first<T>(x_t + q * n + i, smaller(n - i, lanes)));
            fill(row + tail + 1 + n, row + rest_stride, T(0));
        }
        for (int k = 0; k < gate_blocks; ++k)
            pack_outer_left(left + k * left_size, chunk_steps * m, count * m, ga.at[k], d.H, m);
        if (back != nullptr) states[states_count++] = {back, d.H};
        others[count] = {rest[count], rest_stride};
        if (++count == chunk_steps) flush(m);
    }

    // A block that hears no x needs of `rest` no more than h and 1, one that hears no h no h in place.
    void flush(int64_t m) {
        const int64_t depth = chunk_steps * m, without_x = round_up<T>(d.H - in_place + 1);
        for (int k = 0; k < gate_blocks; ++k) {
            T* to = G + k * d.H * stride;
            const T* from = left + k * left_size;
            if (rows.hidden[k] >= 0)
                rows_outer(to, stride, d.H, in_place, from, depth, states, states_count, m);
            rows_outer(to + in_place, stride, d.H, rows.input[k] >= 0 ? rest_stride : without_x, from,
                       depth, others, count, m);
        }
        states_count = count = 0;
    }

    void add_to(const GatedGradient<T>& out, int64_t g) const {
        using vec = vec_t<T>;
        const auto plus = [](vec a, vec b) { return a + b; };
        const int64_t H = d.H, n = d.n, R = rows.blocks;
        for (int k = 0; k < gate_blocks; ++k)
            for (int64_t j = 0; j < H; ++j) {
                const T* row = G + (k * H + j) * stride;
                if (const int r = rows.hidden[k]; r >= 0) {
                    T* to = out.W_hh + ((g * R + r) * H + j) * H;
                    map<T>(to, H, plus, to, row);
                }
                if (const int r = rows.input[k]; r >= 0) {
                    T* to = out.W_ih + ((g * R + r) * H + j) * n;
                    map<T>(to, n, plus, to, row + H + 1);
                }
                out.b[(g * gate_blocks + k) * H + j] += row[H];
            }
    }
};

// The blocks' weights of h from the right, one below the other.
template <class T>
struct Backwards {
    int64_t blocks, hidden, depth, each;
    T* data;
    Backwards(Region& region, const GatedDims& d, Grouped<T> W_hh)
        : blocks(rows_of(d.cell).blocks), hidden(paired_depth(d.H)), depth(blocks * hidden),
          each(whole_lines<T>(packed_elements<T>(d.H, depth))),
          data(static_cast<T*>(region.shared(d.G * each * sizeof(T)))) {
        region.run(d.G * blocks, [&](int64_t task, int) {
            const int64_t g = task / blocks, r = task % blocks;
            pack_rows(data + g * each, d.H, depth, r * hidden, W_hh.at(g) + r * d.H * d.H, d.H, 1, d.H);
        });
    }
};

// ga of a tile, step by step backwards: where(t) is where it goes, use(t, ga, h_{t-1}) has it there.
template <class T, class Where, class Use>
void back_through_time(const GatedDims& d, const Tile<T>& tile, Grouped<T> gh,
                       const GatedStates<T>& states, const Backwards<T>& W, T* scratch,
                       const Where& where, const Use& use) {
    const At at{d, tile.b0};
    const CellRows rows = rows_of(d.cell);
    const int64_t g = tile.g, count = tile.sequences * d.H;
    T *through = scratch, *carry = scratch + scratch_elements<T>(d, 1);
    for (int64_t t = d.T - 1; t >= 0; --t) {
        const bool last = t + 1 == d.T;
        const FourBlocks<const T> a = at.blocks(states.gates.at(g), t);
        if (!last) {
            const FourBlocks<T> later = where(t + 1);
            RowSegment<T> segments[gate_blocks];
            for (int k = 0; k < gate_blocks; ++k)
                if (const int r = rows.hidden[k]; r >= 0)
                    segments[r] = {later.at[k], d.H, d.H, r * W.hidden};
            rows_product<T>(through, tile.sequences, d.H, nullptr, W.data + g * W.each, W.depth,
                            segments, static_cast<int>(W.blocks));
        }
        const FourBlocks<T> out = where(t);
        const T *gh_t = gh.at(g) + at(0, t), *later = last ? nullptr : through;
        const T* h_back = t == 0 ? nullptr : states.h.at(g) + at(0, t - 1);
        if (d.cell == Cell::gru) {
            on_all<T, 7, 5>(gru_back<T>, count,
                            {a.at[0], a.at[1], a.at[2], a.at[3], gh_t, later, h_back},
                            {out.at[0], out.at[1], out.at[2], out.at[3], carry});
        } else {
            const T* cells = states.cells.at(g);
            on_all<T, 8, 5>(lstm_back<T>, count,
                            {a.at[0], a.at[1], a.at[2], a.at[3], gh_t, later, cells + at(1, t),
                             t == 0 ? nullptr : cells + at(0, t - 1)},
                            {out.at[0], out.at[1], out.at[2], out.at[3], carry});
        }
        use(t, out, h_back);
    }
}

template <class T>
void gated_backward(const GatedDims& d, Grouped<T> gh, const GatedStates<T>& states,
                    Grouped<T> W_hh, T* ga) {
    Region region(d.threads, Denormals::flush);
    const Backwards<T> W(region, d, W_hh);
    const int64_t plane = gate_blocks * d.T * d.B * d.H;
    for_tiles<T>(region, d, 2, [&](const Tile<T>& tile, T* scratch) {
        const At at{d, tile.b0};
        const auto where = [&](int64_t t) { return at.blocks(ga + tile.g * plane, t); };
        back_through_time<T>(d, tile, gh, states, W, scratch, where,
                             [](int64_t, const FourBlocks<T>&, const T*) {});
    });
}

// What a tile of gated_gradient takes beside the arrays.
template <class T>
struct GradientMemory {
    T* scratch;
    FourBlocks<T> ga[2];  // of two steps, where there is no array for all
    TileSums<T> sums;
    std::size_t bytes;
    GradientMemory(void* base, const GatedDims& d) : GradientMemory(Arena<T>(base), d) {}

private:
    GradientMemory(Arena<T> arena, const GatedDims& d)
        : scratch(arena.take(scratch_elements<T>(d, 2))), ga{steps(arena, d), steps(arena, d)},
          sums(d, arena), bytes(arena.bytes()) {}
    static FourBlocks<T> steps(Arena<T>& arena, const GatedDims& d) {
        FourBlocks<T> blocks;
        for (T*& at : blocks.at) at = arena.take(scratch_elements<T>(d, 1));
        return blocks;
    }
};

// The sums of the tiles are added in their order, so that bits depend on the shape alone.
template <class T>
void gated_gradient(const GatedDims& d, Grouped<T> gh, Grouped<T> x, const GatedStates<T>& states,
                    Grouped<T> W_hh, const GatedGradient<T>& out, T* ga) {
    Region region(d.threads, Denormals::flush);
    const Backwards<T> W(region, d, W_hh);
    const int64_t R = W.blocks, plane = gate_blocks * d.T * d.B * d.H;
    fill(out.W_ih, out.W_ih + d.G * R * d.H * d.n, T(0));
    fill(out.W_hh, out.W_hh + d.G * R * d.H * d.H, T(0));
    fill(out.b, out.b + d.G * gate_blocks * d.H, T(0));
    const Tiles<T> tiles(d.B);
    const std::size_t bytes = GradientMemory<T>(nullptr, d).bytes;
    region.run_ordered(
        d.G * tiles.per_net,
        [&](int64_t task, int worker) {
            const Tile<T> tile(tiles, task);
            GradientMemory<T> memory(region.scratch(worker, bytes), d);
            const At at{d, tile.b0};
            const auto where = [&](int64_t t) {
                return ga == nullptr ? memory.ga[t % 2] : at.blocks(ga + tile.g * plane, t);
            };
            memory.sums.clear();
            back_through_time<T>(d, tile, gh, states, W, memory.scratch, where,
                                 [&](int64_t t, const FourBlocks<T>& now, const T* back) {
                                     const T* x_t = x.at(tile.g) + (t * d.B + tile.b0) * d.n;
                                     memory.sums.add(now, back, x_t, tile.sequences);
                                 });
            memory.sums.flush(tile.sequences);
        },
        [&](int64_t task, int worker) {
            GradientMemory<T>(region.scratch(worker, bytes), d)
                .sums.add_to(out, Tile<T>(tiles, task).g);
        });
}

}  // namespace

template <class T>
const GatedKernels<T>& gated_kernels() {
    static const GatedKernels<T> kernels = {gated_forward<T>, gated_tangent<T>, gated_backward<T>,
                                            gated_gradient<T>};
    return kernels;
}
template const GatedKernels<float>& gated_kernels<float>();
template const GatedKernels<double>& gated_kernels<double>();

}  // namespace HFCORE_ISA
}  // namespace hfcore
