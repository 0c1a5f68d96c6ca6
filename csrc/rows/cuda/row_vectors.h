// Which element type the tensors of a row operation have, and whether its threads may take vectors of them.
#pragma once

#include <cstdint>

#include "base/bf16.h"
#include "base/half.h"
#include "cuda/vector.h"
#include "rows/row_params.h"

namespace batchllm::cuda {

// What must be a multiple of kVectorBytes, all in one: bits that any of the numbers has set. A stride counts where it
// is used; libraries give any number to a dimension of one.
inline uintptr_t offset_bits(const void* data) {
    return reinterpret_cast<uintptr_t>(data);
}
template <typename T>
uintptr_t offset_bits(int64_t count, int64_t stride) {
    return count > 1 ? static_cast<uintptr_t>(stride) * sizeof(T) : 0;
}
template <typename T>
uintptr_t offset_bits(const HeadRows& rows, int64_t num_rows, int64_t num_heads) {
    return offset_bits(rows.data) | offset_bits<T>(num_rows, rows.row_stride) |
           offset_bits<T>(num_heads, rows.head_stride);
}

template <typename T>
BATCHLLM_HOST_DEVICE inline T* head_row(const HeadRows& rows, int64_t row, int64_t head) {
    return static_cast<T*>(rows.data) + row * rows.row_stride + head * rows.head_stride;
}

// Calls run(T{}) with the element type.
template <typename Run>
void by_type(DType dtype, const Run& run) {
    switch (dtype) {
        case DType::kFloat32:
            return run(float{});
        case DType::kBFloat16:
            return run(Bf16{});
        case DType::kFloat16:
            return run(Half{});
    }
}

// Calls run(work) with work over vectors where that may be, else over single elements.
template <template <typename, int> typename Work, typename Params, typename Run>
void with_work(const Params& params, int64_t num_rows, const Run& run) {
    by_type(params.dtype, [&]<typename T>(T) {
        if (Work<T, 1>::has_vectors(params, num_rows)) {
            run(Work<T, kVectorSize<T>>{params, num_rows});
        } else {
            run(Work<T, 1>{params, num_rows});
        }
    });
}

}  // namespace batchllm::cuda
