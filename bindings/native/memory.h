// Which arrays of a call share memory.
#pragma once

#include <functional>
#include <initializer_list>
#include <string>

#include "bindings/native/native.h"

namespace hfcore {

struct NamedArray {
    const char* name;
    const Array* array;
};

inline bool same_memory(const Array& a, const Array& b) {
    return a.data() == b.data() && a.nbytes() == b.nbytes();
}

inline bool overlap(const Array& a, const Array& b) {
    const char* const from_a = static_cast<const char*>(a.data());
    const char* const from_b = static_cast<const char*>(b.data());
    const std::less<const char*> before;
    return before(from_a, from_b + b.nbytes()) && before(from_b, from_a + a.nbytes());
}

// Checks that what is written shares no byte with the others. Throws ValueError.
inline void check_apart(NamedArray written, std::initializer_list<NamedArray> others) {
    for (const NamedArray& other : others)
        if (other.array != nullptr && overlap(*written.array, *other.array))
            value_error(std::string(written.name) + ": shares memory with " + other.name +
                        ", need its own");
}

}  // namespace hfcore
