// Where GPU work is put: a stream of a device. What takes one returns without waiting for the host or the device and
// allocates nothing, so a CUDA graph may capture it. A failed CUDA call is a std::runtime_error.
#pragma once

#include <cstdint>

namespace batchllm::cuda {

// Without it what takes a Stream is declared, not defined: call it under `if constexpr`.
#ifdef BATCHLLM_HAS_CUDA
constexpr bool kIsBuilt = true;
#else
constexpr bool kIsBuilt = false;
#endif

struct Stream {
    int device;
    uintptr_t handle;  // a cudaStream_t; 0 is the device's default stream
};

}  // namespace batchllm::cuda
