// Prompts in lexicographic order, and how much any two of them share, in constant time.
#pragma once

#include <cstdint>
#include <vector>

#include "planner/ids.h"
#include "planner/prefix_trie.h"
#include "planner/prompts.h"

namespace batchllm {

class PromptIndex {
 public:
    explicit PromptIndex(const Prompts& prompts);

    const PrefixTrie& trie() const { return trie_; }
    NodeId deepest_node(RequestIndex request) const { return deepest_nodes_[rank_[request]]; }
    RequestIndex request(int32_t rank) const { return trie_.order()[rank]; }
    int32_t rank(RequestIndex request) const { return rank_[request]; }
    int32_t neighbour_prefix(int32_t rank) const { return minima_[0][rank]; }  // shared with rank - 1; 0 for rank 0
    int32_t common_prefix(RequestIndex a, RequestIndex b) const;               // tokens that two prompts share

 private:
    PrefixTrie trie_;
    std::vector<NodeId> deepest_nodes_;         // [num_requests], by rank
    std::vector<int32_t> rank_;                 // [num_requests]
    std::vector<std::vector<int32_t>> minima_;  // minima_[k][i]: the least of neighbour_prefix(i .. i + 2^k - 1)
};

}  // namespace batchllm
