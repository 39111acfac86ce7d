// Counted random numbers on the CPU: what the compiled module calls. Formulas: reference.py.
#pragma once

#include <cstdint>

namespace hfcore {

// A stream's first `count` words less their lowest bit.
void philox_words(std::uint64_t seed, std::uint64_t number, std::int64_t count, std::int64_t* out,
                  int threads);
// The same as numbers in [0, 1): two floats of 24 bits a word, or one double of 53.
template <class T>
void philox_uniform(std::uint64_t seed, std::uint64_t number, std::int64_t count, T* out,
                    int threads);

}  // namespace hfcore
