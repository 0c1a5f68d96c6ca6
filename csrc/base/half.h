// IEEE half precision: 1 sign, 5 exponent and 10 fraction bits.
#pragma once

#include <bit>
#include <cstdint>

#include "base/host_device.h"

namespace batchllm {

struct Half {
    uint16_t bits;
};

BATCHLLM_HOST_DEVICE inline float to_float(Half value) {
    const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000) << 16;
    const uint32_t magnitude = static_cast<uint32_t>(value.bits & 0x7fff) << 13;
    if (magnitude >= 0x0f800000) return std::bit_cast<float>(sign | 0x70000000 | magnitude);  // infinity, NaN
    // The exponent is too small by 112; the product is exact and normalises subnormal numbers.
    const float scaled = std::bit_cast<float>(magnitude) * std::bit_cast<float>((127u + 112u) << 23);
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(scaled));
}

template <typename T>
BATCHLLM_HOST_DEVICE T from_float(float value);

// Round to nearest, ties to even; a NaN stays a (quiet) NaN.
template <>
BATCHLLM_HOST_DEVICE inline Half from_float<Half>(float value) {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
    const uint32_t magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return {static_cast<uint16_t>(sign | 0x7e00)};
    if (magnitude >= 0x477ff000) return {static_cast<uint16_t>(sign | 0x7c00)};  // from 65520 on, infinity
    if (magnitude < 0x38800000) {
        // Below 2^-14 a half counts in steps of 2^-24, as a float32 does between 0.5 and 1.
        const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
        return {static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000))};
    }
    const uint32_t rounded = magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1);
    return {static_cast<uint16_t>(sign | (rounded >> 13))};
}

}  // namespace batchllm
