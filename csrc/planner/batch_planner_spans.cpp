// How a BatchPlanner writes a batch: tokens of its segments become spans, with what their rows read, sample and score.
#include <algorithm>
#include <vector>

#include "planner/batch_planner.h"

namespace batchllm {

// The next `count` tokens of a shared segment become rows of the batch.
void BatchPlanner::append_shared_span(TokenBatch& batch, SegmentId segment, int32_t count) {
    SharedSegment& shared = shared_[segment];
    const int32_t begin = shared.kv.begin + shared.kv.num_stored;
    const int32_t end = begin + count;
    batch.token_ids.insert(batch.token_ids.end(), shared.prompt + begin, shared.prompt + end);
    append_places(batch, shared.kv, count);
    stats_.computed_prompt_tokens += count;
    if (!next_score_.empty()) append_scores(batch, segment, begin, end);
    if (!shared_.has_dropped(segment)) append_chain(batch, shared.parent);
    batch.link_segment.push_back(batch_number(batch, segment));
    end_span(batch, begin);
    if (window_.slides()) grown_.emplace_back(segment);
}

// The same of a request's own part; the row of its last known token samples the next one.
void BatchPlanner::append_own_span(TokenBatch& batch, Place place, int32_t count) {
    const Request& request = request_at(place);
    Work& work = *request.work;
    const int32_t prompt_end = request.prompt_length;
    const int32_t begin = work.own.begin + work.own.num_stored;
    const int32_t end = begin + count;
    const int32_t num_prompt_rows = std::clamp(prompt_end - begin, 0, count);
    if (num_prompt_rows > 0) {
        const TokenId* const prompt = request.prompt + begin;
        batch.token_ids.insert(batch.token_ids.end(), prompt, prompt + num_prompt_rows);
    }
    for (int32_t position = begin + num_prompt_rows; position < end; ++position) {
        batch.token_ids.push_back(work.output[position - prompt_end]);
    }
    append_places(batch, work.own, count);
    stats_.computed_prompt_tokens += std::max(std::min(end, prompt_end) - begin, 0);
    stats_.recomputed_tokens += std::max(std::min(end, work.computed_end) - begin, 0);
    stats_.recomputed_prompt_tokens += std::max(std::min({end, work.computed_end, prompt_end}) - begin, 0);
    work.computed_end = std::max(work.computed_end, end);
    if (end == request.num_tokens()) {
        if (work.untold != kNone) {
            batch.untold_rows.push_back(batch.num_tokens() - 1);
            batch.untold_logits.push_back(work.untold);
        }
        batch.logit_rows.push_back(batch.num_tokens() - 1);
        batch.logit_request_ids.push_back(request.id);
        awaited_.push_back(place);
    }
    if (!next_score_.empty()) append_scores(batch, place, begin, std::min(end, prompt_end));
    if (work.own.begin == request.own_begin) append_chain(batch, request.parent);
    batch.link_segment.push_back(append_segment(batch, work.own));  // no other request reads it
    end_span(batch, begin);
    if (window_.slides()) grown_.emplace_back(place);
}

// The next `count` positions of a segment, and their slots, are those of the batch's next rows.
void BatchPlanner::append_places(TokenBatch& batch, StoredSegment& kv, int32_t count) const {
    int32_t offset = kv.num_stored;
    kv.num_stored += count;
    while (offset < kv.num_stored) {
        int64_t slot = int64_t{kv.pages[offset / page_size_]} * page_size_ + offset % page_size_;
        const int32_t end = std::min(kv.num_stored - offset, page_size_ - offset % page_size_) + offset;
        for (; offset < end; ++offset) {
            batch.positions.push_back(kv.begin + offset);
            batch.slots.push_back(slot++);
        }
    }
}

// The span reads a shared segment and those above it that it sees, root first.
void BatchPlanner::append_chain(TokenBatch& batch, SegmentId deepest) {
    chain_.clear();
    for (SegmentId s = deepest; s != kNoSegment; s = shared_.has_dropped(s) ? kNoSegment : shared_[s].parent) {
        chain_.push_back(s);
    }
    for (auto s = chain_.rbegin(); s != chain_.rend(); ++s) batch.link_segment.push_back(batch_number(batch, *s));
}

void BatchPlanner::end_span(TokenBatch& batch, int32_t begin) {
    batch.link_indptr.push_back(static_cast<int32_t>(batch.link_segment.size()));
    batch.span_begin.push_back(begin);
    batch.span_indptr.push_back(batch.num_tokens());
}

// The batch's number for a shared segment.
int32_t BatchPlanner::batch_number(TokenBatch& batch, SegmentId segment) {
    segment = shared_.stored_as(segment);
    SharedSegment& shared = shared_[segment];
    if (shared.batch_number == kNone) {
        shared.batch_number = append_segment(batch, shared.kv);
        numbered_segments_.push_back(segment);
    }
    return shared.batch_number;
}

// Returns its number. A segment has at most one span in a batch, before the spans of its readers, so num_stored is
// final when it is first named.
int32_t BatchPlanner::append_segment(TokenBatch& batch, const StoredSegment& kv) const {
    const int32_t number = batch.num_segments();
    const auto pages_end = kv.pages.begin() + window_.pages_for(kv.num_stored);
    batch.segment_page_ids.insert(batch.segment_page_ids.end(), kv.pages.begin(), pages_end);
    batch.segment_page_indptr.push_back(static_cast<int32_t>(batch.segment_page_ids.size()));
    batch.segment_begin.push_back(kv.begin);
    batch.segment_num_tokens.push_back(kv.num_stored);
    return number;
}

// Adds the scores that the rows of prompt positions [begin, end), the last of the batch, give to scored prompts. Rows
// that are computed again are not scored again.
void BatchPlanner::append_scores(TokenBatch& batch, AnySegment segment, int32_t begin, int32_t end) {
    std::vector<const Request*> readers;
    const auto add_reader = [&](RequestId id) {  // requests that are gone are not in next_score_
        if (next_score_.contains(id)) readers.push_back(&request_at(place_of(id)));
    };
    if (segment.is_own()) {
        add_reader(request_at(segment.reader()).id);
    } else if (const auto of_segment = scored_readers_.find(segment.shared()); of_segment != scored_readers_.end()) {
        for (const RequestId id : of_segment->second) add_reader(id);
    }
    if (readers.empty()) return;
    const int32_t first_row = batch.num_tokens() - (end - begin);
    for (int32_t position = begin; position < end; ++position) {
        for (const Request* reader : readers) {
            int32_t& next = next_score_[reader->id];
            if (position + 1 < next || position + 1 >= reader->prompt_length) continue;
            next = position + 2;
            batch.score_request_ids.push_back(reader->id);
            batch.score_token_ids.push_back(reader->prompt[position + 1]);
        }
        if (batch.scores_indptr.back() == static_cast<int32_t>(batch.score_request_ids.size())) continue;
        batch.scored_rows.push_back(first_row + position - begin);
        batch.scores_indptr.push_back(static_cast<int32_t>(batch.score_request_ids.size()));
    }
    for (const Request* reader : readers) {
        if (next_score_[reader->id] >= reader->prompt_length) forgo_scores(reader->id);
    }
}

void BatchPlanner::forgo_scores(RequestId request) {
    next_score_.erase(request);
    if (next_score_.empty()) scored_readers_.clear();
}

}  // namespace batchllm
