// Element types of tensors.
#pragma once

#include <cstdint>

namespace batchllm {

enum class DType : uint8_t { kFloat32, kBFloat16, kFloat16 };  // kFloat16: on a GPU only

}  // namespace batchllm
