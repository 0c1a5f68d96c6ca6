// The order in which a job's requests are started.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "planner/ids.h"
#include "planner/segments.h"

namespace batchllm {

// Always depth-first over the forest of segments, so that a segment's readers are neighbours. GroupOrder is
// the order of siblings, at every node and among the trees and single requests at the top. A child (a segment or a
// single request) has the ratio, summed over its subtree,
//
//   expected output tokens / (segment tokens + own prompt tokens)
enum class GroupOrder {
    kDecodeFirst,  // by descending ratio: later prefills run beside the decodes of what started first
    kArrival,      // by the smallest request id below
    kBlend,        // by descending ratio, then taken from both ends: from the decode-heavy one while what was taken so
                   // far is at most as decode-heavy as all the siblings together, else from the prefill-heavy one. So
                   // every stretch has the mix of the whole: the dual scan of BlendServe (arXiv 2411.16102), which
                   // walks the leaves of one sorted tree from both ends, applied at every node
};

// With equal ratios segments come before requests, each by id.
//   own_tokens, expected_output_tokens [num_requests]
std::vector<RequestIndex> group_order(const Segments& segments, std::span<const int32_t> own_tokens,
                                      std::span<const int32_t> expected_output_tokens,
                                      GroupOrder order = GroupOrder::kDecodeFirst);

}  // namespace batchllm
