// How long the kernel lets the threads of the CPU kernels run at a time on a machine that others use, too.
#pragma once

#include <cstdint>

namespace batchllm {

// Asks for slices of at most 0.5 ms for the calling thread and the num_threads - 1 OpenMP threads that work with it.
// A thread with smaller slices gets its next one sooner, for the same share of the CPU, so the others wait less for one
// that was descheduled in the middle of a product. Linux has this since 6.12; elsewhere nothing happens.
void shorten_time_slices(int32_t num_threads);

}  // namespace batchllm
