// Lexicographic order of rows together with the longest common prefix (LCP) of neighbours.
#pragma once

#include <cstdint>
#include <vector>

#include "planner/ids.h"
#include "planner/prompts.h"

namespace batchllm {

struct SortedRow {
    RequestId request;
    int32_t lcp;  // tokens shared with the row before; 0 for the first
};

// Length of the longest common prefix of two rows that are known to agree on their first `from` tokens.
int32_t common_prefix(const Prompts& prompts, RequestId a, RequestId b, int32_t from = 0);

// A prompt comes before its extensions; equal prompts are ordered by request id.
std::vector<SortedRow> lcp_sort(const Prompts& prompts, int num_threads);

}  // namespace batchllm
