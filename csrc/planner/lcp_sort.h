// Lexicographic order of rows together with the longest common prefix (LCP) of neighbours.
#pragma once

#include <cstdint>
#include <vector>

#include "planner/ids.h"
#include "planner/prompts.h"

namespace batchllm {

struct SortedRows {
    std::vector<RequestIndex> order;  // [num_requests]: rank -> request id
    std::vector<int32_t> lcp;         // [num_requests]: tokens shared with the row before; 0 for the first
};

// Length of the longest common prefix of two rows that agree on their first `from` tokens.
int32_t common_prefix(const Prompts& prompts, RequestIndex a, RequestIndex b, int32_t from = 0);

// A prompt comes before its extensions; equal prompts are ordered by request id. Threads (0: one per core) share the
// work on ranges of rows with at least `min_shared_tokens`, and each take smaller ranges alone. Neither number changes
// the result.
SortedRows lcp_sort(const Prompts& prompts, int num_threads, int64_t min_shared_tokens = 1 << 22);

}  // namespace batchllm
