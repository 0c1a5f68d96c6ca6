#include <doctest/doctest.h>

#include <limits>
#include <set>

#include "planner/page_allocator.h"
#include "random_job.h"

using namespace batchllm;
using batchllm::testing::RandomJobs;

TEST_CASE("a page has one owner from allocation to release") {
    RandomJobs random(1);
    constexpr int32_t kNumPages = 20;
    PageAllocator allocator(kNumPages);
    std::vector<std::vector<PageId>> held(6);
    int32_t num_used = 0, peak = 0;
    for (int i = 0; i < 5000; ++i) {
        const int32_t owner = random.between(0, 5);
        if (random.between(0, 1) == 0) {
            num_used -= static_cast<int32_t>(held[owner].size());
            allocator.release(SegmentId{owner}, held[owner]);
            CHECK(held[owner].empty());
        } else {
            const int32_t count = random.between(0, allocator.num_free());
            allocator.allocate(SegmentId{owner}, count, held[owner]);
            num_used += count;
            peak = std::max(peak, num_used);
        }
        allocator.audit();
        CHECK(allocator.num_used() == num_used);
        CHECK(allocator.num_free() == kNumPages - num_used);
        CHECK(allocator.peak_used() == peak);
        std::set<PageId> pages;
        for (int32_t other = 0; other < 6; ++other) {
            for (const PageId page : held[other]) {
                CHECK((allocator.owner(page) == SegmentId{other}));
                CHECK(pages.insert(page).second);
            }
        }
    }
}

TEST_CASE("pages are handed out in order, and the warm ones again first") {
    PageAllocator allocator(6);
    std::vector<PageId> first, second, third;
    allocator.allocate(SegmentId{0}, 2, first);
    allocator.allocate(SegmentId{1}, 2, second);
    CHECK(first == std::vector<PageId>{0, 1});
    CHECK(second == std::vector<PageId>{2, 3});
    allocator.release(SegmentId{0}, first);
    allocator.allocate(Place{2}, 3, third);
    CHECK(third == std::vector<PageId>{0, 1, 4});
}

TEST_CASE("the own part of a request is nobody's shared segment, whatever their numbers") {
    PageAllocator allocator(2);
    std::vector<PageId> shared, own;
    allocator.allocate(SegmentId{7}, 1, shared);
    allocator.allocate(Place{7}, 1, own);
    CHECK(!(allocator.owner(0) == allocator.owner(1)));
    CHECK(allocator.owner(0).is_shared());
    CHECK(allocator.owner(1).is_own());
    CHECK(allocator.owner(1).reader().index == 7);
    allocator.release(Place{7}, own);
    CHECK((allocator.owner(1) == kNobody));
}

TEST_CASE("a pool costs no memory for pages that were never in use") {
    PageAllocator allocator(std::numeric_limits<int32_t>::max());
    std::vector<PageId> pages;
    allocator.allocate(Place{0}, 3, pages);
    allocator.audit();
    CHECK(pages == std::vector<PageId>{0, 1, 2});
    CHECK(allocator.num_free() == std::numeric_limits<int32_t>::max() - 3);
}
