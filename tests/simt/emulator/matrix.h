// The tensor cores: matrix products, and the loads that lay matrices out for them.
#pragma once

#include <cstdint>

#include "simt/emulator/findings.h"

namespace simt {

enum class Float16 { kBf16, kHalf };

// c += a b of 16 x 16, a [16][16] and b [16][16] in 16 bits, as two mma.sync.m16n8k16: c[0] and b[0], b[1] are columns
// 0 to 7, c[1] and b[2], b[3] columns 8 to 15. Sums are float32 in ascending order of k; tensor cores round otherwise.
void multiply_16x16x16(Float16 type, float (&c)[2][4], const uint32_t (&a)[4], const uint32_t (&b)[4],
                       const Location& location);

// ldmatrix.x4: lane i names row i % 8 of matrix i / 8, of 8 x 8 elements of 16 bits.
void load_matrices(uint32_t (&registers)[4], const void* row, bool transposed, const Location& location);

}  // namespace simt
