// The passes over one tile whose sequences lie in vector lanes: a state is [H][L].
#pragma once

#include "kernels/recurrence/cpu_common.h"

namespace hfcore {
namespace HFCORE_ISA {
namespace {


// Steps whose gradient products are summed in registers before the buffer is touched.
constexpr int chunk_steps = 4;


// The tiles of every net of the group, numbered net by net.
template <class T>
struct Tiles {
    static constexpr int64_t full = NV * simd<T>::lanes;
    int64_t B, per_net;
    explicit Tiles(int64_t B_) : B(B_), per_net((B_ + full - 1) / full) {}
};

template <class T>
struct Tile {
    int64_t g, index, b0, sequences;
    int V;
    int64_t L;
    Tile(const Tiles<T>& tiles, int64_t task)
        : g(task / tiles.per_net), index(task % tiles.per_net), b0(index * tiles.full),
          sequences(smaller(tiles.B - b0, tiles.full)),
          V(sequences > simd<T>::lanes ? NV : 1), L(V * simd<T>::lanes) {}
};

// Sequences of the widest tile.
template <class T>
int64_t tile_capacity(int64_t) {
    return Tiles<T>::full;
}

template <class T>
void apply_loss_curvature(T* Rs, const T* c, int64_t k, int64_t L, bool rank_one) {
    using vec = typename simd<T>::vec;
    for (int64_t l = 0; l < L; l += simd<T>::lanes) {
        vec dot{};
        for (int64_t j = 0; j < k; ++j) {
            const vec cj = load<T>(c + j * L + l), product = cj * load<T>(Rs + j * L + l);
            dot += product;
            store<T>(Rs + j * L + l, product);
        }
        if (!rank_one) continue;
        for (int64_t j = 0; j < k; ++j)
            store<T>(Rs + j * L + l, load<T>(Rs + j * L + l) - load<T>(c + j * L + l) * dot);
    }
}

// ------------------------------------------------------------------------------- forward
template <class T>
void state_step(const RnnDims& d, int V, T* now, const T* back, const T* x_lanes, const T* weights,
                const T* bias) {
    const Segment<T> segments[] = {{back, d.H, 0}, {x_lanes, d.n, d.H}};
    const int skip = back == nullptr;
    lane_product<T>(V, now, d.H, bias, weights, d.H + d.n, segments + skip, 2 - skip);
    activate(now, d.H * V * simd<T>::lanes, d.e);
}

template <class T>
void forward_tile(const RnnDims& d, const Tile<T>& tile, const T* x, const RnnParameters<T>& w,
                  const ForwardPack<T>& pack, void* scratch, T* h_out, T* s_out,
                  std::size_t* bytes) {
    const int64_t H = d.H, n = d.n, k = d.k, B = d.B, L = tile.L;
    const int64_t x_stride = round_up<T>(n);
    Arena<T> arena(scratch);
    T* x_rows = arena.take(Tiles<T>::full * x_stride);
    T* x_lanes = arena.take(n * Tiles<T>::full);
    T* h[2] = {arena.take(H * Tiles<T>::full), arena.take(H * Tiles<T>::full)};
    T* s_lanes = arena.take(k * Tiles<T>::full);
    if (bytes != nullptr) {
        *bytes = arena.bytes();
        return;
    }
    fill(x_rows, x_rows + L * x_stride, T(0));
    const int64_t* step = d.steps;
    int64_t o = 0;
    for (int64_t t = 0; t < d.T; ++t) {
        copy_rows(x_rows, x_stride, x + (t * B + tile.b0) * n, n, tile.sequences, n);
        rows_to_lanes<T>(tile.V, x_lanes, x_rows, x_stride, n);
        T* now = h[t % 2];
        state_step<T>(d, tile.V, now, t == 0 ? nullptr : h[(t + 1) % 2], x_lanes, pack.hidden,
                      t == 0 ? pack.first : w.b_h.at(tile.g));
        if (h_out != nullptr)
            lanes_to_rows<T>(tile.V, h_out + (t * B + tile.b0) * H, H, now, H, tile.sequences);
        if (o < d.T_out && (step == nullptr || step[o] == t)) {
            const Segment<T> output = {now, H, 0};
            lane_product<T>(tile.V, s_lanes, k, w.b_y.at(tile.g), pack.output, H, &output, 1);
            lanes_to_rows<T>(tile.V, s_out + (o * B + tile.b0) * k, k, s_lanes, k,
                             tile.sequences);
            ++o;
        }
    }
}

// ------------------------------------------------------------------------------- linear scan

template <class T>
void scan_tile(const ScanDims& d, const Tile<T>& tile, Grouped<T> u, Grouped<T> derivative,
               const T* weights, Grouped<T> a, Region& region, int worker, T* y) {
    using vec = vec_t<T>;
    const int64_t H = d.H, L = tile.L, stride = round_up<T>(H), full = Tiles<T>::full;
    T* rows = static_cast<T*>(region.scratch(worker, (full * stride + 4 * full * H) * sizeof(T)));
    T* lanes = rows + full * stride;
    T* state[2] = {lanes + full * H, lanes + 2 * full * H};
    T* other = lanes + 3 * full * H;
    fill(rows, rows + L * stride, T(0));
    const auto fetch = [&](T* to, const T* array, int64_t t) {
        copy_rows(rows, stride, array + (t * d.B + tile.b0) * H, H, tile.sequences, H);
        rows_to_lanes<T>(tile.V, to, rows, stride, H);
    };
    for (int64_t i = 0; i < d.T; ++i) {
        const int64_t t = d.reverse ? d.T - 1 - i : i;
        T* now = state[i % 2];
        if (i > 0) {
            const Segment<T> back = {state[(i + 1) % 2], H, 0};
            lane_product<T>(tile.V, now, H, nullptr, weights, H, &back, 1);
        } else {
            fill(now, now + H * L, T(0));
        }
        fetch(lanes, u.at(tile.g), t);
        fetch(other, derivative.at(tile.g), t);
        for (int64_t j = 0; j < H * L; j += simd<T>::lanes) {
            const vec pre = load<T>(now + j) + load<T>(lanes + j);
            store<T>(now + j, load<T>(other + j) * pre);
        }
        if (a.data != nullptr) {
            fetch(lanes, a.at(tile.g), t);
            for (int64_t j = 0; j < H * L; j += simd<T>::lanes)
                store<T>(now + j, load<T>(now + j) + load<T>(lanes + j));
        }
        lanes_to_rows<T>(tile.V, y + ((tile.g * d.T + t) * d.B + tile.b0) * H, H, now, H,
                         tile.sequences);
    }
}

// ------------------------------------------------------------------------------- both passes

// Scratch memory of one worker.
template <class T>
struct Workspace {
    static constexpr int slots = chunk_steps + 1;
    int64_t z_stride, y_stride;
    T* z[slots];         // rows [h_{t-1} | x_t | 1 | t=0], padded to whole vectors
    T* gt[slots];        // [H][L]
    T* h[2];             // lanes of h_t and h_{t-1}
    T* x;                // lanes of x_t
    T* Rh;               // [T or 2][H][L]
    T* gs;               // [T_out][k][L]
    T* rows;             // padded rows of c, gs
    T* c;                // [k][L]
    T* G;                // [H][z_stride] partial gradient of the hidden weights
    T* Gy;               // [k][y_stride] partial gradient of the output weights
    T* gb_y;             // [k]
    unsigned char* active;  // [T_out] whether any sequence of the tile has curvature there

