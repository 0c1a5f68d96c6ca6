// Writes down what a policy of single requests does, checks that it is possible, and says why prompt tokens are
// computed.
#pragma once

#include <cstdint>
#include <vector>

#include "simulate/simulation.h"

namespace batchllm {

class Recorder {
 public:
    Recorder(const SimulatedJob& job, const PoolOptions& pool);

    // A request starts, or starts again. A cache that never evicts would have given it its first `findable` tokens.
    void admit(RequestIndex request, int32_t findable) { findable_[request] = findable; }
    // It computes positions [begin, end) in the step under way, and then has all K/V below `end`.
    void compute(RequestIndex request, int32_t begin, int32_t end);
    void preempt() { ++simulation_.preemptions; }
    void end_step(int64_t used_kv_tokens, int64_t num_running);

    int32_t num_outputs(RequestIndex request) const { return num_outputs_[request]; }
    int32_t num_tokens(RequestIndex request) const {  // prompt and generated
        return job_.prompts.prompt_length(request) + num_outputs_[request];
    }
    // After end_step: every token it has had K/V by then, so the step yielded one more. True where that was its last.
    bool emit(RequestIndex request);

    Simulation finish(int64_t num_distinct_prefixes);

 private:
    const SimulatedJob& job_;
    const int64_t pool_tokens_;
    const std::vector<int32_t>& windows_;
    std::vector<int32_t> num_outputs_;  // [num_requests]
    std::vector<int32_t> reached_;      // [num_requests]: positions it had K/V for at its best
    std::vector<int32_t> findable_;     // [num_requests]

    struct Step {
        std::vector<int64_t> attention_pairs, kv_tokens_read;  // [num_windows]
        int32_t num_decode_tokens = 0, num_prefill_tokens = 0;

        explicit Step(size_t num_windows) : attention_pairs(num_windows), kv_tokens_read(num_windows) {}
    };
    Step step_;
    Simulation simulation_;
};

}  // namespace batchllm
