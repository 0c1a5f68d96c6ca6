#include <doctest/doctest.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "planner/choose_segments.h"
#include "planner/prefix_trie.h"
#include "planner/random_job.h"
#include "simulate/lru_policy.h"
#include "simulate/planned_policy.h"
#include "simulate/radix_policy.h"

using namespace batchllm;
using testing::Job;
using testing::RandomJobs;

namespace {

std::vector<int32_t> random_windows(RandomJobs& random) {
    std::vector<int32_t> windows(random.between(1, 3));
    for (int32_t& window_left : windows) window_left = random.between(-1, 15);
    return windows;
}

}  // namespace

TEST_CASE("every policy ends, within the pool, with every output") {
    RandomJobs random(3);
    for (int round = 0; round < 400; ++round) {
        const Job job = random.job(30, 1);
        const RequestIndex num_requests = job.prompts().num_requests();
        std::vector<int32_t> outputs, bounds;
        int64_t largest = 0;
        for (RequestIndex request = 0; request < num_requests; ++request) {
            outputs.push_back(random.between(1, 12));
            bounds.push_back(outputs.back() + random.between(0, 3));
            largest = std::max<int64_t>(largest, job.prompts().prompt_length(request) + bounds.back() - 1);
        }
        const int32_t page_size = random.between(1, 4);
        const int64_t num_pages = (largest + page_size - 1) / page_size + random.between(0, 20);
        const PoolOptions pool{num_pages * page_size, page_size, random.between(1, 30), random_windows(random)};
        const SimulatedJob simulated{job.prompts(), outputs, bounds};
        const int32_t cap = random.between(1, 12);

        const Segments segments = choose_segments(PrefixTrie(job.prompts(1)), SharingLevels::kAny);
        for (const Simulation& result : {
                 simulate_lru(simulated, pool, cap, false),
                 simulate_lru(simulated, pool, cap, true),
                 simulate_radix(simulated, pool, RadixOrder::kLongestPrefix, cap),
                 simulate_radix(simulated, pool, RadixOrder::kDepthFirst, cap),
                 simulate_planned(simulated, pool, segments, {}),
             }) {
            CHECK(result.output_tokens == std::accumulate(outputs.begin(), outputs.end(), int64_t{0}));
            CHECK(result.peak_kv_tokens <= pool.kv_tokens);
            CHECK(result.first_tokens == PrefixTrie(job.prompts()).num_tokens());
            CHECK(result.attention_pairs.size() == result.num_running.size() * pool.windows.size());
        }
    }
}
