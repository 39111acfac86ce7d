// The passes over one tile whose sequences are rows: a state is [sequences][H], as in memory.
#pragma once

#include "kernels/recurrence/cpu_common.h"

namespace hfcore {
namespace HFCORE_ISA {
namespace {

// gs = c ⊙ Rs − [rank one] c (cᵀRs), in place of Rs, all [rows][k].
template <class T>
void apply_loss_curvature(T* Rs, const T* c, int64_t k, int64_t rows, bool rank_one) {
    using vec = vec_t<T>;
    const auto times = [](vec a, vec b) { return a * b; };
    map<T>(Rs, rows * k, times, Rs, c);
    if (!rank_one) return;
    for (int64_t i = 0; i < rows; ++i, Rs += k, c += k) {
        T dot(0);
        for (int64_t j = 0; j < k; ++j) dot += Rs[j];
        map<T>(Rs, k, [dot](vec r, vec ci) { return r - ci * dot; }, Rs, c);
    }
}

// ------------------------------------------------------------------------------- forward

// h_t = e([W_hh | W_hx]·[h_{t-1}; x_t] + bias); without `back` it is the first step.
template <class T>
void state_step(const RnnDims& d, int64_t rows, T* now, const T* back, const T* x,
                const T* weights, const T* bias) {
    const Widths width(d);
    const RowSegment<T> segments[] = {{back, d.H, d.H, 0}, {x, d.n, d.n, width.hidden}};
    const int skip = back == nullptr;
    rows_product<T>(now, rows, d.H, bias, weights, width.state(), segments + skip, 2 - skip);
    activate(now, rows * d.H, d.e);
}

template <class T>
void forward_tile(const RnnDims& d, const Tile<T>& tile, const T* x, const RnnParameters<T>& w,
                  const ForwardPack<T>& pack, void* scratch, T* h_out, T* s_out,
                  std::size_t* bytes) {
    const int64_t H = d.H, n = d.n, k = d.k, B = d.B, size = tile_capacity<T>(B) * H;
    Arena<T> arena(scratch);
    T* h[2] = {arena.take(size), arena.take(size)};
    if (bytes != nullptr) {
        *bytes = arena.bytes();
        return;
    }
    const Widths width(d);
    const T* back = nullptr;
    int64_t o = 0;
    for (int64_t t = 0; t < d.T; ++t) {
        T* now = h_out != nullptr ? h_out + (t * B + tile.b0) * H : h[t % 2];
        state_step<T>(d, tile.sequences, now, back, x + (t * B + tile.b0) * n, pack.hidden,
                      t == 0 ? pack.first : w.b_h.at(tile.g));
        back = now;
        if (o < d.T_out && (d.steps == nullptr || d.steps[o] == t)) {
            const RowSegment<T> output = {now, H, H, 0};
            rows_product<T>(s_out + (o * B + tile.b0) * k, tile.sequences, k, w.b_y.at(tile.g),
                            pack.output, width.hidden, &output, 1);
            ++o;
        }
    }
}

// ------------------------------------------------------------------------------- linear scan

template <class T>
void scan_tile(const ScanDims& d, const Tile<T>& tile, Grouped<T> u, Grouped<T> derivative,
               const T* weights, Grouped<T> a, Region& region, int worker, T* y) {
    using vec = vec_t<T>;
    const int64_t H = d.H, size = tile.sequences * H;
    T* carried = static_cast<T*>(region.scratch(worker, size * sizeof(T)));
    fill(carried, carried + size, T(0));
    const T* back = nullptr;
    for (int64_t i = 0; i < d.T; ++i) {
        const int64_t t = d.reverse ? d.T - 1 - i : i, at = (t * d.B + tile.b0) * H;
        if (back != nullptr) {
            const RowSegment<T> segment = {back, H, H, 0};
            rows_product<T>(carried, tile.sequences, H, nullptr, weights, paired_depth(H),
                            &segment, 1);
        }
        T* now = y + tile.g * d.T * d.B * H + at;
        const T *ut = u.at(tile.g) + at, *dt = derivative.at(tile.g) + at;
        if (a.data == nullptr)
            map<T>(
                now, size, [](vec di, vec carry, vec ui) { return di * (carry + ui); }, dt, carried,
                ut);
        else
            map<T>(
                now, size,
                [](vec di, vec carry, vec ui, vec ai) { return di * (carry + ui) + ai; }, dt,
                carried, ut, a.at(tile.g) + at);
        back = now;
    }
}

// ------------------------------------------------------------------------------- both passes

// Scratch memory of one worker. Of [h_{t-1} | x_t | 1 | t=0], against which gt_t stands, the columns
// of h that fill whole vectors are read in place; the others lie in `rest`.
template <class T>
struct Workspace {
    static constexpr int slots = chunk_steps + 1;
    static constexpr int64_t lanes = simd<T>::lanes;
    int64_t full;                // sequences of the widest tile
    int64_t in_place;            // columns of h in whole vectors
    int64_t z_stride, y_stride;  // of G and Gy
    int64_t rest_stride;
    T* rest[slots];    // [full][rest_stride]
    T* before[slots];  // [full][H] copies of h_{t-1} where states are recomputed
    T* gt[2];          // [full][H]
    T* left;           // gt of a chunk, packed
    T* left_output;    // gs of a chunk, packed
    T* h[2];           // [full][H] recomputed states before the window
    T* Rh;             // [T or 2][full][H]
    T* gs;             // [T_out][full][k]
    T* G;              // [H][z_stride] partial gradient of the hidden weights
    T* Gy;             // [k][y_stride] partial gradient of the output weights
    T* gb_y;           // [k]
    unsigned char* active;  // [T_out] whether any sequence of the tile has curvature there

