// Handles and counts shared by the whole planner.
#pragma once

#include <cstdint>

namespace batchllm {

using TokenId = int32_t;
using RequestId = int32_t;  // index of a prompt in the job
using NodeId = int32_t;     // index into a PrefixTrie, preorder; 0 is the root
using SegmentId = int32_t;  // index into Segments; inside BatchPlanner own segments follow the shared ones
using PageId = int32_t;     // index into the KV pool

inline constexpr int32_t kNone = -1;  // no such node, segment or request

}  // namespace batchllm
