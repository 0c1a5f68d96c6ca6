#include "planner/page_allocator.h"

#include <cassert>
#include <stdexcept>
#include <string>

namespace batchllm {

void PageAllocator::allocate(AnySegment owner, int64_t count, std::vector<PageId>& pages) {
    assert(count <= num_free());
    for (int64_t i = 0; i < count; ++i) {
        if (free_.empty()) {
            pages.push_back(static_cast<PageId>(owner_.size()));
            owner_.push_back(owner);
            continue;
        }
        const PageId page = free_.back();
        free_.pop_back();
        owner_[page] = owner;
        pages.push_back(page);
    }
}

void PageAllocator::release(AnySegment owner, std::vector<PageId>& pages) {
    release_rest(owner, pages, 0);
    pages = {};  // frees the memory, too: far fewer requests run at once than a job has
}

void PageAllocator::release_rest(AnySegment owner, std::vector<PageId>& pages, int64_t num_kept) {
    for (; std::ssize(pages) > num_kept; pages.pop_back()) {
        const PageId page = pages.back();
        assert(owner_[page] == owner);
        (void)owner;
        owner_[page] = kNobody;
        free_.push_back(page);
    }
}

void PageAllocator::audit() const {
    const auto expect = [](bool holds, const std::string& law) {
        if (!holds) throw std::logic_error("PageAllocator::audit: " + law);
    };
    expect(peak_used() <= num_pages(), "the pool is never exceeded");
    std::vector<bool> is_free(owner_.size(), false);
    for (const PageId page : free_) {
        expect(page >= 0 && page < peak_used(), "page " + std::to_string(page) + " was in use");
        expect(!is_free[page], "page " + std::to_string(page) + " is free once");
        expect(owner_[page] == kNobody, "free page " + std::to_string(page) + " has no owner");
        is_free[page] = true;
    }
    for (PageId page = 0; page < peak_used(); ++page) {
        expect(is_free[page] || owner_[page] != kNobody, "page " + std::to_string(page) + " is free or owned");
    }
}

}  // namespace batchllm
