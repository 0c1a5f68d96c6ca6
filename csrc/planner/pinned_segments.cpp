#include "planner/pinned_segments.h"

#include <utility>

namespace batchllm {

int32_t PinnedSegments::pin(SegmentId id) {
    SharedSegment& segment = (*this)[id];
    segment.is_pinned = segment.was_pinned = true;
    segment.population = lengths_.open(population_around(id), segment.num_holders);
    if (can_borrow(id)) {
        SharedSegment& source = (*this)[segment.source];
        segment.kv.num_stored = segment.num_tokens();  // by the time it is read: the source is queued before it
        segment.borrows = true;
        ++source.num_holders;
        if (stored_as(id) == id) {
            const std::vector<PageId>& pages = (*this)[stored_as(segment.source)].kv.pages;
            segment.kv.pages.assign(pages.begin(), pages.begin() + window_.pages_for(segment.num_tokens()));
        }
        return segment.num_tokens();
    }
    pages_.allocate(id, most_pages(id), segment.kv.pages);
    num_pinned_pages_ += static_cast<int64_t>(segment.kv.pages.size());
    return 0;
}

void PinnedSegments::release(SegmentId id) {
    SharedSegment& segment = (*this)[id];
    if (--segment.num_holders > 0) return;
    segment.tokens_owner.reset();
    if (!segment.is_pinned) return;
    segment.is_pinned = false;
    lengths_.close(segment.population, population_around(id));
    if (segment.borrows) {
        segment.kv.pages = {};
        release(segment.source);
        return;
    }
    num_pinned_pages_ -= static_cast<int64_t>(segment.kv.pages.size());
    pages_.release(id, segment.kv.pages);
}

void PinnedSegments::release_chain(SegmentId deepest) {
    for (SegmentId segment = deepest; segment != kNoSegment;) {
        const SegmentId parent = (*this)[segment].parent;
        release(segment);
        segment = parent;
    }
}

void PinnedSegments::slide(SegmentId id) {
    SharedSegment& segment = (*this)[id];
    window_.slide(segment.kv);
    num_pinned_pages_ -= static_cast<int64_t>(segment.kv.pages.size());
    pages_.release_rest(id, segment.kv.pages, window_.most_pages(segment.end - segment.kv.begin));
    num_pinned_pages_ += static_cast<int64_t>(segment.kv.pages.size());
}

void PinnedSegments::renumber(std::span<const SegmentId> new_ids) {
    const auto renamed = [&](SegmentId id) { return id == kNoSegment ? kNoSegment : new_ids[id.index]; };
    int32_t num_kept = 0;
    for (SegmentId id{0}; id.index < size(); ++id.index) {
        const SegmentId new_id = new_ids[id.index];
        if (new_id == kNoSegment) continue;
        ++num_kept;
        SharedSegment segment = std::move((*this)[id]);
        segment.parent = renamed(segment.parent);
        segment.source = renamed(segment.source);
        if (!segment.borrows) pages_.rename(segment.kv.pages, new_id);
        (*this)[new_id] = std::move(segment);  // no later than its old place
    }
    segments_.erase(segments_.begin() + num_kept, segments_.end());
}

}  // namespace batchllm
