// One bind_*.cpp per part of the extension; module.cpp calls them in order.
#pragma once

#include <pybind11/pybind11.h>

namespace batchllm {

void bind_planner(pybind11::module_& module);
void bind_attention(pybind11::module_& module);

}  // namespace batchllm
