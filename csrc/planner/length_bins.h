// Lengths in bins: exact below 16, then eight bins per octave, so that a bin is at most an eighth of its lengths wide.
#pragma once

#include <bit>
#include <cstdint>

namespace batchllm {

class LengthBins {
 public:
    static constexpr int kNumBins = 16 + 8 * 27;  // lengths up to 2^31 - 1

    static int bin(int32_t length) {
        if (length < 16) return length;
        const int octave = std::bit_width(static_cast<uint32_t>(length)) - 4;  // 1 from 16 on
        return 8 + 8 * (octave - 1) + (length >> octave);
    }
    static int32_t first(int bin) { return bin < 16 ? bin : (8 + bin % 8) << (bin / 8 - 1); }
    static int32_t last(int bin) { return bin + 1 == kNumBins ? INT32_MAX : first(bin + 1) - 1; }
};

}  // namespace batchllm