    Windows windows;
    T* window;       // [steps][full][H], the states from window_start on
    T* checkpoints;  // [.][full][H] the state before each window
    int64_t window_start;

    std::size_t bytes;

    Workspace(void* base, const RnnDims& d, bool tangent, bool keep_Rh, const Windows& windows_)
        : full(tile_capacity<T>(d.B)), in_place(d.H / lanes * lanes),
          z_stride(round_up<T>(d.H + d.n + 2)), y_stride(round_up<T>(d.H)),
          rest_stride(z_stride - in_place), windows(windows_),
          window_start(d.T - windows_.steps) {
        const int64_t size = full * d.H;
        const bool recompute = windows.steps > 0;
        Arena<T> arena(base);
        // a row's last vector may be written whole
        for (T*& at : rest) at = arena.take(full * rest_stride + lanes);
        for (T*& at : before) at = arena.take(recompute ? size : 0);
        for (T*& at : gt) at = arena.take(size);
        left = arena.take(chunk_steps * size);
        left_output = arena.take(chunk_steps * full * d.k);
        for (T*& at : h) at = arena.take(recompute ? size : 0);
        Rh = arena.take(tangent ? size * (keep_Rh ? d.T : 2) : 0);
        gs = arena.take(full * d.k * d.T_out);
        G = arena.take(d.H * z_stride);
        Gy = arena.take(d.k * y_stride);
        gb_y = arena.take(d.k);
        active = reinterpret_cast<unsigned char*>(
            arena.take(static_cast<int64_t>((d.T_out + sizeof(T) - 1) / sizeof(T))));
        window = arena.take(size * windows.steps);
        checkpoints = arena.take(size * windows.checkpoints());
        bytes = arena.bytes();
    }

    void clear(const RnnDims&, const Tile<T>&) const {}
};

// What both passes over a tile need.
template <class T>
struct Pass {
    const RnnDims& d;
    const Tile<T>& tile;
    const T* x;
    const T* h;
    const ProductPack<T>& pack;
    Workspace<T>& ws;

    bool recomputes() const { return h == nullptr; }
    int64_t size() const { return tile.sequences * d.H; }
    T* in_window(int64_t t) const { return ws.window + (t - ws.window_start) * ws.full * d.H; }
    const T* h_rows(int64_t t) const {
        return recomputes() ? in_window(t) : h + (t * d.B + tile.b0) * d.H;
    }
    const T* x_rows(int64_t t) const { return x + (t * d.B + tile.b0) * d.n; }

    // h_t into `now` from h_{t-1}.
    void make_state(int64_t t, T* now, const T* back) const {
        state_step<T>(d, tile.sequences, now, t == 0 ? nullptr : back, x_rows(t), pack.state,
                      t == 0 ? pack.state_first : pack.state_bias);
    }

    T* checkpoint(int64_t t) const {
        return ws.checkpoints + ws.windows.checkpoint(t) * ws.full * d.H;
    }

