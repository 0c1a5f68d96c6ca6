#include "simulate/recorder.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "simulate/attention_work.h"

namespace batchllm {

namespace {

void expect(bool holds, const std::string& law) {
    if (!holds) throw std::logic_error("simulation: " + law);
}

}  // namespace

Recorder::Recorder(const SimulatedJob& job, const PoolOptions& pool)
    : job_(job),
      pool_tokens_(pool.kv_tokens),
      windows_(pool.windows),
      num_outputs_(job.num_requests()),
      reached_(job.num_requests()),
      findable_(job.num_requests()),
      step_(windows_.size()) {}

void Recorder::compute(RequestIndex request, int32_t begin, int32_t end) {
    const int32_t prompt_length = job_.prompts.prompt_length(request);
    const int32_t length = num_tokens(request);
    expect(begin < end && end <= length, "a request computes tokens that it has");
    const bool is_decode = begin >= prompt_length && begin == length - 1;
    (is_decode ? step_.num_decode_tokens : step_.num_prefill_tokens) += end - begin;
    for (size_t i = 0; i < windows_.size(); ++i) {
        step_.attention_pairs[i] += num_attention_pairs(begin, end, windows_[i]);
        step_.kv_tokens_read[i] += end - first_visible(begin, windows_[i]);
    }

    int32_t& reached = reached_[request];
    const int32_t prompt_end = std::min(end, prompt_length);
    const auto overlap = [](int32_t low, int32_t high) { return std::max(high - low, 0); };
    simulation_.computed_prompt_tokens += overlap(begin, prompt_end);
    simulation_.preempted_tokens += overlap(begin, std::min(prompt_end, reached));
    simulation_.evicted_tokens += overlap(std::max(begin, reached), std::min(prompt_end, findable_[request]));
    simulation_.recomputed_output_tokens += overlap(std::max(begin, prompt_length), std::min(end, reached));
    reached = std::max(reached, end);
}

bool Recorder::emit(RequestIndex request) {
    ++simulation_.output_tokens;
    ++simulation_.num_sampled.back();
    return ++num_outputs_[request] == job_.output_tokens[request];
}

void Recorder::end_step(int64_t used_kv_tokens, int64_t num_running) {
    expect(step_.num_decode_tokens + step_.num_prefill_tokens > 0, "every step computes something");
    expect(used_kv_tokens <= pool_tokens_, "the pool is never exceeded");
    simulation_.num_decode_tokens.push_back(step_.num_decode_tokens);
    simulation_.num_prefill_tokens.push_back(step_.num_prefill_tokens);
    const auto append = [](std::vector<int64_t>& steps, const std::vector<int64_t>& step) {
        steps.insert(steps.end(), step.begin(), step.end());
    };
    append(simulation_.attention_pairs, step_.attention_pairs);
    append(simulation_.kv_tokens_read, step_.kv_tokens_read);
    simulation_.used_kv_tokens.push_back(used_kv_tokens);
    simulation_.num_running.push_back(static_cast<int32_t>(num_running));
    simulation_.num_sampled.push_back(0);
    simulation_.peak_kv_tokens = std::max(simulation_.peak_kv_tokens, used_kv_tokens);
    step_ = Step(windows_.size());
}

Simulation Recorder::finish(int64_t num_distinct_prefixes) {
    for (RequestIndex request = 0; request < job_.num_requests(); ++request) {
        expect(num_outputs_[request] == job_.output_tokens[request], "every output token is generated once");
    }
    Simulation& result = simulation_;
    result.prompt_tokens = job_.prompts.num_prompt_tokens();
    result.first_tokens = num_distinct_prefixes;
    result.unshared_tokens =
        result.computed_prompt_tokens - result.first_tokens - result.evicted_tokens - result.preempted_tokens;
    expect(result.unshared_tokens >= 0, "every prefix is computed by somebody");
    return std::move(result);
}

}  // namespace batchllm
