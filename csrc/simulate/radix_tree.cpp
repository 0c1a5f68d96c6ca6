#include "simulate/radix_tree.h"

#include <algorithm>
#include <iterator>

namespace batchllm {

RadixTree::RadixTree(const Prompts& prompts, const PromptIndex& index)
    : prompts_(prompts), index_(index), waiting_(prompts.num_requests()) {
    nodes_.push_back({.parent = kNone, .begin = 0, .end = 0, .owner = kNone});
}

// Tokens at the front that are the same in a request's first `length` and in what `owner` holds.
int32_t RadixTree::common_prefix(RequestIndex request, RequestIndex owner, int32_t length) const {
    return request == owner ? length : std::min(length, index_.common_prefix(request, owner));
}

uint64_t RadixTree::child_key(RadixNodeId node, RequestIndex request) const {
    const int32_t position = nodes_[node].end;
    const bool is_generated = position >= prompts_.prompt_length(request);
    const int32_t token = is_generated ? request : prompts_.row_data(request)[position];
    return static_cast<uint64_t>(node) << 33 | uint64_t{is_generated} << 32 | static_cast<uint32_t>(token);
}

RadixNodeId RadixTree::child_of(RadixNodeId node, RequestIndex request) const {
    const auto found = children_.find(child_key(node, request));
    return found == children_.end() ? kNone : found->second;
}

template <typename Change>
void RadixTree::update(RadixNodeId node, Change change) {
    if (is_evictable_leaf(node)) evictable_leaves_.erase(eviction_key(node));
    change(nodes_[node]);
    if (is_evictable_leaf(node)) evictable_leaves_.insert(eviction_key(node));
}

void RadixTree::touch(RadixNodeId node, int64_t now) {
    update(node, [&](Node& touched) { touched.touched = now; });
}

RadixNodeId RadixTree::match(RequestIndex request, int32_t length) {
    const int64_t now = ++clock_;
    RadixNodeId node = kRoot;
    while (nodes_[node].end < length) {
        const RadixNodeId child = child_of(node, request);
        if (child == kNone) break;
        const int32_t end = common_prefix(request, nodes_[child].owner, length);
        if (end < nodes_[child].end) {
            touch(child, now);
            return split(child, end);
        }
        touch(child, now);
        node = child;
    }
    return node;
}

RadixNodeId RadixTree::insert(RequestIndex request, int32_t length) {
    const RadixNodeId matched = match(request, length);
    const int32_t depth = nodes_[matched].end;
    if (depth == length) return matched;
    const RadixNodeId leaf = add_node(matched, depth, length, request);
    num_tokens_ += length - depth;
    touch(leaf, clock_);
    move_waiting_into(leaf);
    return leaf;
}

RadixNodeId RadixTree::new_node() {
    if (unused_.empty()) {
        nodes_.emplace_back();
        return static_cast<RadixNodeId>(nodes_.size()) - 1;
    }
    const RadixNodeId node = unused_.back();
    unused_.pop_back();
    return node;
}

RadixNodeId RadixTree::add_node(RadixNodeId parent, int32_t begin, int32_t end, RequestIndex owner) {
    const RadixNodeId node = new_node();
    nodes_[node] = {.parent = parent, .begin = begin, .end = end, .owner = owner, .created = ++clock_};
    update(parent, [](Node& above) { ++above.num_children; });
    children_[child_key(parent, owner)] = node;
    evictable_leaves_.insert(eviction_key(node));
    return node;
}

// The upper part is new: its children are one, the lower part, and nobody waits at it yet.
RadixNodeId RadixTree::split(RadixNodeId node, int32_t at) {
    const RadixNodeId upper = new_node();
    Node& lower = nodes_[node];
    const RadixNodeId parent = lower.parent;
    nodes_[upper] = {.parent = parent,
                     .begin = lower.begin,
                     .end = at,
                     .owner = lower.owner,
                     .num_locks = lower.num_locks,
                     .num_children = 1,
                     .touched = lower.touched,
                     .created = lower.created,
                     .weight = lower.weight};
    children_[child_key(parent, lower.owner)] = upper;
    if (lower.weight > 0) {
        nodes_[parent].heavy_children.erase({-lower.weight, lower.created, node});
        nodes_[parent].heavy_children.insert({-lower.weight, lower.created, upper});
        nodes_[upper].heavy_children.insert({-lower.weight, lower.created, node});
    }
    lower.parent = upper;
    lower.begin = at;
    children_[child_key(upper, lower.owner)] = node;
    return upper;
}

void RadixTree::remove_leaf(RadixNodeId node) {
    const RadixNodeId parent = nodes_[node].parent;
    const auto leaving = std::move(nodes_[node].waiting);
    for (const auto& [arrival, request] : leaving) {
        nodes_[parent].waiting.insert({arrival, request});
        waiting_[request].node = parent;
    }
    if (nodes_[node].weight > 0) {
        nodes_[parent].heavy_children.erase({-nodes_[node].weight, nodes_[node].created, node});
    }
    evictable_leaves_.erase(eviction_key(node));
    children_.erase(child_key(parent, nodes_[node].owner));
    num_tokens_ -= nodes_[node].end - nodes_[node].begin;
    unused_.push_back(node);
    update(parent, [](Node& above) { --above.num_children; });
}

void RadixTree::lock(RadixNodeId node) {
    for (; node != kRoot; node = nodes_[node].parent) {
        if (nodes_[node].num_locks == 0) num_locked_ += nodes_[node].end - nodes_[node].begin;
        update(node, [](Node& locked) { ++locked.num_locks; });
    }
}

void RadixTree::unlock(RadixNodeId node) {
    for (; node != kRoot; node = nodes_[node].parent) {
        update(node, [](Node& locked) { --locked.num_locks; });
        if (nodes_[node].num_locks == 0) num_locked_ -= nodes_[node].end - nodes_[node].begin;
    }
}

void RadixTree::evict(int64_t num_tokens) {
    const int64_t target = num_tokens_ - num_tokens;
    while (num_tokens_ > target && !evictable_leaves_.empty()) {
        remove_leaf(evictable_leaves_.begin()->node);
    }
}

void RadixTree::set_weight(RadixNodeId node, int32_t weight) {
    const RadixNodeId parent = nodes_[node].parent;
    const int32_t before = nodes_[node].weight;
    update(node, [&](Node& weighed) { weighed.weight = weight; });
    if (parent == kNone) return;
    const int64_t created = nodes_[node].created;
    if (before > 0) nodes_[parent].heavy_children.erase({-before, created, node});
    if (weight > 0) nodes_[parent].heavy_children.insert({-weight, created, node});
}

void RadixTree::add_weight(RadixNodeId node, int32_t change) {
    for (; node != kNone; node = nodes_[node].parent) set_weight(node, nodes_[node].weight + change);
}

void RadixTree::place_waiting(RequestIndex request, RadixNodeId node) {
    waiting_[request].node = node;
    nodes_[node].waiting.insert({waiting_[request].arrival, request});
}

void RadixTree::add_waiting(RequestIndex request, int32_t length, int64_t arrival) {
    waiting_[request] = {.length = length, .arrival = arrival};
    waiting_ranks_.insert(index_.rank(request));
    place_waiting(request, match(request, length));
    add_weight(waiting_[request].node, 1);
}

void RadixTree::remove_waiting(RequestIndex request) {
    const Waiting& gone = waiting_[request];
    nodes_[gone.node].waiting.erase({gone.arrival, request});
    add_weight(gone.node, -1);
    waiting_[request].node = kNone;
    waiting_ranks_.erase(index_.rank(request));
}

// Those that waited at the parent of a new leaf and share some of it now wait where they leave it. They are neighbours
// of its owner in rank, and the further away the less they share.
void RadixTree::move_waiting_into(RadixNodeId leaf) {
    const RequestIndex owner = nodes_[leaf].owner;
    const RadixNodeId parent = nodes_[leaf].parent;
    const int32_t begin = nodes_[leaf].begin;
    std::vector<std::pair<int32_t, RequestIndex>> movers;  // (position where it leaves the leaf, request)
    const auto try_move = [&](int32_t rank) {
        const RequestIndex request = index_.request(rank);
        const int32_t shared = common_prefix(request, owner, waiting_[request].length);
        if (shared > begin && waiting_[request].node == parent) {
            movers.emplace_back(std::min(shared, nodes_[leaf].end), request);
        }
        return request == owner || index_.common_prefix(request, owner) > begin;
    };
    const auto middle = waiting_ranks_.lower_bound(index_.rank(owner));
    for (auto rank = middle; rank != waiting_ranks_.end() && try_move(*rank); ++rank) {
    }
    for (auto rank = std::make_reverse_iterator(middle); rank != waiting_ranks_.rend() && try_move(*rank); ++rank) {
    }
    if (movers.empty()) return;

    std::sort(movers.rbegin(), movers.rend());  // the deepest first
    for (const auto& [position, request] : movers) nodes_[parent].waiting.erase({waiting_[request].arrival, request});
    RadixNodeId node = leaf;
    int32_t weight = 0;
    for (const auto& [position, request] : movers) {
        if (position < nodes_[node].end) {
            set_weight(node, weight);
            node = split(node, position);
        }
        place_waiting(request, node);
        ++weight;
    }
    set_weight(node, weight);
}

std::vector<RequestIndex> RadixTree::first_waiting(size_t count) const {
    std::vector<RequestIndex> first;
    std::vector<std::pair<RadixNodeId, decltype(Node::heavy_children)::const_iterator>> path;
    path.emplace_back(kRoot, nodes_[kRoot].heavy_children.begin());
    while (!path.empty() && first.size() < count) {
        auto& [node, child] = path.back();
        if (child != nodes_[node].heavy_children.end()) {
            const RadixNodeId next = (child++)->node;
            path.emplace_back(next, nodes_[next].heavy_children.begin());
            continue;
        }
        for (const auto& [arrival, request] : nodes_[node].waiting) {
            if (first.size() == count) break;
            first.push_back(request);
        }
        path.pop_back();
    }
    return first;
}

}  // namespace batchllm
