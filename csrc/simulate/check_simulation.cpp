#include <limits>
#include <stdexcept>
#include <string>

#include "planner/stored_segment.h"
#include "simulate/simulation.h"

namespace batchllm {

namespace {

[[noreturn]] void fail(const std::string& what) {
    throw std::invalid_argument(what);
}

void check_at_least_1(const char* name, int64_t value) {
    if (value < 1) fail(std::string(name) + ": expected at least 1, got " + std::to_string(value));
}

void check_length(const char* name, std::span<const int32_t> counts, RequestIndex num_requests) {
    if (static_cast<int64_t>(counts.size()) == num_requests) return;
    fail(std::string(name) + ": expected one entry for each of the " + std::to_string(num_requests) + " prompts, got " +
         std::to_string(counts.size()));
}

}  // namespace

void check_simulation(const SimulatedJob& job, const PoolOptions& pool, KeptKv kept) {
    check_at_least_1("page_size", pool.page_size);
    check_at_least_1("max_batch_tokens", pool.max_batch_tokens);
    check_at_least_1("kv_tokens", pool.kv_tokens);
    check_length("output_tokens", job.output_tokens, job.num_requests());
    check_length("max_output_tokens", job.max_output_tokens, job.num_requests());
    if (pool.windows.empty()) fail("windows: expected at least one");
    for (size_t i = 0; i < pool.windows.size(); ++i) {
        if (pool.windows[i] >= -1) continue;
        fail("windows[" + std::to_string(i) + "]: expected at least -1, got " + std::to_string(pool.windows[i]));
    }
    const KvWindow window(kept == KeptKv::kAll ? -1 : widest_window(pool.windows), pool.page_size,
                          pool.max_batch_tokens);
    const int64_t num_pages = pool.kv_tokens / pool.page_size;
    if (num_pages > std::numeric_limits<int32_t>::max()) fail("kv_tokens: more than 2^31 - 1 pages");
    for (RequestIndex request = 0; request < job.num_requests(); ++request) {
        const std::string index = "[" + std::to_string(request) + "]";
        const int64_t length = job.prompts.prompt_length(request);
        const int64_t bound = job.max_output_tokens[request];
        if (length == 0) fail("prompt " + std::to_string(request) + " is empty");
        check_at_least_1(("output_tokens" + index).c_str(), job.output_tokens[request]);
        if (job.output_tokens[request] > kMaxOutputTokens) {
            fail("output_tokens" + index + ": expected at most " + std::to_string(kMaxOutputTokens) +
                 ", one for each step that is recorded, got " + std::to_string(job.output_tokens[request]));
        }
        if (bound < job.output_tokens[request]) {
            fail("max_output_tokens" + index + ": expected at least output_tokens" + index + " (" +
                 std::to_string(job.output_tokens[request]) + "), got " + std::to_string(bound));
        }
        if (length + bound > std::numeric_limits<int32_t>::max()) {
            fail("max_output_tokens" + index + ": prompt and output together exceed 2^31 - 1 tokens");
        }
        const int64_t needed = window.most_pages(length + bound - 1);
        if (needed <= num_pages) continue;
        fail("request " + std::to_string(request) + " needs " + std::to_string(needed) + " KV pages of " +
             std::to_string(pool.page_size) + " tokens (prompt " + std::to_string(length) + " + max_output_tokens " +
             std::to_string(bound) + "), the pool of " + std::to_string(pool.kv_tokens) + " tokens has " +
             std::to_string(num_pages));
    }
}

}  // namespace batchllm
