#include <doctest/doctest.h>

#include "planner/admission.h"

using namespace batchllm;

namespace {

constexpr Admission::OwnPart kOwn{.num_pages = 2, .num_tokens = 30, .most_pages = 5, .num_steps = 40};

}  // namespace

TEST_CASE("a request that fits the pool alone starts where nothing runs") {
    CHECK(Admission(16).try_add(kOwn, 3, 8));
}

TEST_CASE("a request waits for those that run, and is never told that nothing will make room for it") {
    Admission admission(16);
    admission.add_running(kOwn);
    CHECK(!admission.try_add(kOwn, 3, 7));
}

TEST_CASE("where nothing runs and the next request does not fit, the planner says so with its numbers") {
    Admission admission(16);
    CHECK_THROWS_WITH_AS(admission.try_add(kOwn, 3, 7),
                         "next_batch: the next request can never start: nothing runs, 3 pages are pinned, its own part "
                         "takes up to 5, the pool has 7",
                         std::logic_error);
}
