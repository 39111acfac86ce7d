// Philox 4x64-10: integers alone, so one form serves every instruction set.
#include "kernels/draws/cpu.h"

#include "kernels/cpu/parallel.h"

namespace hfcore {
namespace {

using std::int64_t;
using std::uint64_t;
__extension__ typedef unsigned __int128 uint128_t;

constexpr int rounds = 10, words = 4;
constexpr uint64_t multipliers[] = {0xD2E7470EE14C6C93u, 0xCA5A826395121157u};
constexpr uint64_t weyl[] = {0x9E3779B97F4A7C15u, 0xBB67AE8584CAA73Bu};
// Counters of a task, some microseconds.
constexpr int64_t task_counters = 256;

struct Words {
    uint64_t word[words];
};

inline Words words_of(uint64_t seed, uint64_t number, uint64_t counter) {
    uint64_t c0 = counter, c1 = 0, c2 = 0, c3 = 0;
    for (int r = 0; r < rounds; ++r) {
        const uint128_t first = uint128_t(c0) * multipliers[0];
        const uint128_t second = uint128_t(c2) * multipliers[1];
        c0 = uint64_t(second >> 64) ^ c1 ^ seed;
        c1 = uint64_t(second);
        c2 = uint64_t(first >> 64) ^ c3 ^ number;
        c3 = uint64_t(first);
        seed += weyl[0];
        number += weyl[1];
    }
    return {{c0, c1, c2, c3}};
}

// put(place, words) for every counter of which one of `count` outputs is made, `each` a counter.
template <class F>
void for_counters(uint64_t seed, uint64_t number, int64_t count, int64_t each, int threads,
                  const F& put) {
    const int64_t counters = (count + each - 1) / each;
    const int64_t tasks = (counters + task_counters - 1) / task_counters;
    parallel_for(tasks, tasks > 1 ? threads : 1, [&](int64_t task, int) {
        const int64_t from = task * task_counters, end = from + task_counters;
        for (int64_t c = from; c < (end < counters ? end : counters); ++c)
            put(c * each, words_of(seed, number, uint64_t(c)));
    });
}

inline void put_uniform(uint64_t word, float* out) {
    out[0] = float(word >> 40) * 0x1p-24f;
    out[1] = float((word >> 16) & 0xFFFFFF) * 0x1p-24f;
}
inline void put_uniform(uint64_t word, double* out) { out[0] = double(word >> 11) * 0x1p-53; }

}  // namespace

void philox_words(uint64_t seed, uint64_t number, int64_t count, int64_t* out, int threads) {
    for_counters(seed, number, count, words, threads, [=](int64_t at, const Words& found) {
        for (int i = 0; i < words && at + i < count; ++i) out[at + i] = int64_t(found.word[i] >> 1);
    });
}

template <class T>
void philox_uniform(uint64_t seed, uint64_t number, int64_t count, T* out, int threads) {
    constexpr int each = sizeof(double) / sizeof(T), all = words * each;
    for_counters(seed, number, count, all, threads, [=](int64_t at, const Words& found) {
        T made[all];
        for (int i = 0; i < words; ++i) put_uniform(found.word[i], made + i * each);
        for (int i = 0; i < all && at + i < count; ++i) out[at + i] = made[i];
    });
}
template void philox_uniform<float>(uint64_t, uint64_t, int64_t, float*, int);
template void philox_uniform<double>(uint64_t, uint64_t, int64_t, double*, int);

}  // namespace hfcore
