// One bind_*.cpp per part of the extension; module.cpp calls them in order.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "planner/group_order.h"

namespace batchllm {

GroupOrder group_order_by_name(const std::string& name);  // ValueError where there is none

void bind_planner(pybind11::module_& module);
void bind_simulate(pybind11::module_& module);
void bind_attention(pybind11::module_& module);
void bind_ops(pybind11::module_& module);

}  // namespace batchllm
