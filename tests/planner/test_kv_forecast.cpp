#include <doctest/doctest.h>

#include <algorithm>
#include <vector>

#include "planner/kv_forecast.h"
#include "random_job.h"

using namespace batchllm;
using batchllm::testing::RandomJobs;

namespace {

struct Running {
    int32_t num_tokens, num_steps;
};

int64_t pages_for(int64_t num_tokens, int64_t page_size) {
    return (num_tokens + page_size - 1) / page_size;
}

// Step by step, each request until it ends.
int64_t peak_of(const std::vector<Running>& running, int32_t page_size) {
    int32_t last_step = 0;
    for (const Running& r : running) last_step = std::max(last_step, r.num_steps);
    int64_t peak = 0;
    for (int32_t step = 0; step <= last_step; ++step) {
        int64_t now = 0;
        for (const Running& r : running) {
            if (step <= r.num_steps) now += pages_for(r.num_tokens + step, page_size);
        }
        peak = std::max(peak, now);
    }
    return peak;
}

}  // namespace

TEST_CASE("the forecast is never below the true peak, and close to it") {
    RandomJobs random(3);
    double excess = 0.0;
    for (int i = 0; i < 2000; ++i) {
        const int32_t page_size = random.between(1, 20);
        const int32_t longest = i % 2 == 0 ? 15 : 600;
        KvForecast forecast(page_size);
        std::vector<Running> running(random.between(1, 40));
        for (Running& r : running) {
            r = {random.between(1, 100), random.between(0, longest)};
            forecast.add(pages_for(r.num_tokens, page_size), r.num_tokens, r.num_steps);
        }
        const int64_t peak = peak_of(running, page_size);
        REQUIRE(forecast.peak_pages() >= peak);
        if (page_size == 1 && longest == 15) REQUIRE(forecast.peak_pages() == peak);  // exact bins, no rounding
        excess += static_cast<double>(forecast.peak_pages()) / static_cast<double>(peak) - 1.0;
    }
    CHECK(excess / 2000 < 0.1);
}

TEST_CASE("a request that outgrows its window counts as large as it becomes, and no larger") {
    KvForecast forecast(16, 4);
    forecast.add(2, 20, 100);  // 120 tokens without a window
    CHECK(forecast.peak_pages() == 4);
    forecast.add(6, 90, 10);  // a prefill's, for now
    CHECK(forecast.peak_pages() == 10);
    forecast.add(1, 10, 54);  // ends with its window full
    CHECK(forecast.peak_pages() == 12);
    forecast.remove(6, 90, 10);
    CHECK(forecast.peak_pages() == 8);
}

TEST_CASE("a request that was removed is not counted") {
    KvForecast forecast(16);
    forecast.add(2, 20, 100);
    const int64_t before = forecast.peak_pages();
    forecast.add(10, 160, 3);
    CHECK(forecast.peak_pages() == 13);  // 163 tokens in 11 pages, and 23 in 2
    forecast.remove(10, 160, 3);
    CHECK(forecast.peak_pages() == before);
    CHECK(before == 8);  // 120 tokens
}
