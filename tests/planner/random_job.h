// Random jobs for the planner's tests: few distinct tokens and heads taken from earlier prompts, so that nested
// prefixes, duplicates and prompts that end inside others are common.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "planner/prompts.h"

namespace batchllm::testing {

struct Job {
    std::vector<TokenId> tokens;
    std::vector<int64_t> indptr = {0};

    Prompts prompts(int32_t drop_last = 0) const {
        return Prompts(tokens, std::span<const int64_t>(indptr), drop_last);
    }
    std::vector<TokenId> prompt(RequestIndex request) const {
        return {tokens.begin() + indptr[request], tokens.begin() + indptr[request + 1]};
    }
    void add(const std::vector<TokenId>& prompt) {
        tokens.insert(tokens.end(), prompt.begin(), prompt.end());
        indptr.push_back(static_cast<int64_t>(tokens.size()));
    }
};

class RandomJobs {
 public:
    explicit RandomJobs(uint32_t seed) : random_(seed) {}

    int32_t between(int32_t low, int32_t high) { return std::uniform_int_distribution<int32_t>(low, high)(random_); }

    Job job(int32_t max_prompts, int32_t min_tokens) {
        Job job;
        std::vector<std::vector<TokenId>> prompts;
        const int32_t num_prompts = between(1, max_prompts);
        for (int32_t i = 0; i < num_prompts; ++i) {
            std::vector<TokenId> prompt;
            if (i > 0 && between(0, 9) < 7) {
                prompt = prompts[between(0, i - 1)];
                prompt.resize(between(0, static_cast<int32_t>(prompt.size())));
            }
            for (int32_t more = between(0, 6); more > 0; --more) prompt.push_back(between(0, 2));
            while (static_cast<int32_t>(prompt.size()) < min_tokens) prompt.push_back(between(0, 2));
            job.add(prompt);
            prompts.push_back(prompt);
        }
        return job;
    }

 private:
    std::mt19937 random_;
};

}  // namespace batchllm::testing