    Windows windows;
    T* window;           // rows [steps][full][H] of the states from window_start on
    T* checkpoints;      // [.][H][L] the state before each window
    T* spare;            // [H][L]
    int64_t window_start;

    std::size_t bytes;

    Workspace(void* base, const RnnDims& d, bool tangent, bool keep_Rh, const Windows& windows_)
        : z_stride(round_up<T>(d.H + d.n + 2)), y_stride(round_up<T>(d.H)), windows(windows_),
          window_start(d.T - windows_.steps) {
        const int64_t full = Tiles<T>::full;
        Arena<T> arena(base);
        for (T*& rows_at : z) rows_at = arena.take(full * z_stride);
        for (T*& at : gt) at = arena.take(full * d.H);
        for (T*& at : h) at = arena.take(full * d.H);
        x = arena.take(tangent ? full * d.n : 0);
        Rh = arena.take(tangent ? full * d.H * (keep_Rh ? d.T : 2) : 0);
        gs = arena.take(full * d.k * d.T_out);
        rows = arena.take(full * larger(round_up<T>(d.k), round_up<T>(d.n)));
        c = arena.take(full * d.k);
        G = arena.take(d.H * z_stride);
        Gy = arena.take(d.k * y_stride);
        gb_y = arena.take(d.k);
        active = reinterpret_cast<unsigned char*>(
            arena.take(static_cast<int64_t>((d.T_out + sizeof(T) - 1) / sizeof(T))));
        window = arena.take(full * d.H * windows.steps);
        checkpoints = arena.take(full * d.H * windows.checkpoints());
        spare = arena.take(windows.steps > 0 ? full * d.H : 0);
        bytes = arena.bytes();
    }

    // Zeros where vectors reach beyond what is written.
    void clear(const RnnDims& d, const Tile<T>& tile) const {
        for (T* at : z) fill(at, at + tile.L * z_stride, T(0));
        fill(rows, rows + tile.L * larger(round_up<T>(d.k), round_up<T>(d.n)), T(0));
    }
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

