#include <doctest/doctest.h>

#include <algorithm>
#include <vector>

#include "planner/random_job.h"
#include "simulate/radix_tree.h"

using namespace batchllm;
using testing::Job;
using testing::RandomJobs;

namespace {

Job job_of(const std::vector<std::vector<TokenId>>& prompts) {
    Job job;
    for (const auto& prompt : prompts) job.add(prompt);
    return job;
}

struct Tree {
    explicit Tree(const Job& job) : prompts(job.prompts()), index(prompts), tree(prompts, index) {}
    // Where a request's stored prefix ends, and how long it is.
    int32_t stored(RequestIndex request) { return tree.depth(tree.match(request, prompts.prompt_length(request))); }
    void insert(RequestIndex request) { tree.insert(request, prompts.prompt_length(request)); }

    Prompts prompts;
    PromptIndex index;
    RadixTree tree;
};

}  // namespace

TEST_CASE("common prefixes of two prompts are those of their tokens") {
    RandomJobs random(7);
    for (int round = 0; round < 200; ++round) {
        const Job job = random.job(20, 0);
        const PromptIndex index(job.prompts());
        for (RequestIndex a = 0; a < job.prompts().num_requests(); ++a) {
            for (RequestIndex b = 0; b < job.prompts().num_requests(); ++b) {
                const auto left = job.prompt(a), right = job.prompt(b);
                const auto parting = std::mismatch(left.begin(), left.end(), right.begin(), right.end()).first;
                CHECK(index.common_prefix(a, b) == parting - left.begin());
            }
        }
    }
}

TEST_CASE("a node is split where a request leaves it, and evicted from its leaves, the oldest first") {
    const Job job = job_of({{1, 2, 3, 4}, {1, 2, 5}, {7, 8}});
    Tree it(job);
    it.insert(0);
    it.insert(1);
    it.insert(2);
    CHECK(it.tree.num_tokens() == 7);
    it.stored(0);  // touched last
    it.tree.evict(1);
    CHECK(it.tree.num_tokens() == 6);
    CHECK(it.stored(1) == 2);
    CHECK(it.stored(0) == 4);
    it.tree.evict(1);
    CHECK(it.stored(2) == 0);
    CHECK(it.tree.num_tokens() == 4);
    it.tree.evict(3);  // the leaf 3 4, then what is a leaf without it
    CHECK(it.tree.num_tokens() == 0);
}

TEST_CASE("a locked node and those above it stay") {
    const Job job = job_of({{1, 2, 3, 4}, {1, 2, 5}});
    Tree it(job);
    it.insert(0);
    const RadixNodeId upper = it.tree.match(1, 2);
    it.tree.lock(upper);
    CHECK(it.tree.num_evictable() == 2);
    it.tree.evict(4);
    CHECK(it.tree.num_tokens() == 2);
    it.tree.unlock(upper);
    CHECK(it.tree.num_evictable() == 2);
    it.tree.evict(4);
    CHECK(it.tree.num_tokens() == 0);
}

TEST_CASE("generated tokens follow a prompt and are shared with nobody") {
    const Job job = job_of({{1, 2}, {1, 2, 3}});
    Tree it(job);
    it.tree.insert(0, 5);
    CHECK(it.stored(1) == 2);
    CHECK(it.tree.depth(it.tree.match(0, 5)) == 5);
    it.tree.insert(1, 6);
    CHECK(it.tree.num_tokens() == 9);
}

TEST_CASE("what waiting requests match is evicted after all else") {
    const Job job = job_of({{1, 2}, {3, 4}, {1, 2, 9}});
    Tree it(job);
    it.tree.add_waiting(2, 3, 0);
    it.insert(0);
    it.insert(1);
    it.stored(1);
    it.tree.evict(1);
    CHECK(it.stored(1) == 0);
    CHECK(it.stored(0) == 2);
    it.insert(1);
    it.tree.remove_waiting(2);
    it.tree.evict(1);
    CHECK(it.stored(0) == 0);
    CHECK(it.stored(1) == 2);
}

TEST_CASE("waiting requests come depth-first, heavier children first, a node's own after its children") {
    const Job job = job_of({{5}, {1, 1}, {2, 2, 3}, {2, 2, 4}, {2, 7}, {1, 9}, {2, 2, 3, 6}});
    Tree it(job);
    for (const RequestIndex request : {0, 2, 3, 4, 5}) {
        it.tree.add_waiting(request, it.prompts.prompt_length(request), request);
    }
    CHECK(it.tree.first_waiting(10) == std::vector<RequestIndex>{0, 2, 3, 4, 5});
    it.insert(1);  // 5 waits at its first token
    CHECK(it.tree.first_waiting(10) == std::vector<RequestIndex>{5, 0, 2, 3, 4});
    it.insert(6);  // 2 waits at 2 2 3, 3 at 2 2, 4 at 2: three below one child outweigh one
    CHECK(it.tree.first_waiting(10) == std::vector<RequestIndex>{2, 3, 4, 5, 0});
    CHECK(it.tree.first_waiting(2) == std::vector<RequestIndex>{2, 3});
    it.tree.remove_waiting(3);
    it.tree.remove_waiting(2);
    CHECK(it.tree.first_waiting(10) == std::vector<RequestIndex>{5, 4, 0});
    it.tree.evict(100);
    CHECK(it.tree.first_waiting(10) == std::vector<RequestIndex>{0, 4, 5});
}
