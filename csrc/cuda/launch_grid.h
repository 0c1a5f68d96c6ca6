// How the items of a kernel are dealt to threads. The device launch and the tests on the CPU take the same way.
//
// A kernel's work is a callable struct: num_items() items, work(item) does one. Items are independent of each other and
// of the threads that do them: no shared memory, no barriers, no atomics.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/host_device.h"

namespace batchllm::cuda {

// One dimension. No blocks where there are no items.
struct LaunchGrid {
    uint32_t num_blocks;
    uint32_t block_size;
};

constexpr int64_t kMaxBlocks = INT32_MAX;  // what CUDA allows

constexpr LaunchGrid launch_grid(int64_t num_items, int64_t max_blocks = kMaxBlocks) {
    constexpr int64_t kBlockSize = 256;
    const int64_t num_blocks = (num_items + kBlockSize - 1) / kBlockSize;
    return {static_cast<uint32_t>(std::min(num_blocks, max_blocks)), kBlockSize};
}

// The items of one thread.
template <typename Work>
BATCHLLM_HOST_DEVICE inline void run_thread(const Work& work, LaunchGrid grid, uint32_t block, uint32_t thread) {
    const int64_t num_threads = int64_t{grid.num_blocks} * grid.block_size;
    const int64_t num_items = work.num_items();
    for (int64_t item = int64_t{block} * grid.block_size + thread; item < num_items; item += num_threads) work(item);
}

}  // namespace batchllm::cuda
