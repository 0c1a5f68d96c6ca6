// How a BatchPlanner aborts and forgets requests.
#include <algorithm>
#include <stdexcept>
#include <utility>

#include "planner/batch_planner.h"

namespace batchllm {

void BatchPlanner::abort(std::span<const RequestId> requests) {
    if (in_flight_) throw std::logic_error("abort: a batch is in flight; call commit first");
    for (const RequestId id : requests) known(id);
    for (const RequestId id : requests) {
        const Place place = place_of(id);
        if (place == kNoPlace || request_at(place).is_over()) continue;
        Request& request = request_at(place);
        if (request.status == Status::kWaiting) --num_waiting_;
        if (drop_untold(request)) {
            request.work->output.pop_back();
            --stats_.output_tokens;
        }
        finish(place);
        ++stats_.aborted;
    }
    leave_queues();
}

void BatchPlanner::forget(std::span<const RequestId> requests) {
    for (const RequestId id : requests) {
        const Place place = known(id);
        if (place == kNoPlace || request_at(place).is_over()) continue;
        throw std::invalid_argument("forget: request " + std::to_string(id.index) + " has not finished");
    }
    for (const RequestId id : requests) {
        Place& place = place_of(id);
        if (place == kNoPlace) {  // refused, or named twice
            forgotten_.num_refused += std::erase_if(refused_, [&](const auto& refused) { return refused.first == id; });
            continue;
        }
        Request& request = request_at(place);
        const bool started = request.work != nullptr;
        drop_untold(request);
        forgotten_.num_over += 1;
        forgotten_.output_tokens += request.num_output_tokens();
        forgotten_.cached_tokens += request.num_cached_tokens();
        forgotten_.started_prompt_tokens += started ? request.prompt_length : 0;
        forgotten_.first_computed_tokens += started ? request.prompt_length - request.own_begin : 0;
        request.status = Status::kForgotten;
        request.work.reset();
        ++num_forgotten_places_;
        place = kNoPlace;
    }
    // Half of all places are gaps, so each forgotten request pays for moving about one other.
    if (num_forgotten_places_ > num_places() / 2) compact();
}

// Closes the gaps of forgotten requests: places, segments that no request names any more, and ids below the first known
// one.
void BatchPlanner::compact() {
    std::vector<SegmentId> new_segment(shared_.size(), kNoSegment);
    constexpr SegmentId kKept{0};
    for (SegmentId s{0}; s.index < shared_.size(); ++s.index) {
        if (shared_[s].num_holders > 0) new_segment[s.index] = kKept;
    }
    for (const Request& request : requests_) {
        if (request.status == Status::kForgotten) continue;
        for (SegmentId s = request.parent; s != kNoSegment && new_segment[s.index] != kKept; s = shared_[s].parent) {
            new_segment[s.index] = kKept;
        }
    }
    SegmentId next{0};
    for (SegmentId s{0}; s.index < shared_.size(); ++s.index) {
        if (new_segment[s.index] == kKept) {
            new_segment[s.index] = next;
            ++next.index;
        } else if (shared_[s].was_pinned && !shared_[s].borrows) {
            forgotten_.first_computed_tokens += shared_[s].num_tokens();
        }
    }
    const auto renamed = [&](SegmentId s) { return s == kNoSegment ? kNoSegment : new_segment[s.index]; };
    shared_.renumber(new_segment);
    std::unordered_map<SegmentId, std::vector<RequestId>> scored_readers;
    for (auto& [segment, readers] : scored_readers_) {
        if (renamed(segment) != kNoSegment) scored_readers.emplace(renamed(segment), std::move(readers));
    }
    scored_readers_ = std::move(scored_readers);

    std::vector<Place> new_place(num_places() + 1, kNoPlace);
    Place kept{0};
    for (Place place{0}; place.index < num_places(); ++place.index) {
        new_place[place.index] = kept;
        if (request_at(place).status == Status::kForgotten) continue;
        Request request = std::move(request_at(place));
        request.parent = renamed(request.parent);
        if (request.work) pages_.rename(request.work->own.pages, kept);
        place_of(request.id) = kept;
        request_at(kept) = std::move(request);
        ++kept.index;
    }
    new_place.back() = kept;
    requests_.erase(requests_.begin() + kept.index, requests_.end());
    num_forgotten_places_ = 0;
    next_in_order_ = new_place[next_in_order_.index];
    for (auto* places : {&running_, &preempted_, &awaited_, &untold_}) {
        for (Place& place : *places) {
            if (place != kNoPlace) place = new_place[place.index];
        }
    }
    const auto rename = [&](AnySegment& segment) {
        if (segment.is_shared()) {
            segment = new_segment[segment.shared().index];
        } else {
            segment = new_place[segment.reader().index];
        }
    };
    std::ranges::for_each(prefill_queue_, rename);
    std::ranges::for_each(grown_, rename);

    RequestId first_known = next_request_id();
    for (const Request& request : requests_) first_known = std::min(first_known, request.id);
    for (const auto& [id, why] : refused_) first_known = std::min(first_known, id);
    place_.erase(place_.begin(), place_.begin() + (first_known.index - first_id_.index));
    first_id_ = first_known;
}

}  // namespace batchllm
