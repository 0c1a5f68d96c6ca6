#include <doctest/doctest.h>

#include <algorithm>
#include <set>

#include "planner/lcp_sort.h"
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
        for (RequestId request = 0; request < trie.num_requests(); ++request) {
            std::vector<TokenId> prompt = job.prompt(request);
            for (; !prompt.empty(); prompt.pop_back()) prefixes.insert(prompt);
        }
        CHECK(trie.num_tokens() == static_cast<int64_t>(prefixes.size()));
    }
}

TEST_CASE("sorted rows carry the longest common prefix with the row before") {
    RandomJobs random(2);
    for (int i = 0; i < 2000; ++i) {
        const Job job = random.job(20, 0);
        const auto rows = lcp_sort(job.prompts(), 1);
        for (size_t rank = 0; rank < rows.size(); ++rank) {
            const auto row = job.prompt(rows[rank].request);
            const auto before = rank > 0 ? job.prompt(rows[rank - 1].request) : std::vector<TokenId>{};
            const auto parting = std::mismatch(row.begin(), row.end(), before.begin(), before.end()).first;
            CHECK(rows[rank].lcp == parting - row.begin());
            CHECK(before <= row);
            if (rank > 0 && before == row) CHECK(rows[rank - 1].request < rows[rank].request);
        }
    }
}

TEST_CASE("common prefixes end where tokens differ, on both sides of a block edge") {
    for (const int32_t length : {0, 1, 31, 32, 33, 63, 64, 65, 200}) {
        for (int32_t differs = 0; differs <= length; ++differs) {
            Job job;
            std::vector<TokenId> prompt(length, 7);
            job.add(prompt);
            if (differs < length) prompt[differs] = 8;
            job.add(prompt);
            for (const int32_t from : {0, differs / 2, differs}) {
                CHECK(common_prefix(job.prompts(), 0, 1, from) == differs);
            }
        }
    }
}

TEST_CASE("threads do not change the order") {
    RandomJobs random(3);
    Job job;
    for (int i = 0; i < 20'000; ++i) job.add(std::vector<TokenId>(random.between(0, 40), random.between(0, 3)));
    const PrefixTrie one(job.prompts(), 1), three(job.prompts(), 3);
    three.audit();
    CHECK(one.order() == three.order());
    CHECK(one.token_end() == three.token_end());
}

TEST_CASE("a row that ends at an inner node comes before its longer siblings") {
    Job job;
    for (const auto& prompt : {std::vector<TokenId>{5, 7, 2}, {5, 7}, {9, 1}, {5, 7, 2, 8}}) job.add(prompt);
    const PrefixTrie trie(job.prompts());
    CHECK(trie.order() == std::vector<RequestId>{1, 0, 3, 2});
    CHECK(trie.parent() == std::vector<NodeId>{kNone, 0, 1});
    CHECK(trie.token_end() == std::vector<int32_t>{0, 2, 3});
    CHECK(trie.request_begin() == std::vector<int32_t>{0, 0, 1});
    CHECK(trie.request_end() == std::vector<int32_t>{4, 3, 3});
    CHECK(trie.deepest_nodes() == std::vector<NodeId>{1, 2, 2, 0});
}
