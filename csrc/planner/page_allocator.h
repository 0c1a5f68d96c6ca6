// Which segment holds which page of the KV pool.
//
// A page belongs to exactly one segment, shared or a request's own; a segment may end anywhere in its last page.
#pragma once

#include <cstdint>
#include <vector>

#include "planner/ids.h"

namespace batchllm {

class PageAllocator {
 public:
    explicit PageAllocator(int32_t num_pages);

    int32_t num_pages() const { return static_cast<int32_t>(owner_.size()); }
    int32_t num_free() const { return static_cast<int32_t>(free_.size()); }
    int32_t num_used() const { return num_pages() - num_free(); }
    int32_t peak_used() const { return peak_used_; }
    SegmentId owner(PageId page) const { return owner_[page]; }  // kNone where free

    // Appends `count` pages to the owner's list. At least that many must be free.
    void allocate(SegmentId owner, int64_t count, std::vector<PageId>& pages);

    // Takes back all of the owner's pages.
    void release(SegmentId owner, std::vector<PageId>& pages);

    // Every page is either free, once, or owned; throws std::logic_error.
    void audit() const;

 private:
    std::vector<SegmentId> owner_;  // [num_pages]
    std::vector<PageId> free_;      // a stack: pages freed last, still warm, are reused first
    int32_t peak_used_ = 0;
};

}  // namespace batchllm
