// Which segment holds which page of the KV pool.
//
// A page belongs to exactly one segment, shared or a request's own; a segment may end anywhere in its last page. A pool
// costs memory only for pages that were ever in use, so it may have any size.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "planner/ids.h"

namespace batchllm {

class PageAllocator {
 public:
    explicit PageAllocator(int32_t num_pages) : num_pages_(num_pages) {}

    int32_t num_pages() const { return num_pages_; }
    int32_t num_free() const { return num_pages_ - num_used(); }
    int32_t num_used() const { return static_cast<int32_t>(owner_.size() - free_.size()); }
    int32_t peak_used() const { return static_cast<int32_t>(owner_.size()); }  // a new page is taken when none is free
    AnySegment owner(PageId page) const { return owner_[page]; }  // of a page that was ever in use, or kNobody

    // Appends `count` pages to the owner's list. At least that many must be free.
    void allocate(AnySegment owner, int64_t count, std::vector<PageId>& pages);

    // Takes back the owner's pages: all of them, or all but the first `num_kept`.
    void release(AnySegment owner, std::vector<PageId>& pages);
    void release_rest(AnySegment owner, std::vector<PageId>& pages, int64_t num_kept);

    // Renames the owner of these pages.
    void rename(std::span<const PageId> pages, AnySegment owner) {
        for (const PageId page : pages) owner_[page] = owner;
    }

    // Every page is either free, once, or owned; throws std::logic_error.
    void audit() const;

 private:
    int32_t num_pages_;
    std::vector<AnySegment> owner_;  // of the pages that were ever in use: the first ones
    std::vector<PageId> free_;       // of them; a stack: pages freed last, still warm, are reused first
};

}  // namespace batchllm
