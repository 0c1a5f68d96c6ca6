#include <doctest/doctest.h>

#include <atomic>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/parallel.h"

using namespace batchllm;

TEST_CASE("parts cover the work, each once, on any number of threads") {
    for (const int num_parts : {1, 2, 7, 1024}) {
        std::vector<std::atomic<int>> visits(1000);
        for_each_part(1000, num_parts, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) ++visits[i];
        });
        for (const auto& count : visits) CHECK(count == 1);
    }
}

TEST_CASE("the exception of the first part that has one is thrown again, once all parts are done") {
    std::atomic<int> num_done = 0;
    const auto work = [&](int64_t begin, int64_t) {
        ++num_done;
        if (begin >= 2) throw std::runtime_error("part " + std::to_string(begin));
    };
    CHECK_THROWS_WITH_AS(for_each_part(5, 5, work), "part 2", std::runtime_error);
    CHECK(num_done == 5);
}
