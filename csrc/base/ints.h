// Division and rounding of sizes.
#pragma once

#include <cstdint>

namespace batchllm {

// Up to 2^31 - 1 keys may be rounded up.
constexpr int64_t ceil_div(int64_t value, int64_t divisor) {
    return (value + divisor - 1) / divisor;
}

constexpr int64_t round_up(int64_t value, int64_t multiple) {
    return ceil_div(value, multiple) * multiple;
}

}  // namespace batchllm