    const T* h_rows(int64_t t) const {
        if (h == nullptr) return ws.window + (t - ws.window_start) * Tiles<T>::full * d.H;
        return h + (t * d.B + tile.b0) * d.H;
    }
    const T* x_rows(int64_t t) const { return x + (t * d.B + tile.b0) * d.n; }

    void load_x(int64_t t) const {
        const int64_t stride = round_up<T>(d.n);
        copy_rows(ws.rows, stride, x_rows(t), d.n, tile.sequences, d.n);
        rows_to_lanes<T>(tile.V, ws.x, ws.rows, stride, d.n);
    }

    // h_t in lanes from h_{t-1} and the loaded x_t, and into the window if it is there.
    void make_state(int64_t t, T* now, const T* back) const {
        state_step<T>(d, tile.V, now, t == 0 ? nullptr : back, ws.x, pack.state,
                      t == 0 ? pack.state_first : pack.state_bias);
        if (t >= ws.window_start)
            lanes_to_rows<T>(tile.V, ws.window + (t - ws.window_start) * Tiles<T>::full * d.H, d.H,
                             now, d.H, tile.sequences);
    }

    // Rebuilds the window that ends where the present one starts.
    void previous_window() const {
        const int64_t end = ws.window_start, elements = d.H * tile.L;
        ws.window_start = larger<int64_t>(0, end - ws.windows.steps);
        const T* back = ws.window_start == 0
                            ? nullptr
                            : ws.checkpoints + ws.windows.checkpoint(ws.window_start - 1) * elements;
        for (int64_t t = ws.window_start; t < end; ++t) {
            T* now = t % 2 ? ws.spare : ws.h[1];
            load_x(t);
            make_state(t, now, back);
            back = now;
        }
    }

