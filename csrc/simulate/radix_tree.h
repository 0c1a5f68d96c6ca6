// The tree of cached token runs of a radix cache, to the token, with LRU eviction of leaves.
//
//   root ── [0, 500) of request 3 ─┬─ [500, 620) of request 3      a node is a run of the tokens of its owner: prompt,
//                                  └─ [500, 900) of request 7      then what it generated, which nobody shares
//
// A node is split where a request leaves it, so a match always ends at a node's end. Locked nodes, on the paths of
// running requests, stay; of the others, leaves go, the one that was longest not touched first.
//
// Waiting requests may be entered, each at the node where its match ends, kept so as the tree changes. Then they can
// be enumerated depth-first by weight (the number of waiting requests below a node), and what they match counts as
// touched later than all else: a scheduler that matches its whole queue again in every step has just touched it.
#pragma once

#include <compare>
#include <cstdint>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

#include "planner/ids.h"
#include "planner/prompts.h"
#include "simulate/prompt_index.h"

namespace batchllm {

using RadixNodeId = int32_t;

class RadixTree {
 public:
    static constexpr RadixNodeId kRoot = 0;

    RadixTree(const Prompts& prompts, const PromptIndex& index);

    int64_t num_tokens() const { return num_tokens_; }
    int64_t num_evictable() const { return num_tokens_ - num_locked_; }
    int32_t depth(RadixNodeId node) const { return nodes_[node].end; }  // tokens from the root to its end

    // The node where the longest stored prefix of a request's first `length` tokens ends. Touches its path.
    RadixNodeId match(RequestIndex request, int32_t length);
    // Stores a request's first `length` tokens, as far as they are not there; returns the node where they end.
    RadixNodeId insert(RequestIndex request, int32_t length);

    void lock(RadixNodeId node);  // and its ancestors
    void unlock(RadixNodeId node);
    void evict(int64_t num_tokens);  // at least so many, as far as there are leaves without locks

    // Waiting requests. `length` counts the tokens they have; `arrival` orders those with the same last node.
    void add_waiting(RequestIndex request, int32_t length, int64_t arrival);
    void remove_waiting(RequestIndex request);
    // The first `count` of them depth-first, heavier children first, a node's own after its children.
    std::vector<RequestIndex> first_waiting(size_t count) const;

 private:
    struct HeavyChild {
        int32_t minus_weight;
        int64_t created;
        RadixNodeId node;
        auto operator<=>(const HeavyChild&) const = default;
    };
    struct EvictableLeaf {
        bool is_wanted;  // by a waiting request
        int64_t touched;
        RadixNodeId node;
        auto operator<=>(const EvictableLeaf&) const = default;
    };
    struct Node {
        RadixNodeId parent;
        int32_t begin, end;  // positions
        RequestIndex owner;
        int32_t num_locks = 0;
        int32_t num_children = 0;
        int64_t touched = 0;
        int64_t created = 0;                                      // the older of equally heavy children comes first
        int32_t weight = 0;                                       // waiting requests here and below
        std::set<HeavyChild> heavy_children = {};                 // those with a weight
        std::set<std::pair<int64_t, RequestIndex>> waiting = {};  // (arrival): whose match ends here
    };
    struct Waiting {
        RadixNodeId node = kNone;
        int32_t length = 0;
        int64_t arrival = 0;
    };

    RadixNodeId new_node();
    RadixNodeId add_node(RadixNodeId parent, int32_t begin, int32_t end, RequestIndex owner);
    RadixNodeId split(RadixNodeId node, int32_t at);  // returns the upper part; the lower one keeps its id
    void remove_leaf(RadixNodeId node);
    void touch(RadixNodeId node, int64_t now);
    RadixNodeId child_of(RadixNodeId node, RequestIndex request) const;  // whose first token continues it, or kNone
    uint64_t child_key(RadixNodeId node, RequestIndex request) const;
    int32_t common_prefix(RequestIndex request, RequestIndex owner, int32_t length) const;
    void move_waiting_into(RadixNodeId leaf);
    void place_waiting(RequestIndex request, RadixNodeId node);
    void add_weight(RadixNodeId node, int32_t change);  // to it and its ancestors
    void set_weight(RadixNodeId node, int32_t weight);

    bool is_evictable_leaf(RadixNodeId node) const {
        return node != kRoot && nodes_[node].num_children == 0 && nodes_[node].num_locks == 0;
    }
    EvictableLeaf eviction_key(RadixNodeId node) const { return {nodes_[node].weight > 0, nodes_[node].touched, node}; }
    template <typename Change>
    void update(RadixNodeId node, Change change);  // of what decides its eviction

    Prompts prompts_;
    const PromptIndex& index_;
    std::vector<Node> nodes_;
    std::vector<RadixNodeId> unused_;
    std::unordered_map<uint64_t, RadixNodeId> children_;  // by child_key
    std::set<EvictableLeaf> evictable_leaves_;
    int64_t num_tokens_ = 0;
    int64_t num_locked_ = 0;
    int64_t clock_ = 0;

    std::vector<Waiting> waiting_;  // [num_requests]
    std::set<int32_t> waiting_ranks_;
};

}  // namespace batchllm
