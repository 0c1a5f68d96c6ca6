#include "planner/page_allocator.h"

#include <algorithm>
#include <cassert>
#include <numeric>
#include <stdexcept>
#include <string>

namespace batchllm {

PageAllocator::PageAllocator(int32_t num_pages) : owner_(num_pages, kNone), free_(num_pages) {
    std::iota(free_.rbegin(), free_.rend(), 0);  // page 0 is handed out first
}

void PageAllocator::allocate(SegmentId owner, int64_t count, std::vector<PageId>& pages) {
    assert(count <= num_free());
    for (int64_t i = 0; i < count; ++i) {
        const PageId page = free_.back();
        free_.pop_back();
        owner_[page] = owner;
        pages.push_back(page);
    }
    peak_used_ = std::max(peak_used_, num_used());
}

void PageAllocator::release(SegmentId owner, std::vector<PageId>& pages) {
    for (auto page = pages.rbegin(); page != pages.rend(); ++page) {
        assert(owner_[*page] == owner);
        (void)owner;
        owner_[*page] = kNone;
        free_.push_back(*page);
    }
    pages = {};  // gives the memory back too: a job has far more requests than run at once
}

void PageAllocator::audit() const {
    const auto expect = [](bool holds, const std::string& law) {
        if (!holds) throw std::logic_error("PageAllocator::audit: " + law);
    };
    std::vector<bool> is_free(owner_.size(), false);
    for (const PageId page : free_) {
        expect(page >= 0 && page < num_pages(), "page " + std::to_string(page) + " exists");
        expect(!is_free[page], "page " + std::to_string(page) + " is free once");
        expect(owner_[page] == kNone, "free page " + std::to_string(page) + " has no owner");
        is_free[page] = true;
    }
    for (PageId page = 0; page < num_pages(); ++page) {
        expect(is_free[page] || owner_[page] != kNone, "page " + std::to_string(page) + " is free or owned");
    }
    expect(peak_used_ >= num_used(), "the peak is at least what is used now");
}

}  // namespace batchllm
