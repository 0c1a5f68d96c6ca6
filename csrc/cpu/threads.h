// The threads of the CPU kernels: OpenMP's.
//
// Nothing may throw inside a parallel region, where an exception would end the process. Operations that can fail, such
// as allocating memory, come before it.
#pragma once

#include <cstdint>

namespace batchllm {

// The number of threads for work with `num_parts` parts: at least 1, and at most the machine's processors or 16,
// whichever is more, whatever the caller asks, because OpenMP ends the process if it cannot start a thread. For more
// than one thread, call check_not_forked().
int32_t num_openmp_threads(int32_t num_threads, int64_t num_parts);

// Throws std::runtime_error in a process that was forked after this library was loaded: OpenMP's threads stayed behind,
// and it would wait for them forever.
void check_not_forked();

}  // namespace batchllm
