// Launches a kernel on the emulator, in the way of StreamLauncher (launch.cuh).
#pragma once

#include "cuda/launch_grid.h"
#include "simt/emulator/launch.h"

namespace batchllm::simt_test {

struct EmulatorLauncher {
    const simt::Schedule& schedule;

    template <typename Kernel, typename Argument>
    void operator()(Kernel kernel, cuda::LaunchGrid grid, int shared_bytes, const Argument& argument,
                    cuda::Begin begin = cuda::Begin::kInOrder) const {
        const simt::LaunchConfig config{
            {grid.num_blocks}, {grid.block_size}, static_cast<size_t>(shared_bytes), begin == cuda::Begin::kEarly};
        simt::launch(kernel, config, schedule, argument);
    }
};

}  // namespace batchllm::simt_test
