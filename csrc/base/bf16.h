// bfloat16: the upper half of a float32.
#pragma once

#include <bit>
#include <cstdint>

#include "base/host_device.h"

namespace batchllm {

struct Bf16 {
    uint16_t bits;
};

BATCHLLM_HOST_DEVICE inline float to_float(float value) {
    return value;
}
BATCHLLM_HOST_DEVICE inline float to_float(Bf16 value) {
    return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16);
}

template <typename T>
BATCHLLM_HOST_DEVICE T from_float(float value);

template <>
BATCHLLM_HOST_DEVICE inline float from_float<float>(float value) {
    return value;
}

// Round to nearest, ties to even; a NaN stays a (quiet) NaN.
template <>
BATCHLLM_HOST_DEVICE inline Bf16 from_float<Bf16>(float value) {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    if (value != value) return {static_cast<uint16_t>((bits >> 16) | 0x40)};
    return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

}  // namespace batchllm