    // z rows of step t: [h_{t-1} | x_t | 1 | t=0]; t = T holds h_{T-1} alone.
    void load_z(T* z, int64_t t) const {
        const int64_t H = d.H, n = d.n;
        if (t > 0) copy_rows(z, ws.z_stride, h_rows(t - 1), H, tile.sequences, H);
        if (t == d.T) return;
        copy_rows(z + H, ws.z_stride, x_rows(t), n, tile.sequences, n);
        for (int64_t b = 0; b < tile.sequences; ++b) {
            T* row = z + b * ws.z_stride;
            if (t == 0) fill(row, row + H, T(0));
            row[H + n] = T(1);
            row[H + n + 1] = T(t == 0);
        }
    }
};

// R-op through time; leaves gs_t = L''Rs_t at the output steps, and Rh_t if `keep_Rh`.
template <class T>
void tangent_pass(const Pass<T>& p, Flat<const T> v, const T* c, bool rank_one, bool keep_Rh) {
    const RnnDims& d = p.d;
    Workspace<T>& ws = p.ws;
    const int64_t H = d.H, n = d.n, k = d.k, L = p.tile.L;
    const int64_t k_stride = round_up<T>(k), m = p.tile.sequences;
    const int V = p.tile.V;
    T* z = ws.z[0];
    int64_t o = 0;
    for (int64_t t = 0; t < d.T; ++t) {
        p.load_x(t);
        if (p.h == nullptr) {
            p.make_state(t, ws.h[t % 2], ws.h[(t + 1) % 2]);
            if (ws.windows.at_checkpoint(t))
                copy(ws.checkpoints + ws.windows.checkpoint(t) * H * L, ws.h[t % 2], H * L);
        } else {
            copy_rows(z, ws.z_stride, p.h_rows(t), H, m, H);
            rows_to_lanes<T>(V, ws.h[t % 2], z, ws.z_stride, H);
            if (t + 1 < d.T) prefetch_rows(p.h_rows(t + 1), m * H);
        }
        T* Rh = ws.Rh + (keep_Rh ? t : t % 2) * H * L;
        const T* back = t == 0 ? nullptr : ws.Rh + (keep_Rh ? t - 1 : (t + 1) % 2) * H * L;
        const Segment<T> hidden[] = {
            {back, H, 0}, {ws.h[(t + 1) % 2], H, H}, {ws.x, n, 2 * H}};
        const int skip = t == 0 ? 2 : 0;
        lane_product<T>(V, Rh, H, t == 0 ? p.pack.first : v.b_h, p.pack.hidden, 2 * H + n,
                        hidden + skip, 3 - skip);
        apply_derivative<T>(d.e, Rh, ws.h[t % 2], nullptr, T(0), H * L);
        if (o == d.T_out || (d.steps != nullptr && d.steps[o] != t)) continue;
        // Curvature is looked up only where some sequence of the tile has an output.
        const T* c_rows = c + (o * d.B + p.tile.b0) * k;
        ws.active[o] = !all_zero(c_rows, m * k);
        if (ws.active[o]) {
            copy_rows(ws.rows, k_stride, c_rows, k, m, k);
            rows_to_lanes<T>(V, ws.c, ws.rows, k_stride, k);
            T* Rs = ws.gs + o * k * L;
            const Segment<T> output[] = {{Rh, H, 0}, {ws.h[t % 2], H, H}};
            lane_product<T>(V, Rs, k, v.b_y, p.pack.output, 2 * H, output, 2);
            apply_loss_curvature(Rs, ws.c, k, L, rank_one);
        }
        ++o;
    }
}

// gs = ∂L/∂s into lanes at every output step.
template <class T>
void gather_output_gradient(const Pass<T>& p, const T* gs) {
    const RnnDims& d = p.d;
    Workspace<T>& ws = p.ws;
    const int64_t k = d.k, m = p.tile.sequences, k_stride = round_up<T>(k);
    for (int64_t o = 0; o < d.T_out; ++o) {
        const T* rows = gs + (o * d.B + p.tile.b0) * k;
        ws.active[o] = !all_zero(rows, m * k);
        if (!ws.active[o]) continue;
        copy_rows(ws.rows, k_stride, rows, k, m, k);
        rows_to_lanes<T>(p.tile.V, ws.gs + o * k * p.tile.L, ws.rows, k_stride, k);
    }
}

// BPTT from gs; leaves the tile's sums in G, Gy and gb_y. `structural` weighs the kept Rh.
template <class T>
void reverse_pass(const Pass<T>& p, T structural) {
    const RnnDims& d = p.d;
    Workspace<T>& ws = p.ws;
    const int64_t H = d.H, k = d.k, L = p.tile.L, m = p.tile.sequences;
    const int V = p.tile.V, slots = Workspace<T>::slots;
    fill(ws.G, ws.G + H * ws.z_stride, T(0));
    fill(ws.Gy, ws.Gy + k * ws.y_stride, T(0));
    fill(ws.gb_y, ws.gb_y + k, T(0));

    OuterTerm<T> hidden[chunk_steps], output[chunk_steps];
    int hidden_count = 0, output_count = 0;
    int64_t o = d.T_out - 1;
    bool flowing = false;  // whether anything has reached the reverse scan yet
    p.load_z(ws.z[d.T % slots], d.T);
    rows_to_lanes<T>(V, ws.h[0], ws.z[d.T % slots], ws.z_stride, H);
    for (int64_t t = d.T - 1; t >= 0; --t) {
        T* gt = ws.gt[t % slots];
        T* z = ws.z[t % slots];
        if (p.h == nullptr && t > 0 && t - 1 < ws.window_start) p.previous_window();
        p.load_z(z, t);
        if (p.h != nullptr && t > 1) prefetch_rows(p.h_rows(t - 2), m * H);
        const bool at_output = o >= 0 && (d.steps == nullptr || d.steps[o] == t);
        const bool active = at_output && ws.active[o];
        const T* gs = ws.gs + larger<int64_t>(o, 0) * k * L;

        Segment<T> segments[2];
        int count = 0;
        if (flowing) segments[count++] = {ws.gt[(t + 1) % slots], H, 0};
        if (active) segments[count++] = {gs, k, H};
        flowing = flowing || active || structural != T(0);
        if (flowing) {
            lane_product<T>(V, gt, H, nullptr, p.pack.reverse, H + k, segments, count);
            const T* Rh = structural != T(0) ? ws.Rh + t * H * L : nullptr;
            apply_derivative<T>(d.e, gt, ws.h[0], Rh, structural, H * L);
            hidden[hidden_count++] = {gt, z};
        }
        if (active) {
            output[output_count++] = {gs, ws.z[(t + 1) % slots]};
            for (int64_t j = 0; j < k; ++j)
                for (int64_t b = 0; b < m; ++b) ws.gb_y[j] += gs[j * L + b];
        }
        if (at_output) --o;
        rows_to_lanes<T>(V, ws.h[0], z, ws.z_stride, H);
        // Slots are reused after chunk_steps steps: flush before the oldest one goes.
        if (t == 0 || (d.T - t) % chunk_steps == 0) {
            outer_product<T>(ws.G, ws.z_stride, H, ws.z_stride, hidden, hidden_count, L,
                             ws.z_stride, m);
            outer_product<T>(ws.Gy, ws.y_stride, k, ws.y_stride, output, output_count, L,
                             ws.z_stride, m);
            hidden_count = output_count = 0;
        }
    }
}


}  // namespace
}  // namespace HFCORE_ISA
}  // namespace hfcore