    // Rebuilds the window that ends where the present one starts.
    void previous_window() const {
        const int64_t end = ws.window_start;
        ws.window_start = larger(0, end - ws.windows.steps);
        const T* back = ws.window_start == 0 ? nullptr : checkpoint(ws.window_start - 1);
        for (int64_t t = ws.window_start; t < end; ++t) {
            make_state(t, in_window(t), back);
            back = in_window(t);
        }
    }

    // h_{t-1}, once step t is loaded; a window may have gone since.
    const T* before(int64_t t) const {
        return recomputes() ? ws.before[t % Workspace<T>::slots] : h_rows(t - 1);
    }
    T* rest(int64_t t) const { return ws.rest[t % Workspace<T>::slots]; }

    // What step t's gradient stands against; t = T has h_{T-1} alone.
    void load_step(int64_t t) const {
        constexpr int64_t lanes = simd<T>::lanes;
        const int64_t n = d.n, left = d.H - ws.in_place;
        if (recomputes() && t > 0) copy(ws.before[t % Workspace<T>::slots], h_rows(t - 1), size());
        const T* states = t > 0 ? before(t) + ws.in_place : nullptr;
        const T* inputs = t < d.T ? x_rows(t) : nullptr;
        T* row = rest(t);
        for (int64_t q = 0; q < tile.sequences; ++q, row += ws.rest_stride) {
            store<T>(row, states ? load_first<T>(states + q * d.H, left) : vec_t<T>{});
            if (inputs == nullptr) continue;
            for (int64_t i = 0; i < n; i += lanes)
                store<T>(row + left + i,
                         load_first<T>(inputs + q * n + i, smaller(n - i, lanes)));
            fill(row + left + n + 2, row + ws.rest_stride, T(0));
            row[left + n] = T(1);
            row[left + n + 1] = T(t == 0);
        }
    }
};

// R-op through time; leaves gs_t = L''Rs_t at the output steps, and Rh_t if `keep_Rh`.
template <class T>
void tangent_pass(const Pass<T>& p, Flat<const T> v, const T* c, bool rank_one, bool keep_Rh) {
    const RnnDims& d = p.d;
    Workspace<T>& ws = p.ws;
    const Widths width(d);
    const int64_t H = d.H, n = d.n, k = d.k, m = p.tile.sequences, slot = ws.full * H;
    const T *h_back = nullptr, *Rh_back = nullptr;
    int64_t o = 0;
    for (int64_t t = 0; t < d.T; ++t) {
        const T* h;
        Fetch next;
        if (p.recomputes()) {
            T* now = t >= ws.window_start ? p.in_window(t) : ws.h[t % 2];
            p.make_state(t, now, h_back);
            if (ws.windows.at_checkpoint(t)) copy(p.checkpoint(t), now, p.size());
            h = now;
        } else {
            h = p.h_rows(t);
            if (t + 1 < d.T) next = {p.h_rows(t + 1), p.size()};
        }
        T* Rh = ws.Rh + (keep_Rh ? t : t % 2) * slot;
        const RowSegment<T> hidden[] = {
            {Rh_back, H, H, 0}, {h_back, H, H, width.hidden}, {p.x_rows(t), n, n, 2 * width.hidden}};
        const int skip = t == 0 ? 2 : 0;
        rows_product<T>(Rh, m, H, t == 0 ? p.pack.first : v.b_h, p.pack.hidden, width.tangent(),
                        hidden + skip, 3 - skip, next);
        apply_derivative<T>(d.e, Rh, h, nullptr, T(0), p.size());
        h_back = h;
        Rh_back = Rh;
        if (o == d.T_out || (d.steps != nullptr && d.steps[o] != t)) continue;
        // Curvature is looked up only where some sequence of the tile has an output.
        const T* c_rows = c + (o * d.B + p.tile.b0) * k;
        ws.active[o] = !all_zero(c_rows, m * k);
        if (ws.active[o]) {
            T* Rs = ws.gs + o * ws.full * k;
            const RowSegment<T> output[] = {{Rh, H, H, 0}, {h, H, H, width.hidden}};
            rows_product<T>(Rs, m, k, v.b_y, p.pack.output, width.outputs(), output, 2);
            apply_loss_curvature(Rs, c_rows, k, m, rank_one);
        }
        ++o;
    }
}

// gs = ∂L/∂s at every output step.
template <class T>
void gather_output_gradient(const Pass<T>& p, const T* gs) {
    const RnnDims& d = p.d;
    Workspace<T>& ws = p.ws;
    const int64_t count = p.tile.sequences * d.k;
    for (int64_t o = 0; o < d.T_out; ++o) {
        const T* rows = gs + (o * d.B + p.tile.b0) * d.k;
        ws.active[o] = !all_zero(rows, count);
        if (ws.active[o]) copy(ws.gs + o * ws.full * d.k, rows, count);
    }
}

// The gradient terms of a chunk of steps: packed on the left, in place and `rest` on the right.
template <class T>
struct Chunk {
    OuterRows<T> in_place[chunk_steps], rest[chunk_steps];
    int in_place_count = 0, count = 0;

