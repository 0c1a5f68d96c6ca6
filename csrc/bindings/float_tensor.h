// A tensor of floating-point numbers whose rows are contiguous.
#pragma once

#include <optional>
#include <string>

#include "attention/params.h"
#include "bindings/array_in.h"

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
        if (where == Where::kCuda) {
            expect_type({ElementType::kBFloat16, ElementType::kFloat16});
        } else {
            expect_type({ElementType::kFloat32, ElementType::kBFloat16});
        }
        if (num_dims() > 0) expect_unit_last_stride();
    }
    DType dtype() const {
        if (type() == ElementType::kFloat32) return DType::kFloat32;
        return type() == ElementType::kBFloat16 ? DType::kBFloat16 : DType::kFloat16;
    }
};

}  // namespace batchllm
