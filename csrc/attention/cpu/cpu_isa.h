// Which instruction sets this machine's kernels may use.
#pragma once

#include <string>
#include <vector>

#include "attention/cpu/kernel.h"

namespace batchllm {

// The kernels that run on this machine, slowest first; never empty.
const std::vector<const Kernel*>& available_kernels();

// The fastest one, or the one that the environment variable BATCHLLM_ISA names. Chosen at the first call; throws
// std::invalid_argument if the machine has no such kernel.
const Kernel& selected_kernel();

}  // namespace batchllm
