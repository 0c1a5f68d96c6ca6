#include <doctest/doctest.h>

#include <algorithm>
#include <vector>

#include "planner/convex_function.h"
#include "random_job.h"

using namespace batchllm;
using batchllm::testing::RandomJobs;

namespace {

// A ConvexFunction and the table of its values.
struct Pair {
    ConvexFunction function;
    std::vector<int64_t> table;

    static Pair linear(int64_t slope, int64_t right) {
        Pair pair = {ConvexFunction::linear(slope, right), {}};
        for (int64_t x = 0; x <= right; ++x) pair.table.push_back(slope * x);
        return pair;
    }
    void add(Pair&& other) {
        function.add(std::move(other.function));
        for (size_t x = 0; x < table.size(); ++x) table[x] += other.table[x];
    }
    void cut(int64_t right) {
        function.cut(right);
        table.resize(right + 1);
    }
    // Random functions like those of a subtree: sums of maxima, cut from right to left.
    static Pair random(RandomJobs& random, int depth, int64_t right) {
        Pair sum = linear(random.between(1, 3), right);
        for (int children = depth > 0 ? random.between(0, 3) : 0; children > 0; --children) {
            Pair child = Pair::random(random, depth - 1, right + random.between(0, 9));
            child.raise_both(random);
            child.cut(right);
            sum.add(std::move(child));
        }
        return sum;
    }
    void raise_both(RandomJobs& random) {  // not "raise", which doctest calls where it stops
        const auto right = static_cast<int64_t>(table.size()) - 1;
        const int64_t slope = random.between(0, 1);
        const int64_t value_at_0 = table.back() - slope * right - random.between(0, static_cast<int32_t>(2 * right));
        int64_t threshold = 0;
        for (int64_t x = 0; x <= right; ++x) {
            const int64_t line = value_at_0 + slope * x;
            if (line > table[x]) threshold = x + 1;
            table[x] = std::max(table[x], line);
        }
        CHECK(function.raise_to_line(value_at_0, slope) == threshold);
    }
};

}  // namespace

TEST_CASE("sums, maxima with a line and cuts equal the same on tables") {
    RandomJobs random(1);
    for (int i = 0; i < 3000; ++i) {
        Pair pair = Pair::random(random, 4, random.between(1, 30));
        CHECK(pair.function.value_left() == pair.table.front());
        for (auto right = static_cast<int64_t>(pair.table.size()) - 1; right >= 0; --right) {
            pair.cut(right);
            REQUIRE(pair.function.value_right() == pair.table[right]);
        }
        CHECK(pair.function.value_right() == pair.function.value_left());
    }
}
