// The kernel of all work that launch_grid.h deals to threads: what it reads and writes is said by its work.
#pragma once

#include "cuda/intrinsics.cuh"
#include "cuda/launch_grid.h"

namespace batchllm::cuda {

template <typename Work>
__global__ void __launch_bounds__(kWorkThreads) run_work(const __grid_constant__ WorkRows<Work> rows) {
    wait_for_earlier_launches();
    rows.run_thread(blockIdx.x, threadIdx.x);
}

// launch(kernel, grid, shared_bytes, argument, begin) is a stream's or the emulator's.
template <typename Work, typename Launcher>
void launch_work(const Work& work, const Launcher& launch, Begin begin = Begin::kInOrder) {
    for_each_launch(work,
                    [&](const WorkRows<Work>& rows, LaunchGrid grid) { launch(run_work<Work>, grid, 0, rows, begin); });
}

}  // namespace batchllm::cuda
