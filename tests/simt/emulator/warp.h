// What the lanes of a warp do together, except for matrices. Every function is called by each lane of its mask.
#pragma once

#include <cstdint>

#include "simt/emulator/findings.h"

namespace simt {

enum class Shuffle { kIndex, kUp, kDown, kXor };

uint32_t shuffle(Shuffle kind, uint32_t mask, uint32_t value, int operand, int width, const Location& location);
uint32_t ballot(uint32_t mask, bool predicate, const Location& location);

}  // namespace simt
