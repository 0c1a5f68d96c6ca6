// The threads of the CPU kernels: OpenMP's.
//
// Nothing may throw inside a parallel region, where an exception would end the process: what can fail, such as getting
// memory, is done before.
#pragma once

#include <cstdint>

namespace batchllm {

// How many threads work that has `num_parts` gets: at least 1, and no more than the machine has processors, or 16,
// whatever the caller wishes, because OpenMP ends the process where it cannot start a thread. For more than one
// check_not_forked().
int32_t num_openmp_threads(int32_t num_threads, int64_t num_parts);

// Throws std::runtime_error in a process that was forked after this library was loaded: OpenMP's threads stayed behind,
// and it would wait for them for ever.
void check_not_forked();

}  // namespace batchllm
