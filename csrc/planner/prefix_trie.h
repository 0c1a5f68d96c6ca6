// Every prefix that two prompts share, exact to the token.
//
//   prompts  0: 5 7 2   1: 5 7   2: 9 1   3: 5 7 2 8      order: 1 0 3 2
//
//   0 root [0, 4) ── 1: 5 7 [0, 3) ── 2: 2 [1, 3)         request 1 ends at node 1, request 0 at node 2
//                                                         (8 and 9 1 have one reader: no nodes)
//
// Ranks are requests in lexicographic order (a prompt before its extensions, equal prompts by request id), so
// the readers of a node are one half-open range of ranks, and a child's range lies inside its parent's. Nodes
// are numbered in preorder. Except for the root, a node has at least one token and at least two readers.
//
// Built by sorting and the longest common prefix (LCP) of neighbours: no hashes, no per-node allocation, no
// recursion over the tree.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "planner/ids.h"
#include "planner/prompts.h"

namespace batchllm {

class PrefixTrie {
 public:
    // num_threads 0: one per core.
    explicit PrefixTrie(const Prompts& prompts, int num_threads = 0);

    const Prompts& prompts() const { return prompts_; }
    RequestIndex num_requests() const { return prompts_.num_requests(); }
    NodeId num_nodes() const { return static_cast<NodeId>(parent_.size()); }
    int64_t num_tokens() const { return num_tokens_; }  // distinct prefixes: each token stored once, tails included

    const std::vector<RequestIndex>& order() const { return order_; }  // [num_requests]: rank -> request id

    // [num_nodes] each. A node is positions [token_begin, token_end) of the prompts of its readers, the ranks
    // [request_begin, request_end).
    const std::vector<NodeId>& parent() const { return parent_; }  // kNone at the root
    const std::vector<int32_t>& token_begin() const { return token_begin_; }
    const std::vector<int32_t>& token_end() const { return token_end_; }
    const std::vector<int32_t>& request_begin() const { return request_begin_; }
    const std::vector<int32_t>& request_end() const { return request_end_; }

    int32_t num_readers(NodeId node) const { return request_end_[node] - request_begin_[node]; }
    std::vector<NodeId> deepest_nodes() const;  // [num_requests]: rank -> the deepest node it reads

    void audit() const;  // recomputes all of the above from the prompts; throws std::logic_error
    std::string to_string(NodeId max_nodes = 40) const;

 private:
    template <typename Close>  // close(depth, request_begin, request_end)
    void scan_ranges(const std::vector<int32_t>& lcp, const Close& close) const;
    void build_nodes(const std::vector<int32_t>& lcp);

    Prompts prompts_;
    std::vector<RequestIndex> order_;
    std::vector<NodeId> parent_;
    std::vector<int32_t> token_begin_, token_end_, request_begin_, request_end_;
    int64_t num_tokens_ = 0;
};

}  // namespace batchllm
