// Launches work on a stream.
#pragma once

#include <cuda_runtime.h>

#include <cstdlib>
#include <cstring>
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

inline bool can_begin_early(int device) {
    int major = 0;
    CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    return major >= 9;
}

// BATCHLLM_CUDA_SYNC=1: every launch is waited for, and an error names its kernel.
inline bool synchronizes() {
    static const bool is_set = [] {
        const char* const value = std::getenv("BATCHLLM_CUDA_SYNC");
        return value != nullptr && std::strcmp(value, "1") == 0;
    }();
    return is_set;
}

// Not while a graph captures the stream.
inline void synchronize(const void* kernel, cudaStream_t stream) {
    cudaStreamCaptureStatus status{};
    CUDA_CHECK(cudaStreamIsCapturing(stream, &status));
    if (status != cudaStreamCaptureStatusNone) return;
    const cudaError_t error = cudaStreamSynchronize(stream);
    if (error == cudaSuccess) return;
    const char* name = nullptr;
    if (cudaFuncGetName(&name, kernel) != cudaSuccess) name = "a kernel";
    check(error, name, __FILE__, __LINE__);
}

// Puts a kernel on a stream.
struct StreamLauncher {
    Stream stream;

    template <typename Argument>
    void operator()(void (*kernel)(Argument), LaunchGrid grid, int shared_bytes, const Argument& argument,
                    Begin begin = Begin::kInOrder) const {
        const CurrentDevice current(stream.device);
        if (shared_bytes > 48 * 1024) {  // what a kernel gets at most without it
            CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
        }
        cudaLaunchConfig_t config{};
        config.gridDim = grid.num_blocks;
        config.blockDim = grid.block_size;
        config.dynamicSmemBytes = shared_bytes;
        config.stream = reinterpret_cast<cudaStream_t>(stream.handle);
        cudaLaunchAttribute early{};
        early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
        early.val.programmaticStreamSerializationAllowed = 1;
        if (begin == Begin::kEarly && can_begin_early(stream.device)) {
            config.attrs = &early;
            config.numAttrs = 1;
        }
        CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, argument));
        if (synchronizes()) synchronize(reinterpret_cast<const void*>(kernel), config.stream);
    }
};

template <typename Work>
void launch(const Work& work, Stream stream) {
    launch_work(work, StreamLauncher{stream});
}

}  // namespace batchllm::cuda
