// The threads of a launch, one after another on the CPU.
#pragma once

#include "cuda/launch_grid.h"

namespace batchllm::cuda {

template <typename Work>
void run_every_thread(const Work& work, int64_t max_blocks) {
    const LaunchGrid grid = launch_grid(work.num_items(), max_blocks);
    for (uint32_t block = 0; block < grid.num_blocks; ++block) {
        for (uint32_t thread = 0; thread < grid.block_size; ++thread) run_thread(work, grid, block, thread);
    }
}

}  // namespace batchllm::cuda
