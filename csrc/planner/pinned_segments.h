// The shared segments of a planner's requests: which are pinned, their pages, and their holders.
//
//   holders   unfinished readers, and pinned segments that borrow its pages
//   pinned    from the start of its first reader to the end of its last holder, with all the pages it is to need
//   borrows   its pages are the first ones of its source: an older segment that begins with the same tokens and was
//             pinned when this one was; a source is held as long as something borrows from it. A source that drops
//             tokens is borrowed to its end or not at all
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "planner/ids.h"
#include "planner/length_forest.h"
#include "planner/page_allocator.h"
#include "planner/stored_segment.h"

namespace batchllm {

struct SharedSegment {
    StoredSegment kv;  // no pages where it is stored as its source
    SegmentId parent;
    const TokenId* prompt;  // of a request that holds its tokens
    int32_t begin;          // position of its first token
    int32_t end;            // position after its last token
    int32_t num_holders;
    SegmentId source;                                          // that it may borrow from, or kNoSegment
    LengthForest::Population population = LengthForest::kJob;  // while pinned: that its readers teach
    int32_t batch_number = kNone;                              // in the batch that is being built
    bool is_pinned = false;
    bool borrows = false;
    bool was_pinned = false;
    std::shared_ptr<const void> tokens_owner = nullptr;  // of prompt, while there are holders; null: it outlives all

    int32_t num_tokens() const { return end - begin; }
};

class PinnedSegments {
 public:
    PinnedSegments(const KvWindow& window, PageAllocator& pages, LengthForest& lengths)
        : window_(window), pages_(pages), lengths_(lengths) {}

    int32_t size() const { return static_cast<int32_t>(segments_.size()); }
    SharedSegment& operator[](SegmentId segment) { return segments_[segment.index]; }
    const SharedSegment& operator[](SegmentId segment) const { return segments_[segment.index]; }
    void reserve(int32_t num_segments) { segments_.reserve(num_segments); }
    void add(SharedSegment segment) { segments_.push_back(std::move(segment)); }  // parents and sources come before

    int64_t num_pinned_pages() const { return num_pinned_pages_; }  // borrowed ones counted once
    int64_t most_pages(SegmentId segment) const { return window_.most_pages((*this)[segment].num_tokens()); }
    // The pages that stay while it is pinned, whether it borrows or not.
    int64_t most_held_pages(SegmentId segment) const {
        while ((*this)[segment].source != kNoSegment) segment = (*this)[segment].source;  // the last one is the longest
        return most_pages(segment);
    }
    bool can_borrow(SegmentId segment) const {
        const SegmentId source = (*this)[segment].source;
        if (source == kNoSegment || !(*this)[source].is_pinned) return false;
        return (*this)[source].end == (*this)[segment].end || !window_.drops((*this)[source].num_tokens());
    }
    LengthForest::Population population_around(SegmentId segment) const {
        const SegmentId parent = (*this)[segment].parent;
        return parent == kNoSegment ? LengthForest::kJob : (*this)[parent].population;
    }
    // The segment whose pages are read for all of this one: itself, or a source that ends where it does.
    SegmentId stored_as(SegmentId segment) const {
        while ((*this)[segment].borrows && (*this)[(*this)[segment].source].end == (*this)[segment].end) {
            segment = (*this)[segment].source;
        }
        return segment;
    }
    // Whether the first tokens of a pinned segment are kept no more; then nobody sees those above it either.
    bool has_dropped(SegmentId segment) const {
        return window_.slides() && (*this)[stored_as(segment)].kv.begin > (*this)[segment].begin;
    }

    // Its parent is pinned. Returns the borrowed tokens; 0 where it got pages of its own, to be computed.
    int32_t pin(SegmentId segment);
    // Removes a holder; the last one frees the segment, pinned or not.
    void release(SegmentId segment);
    void release_chain(SegmentId deepest);
    // What is stored of it is computed: what no later row sees is dropped.
    void slide(SegmentId segment);

    // Drops the segments whose `new_ids` are kNoSegment, which nobody holds or names; the others get new ids, in their
    // order.
    void renumber(std::span<const SegmentId> new_ids);

 private:
    const KvWindow& window_;
    PageAllocator& pages_;
    LengthForest& lengths_;
    std::vector<SharedSegment> segments_;
    int64_t num_pinned_pages_ = 0;
};

}  // namespace batchllm
