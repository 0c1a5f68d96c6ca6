// A set of prompt prefixes that holds, with each prefix, all shorter ones: everything that was ever stored.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "planner/ids.h"
#include "simulate/prompt_index.h"

namespace batchllm {

class PrefixFrontier {
 public:
    explicit PrefixFrontier(const PromptIndex& index)
        : index_(index), node_end_(index.trie().num_nodes()), own_end_(index.trie().num_requests()) {}

    // Adds the first `length` tokens of a request; generated ones among them are ignored.
    void advance(RequestIndex request, int32_t length) {
        const PrefixTrie& trie = index_.trie();
        NodeId node = index_.deepest_node(request);
        if (length > trie.token_end()[node]) {
            const int32_t end = std::min(length, trie.prompts().prompt_length(request));
            own_end_[request] = std::max(own_end_[request], end);
        }
        for (; node > 0; node = trie.parent()[node]) {
            const int32_t end = std::min(length, trie.token_end()[node]);
            if (end <= trie.token_begin()[node]) continue;
            if (node_end_[node] >= end) return;  // then so are all above
            node_end_[node] = end;
        }
    }

    // Tokens at the front of a request's prompt that are in it.
    int32_t reached(RequestIndex request) const {
        const NodeId deepest = index_.deepest_node(request);
        if (own_end_[request] > index_.trie().token_end()[deepest]) return own_end_[request];
        for (NodeId node = deepest; node > 0; node = index_.trie().parent()[node]) {
            if (node_end_[node] > 0) return node_end_[node];
        }
        return 0;
    }

 private:
    const PromptIndex& index_;
    std::vector<int32_t> node_end_;  // [num_nodes]: positions below it are in; 0 where none of the node's are
    std::vector<int32_t> own_end_;   // [num_requests]: likewise, past the deepest node
};

}  // namespace batchllm
