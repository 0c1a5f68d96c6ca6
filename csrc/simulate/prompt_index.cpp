#include "simulate/prompt_index.h"

#include <algorithm>
#include <bit>

namespace batchllm {

PromptIndex::PromptIndex(const Prompts& prompts)
    : trie_(prompts), deepest_nodes_(trie_.deepest_nodes()), rank_(prompts.num_requests()) {
    const int32_t num_requests = prompts.num_requests();
    for (int32_t rank = 0; rank < num_requests; ++rank) rank_[request(rank)] = rank;

    minima_.emplace_back(num_requests, 0);
    for (int32_t rank = 1; rank < num_requests; ++rank) {
        NodeId common = deepest_nodes_[rank];
        while (trie_.request_begin()[common] == rank) common = trie_.parent()[common];
        minima_[0][rank] = trie_.token_end()[common];
    }
    for (int32_t width = 1; 2 * int64_t{width} <= num_requests; width *= 2) {
        const std::vector<int32_t>& half = minima_.back();
        std::vector<int32_t> whole(half.size() - width);
        for (size_t i = 0; i < whole.size(); ++i) whole[i] = std::min(half[i], half[i + width]);
        minima_.push_back(std::move(whole));
    }
}

int32_t PromptIndex::common_prefix(RequestIndex a, RequestIndex b) const {
    if (a == b) return trie_.prompts().prompt_length(a);
    const auto [low, high] = std::minmax(rank_[a], rank_[b]);
    const auto num_neighbours = static_cast<uint32_t>(high - low);  // ranks (low, high]
    const int level = std::bit_width(num_neighbours) - 1;
    return std::min(minima_[level][low + 1], minima_[level][high + 1 - (1 << level)]);
}

}  // namespace batchllm
