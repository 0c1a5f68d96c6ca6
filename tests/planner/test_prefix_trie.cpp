#include <doctest/doctest.h>

#include <set>

#include "planner/prefix_trie.h"
#include "random_job.h"

using namespace batchllm;
using batchllm::testing::Job;
using batchllm::testing::RandomJobs;

TEST_CASE("trie holds one token per distinct prefix") {
    RandomJobs random(1);
    for (int i = 0; i < 2000; ++i) {
        const Job job = random.job(20, 0);
        const PrefixTrie trie(job.prompts());
        trie.audit();
        std::set<std::vector<TokenId>> prefixes;
        for (RequestIndex request = 0; request < trie.num_requests(); ++request) {
            std::vector<TokenId> prompt = job.prompt(request);
            for (; !prompt.empty(); prompt.pop_back()) prefixes.insert(prompt);
        }
        CHECK(trie.num_tokens() == static_cast<int64_t>(prefixes.size()));
    }
}

TEST_CASE("a row that ends at an inner node comes before its longer siblings") {
    Job job;
    for (const auto& prompt : {std::vector<TokenId>{5, 7, 2}, {5, 7}, {9, 1}, {5, 7, 2, 8}}) job.add(prompt);
    const PrefixTrie trie(job.prompts());
    CHECK(trie.order() == std::vector<RequestIndex>{1, 0, 3, 2});
    CHECK(trie.parent() == std::vector<NodeId>{kNone, 0, 1});
    CHECK(trie.token_end() == std::vector<int32_t>{0, 2, 3});
    CHECK(trie.request_begin() == std::vector<int32_t>{0, 0, 1});
    CHECK(trie.request_end() == std::vector<int32_t>{4, 3, 3});
    CHECK(trie.deepest_nodes() == std::vector<NodeId>{1, 2, 2, 0});
}
