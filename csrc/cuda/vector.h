// Neighbouring elements that a thread loads and stores at once.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "base/host_device.h"

namespace batchllm::cuda {

constexpr int kVectorBytes = 16;  // the widest load of a thread

// Elements in kVectorBytes.
template <typename T>
constexpr int kVectorSize = kVectorBytes / static_cast<int>(sizeof(T));

template <typename T, int kSize>
struct alignas(std::min<int>(kVectorBytes, kSize * sizeof(T))) Vector {
    T elements[kSize];
};

template <int kSize, typename T>
BATCHLLM_HOST_DEVICE inline Vector<T, kSize> load_vector(const T* from) {
    return *reinterpret_cast<const Vector<T, kSize>*>(from);
}

template <typename T, int kSize>
BATCHLLM_HOST_DEVICE inline void store_vector(T* to, const Vector<T, kSize>& vector) {
#ifdef __CUDA_ARCH__  // nvcc stores a struct in pieces here and there
    if constexpr (sizeof(vector) == kVectorBytes) {
        __stwb(reinterpret_cast<uint4*>(to), std::bit_cast<uint4>(vector));
        return;
    }
#endif
    *reinterpret_cast<Vector<T, kSize>*>(to) = vector;
}

}  // namespace batchllm::cuda
