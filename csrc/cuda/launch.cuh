// Launches work on a stream.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "cuda/run_work.cuh"
#include "cuda/stream.h"

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

// Puts a kernel on a stream.
struct StreamLauncher {
    Stream stream;

    template <typename Argument>
    void operator()(void (*kernel)(Argument), LaunchGrid grid, int shared_bytes, const Argument& argument) const {
        const CurrentDevice current(stream.device);
        if (shared_bytes > 48 * 1024) {  // what a kernel gets at most without it
            CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
        }
        cudaLaunchConfig_t config{};
        config.gridDim = grid.num_blocks;
        config.blockDim = grid.block_size;
        config.dynamicSmemBytes = shared_bytes;
        config.stream = reinterpret_cast<cudaStream_t>(stream.handle);
        CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, argument));
    }
};

template <typename Work>
void launch(const Work& work, Stream stream) {
    launch_work(work, StreamLauncher{stream});
}

}  // namespace batchllm::cuda
