// Division and rounding of sizes.
#pragma once

#include <cstdint>

namespace batchllm {

constexpr int32_t ceil_div(int32_t value, int32_t divisor) {
    return (value + divisor - 1) / divisor;
}

constexpr int32_t round_up(int32_t value, int32_t multiple) {
    return ceil_div(value, multiple) * multiple;
}

}  // namespace batchllm
