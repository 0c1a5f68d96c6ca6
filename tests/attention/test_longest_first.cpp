#include <doctest/doctest.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <random>
#include <vector>

#include "attention/plan/longest_first.h"

using namespace batchllm;

TEST_CASE("costs descend, and equal ones keep their order, as in a stable sort") {
    std::mt19937 random(0);
    const auto draw = [&random](int64_t low, int64_t high) {
        return std::uniform_int_distribution<int64_t>(low, high)(random);
    };
    for (int repeat = 0; repeat < 500; ++repeat) {
        // Few different costs or many, close together or over many powers of two.
        const int64_t num_values = draw(0, 1) ? 5 : 100'000;
        const double step = draw(0, 1) ? 1e-9 : 1.0;
        const double base = draw(0, 1) ? 1e3 : 0.0;
        std::vector<double> costs(draw(0, 300));
        for (double& cost : costs) cost = base + step * static_cast<double>(draw(0, num_values));
        if (!costs.empty() && draw(0, 1)) costs[0] = 1e12;
        std::vector<int32_t> expected(costs.size());
        std::iota(expected.begin(), expected.end(), 0);
        std::ranges::stable_sort(expected, std::greater<>(), [&](int32_t i) { return costs[i]; });
        std::vector<int32_t> order;
        for (const RankedItem& item : longest_first(costs)) {
            order.push_back(item.index);
            REQUIRE(item.cost == costs[item.index]);
        }
        REQUIRE(order == expected);
    }
}
