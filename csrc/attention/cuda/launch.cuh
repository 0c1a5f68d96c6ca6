// Launches work on a stream.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "attention/cuda/cuda.h"
#include "attention/cuda/launch_grid.h"

namespace batchllm::cuda {

inline void check(cudaError_t status, const char* call, const char* file, int line) {
    if (status == cudaSuccess) return;
    const std::string path = file;
    throw std::runtime_error(std::string(call) + " failed at " + path.substr(path.rfind('/') + 1) + ":" +
                             std::to_string(line) + ": " + cudaGetErrorString(status));
}

#define CUDA_CHECK(call) ::batchllm::cuda::check((call), #call, __FILE__, __LINE__)

// Makes a device the current one, and gives the place back to the one before.
class CurrentDevice {
 public:
    explicit CurrentDevice(int device) {
        CUDA_CHECK(cudaGetDevice(&previous_));
        if (device == previous_) return;
        CUDA_CHECK(cudaSetDevice(device));
        changed_ = true;
    }
    ~CurrentDevice() {
        if (changed_) cudaSetDevice(previous_);
    }
    CurrentDevice(const CurrentDevice&) = delete;
    CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
    int previous_ = 0;
    bool changed_ = false;
};

// The one kernel: what it reads and writes is said by its work.
//   grid    launch_grid.h: one dimension, one item a thread while the blocks suffice
template <typename Work>
__global__ void run_work(const Work work) {
    run_thread(work, {gridDim.x, blockDim.x}, blockIdx.x, threadIdx.x);
}

template <typename Work>
void launch(const Work& work, Stream stream) {
    const LaunchGrid grid = launch_grid(work.num_items());
    if (grid.num_blocks == 0) return;
    const CurrentDevice current(stream.device);
    cudaLaunchConfig_t config{};
    config.gridDim = grid.num_blocks;
    config.blockDim = grid.block_size;
    config.stream = reinterpret_cast<cudaStream_t>(stream.handle);
    CUDA_CHECK(cudaLaunchKernelEx(&config, run_work<Work>, work));
}

}  // namespace batchllm::cuda
