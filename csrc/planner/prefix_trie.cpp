#include "planner/prefix_trie.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "planner/lcp_sort.h"

namespace batchllm {

PrefixTrie::PrefixTrie(const Prompts& prompts, int num_threads) : prompts_(prompts) {
    SortedRows rows = lcp_sort(prompts_, num_threads);
    order_ = std::move(rows.order);
    for (RequestIndex request = 0; request < num_requests(); ++request) num_tokens_ += prompts_.row_length(request);
    for (const int32_t shared : rows.lcp) num_tokens_ -= shared;  // a row adds what the row before it lacks
    build_nodes(rows.lcp);
}

// A node is a maximal range of ranks whose neighbours agree on `depth` tokens. Ranks are scanned from right to
// left with a stack of open ranges; a range closes at its first rank, inner ranges before outer ones, so the
// reverse of the closing order is preorder.
template <typename Close>
void PrefixTrie::scan_ranges(const std::vector<int32_t>& lcp, const Close& close) const {
    struct OpenRange {
        int32_t depth;
        int32_t request_end;
    };
    std::vector<OpenRange> open = {{0, num_requests()}};
    for (int32_t rank = num_requests() - 1; rank >= 1; --rank) {
        int32_t request_end = rank + 1;
        for (; open.back().depth > lcp[rank]; open.pop_back()) {
            request_end = open.back().request_end;
            close(open.back().depth, rank, request_end);
        }
        if (open.back().depth < lcp[rank]) open.push_back({lcp[rank], request_end});
    }
    for (; !open.empty(); open.pop_back()) close(open.back().depth, 0, open.back().request_end);
}

void PrefixTrie::build_nodes(const std::vector<int32_t>& lcp) {
    NodeId node = 0;
    scan_ranges(lcp,
                [&](int32_t, int32_t, int32_t) { ++node; });  // counted first, so that the arrays have the exact size
    for (auto* array : {&parent_, &token_begin_, &token_end_, &request_begin_, &request_end_}) array->resize(node);
    scan_ranges(lcp, [&](int32_t depth, int32_t request_begin, int32_t request_end) {
        --node;
        token_end_[node] = depth;
        request_begin_[node] = request_begin;
        request_end_[node] = request_end;
    });
    parent_[0] = kNone;
    token_begin_[0] = 0;
    for (node = 1; node < num_nodes(); ++node) {
        NodeId ancestor = node - 1;
        while (request_end_[ancestor] <= request_begin_[node]) ancestor = parent_[ancestor];
        parent_[node] = ancestor;
        token_begin_[node] = token_end_[ancestor];
    }
}

std::vector<NodeId> PrefixTrie::deepest_nodes() const {
    std::vector<NodeId> deepest(num_requests());
    int32_t rank = 0;
    NodeId current = 0;
    const auto fill_until = [&](int32_t end) {
        for (; rank < end; ++rank) {
            while (request_end_[current] <= rank) current = parent_[current];
            deepest[rank] = current;
        }
    };
    for (NodeId node = 1; node < num_nodes(); ++node) {
        fill_until(request_begin_[node]);
        current = node;
    }
    fill_until(num_requests());
    return deepest;
}

void PrefixTrie::audit() const {
    const auto expect = [](bool holds, const std::string& law) {
        if (!holds) throw std::logic_error("PrefixTrie::audit: " + law);
    };
    std::vector<bool> seen(num_requests(), false);
    for (const RequestIndex request : order_) {
        expect(request >= 0 && request < num_requests() && !seen[request], "order is a permutation");
        seen[request] = true;
    }
    expect(static_cast<RequestIndex>(order_.size()) == num_requests(), "order names every request");

    expect(num_nodes() >= 1 && parent_[0] == kNone && token_begin_[0] == 0 && token_end_[0] == 0 &&
               request_begin_[0] == 0 && request_end_[0] == num_requests(),
           "the root holds no token and every request");
    for (NodeId node = 1; node < num_nodes(); ++node) {
        const std::string name = "node " + std::to_string(node) + ": ";
        const NodeId parent = parent_[node];
        expect(parent >= 0 && parent < node, name + "its parent comes first");
        expect(token_begin_[node] == token_end_[parent] && token_begin_[node] < token_end_[node],
               name + "tokens continue the parent's");
        expect(request_begin_[node] >= request_begin_[parent] && request_end_[node] <= request_end_[parent],
               name + "readers lie inside the parent's");
        expect(num_readers(node) >= 2, name + "at least two readers");
        // Preorder: the previous node is the parent, or a node that ends before this one begins.
        expect(parent == node - 1 || request_end_[node - 1] <= request_begin_[node], name + "preorder");
    }

    // Neighbours agree exactly as far as the deepest node that holds both; so no node is missing and none is extra.
    const std::vector<NodeId> deepest = deepest_nodes();
    std::vector<bool> needed(num_nodes(), false);
    needed[0] = true;
    int64_t num_tokens = 0;
    for (int32_t rank = 0; rank < num_requests(); ++rank) {
        const auto row = prompts_.row(order_[rank]);
        num_tokens += static_cast<int64_t>(row.size());
        if (rank == 0) continue;
        const auto before = prompts_.row(order_[rank - 1]);
        const auto [end_before, end_row] = std::mismatch(before.begin(), before.end(), row.begin(), row.end());
        const bool equal = end_before == before.end() && end_row == row.end();
        const bool ascending = end_before == before.end() || (end_row != row.end() && *end_before < *end_row);
        expect(equal ? order_[rank - 1] < order_[rank] : ascending, "ranks are sorted");
        NodeId common = deepest[rank];
        while (request_begin_[common] == rank) common = parent_[common];
        expect(token_end_[common] == end_row - row.begin(), "neighbours part where their common node ends");
        needed[common] = true;
        num_tokens -= token_end_[common];
    }
    expect(num_tokens == num_tokens_, "num_tokens counts distinct prefixes");
    for (NodeId node = 0; node < num_nodes(); ++node) {
        expect(needed[node], "node " + std::to_string(node) + " parts no neighbours");
    }
}

std::string PrefixTrie::to_string(NodeId max_nodes) const {
    std::string text = "PrefixTrie: " + std::to_string(num_requests()) + " requests, " + std::to_string(num_nodes()) +
                       " nodes, " + std::to_string(num_tokens_) + " of " +
                       std::to_string(prompts_.num_prompt_tokens()) + " tokens stored\n";
    std::vector<int32_t> depth(num_nodes(), 0);
    for (NodeId node = 1; node < num_nodes(); ++node) {
        depth[node] = depth[parent_[node]] + 1;
        if (node > max_nodes) continue;
        text += std::string(2 * depth[node], ' ');
        const TokenId* row = prompts_.row_data(order_[request_begin_[node]]);
        constexpr int32_t kShownTokens = 6;
        for (int32_t i = token_begin_[node]; i < token_end_[node] && i < token_begin_[node] + kShownTokens; ++i) {
            text += std::to_string(row[i]) + ' ';
        }
        const int32_t hidden = token_end_[node] - token_begin_[node] - kShownTokens;
        if (hidden > 0) text += "(+" + std::to_string(hidden) + " tokens) ";
        text += "(" + std::to_string(num_readers(node)) + " readers)\n";
    }
    if (num_nodes() - 1 > max_nodes) {
        text += "  ... and " + std::to_string(num_nodes() - 1 - max_nodes) + " more nodes\n";
    }
    return text;
}

}  // namespace batchllm
