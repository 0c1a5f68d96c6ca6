// Which trie nodes become shared segments.
#pragma once

#include <vector>

#include "planner/ids.h"
#include "planner/prefix_trie.h"
#include "planner/segments.h"

namespace batchllm {

enum class SharingLevels {
    kNone,    // no sharing
    kSingle,  // at most one segment per request, the whole prefix from position 0
    kAny,     // chains of any depth, or a single level if that is worth more
};

// Maximises, over all choices of nodes,
//   prompt tokens not computed - reader_cost * (segments summed over the chains of all requests),
// exactly. Of equal choices it takes the smaller: a node is chosen only for a strict gain, so never for one reader.
// reader_cost, in tokens, is rounded to 1/65536 so that the arithmetic is exact.
Segments choose_segments(const PrefixTrie& trie, SharingLevels levels, double reader_cost = 0.0);

// The single level of the BatchLLM paper (arXiv 2412.03594): one bottom-up pass that enlarges first-level prefixes
// wherever that alone saves tokens. Kept for comparison.
Segments choose_segments_paper(const PrefixTrie& trie);

// The segments of chosen nodes ([num_nodes]). A request reads all its chosen nodes (chained), or the deepest one.
Segments segments_of_nodes(const PrefixTrie& trie, const std::vector<bool>& chosen, bool chained);

}  // namespace batchllm
