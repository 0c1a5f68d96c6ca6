// The order in which a job's requests are started.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "planner/ids.h"
#include "planner/segments.h"

namespace batchllm {

// Depth-first over the forest of segments, so that a segment's readers are neighbours. At every node, and among
// the trees and loners at the top, children (segments and single requests) come by descending
//
//   expected output tokens / (segment tokens + own prompt tokens)      summed over the child's subtree
//
// so that decode-heavy groups start first and later prefills run beside their decodes. Equal ratios keep segments
// before requests, each by id.
//   own_tokens, expected_output_tokens [num_requests]
std::vector<RequestId> group_order(const Segments& segments, std::span<const int32_t> own_tokens,
                                   std::span<const int32_t> expected_output_tokens);

}  // namespace batchllm
