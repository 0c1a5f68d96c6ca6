#include "simulate/planned_policy.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <span>
#include <stdexcept>
#include <utility>
#include <vector>

#include "planner/batch_planner.h"
#include "planner/prefix_trie.h"
#include "simulate/attention_work.h"

namespace batchllm {

namespace {

int64_t attention_pairs(const TokenBatch& batch, int32_t window_left) {
    int64_t pairs = 0;
    for (int32_t span = 0; span < batch.num_spans(); ++span) {
        const int64_t begin = batch.span_begin[span];
        const int32_t num_rows = batch.span_indptr[span + 1] - batch.span_indptr[span];
        pairs += num_attention_pairs(begin, begin + num_rows, window_left);
    }
    return pairs;
}

// A segment once for all its readers, from the first token that one of them sees. first_row [num_segments]: the lowest
// position of a row that reads it.
int64_t kv_tokens_read(const TokenBatch& batch, std::span<const int32_t> first_row, int32_t window_left) {
    int64_t num_tokens = 0;
    for (int32_t segment = 0; segment < batch.num_segments(); ++segment) {
        const int64_t begin = batch.segment_begin[segment];
        const int64_t end = begin + batch.segment_num_tokens[segment];
        num_tokens += std::max<int64_t>(end - std::max(begin, first_visible(first_row[segment], window_left)), 0);
    }
    return num_tokens;
}

void record_step(const TokenBatch& batch, const PlannerStats& stats, const PoolOptions& pool, Simulation& result) {
    std::vector<int32_t> first_row(batch.num_segments(), std::numeric_limits<int32_t>::max());
    for (int32_t span = 0; span < batch.num_spans(); ++span) {
        for (int32_t link = batch.link_indptr[span]; link < batch.link_indptr[span + 1]; ++link) {
            int32_t& first = first_row[batch.link_segment[link]];
            first = std::min(first, batch.span_begin[span]);
        }
    }
    for (const int32_t window_left : pool.windows) {
        result.attention_pairs.push_back(attention_pairs(batch, window_left));
        result.kv_tokens_read.push_back(kv_tokens_read(batch, first_row, window_left));
    }
    result.num_decode_tokens.push_back(batch.num_decode_tokens);
    result.num_prefill_tokens.push_back(batch.num_prefill_tokens());
    result.num_sampled.push_back(static_cast<int32_t>(batch.logit_rows.size()));
    result.num_running.push_back(static_cast<int32_t>(stats.running));
    result.used_kv_tokens.push_back(stats.used_pages * pool.page_size);
    result.peak_kv_tokens = std::max(result.peak_kv_tokens, result.used_kv_tokens.back());
}

std::span<const int32_t> expected_lengths(const SimulatedJob& job, KnownLengths lengths) {
    if (lengths == KnownLengths::kLearned) return {};
    return lengths == KnownLengths::kTrue ? job.output_tokens : job.max_output_tokens;
}

}  // namespace

Simulation simulate_planned(const SimulatedJob& job, const PoolOptions& pool, Segments segments,
                            const PlannedOptions& options) {
    check_simulation(job, pool, KeptKv::kVisible);
    BatchPlanner planner({.num_pages = static_cast<int32_t>(pool.kv_tokens / pool.page_size),
                          .page_size = pool.page_size,
                          .max_batch_tokens = pool.max_batch_tokens,
                          .max_running_requests = options.max_running_requests,
                          .window_left = widest_window(pool.windows),
                          .order = options.order});
    planner.add_requests(job.prompts, std::move(segments), job.max_output_tokens,
                         {.expected_output_tokens = expected_lengths(job, options.lengths)});

    Simulation result;
    std::vector<int32_t> num_outputs(job.num_requests());
    std::vector<TokenId> sampled;
    std::vector<uint8_t> finished;
    while (const std::optional<TokenBatch> batch = planner.next_batch()) {
        record_step(*batch, planner.stats(), pool, result);
        sampled.assign(batch->logit_request_ids.size(), 0);
        finished.clear();
        for (const RequestId request : batch->logit_request_ids) {  // all requests of this planner, so ids are indices
            finished.push_back(++num_outputs[request.index] == job.output_tokens[request.index]);
        }
        planner.commit(sampled, finished);
    }
    const bool is_done = std::equal(num_outputs.begin(), num_outputs.end(), job.output_tokens.begin());
    if (!is_done) throw std::logic_error("simulation: every output token is generated once");

    const PlannerStats stats = planner.stats();
    result.prompt_tokens = stats.prompt_tokens;
    result.computed_prompt_tokens = stats.computed_prompt_tokens;
    result.first_tokens = PrefixTrie(job.prompts).num_tokens();
    result.preempted_tokens = stats.recomputed_prompt_tokens;
    result.unshared_tokens = result.computed_prompt_tokens - result.first_tokens - result.preempted_tokens;
    result.recomputed_output_tokens = stats.recomputed_tokens - stats.recomputed_prompt_tokens;
    result.output_tokens = stats.output_tokens;
    result.preemptions = stats.preemptions;
    return result;
}

}  // namespace batchllm
