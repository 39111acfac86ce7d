// Tiles of sequences that run through time, and memory for their states.
#pragma once

#include "kernels/cpu/lanes.h"

namespace hfcore {
namespace HFCORE_ISA {
namespace {

// The tiles of every net of the group, numbered net by net: as even as possible, and an even number of
// them unless they are tiny, so that two threads have the same to do.
template <class T>
struct Tiles {
    static constexpr int64_t most = 26, least = 6;
    int64_t B, per_net;
    explicit Tiles(int64_t B_) : B(B_), per_net((B_ + most - 1) / most) {
        if (per_net % 2 == 1 && B >= (per_net + 1) * least) ++per_net;
    }
};

template <class T>
struct Tile {
    int64_t g, b0, sequences;
    Tile(const Tiles<T>& tiles, int64_t task) : g(task / tiles.per_net) {
        const int64_t index = task % tiles.per_net;
        b0 = tiles.B * index / tiles.per_net;
        sequences = tiles.B * (index + 1) / tiles.per_net - b0;
    }
};

// Sequences of the widest tile.
template <class T>
int64_t tile_capacity(int64_t B) {
    const int64_t count = larger(Tiles<T>(B).per_net, 1);
    return larger((B + count - 1) / count, 1);
}

// Steps whose gradient products are summed in registers before the buffer is touched.
constexpr int chunk_steps = 4;

// Not the standard ones: shared template code must not be compiled for one instruction set and
// linked into another.
template <class T>
inline void fill(T* from, T* to, T value) {
    for (; from != to; ++from) *from = value;
}
template <class T>
inline void copy(T* to, const T* from, int64_t count) {
    for (int64_t i = 0; i < count; ++i) to[i] = from[i];
}

// Elements in whole cache lines.
template <class T>
int64_t whole_lines(int64_t count) {
    constexpr int64_t line = 64 / sizeof(T);
    return (count + line - 1) / line * line;
}

// Hands out consecutive aligned pieces; with a null base it only measures.
template <class T>
class Arena {
public:
    explicit Arena(void* base) : base_(static_cast<T*>(base)) {}
    T* take(int64_t count) {
        T* at = base_ ? base_ + used_ : nullptr;
        used_ += whole_lines<T>(count);
        return at;
    }
    std::size_t bytes() const { return static_cast<std::size_t>(used_) * sizeof(T); }

private:
    T* base_;
    int64_t used_ = 0;
};

}  // namespace
}  // namespace HFCORE_ISA
}  // namespace hfcore
