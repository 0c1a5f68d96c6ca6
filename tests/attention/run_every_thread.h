// The threads of a work's launches, one after another on the CPU.
#pragma once

#include "cuda/launch_grid.h"

namespace batchllm::cuda {

template <typename Work>
void run_every_thread(const Work& work, int64_t max_items) {
    const auto run = [](const WorkRows<Work>& rows, LaunchGrid grid) {
        for (uint32_t block = 0; block < grid.num_blocks; ++block) {
            for (uint32_t thread = 0; thread < grid.block_size; ++thread) rows.run_thread(block, thread);
        }
    };
    for_each_launch(work, run, max_items);
}

}  // namespace batchllm::cuda
