// A tensor of floating-point numbers whose rows are contiguous.
#pragma once

#include <optional>
#include <string>

#include "attention/attention_params.h"
#include "bindings/dlpack_tensor.h"

namespace batchllm {

// `dtype` says what the bits of uint16 arrays mean: NumPy has no bfloat16.
class FloatTensor : public Tensor {
 public:
    FloatTensor(const char* name, pybind11::handle object, const std::optional<std::string>& dtype,
                Where where = Where::kCpu)
        : Tensor(name, object, where) {
        if (dtype && *dtype != "bfloat16" && *dtype != "float32") {
            throw pybind11::value_error("dtype: expected \"float32\" or \"bfloat16\", got \"" + *dtype + "\"");
        }
        if (dtype == "bfloat16") reinterpret_uint16_as_bfloat16();
        expect_type({ElementType::kFloat32, ElementType::kBFloat16});
        if (num_dims() > 0) expect_unit_last_stride();
    }
    DType dtype() const { return type() == ElementType::kFloat32 ? DType::kFloat32 : DType::kBFloat16; }
};

}  // namespace batchllm
