// The paper's own choice of a single level: "enlarge the first-level prefix".
#include <cstdint>
#include <utility>
#include <vector>

#include "planner/choose_segments.h"

namespace batchllm {

namespace {

// Starts from the trie and works bottom-up. A node hands a child up to its parent if what the child's readers
// share among themselves exceeds computing the node's tokens once more:
//
//   (readers(child) - 1) * num_tokens(child) > num_tokens(node)     the child then holds the node's tokens too
//
// and a node with one child or reader left gives way to it. The nodes that end up below the root are the groups.
class PaperPass {
 public:
    explicit PaperPass(const PrefixTrie& trie)
        : trie_(trie),
          num_tokens_(trie.num_nodes()),
          num_readers_(trie.num_nodes(), 0),
          num_leaves_(trie.num_nodes(), 0),
          home_(trie.num_nodes(), kNone),
          dissolved_(trie.num_nodes(), false),
          first_child_(trie.num_nodes(), kNone),
          next_sibling_(trie.num_nodes(), kNone) {
        for (NodeId node = 0; node < trie.num_nodes(); ++node) {
            num_tokens_[node] = trie.token_end()[node] - trie.token_begin()[node];
            num_leaves_[node] += trie.num_readers(node);
            if (node > 0) num_leaves_[trie.parent()[node]] -= trie.num_readers(node);
        }
        for (NodeId node = trie.num_nodes() - 1; node > 0; --node) settle(node);
    }

    Segments segments() const {
        std::vector<int32_t> token_end;
        std::vector<RequestIndex> owner_request;
        std::vector<SegmentId> node_segment(trie_.num_nodes(), kNoSegment);
        for (NodeId node = 1; node < trie_.num_nodes(); ++node) {
            if (home_[node] == 0 && !dissolved_[node]) {
                node_segment[node] = {static_cast<int32_t>(token_end.size())};
                token_end.push_back(trie_.token_end()[node]);
                owner_request.push_back(trie_.order()[trie_.request_begin()[node]]);
            } else {
                node_segment[node] = node_segment[home_[node]];
            }
        }
        const std::vector<NodeId> deepest = trie_.deepest_nodes();
        std::vector<SegmentId> request_segment(trie_.num_requests());
        for (size_t rank = 0; rank < deepest.size(); ++rank) {
            request_segment[trie_.order()[rank]] = node_segment[deepest[rank]];
        }
        std::vector<SegmentId> parent(token_end.size(), kNoSegment);
        std::vector<int32_t> token_begin(token_end.size(), 0);
        return Segments(std::move(parent), std::move(token_begin), std::move(token_end), std::move(owner_request),
                        std::move(request_segment), trie_.prompts().num_prompt_tokens());
    }

 private:
    void settle(NodeId node) {
        const NodeId parent = trie_.parent()[node];
        NodeId child = std::exchange(first_child_[node], kNone);
        num_readers_[node] = num_leaves_[node];
        while (child != kNone) {
            const NodeId next = next_sibling_[child];
            if (int64_t{num_readers_[child] - 1} * num_tokens_[child] > num_tokens_[node]) {
                num_tokens_[child] += num_tokens_[node];
                put(child, parent);
            } else {
                num_readers_[node] += num_readers_[child];
                put(child, node);
            }
            child = next;
        }
        const NodeId last_child = first_child_[node];
        if (last_child == kNone && num_leaves_[node] <= 1) {
            dissolve(node, parent);
            num_leaves_[parent] += num_leaves_[node];
        } else if (last_child != kNone && next_sibling_[last_child] == kNone && num_leaves_[node] == 0) {
            dissolve(node, parent);
            num_tokens_[last_child] += num_tokens_[node];
            put(last_child, parent);
        } else {
            put(node, parent);
        }
    }

    void put(NodeId node, NodeId home) {
        home_[node] = home;
        next_sibling_[node] = std::exchange(first_child_[home], node);
    }

    void dissolve(NodeId node, NodeId parent) {
        home_[node] = parent;
        dissolved_[node] = true;
    }

    const PrefixTrie& trie_;
    std::vector<int32_t> num_tokens_;   // from the node's home to the node
    std::vector<int32_t> num_readers_;  // at or below the node, in the regrouped tree
    std::vector<int32_t> num_leaves_;   // readers that hang on the node itself
    std::vector<NodeId> home_;          // parent in the regrouped tree: an ancestor in the trie
    std::vector<bool> dissolved_;       // gave way: its children and readers moved to its home
    std::vector<NodeId> first_child_, next_sibling_;
};

}  // namespace

Segments choose_segments_paper(const PrefixTrie& trie) {
    return PaperPass(trie).segments();
}

}  // namespace batchllm
