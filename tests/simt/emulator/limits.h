// Sizes of the machine that is emulated.
#pragma once

#include <cstddef>

namespace simt {

constexpr int kMaxThreads = 1024;  // of a block
constexpr int kWarpSize = 32;
constexpr int kMaxWarps = kMaxThreads / kWarpSize;
constexpr size_t kMaxDynamicShared = 227 * 1024;  // bytes, as on sm_90; sm_80 has 163 KiB

}  // namespace simt
