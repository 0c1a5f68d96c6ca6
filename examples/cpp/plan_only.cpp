// The planner by itself, for your own engine: 32 prompts on 4 documents of 300 tokens.
#include <batchllm/planner/batch_planner.h>
#include <batchllm/planner/choose_segments.h>

#include <cstdint>
#include <iostream>
#include <random>
#include <vector>

int main() {
    std::mt19937 random(0);
    std::vector<batchllm::TokenId> documents[4], tokens;
    std::vector<int64_t> indptr = {0};
    for (auto& document : documents) {
        for (int i = 0; i < 300; ++i) document.push_back(static_cast<batchllm::TokenId>(random() % 1000));
    }
    for (int request = 0; request < 32; ++request) {
        const auto& document = documents[request % 4];
        tokens.insert(tokens.end(), document.begin(), document.end());
        for (int i = 0; i < 20; ++i) tokens.push_back(static_cast<batchllm::TokenId>(random() % 1000));
        indptr.push_back(static_cast<int64_t>(tokens.size()));
    }
    const std::span<const int64_t> offsets(indptr);
    const batchllm::PrefixTrie trie({tokens, offsets, 1});  // the last prompt token is always a request's own
    const batchllm::Segments segments = choose_segments(trie, batchllm::SharingLevels::kAny, 2.0);

    batchllm::BatchPlanner planner({.num_pages = 128});
    planner.add_requests({tokens, offsets}, segments, std::vector<int32_t>(32, 16));
    while (const auto batch = planner.next_batch()) {
        const std::vector<batchllm::TokenId> sampled(batch->logit_rows.size());  // what a model draws for logit_rows
        planner.commit(sampled, {});
    }
    const batchllm::PlannerStats stats = planner.stats();
    std::cout << stats.prompt_tokens << " prompt tokens, of which " << stats.computed_prompt_tokens << " are computed\n"
              << stats.steps << " steps, at most " << stats.peak_pages << " of " << stats.num_pages << " KV pages\n";
}
