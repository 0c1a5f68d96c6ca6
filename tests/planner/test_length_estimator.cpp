#include <doctest/doctest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "planner/length_bins.h"
#include "planner/length_estimator.h"

using namespace batchllm;

namespace {

// Outputs that all grow by one token per step, from the same step on, for `num_steps` steps.
LengthEstimator watch(const std::vector<int32_t>& lengths, int32_t num_steps) {
    LengthEstimator outputs;
    for (int32_t length = 1; length <= num_steps; ++length) {
        for (const int32_t last : lengths) {
            if (last >= length && LengthEstimator::is_news(length)) outputs.reach(length);
            if (last == length) outputs.end(length);
        }
    }
    return outputs;
}

}  // namespace

TEST_CASE("bins cover every length once, and are at most an eighth of it wide") {
    CHECK(LengthBins::first(0) == 0);
    for (int bin = 0; bin + 1 < LengthBins::kNumBins; ++bin) {
        const int32_t first = LengthBins::first(bin), last = LengthBins::last(bin);
        CHECK(last + 1 == LengthBins::first(bin + 1));
        CHECK(LengthBins::bin(first) == bin);
        CHECK(LengthBins::bin(last) == bin);
        CHECK(last - first <= first / 8);
    }
    CHECK(LengthBins::bin(INT32_MAX) == LengthBins::kNumBins - 1);
    CHECK(LengthBins::last(LengthBins::kNumBins - 1) == INT32_MAX);
}

TEST_CASE("nothing is believed to end before something did") {
    LengthEstimator outputs;
    CHECK(outputs.expected(RequestId{7}, 0) == INT32_MAX);
    outputs = watch(std::vector<int32_t>(100, 1000), 999);
    CHECK(outputs.num_ended() == 0);
    CHECK(outputs.expected(RequestId{7}, 0) == INT32_MAX);
}

TEST_CASE("requests are expected to end together as the population does") {
    std::vector<int32_t> lengths;
    for (int32_t length = 1; length <= 1000; ++length) lengths.push_back(length);
    LengthEstimator outputs = watch(lengths, 1000);
    for (const int32_t length : {0, 500}) {  // from the start, and of those that came to 500
        for (const int32_t stride : {1, 16}) {
            std::vector<int32_t> expected;
            for (int32_t id = 0; id < 1000; ++id) expected.push_back(outputs.expected(RequestId{id * stride}, length));
            std::sort(expected.begin(), expected.end());
            for (const double share : {0.0, 0.3, 0.5, 0.8}) {
                const double truth = length + (1000 - length) * (0.1 + 0.9 * share);  // less the shortest tenth
                CHECK(expected[static_cast<size_t>(1000 * share)] >= 0.98 * truth);
                CHECK(expected[static_cast<size_t>(1000 * share)] <= 1.15 * truth + 1);  // a bin more
            }
        }
    }
    CHECK(outputs.expected(RequestId{7}, 5000) == INT32_MAX);  // nobody came that far
}

TEST_CASE("the short ones, which finish first, do not mislead") {
    // Half of the outputs end at 10 tokens, half at 500. After 50 steps only the short ones have finished.
    std::vector<int32_t> lengths(200, 10);
    std::fill_n(lengths.begin(), 100, 500);
    LengthEstimator outputs = watch(lengths, 50);
    CHECK(outputs.num_ended() == 100);
    const auto count_unknown = [&](int32_t length) {
        int32_t count = 0;
        for (int32_t id = 0; id < 1000; ++id) count += outputs.expected(RequestId{id}, length) == INT32_MAX;
        return count;
    };
    CHECK(count_unknown(0) > 500);
    CHECK(count_unknown(0) < 600);
    CHECK(count_unknown(20) == 1000);
    outputs = watch(lengths, 500);
    CHECK(count_unknown(0) < 20);
    CHECK(outputs.expected(RequestId{7}, 20) >= 500);
    CHECK(outputs.expected(RequestId{7}, 20) <= 560);
}

TEST_CASE("one output is no certainty") {
    LengthEstimator outputs = watch({5}, 5);
    int32_t num_unknown = 0;
    for (int32_t id = 0; id < 1000; ++id) num_unknown += outputs.expected(RequestId{id}, 0) == INT32_MAX;
    CHECK(num_unknown > 500);
}
