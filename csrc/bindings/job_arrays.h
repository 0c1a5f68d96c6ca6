// The arrays of a job: its prompts, and data about each request.
#pragma once

#include <optional>
#include <span>
#include <string>

#include "bindings/array_in.h"
#include "planner/prompts.h"

namespace batchllm {

// tokens of int32, which the prompts keep alive; indptr of int64 or int32; prompt_of_request of int32, or None.
inline Prompts prompts_of(pybind11::handle tokens, pybind11::handle indptr, pybind11::handle prompt_of_request,
                          int32_t drop_last) {
    const auto token_array = keep_tensor("tokens", tokens);
    const std::span<const TokenId> token_ids = int32_array(*token_array);
    std::optional<Tensor> prompt_array;
    std::span<const int32_t> prompts;
    if (!prompt_of_request.is_none())
        prompts = int32_array(prompt_array.emplace("prompt_of_request", prompt_of_request));
    const Tensor offsets("indptr", indptr);
    offsets.expect_type({ElementType::kInt64, ElementType::kInt32});
    if (offsets.type() == ElementType::kInt32) {
        return Prompts(token_ids, int32_array(offsets), drop_last, prompts, token_array);
    }
    return Prompts(token_ids, int64_array(offsets), drop_last, prompts, token_array);
}

// int32 [num_requests], or None.
class OptionalInt32 {
 public:
    // `size` is that of max_output_tokens.
    OptionalInt32(const char* name, pybind11::handle object, size_t size) {
        if (object.is_none()) return;
        values_ = int32_array(tensor_.emplace(name, object));
        if (values_.size() == size) return;
        throw pybind11::value_error(std::string(name) + ": expected " + std::to_string(size) +
                                    " entries, as max_output_tokens has, got " + std::to_string(values_.size()));
    }
    std::span<const int32_t> values() const { return values_; }  // empty: None

 private:
    std::optional<Tensor> tensor_;
    std::span<const int32_t> values_;
};

}  // namespace batchllm
