#include <doctest/doctest.h>

#include "planner/length_estimator.h"

using namespace batchllm;

TEST_CASE("nothing is believed before enough requests have finished") {
    LengthEstimator lengths;
    for (int i = 0; i < 31; ++i) lengths.observe(1, 100);
    CHECK(lengths.expected(100, 77) == 77);
    lengths.observe(1, 100);
    CHECK(lengths.expected(100, 77) == 2);  // the first of 64 bins, rounded up
}

TEST_CASE("requests that all run to their bound are expected to") {
    LengthEstimator lengths;
    for (int i = 0; i < 100; ++i) lengths.observe(1 + i % 3, 1 + i % 3);
    for (const int32_t max_output : {1, 7, 64, 1'000'000'000}) CHECK(lengths.expected(max_output, 5) == max_output);
}

TEST_CASE("four of five requests stay within the expectation") {
    LengthEstimator lengths;
    for (int32_t tokens = 1; tokens <= 1000; ++tokens) lengths.observe(tokens, 2000);
    CHECK(lengths.expected(2000, 2000) >= 800);
    CHECK(lengths.expected(2000, 2000) <= 800 + 2000 / 64);
    CHECK(lengths.expected(1, 1) == 1);
}
