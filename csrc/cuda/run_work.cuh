// The kernel of all work that launch_grid.h deals to threads: what it reads and writes is said by its work.
#pragma once

#include "cuda/intrinsics.cuh"
#include "cuda/launch_grid.h"

namespace batchllm::cuda {

template <typename Work>
__global__ void run_work(const Work work) {
    run_thread(work, {gridDim.x, blockDim.x}, blockIdx.x, threadIdx.x);
}

// Nothing where there are no items. launch(kernel, grid, shared_bytes, argument) is a stream's or the emulator's.
template <typename Work, typename Launcher>
void launch_work(const Work& work, const Launcher& launch) {
    const LaunchGrid grid = launch_grid(work.num_items());
    if (grid.num_blocks > 0) launch(run_work<Work>, grid, 0, work);
}

}  // namespace batchllm::cuda