    // rows [sequences][units] against step t of the pass; h_{-1} is no term.
    void add(const Pass<T>& p, T* left, const T* rows, int64_t units, int64_t t) {
        const int64_t m = p.tile.sequences;
        pack_outer_left(left, chunk_steps * m, count * m, rows, units, m);
        if (t > 0) in_place[in_place_count++] = {p.before(t), p.d.H};
        rest[count++] = {p.rest(t), p.ws.rest_stride};
    }
    // G [units][stride] += the chunk.
    void flush(const Pass<T>& p, T* G, int64_t stride, int64_t units, const T* left) {
        const int64_t m = p.tile.sequences, depth = chunk_steps * m, split = p.ws.in_place;
        rows_outer(G, stride, units, split, left, depth, in_place, in_place_count, m);
        rows_outer(G + split, stride, units, stride - split, left, depth, rest, count, m);
        in_place_count = count = 0;
    }
};

// BPTT from gs; leaves the tile's sums in G, Gy and gb_y. `structural` weighs the kept Rh.
template <class T>
void reverse_pass(const Pass<T>& p, T structural) {
    const RnnDims& d = p.d;
    Workspace<T>& ws = p.ws;
    const Widths width(d);
    const int64_t H = d.H, k = d.k, m = p.tile.sequences;
    fill(ws.G, ws.G + H * ws.z_stride, T(0));
    fill(ws.Gy, ws.Gy + k * ws.y_stride, T(0));
    fill(ws.gb_y, ws.gb_y + k, T(0));

    Chunk<T> hidden, output;
    int64_t o = d.T_out - 1;
    bool flowing = false;  // whether anything has reached the reverse scan yet
    p.load_step(d.T);
    for (int64_t t = d.T - 1; t >= 0; --t) {
        T* gt = ws.gt[t % 2];
        if (p.recomputes() && t > 0 && t - 1 < ws.window_start) p.previous_window();
        p.load_step(t);
        const bool at_output = o >= 0 && (d.steps == nullptr || d.steps[o] == t);
        const bool active = at_output && ws.active[o];
        const T* gs = ws.gs + larger(o, 0) * ws.full * k;

        RowSegment<T> segments[2];
        int count = 0;
        if (flowing) segments[count++] = {ws.gt[(t + 1) % 2], H, H, 0};
        if (active) segments[count++] = {gs, k, k, width.hidden};
        flowing = flowing || active || structural != T(0);
        if (flowing) {
            const Fetch next = t > 1 && !p.recomputes() ? Fetch(p.h_rows(t - 2), p.size()) : Fetch();
            rows_product<T>(gt, m, H, nullptr, p.pack.reverse, width.reverse(), segments, count,
                            next);
            const T* Rh = structural != T(0) ? ws.Rh + t * ws.full * H : nullptr;
            apply_derivative<T>(d.e, gt, p.before(t + 1), Rh, structural, p.size());
            hidden.add(p, ws.left, gt, H, t);
        }
        if (active) {
            output.add(p, ws.left_output, gs, k, t + 1);
            for (int64_t q = 0; q < m; ++q)
                for (int64_t j = 0; j < k; ++j) ws.gb_y[j] += gs[q * k + j];
        }
        if (at_output) --o;
        // Slots are reused after chunk_steps steps: flush before the oldest one goes.
        if (t == 0 || (d.T - t) % chunk_steps == 0) {
            hidden.flush(p, ws.G, ws.z_stride, H, ws.left);
            output.flush(p, ws.Gy, ws.y_stride, k, ws.left_output);
        }
    }
}

}  // namespace
}  // namespace HFCORE_ISA
}  // namespace hfcore
