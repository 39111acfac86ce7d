// An array with a leading group axis; stride 0 shares it among the group.
#pragma once

#include <cstdint>

namespace hfcore {

template <class T>
struct Grouped {
    const T* data = nullptr;
    std::int64_t stride = 0;
    const T* at(std::int64_t g) const { return data + g * stride; }
};

}  // namespace hfcore
