// Fused recurrence ops, one batch tile at a time.
//
// A tile of L sequences runs through all of time while its state stays in cache:
//   R-op forward   Rt_t = [W_hh | V_hh | V_hx]·[Rh_{t-1}; h_{t-1}; x_t] + v_b,  Rh_t = e'(t_t) ⊙ Rt_t
//   curvature      gs_t = L''·(W_yh Rh_t + V_yh h_t + v_by)            only at output steps
//   BPTT           gt_t = e'(t_t) ⊙ (W_hhᵀ gt_{t+1} + W_yhᵀ gs_t) + structural·Rh_t
//   gradient       [∂W_hh | ∂W_hx | ∂b_h | ∂b_init] += gt_tᵀ·[h_{t-1} | x_t | 1 | t=0]
// DRAM is read once a pass for h and x. Without cached h a tile makes its own states as the R-op goes
// and holds a window of them; BPTT rebuilds earlier windows from checkpoints. The partial sum of each tile is added to the result in the
// order of the tiles, so the bits depend on the shape alone.
#include "kernels/recurrence/cpu.h"

#include "kernels/cpu/lanes.h"
#include "kernels/cpu/parallel.h"

namespace hfcore {
namespace HFCORE_ISA {
namespace {

// Steps whose gradient products are summed in registers before the buffer is touched.
constexpr int chunk_steps = 4;

// Bytes of recomputed states that a tile holds at once, in windows of no fewer than √T steps.
constexpr int64_t window_bytes = int64_t{8} << 20;

// Not the standard ones: shared template code must not be compiled for one instruction set and
// linked into another.
template <class T>
inline T smaller(T a, T b) {
    return a < b ? a : b;
}
template <class T>
inline T larger(T a, T b) {
    return a < b ? b : a;
}
template <class T>
inline void fill(T* from, T* to, T value) {
    for (; from != to; ++from) *from = value;
}
template <class T>
inline void copy(T* to, const T* from, int64_t count) {
    for (int64_t i = 0; i < count; ++i) to[i] = from[i];
}

// Hands out consecutive aligned pieces; with a null base it only measures.
template <class T>
class Arena {
public:
    explicit Arena(void* base) : base_(static_cast<T*>(base)) {}
    T* take(int64_t count) {
        T* at = base_ ? base_ + used_ : nullptr;
        constexpr int64_t line = 64 / sizeof(T);
        used_ += (count + line - 1) / line * line;
        return at;
    }
    std::size_t bytes() const { return static_cast<std::size_t>(used_) * sizeof(T); }

private:
    T* base_;
    int64_t used_ = 0;
};

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

template <class T>
inline void prefetch_rows(const T* rows, int64_t elements) {
    constexpr int64_t line = 64 / sizeof(T);
    for (int64_t i = 0; i < elements; i += line) __builtin_prefetch(rows + i);
}

// h = e(t) in place.
template <class T>
void activate(T* t, int64_t elements, Nonlinearity e) {
    using vec = typename simd<T>::vec;
    constexpr int N = simd<T>::lanes;
    const vec zero{};
    for (int64_t i = 0; i < elements; i += N) {
        const vec v = load<T>(t + i);
        if (e == Nonlinearity::tanh)
            store<T>(t + i, vtanh<T>(v));
        else if (e == Nonlinearity::logistic)
            store<T>(t + i, vlogistic<T>(v));
        else
            store<T>(t + i, v < zero ? zero : v);  // keeps NaN
    }
}

// y = e'(t) ⊙ y + structural·Rh, with e' recomputed from h; Rh may be null.
template <Nonlinearity e, class T>
void scale_by_derivative(T* y, const T* h, const T* Rh, T structural, int64_t elements) {
    using vec = typename simd<T>::vec;
    constexpr int N = simd<T>::lanes;
    const vec zero{}, one = zero + T(1);
    for (int64_t i = 0; i < elements; i += N) {
        const vec hi = load<T>(h + i);
        vec d;
        if constexpr (e == Nonlinearity::tanh)
            d = one - hi * hi;
        else if constexpr (e == Nonlinearity::logistic)
            d = hi * (one - hi);
        else
            d = hi > zero ? one : zero;
        vec out = d * load<T>(y + i);
        if (Rh != nullptr) out += structural * load<T>(Rh + i);
        store<T>(y + i, out);
    }
}

template <class T>
void apply_derivative(Nonlinearity e, T* y, const T* h, const T* Rh, T structural,
                      int64_t elements) {
    if (e == Nonlinearity::tanh)
        scale_by_derivative<Nonlinearity::tanh>(y, h, Rh, structural, elements);
    else if (e == Nonlinearity::logistic)
        scale_by_derivative<Nonlinearity::logistic>(y, h, Rh, structural, elements);
    else
        scale_by_derivative<Nonlinearity::relu>(y, h, Rh, structural, elements);
}

// gs = c ⊙ Rs − [rank one] c (cᵀRs), in place of Rs, all [k][L].
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

template <class T>
bool all_zero(const T* rows, int64_t count) {
    for (int64_t i = 0; i < count; ++i)
        if (!(rows[i] == T(0))) return false;
    return true;
}

// ------------------------------------------------------------------------------- rnn_forward

// Packed weights of one net for the forward pass.
template <class T>
struct ForwardPack {
    T* hidden;  // [W_hh | W_hx]
    T* output;  // [W_yh]
    T* first;   // b_h + b_init
    ForwardPack(Arena<T>& arena, const RnnDims& d)
        : hidden(arena.take(d.H * (d.H + d.n))), output(arena.take(d.k * d.H)),
          first(arena.take(d.H)) {}
};

// h_t = e([W_hh | W_hx]·[h_{t-1}; x_t] + bias) in lanes; without `back` it is the first step.
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

template <class T>
void rnn_forward(const RnnDims& d, Grouped<T> x, const RnnParameters<T>& w, T* h, T* s) {
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
        pack(p.hidden, d.H, d.H + d.n, 0, w.W_hh.at(g), d.H, d.H, 1);
        pack(p.hidden, d.H, d.H + d.n, d.H, w.W_hx.at(g), d.n, d.n, 1);
        pack(p.output, d.k, d.H, 0, w.W_yh.at(g), d.H, d.H, 1);
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

// ------------------------------------------------------------------------------- linear_scan

template <class T>
void linear_scan(const ScanDims& d, Grouped<T> u, Grouped<T> derivative, Grouped<T> W,
                 Grouped<T> a, T* y) {
    using vec = typename simd<T>::vec;
    const int64_t H = d.H, stride = round_up<T>(H), full = Tiles<T>::full;
    Region region(d.threads, Denormals::flush);
    // With one weight set one pack serves every net.
    const int64_t packs = W.stride == 0 ? 1 : d.G;
    T* packed = static_cast<T*>(region.shared(packs * H * H * sizeof(T)));
    region.run(packs, [&](int64_t g, int) {
        pack(packed + g * H * H, H, H, 0, W.at(g), H, 1, H);
    });
    const Tiles<T> tiles(d.B);
    region.run(d.G * tiles.per_net, [&](int64_t task, int worker) {
        const Tile<T> tile(tiles, task);
        const int64_t L = tile.L;
        T* rows = static_cast<T*>(
            region.scratch(worker, (full * stride + 4 * full * H) * sizeof(T)));
        T* lanes = rows + full * stride;
        T* state[2] = {lanes + full * H, lanes + 2 * full * H};
        T* other = lanes + 3 * full * H;
        fill(rows, rows + L * stride, T(0));
        const T* weights = packed + (W.stride == 0 ? 0 : tile.g) * H * H;
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
    });
}

// ------------------------------------------------------------ backward pass and whole product

// Packed weights of one net for the R-op, its outputs and the reverse pass.
template <class T>
struct ProductPack {
    T* hidden;       // [W_hh | V_hh | V_hx]
    T* output;       // [W_yh | V_yh]
    T* reverse;      // [W_hhᵀ | W_yhᵀ]
    T* first;        // v_bh + v_binit
    T* state;        // [W_hh | W_hx], to recompute states
    T* state_first;  // b_h + b_init
    T* state_bias;   // b_h
    ProductPack(Arena<T>& arena, const RnnDims& d, bool tangent, bool recompute)
        : hidden(arena.take(tangent ? d.H * (2 * d.H + d.n) : 0)),
          output(arena.take(tangent ? d.k * 2 * d.H : 0)),
          reverse(arena.take(d.H * (d.H + d.k))), first(arena.take(tangent ? d.H : 0)),
          state(arena.take(recompute ? d.H * (d.H + d.n) : 0)),
          state_first(arena.take(recompute ? d.H : 0)),
          state_bias(arena.take(recompute ? d.H : 0)) {}
};

// A tangent or a gradient as flat vector, in the order of the parameters.
template <class T>
struct Flat {
    T *W_hx, *W_hh, *W_yh, *b_h, *b_init, *b_y;
    Flat(T* p, const RnnDims& d)
        : W_hx(p), W_hh(W_hx + d.H * d.n), W_yh(W_hh + d.H * d.H), b_h(W_yh + d.k * d.H),
          b_init(b_h + d.H), b_y(b_init + d.H) {}
};

// How states that are not cached come back: windows of `steps`, the last one ending at T, each but
// the last rebuilt from the checkpoint before it. No steps: the states are cached.
struct Windows {
    int64_t T, steps;
    int64_t checkpoints() const { return steps == 0 ? 0 : (T - 1) / steps; }
    // Whether a window begins behind step t, and the number of its checkpoint.
    bool at_checkpoint(int64_t t) const { return t + 1 < T && (T - t - 1) % steps == 0; }
    int64_t checkpoint(int64_t t) const { return (T - t - 1) / steps - 1; }
};

template <class T>
Windows windows_of(const RnnDims& d, bool recompute) {
    if (!recompute) return {d.T, 0};
    int64_t root = 1;
    while (root * root < d.T) ++root;
    const int64_t fit = window_bytes / (Tiles<T>::full * d.H * static_cast<int64_t>(sizeof(T)));
    return {d.T, smaller(d.T, larger(root, fit))};
}

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
    const Windows windows = windows_of<T>(d, h.data == nullptr);
    const std::size_t bytes = Workspace<T>(nullptr, d, tangent, keep_Rh, windows).bytes;
    region.run_ordered(
        d.G * tiles.per_net,
        [&](int64_t task, int worker) {
            const Tile<T> tile(tiles, task);
            Workspace<T> ws(region.scratch(worker, bytes), d, tangent, keep_Rh, windows);
            for (T* z : ws.z) fill(z, z + tile.L * ws.z_stride, T(0));
            const int64_t widest = larger(round_up<T>(d.k), round_up<T>(d.n));
            fill(ws.rows, ws.rows + tile.L * widest, T(0));
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
    pack(p.reverse, d.H, d.H + d.k, 0, w.W_hh.at(g), d.H, 1, d.H);
    pack(p.reverse, d.H, d.H + d.k, d.H, w.W_yh.at(g), d.k, 1, d.H);
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
    const int64_t H = d.H, n = d.n, width = 2 * H + n;
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
        pack(p.hidden, H, width, 0, w.W_hh.at(g), H, H, 1);
        pack(p.hidden, H, width, H, tangent.W_hh, H, H, 1);
        pack(p.hidden, H, width, 2 * H, tangent.W_hx, n, n, 1);
        pack(p.output, d.k, 2 * H, 0, w.W_yh.at(g), H, H, 1);
        pack(p.output, d.k, 2 * H, H, tangent.W_yh, H, H, 1);
        pack_reverse(p, d, w, g);
        for (int64_t j = 0; j < H; ++j) p.first[j] = tangent.b_h[j] + tangent.b_init[j];
        if (recompute) {
            pack(p.state, H, H + n, 0, w.W_hh.at(g), H, H, 1);
            pack(p.state, H, H + n, H, w.W_hx.at(g), n, n, 1);
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
