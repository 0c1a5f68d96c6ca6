// One bind_*.cpp per part of the extension; module.cpp calls them in order.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "planner/group_order.h"

namespace batchllm {

// No machine has more. num_openmp_threads decides how many are started.
inline constexpr int32_t kMaxThreads = 1024;

// The number of threads that a caller asks for: 0 is `otherwise`; ValueError if negative or over kMaxThreads.
int32_t thread_count(int32_t num_threads, int32_t otherwise);

GroupOrder group_order_by_name(const std::string& name);  // ValueError if there is none

void bind_planner(pybind11::module_& module);
void bind_token_batch(pybind11::module_& module);
void bind_simulate(pybind11::module_& module);
void bind_attention_plan(pybind11::module_& module);
void bind_attention(pybind11::module_& module);
void bind_states(pybind11::module_& module);
void bind_ops(pybind11::module_& module);
void bind_quantized_rows(pybind11::module_& module);

}  // namespace batchllm
