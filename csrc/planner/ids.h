// Handles and counts shared by the whole planner.
#pragma once

#include <cstdint>

namespace batchllm {

using TokenId = int32_t;
using RequestId = int32_t;  // index into Prompts; in a BatchPlanner counted on over everything that was ever added
using NodeId = int32_t;     // index into a PrefixTrie, preorder; 0 is the root
using SegmentId = int32_t;  // index into Segments; a BatchPlanner names requests' own segments by negative ones
using PageId = int32_t;     // index into the KV pool

inline constexpr int32_t kNone = -1;  // no such node, segment or request

}  // namespace batchllm
