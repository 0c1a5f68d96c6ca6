#include "planner/choose_segments.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory_resource>
#include <stdexcept>
#include <string>
#include <utility>

#include "planner/convex_function.h"

namespace batchllm {

namespace {

// The value of the subtree of a node v, as a function of the state x its nearest chosen ancestor leaves it with
// (x = 0 without one):
//
//   V(leaf, x) = x                                            leaf: one request, also where it ends at an inner node
//   V(v, x)    = max(S(x), line(x))   S = sum of V(child, .)  the line is "choose v"
//   answer       V(root, 0)
//
//                   state of readers of v     line(x) = S(state(v)) - cost of v
//   single level    D(v) - kappa              S(state(v)) - D(v)
//   any depth       D(v)                      S(state(v)) - (D(v) - x) - kappa * readers(v)
//
// with D(v) the tokens from the root to v. (In a single level a reader pays kappa once, however many of its nodes
// are chosen, so kappa is part of the state.)
//
// V(v, .) is convex and piecewise linear: a leaf is linear, sums and maxima of convex functions are convex. The
// slope of the line (0, or 1) is the least that any V can have, and line(state(v)) <= S(state(v)); so the line wins
// on a range [0, threshold(v)), and the pass down needs to know no more. There are at most two kinks per node, merged
// small to large: O(n log^2 n), where tabulating (node, ancestor) pairs is quadratic on nested chains.
//
// Only integer states occur, so V is kept on the integers and every number is exact: no tie is ever decided by
// rounding. The unit of states and values is 1/65536 token.
constexpr int64_t kUnit = 65536;

class ExactChoice {
 public:
    ExactChoice(const PrefixTrie& trie, bool chained, double reader_cost)
        : trie_(trie), chained_(chained), kappa_(reader_cost_units(reader_cost)) {
        climb();
    }

    int64_t value() const { return value_; }

    Segments segments() const {
        std::vector<bool> chosen(trie_.num_nodes(), false);
        std::vector<int64_t> state_below(trie_.num_nodes(), 0);  // what a node leaves its children with
        for (NodeId node = 1; node < trie_.num_nodes(); ++node) {
            const int64_t state_above = state_below[trie_.parent()[node]];
            chosen[node] = state_above < threshold_[node];
            state_below[node] = chosen[node] ? state(node) : state_above;
        }
        return segments_of_nodes(trie_, chosen, chained_);
    }

 private:
    static int64_t reader_cost_units(double reader_cost) {
        constexpr double kMost = 2147483648.0;  // longer than any prompt
        return std::llround(std::min(reader_cost, kMost) * kUnit);
    }

    // No gain exceeds D(v) per reader, so a larger kappa changes nothing; and the product stays within the tokens of
    // all prompts, so it cannot overflow.
    int64_t links_cost(NodeId node) const {
        return chained_ ? std::min(kappa_, depth(node) + kUnit) * trie_.num_readers(node) : 0;
    }

    int64_t depth(NodeId node) const { return trie_.token_end()[node] * kUnit; }

    int64_t state(NodeId node) const { return chained_ ? depth(node) : std::max<int64_t>(depth(node) - kappa_, 0); }

    // Bottom-up with a stack of the open nodes, from the root to the current one.
    void climb() {
        struct OpenNode {
            NodeId node;
            int32_t num_leaves;       // readers in no child closed so far
            ConvexFunction children;  // sum over the children closed so far
        };
        threshold_.assign(trie_.num_nodes(), 0);
        std::pmr::unsynchronized_pool_resource memory;  // of all kinks
        const auto linear = [&](int64_t slope, NodeId node) {
            return ConvexFunction::linear(slope, state(node), &memory);
        };
        std::vector<OpenNode> open;
        const auto open_node = [&](NodeId node) { open.push_back({node, trie_.num_readers(node), linear(0, node)}); };
        const auto close_node = [&] {
            const NodeId node = open.back().node;
            ConvexFunction value = std::move(open.back().children);
            value.add(linear(open.back().num_leaves, node));
            open.pop_back();
            if (open.empty()) {
                value_ = value.value_left();
                return;
            }
            if (state(node) > 0) {
                const int64_t cost = depth(node) + links_cost(node);
                threshold_[node] = value.raise_to_line(value.value_right() - cost, chained_ ? 1 : 0);
            }
            value.cut(state(open.back().node));
            open.back().children.add(std::move(value));
            open.back().num_leaves -= trie_.num_readers(node);
        };
        for (NodeId node = 0; node < trie_.num_nodes(); ++node) {
            while (!open.empty() && open.back().node != trie_.parent()[node]) close_node();
            open_node(node);
        }
        while (!open.empty()) close_node();
    }

    const PrefixTrie& trie_;
    const bool chained_;
    const int64_t kappa_;
    std::vector<int64_t> threshold_;  // [num_nodes]: a node is chosen iff the state above it is smaller
    int64_t value_ = 0;
};

}  // namespace

Segments segments_of_nodes(const PrefixTrie& trie, const std::vector<bool>& chosen, bool chained) {
    const auto num_segments = std::count(chosen.begin() + 1, chosen.end(), true);
    std::vector<SegmentId> parent;
    std::vector<int32_t> token_begin, token_end;
    std::vector<RequestIndex> owner_request;
    parent.reserve(num_segments);
    for (auto* array : {&token_begin, &token_end, &owner_request}) array->reserve(num_segments);
    std::vector<SegmentId> node_segment(trie.num_nodes(), kNoSegment);  // deepest one at or above a node
    for (NodeId node = 1; node < trie.num_nodes(); ++node) {
        const SegmentId above = node_segment[trie.parent()[node]];
        node_segment[node] = above;
        if (!chosen[node]) continue;
        node_segment[node] = {static_cast<int32_t>(parent.size())};
        parent.push_back(chained ? above : kNoSegment);
        token_begin.push_back(chained && above != kNoSegment ? token_end[above.index] : 0);
        token_end.push_back(trie.token_end()[node]);
        owner_request.push_back(trie.order()[trie.request_begin()[node]]);
    }
    const std::vector<NodeId> deepest = trie.deepest_nodes();
    std::vector<SegmentId> request_segment(trie.num_requests());
    for (size_t rank = 0; rank < deepest.size(); ++rank) {
        request_segment[trie.order()[rank]] = node_segment[deepest[rank]];
    }
    return Segments(std::move(parent), std::move(token_begin), std::move(token_end), std::move(owner_request),
                    std::move(request_segment), trie.prompts().num_prompt_tokens());
}

Segments choose_segments(const PrefixTrie& trie, SharingLevels levels, double reader_cost) {
    if (!(reader_cost >= 0.0)) {
        throw std::invalid_argument("reader_cost: expected at least 0 tokens, got " + std::to_string(reader_cost));
    }
    if (levels == SharingLevels::kNone) {
        return segments_of_nodes(trie, std::vector<bool>(trie.num_nodes(), false), true);
    }
    const ExactChoice single(trie, false, reader_cost);
    if (levels == SharingLevels::kSingle) return single.segments();
    const ExactChoice chained(trie, true, reader_cost);
    return chained.value() >= single.value() ? chained.segments() : single.segments();
}

}  // namespace batchllm
