// What a scheduling policy would do with a job: a replay of its decisions, step by step, without a model.
//
// A policy is a scheduler and its KV cache: which requests run, which tokens each step computes, what is kept. What
// tokens a model would generate does not matter, only how many; generated text is taken to differ between requests.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "planner/ids.h"
#include "planner/prompts.h"

namespace batchllm {

inline constexpr int32_t kMaxOutputTokens = 1 << 24;  // of a request: each takes a step, and every step is recorded

struct SimulatedJob {
    Prompts prompts;
    std::span<const int32_t> output_tokens;      // [num_requests]: how long each will be, 1 to kMaxOutputTokens
    std::span<const int32_t> max_output_tokens;  // [num_requests]: the bound that is known before, not below it

    RequestIndex num_requests() const { return prompts.num_requests(); }
    // K/V at the end: that of the last generated token is never stored.
    int64_t num_kv_tokens(RequestIndex request) const {
        return int64_t{prompts.prompt_length(request)} + output_tokens[request] - 1;
    }
};

struct PoolOptions {
    int64_t kv_tokens;  // size of the KV pool
    int32_t page_size = 16;
    int32_t max_batch_tokens = 2048;
    std::vector<int32_t> windows = {-1};  // of the model's layers: window_left of each kind; -1: a row sees all
};

// The window_left of the layers that see most: only what these do not see can be dropped.
inline int32_t widest_window(std::span<const int32_t> windows) {
    return std::ranges::min(windows) < 0 ? -1 : std::ranges::max(windows);
}

// What a policy does about K/V that no later row sees.
enum class KeptKv { kVisible, kAll };

// Throws std::invalid_argument that names the array, or the first request that the pool could never hold at its
// max_output_tokens; the same for every policy that keeps the same.
void check_simulation(const SimulatedJob& job, const PoolOptions& pool, KeptKv kept);

// All prompt tokens are computed at least once by somebody, so for each policy
//   computed_prompt_tokens = first_tokens + unshared_tokens + evicted_tokens + preempted_tokens
struct Simulation {
    // [num_steps] each
    std::vector<int32_t> num_decode_tokens;
    std::vector<int32_t> num_prefill_tokens;  // recomputation of generated tokens included
    std::vector<int32_t> num_sampled;         // rows whose logits are sampled: output tokens that the step yields
    std::vector<int32_t> num_running;
    std::vector<int64_t> used_kv_tokens;  // held by running requests and pinned segments, in whole pages

    // [num_steps, num_windows] each
    std::vector<int64_t> attention_pairs;  // (query row, visible key)
    std::vector<int64_t> kv_tokens_read;   // by attention, once for every sequence of keys that it walks

    int64_t prompt_tokens = 0;
    int64_t computed_prompt_tokens = 0;
    int64_t first_tokens = 0;      // distinct prefixes: somebody had to compute them
    int64_t unshared_tokens = 0;   // the policy does not share these, whatever the size of its pool
    int64_t evicted_tokens = 0;    // were in the cache before, and would have been found but for the pool's size
    int64_t preempted_tokens = 0;  // a request had them, and lost them when it was preempted
    int64_t recomputed_output_tokens = 0;  // generated tokens, likewise
    int64_t output_tokens = 0;
    int64_t preemptions = 0;
    int64_t peak_kv_tokens = 0;  // the largest of used_kv_tokens
};

}  // namespace batchllm
