// Ours: the BatchPlanner itself, with the output lengths of the job.
#pragma once

#include <cstdint>
#include <limits>

#include "planner/group_order.h"
#include "planner/segments.h"
#include "simulate/simulation.h"

namespace batchllm {

enum class KnownLengths {
    kTrue,     // every output's length
    kLearned,  // from the requests that finish
    kBound,    // max_output_tokens is assumed to be the length
};

struct PlannedOptions {
    KnownLengths lengths = KnownLengths::kTrue;
    GroupOrder order = GroupOrder::kDecodeFirst;
    int32_t max_running_requests = std::numeric_limits<int32_t>::max();
};

Simulation simulate_planned(const SimulatedJob& job, const PoolOptions& pool, Segments segments,
                            const PlannedOptions& options);

}  // namespace batchllm
