#include "planner/batch_planner.h"

#include <algorithm>
#include <cassert>
#include <stdexcept>

namespace batchllm {

std::optional<TokenBatch> BatchPlanner::next_batch() {
    if (in_flight_) throw std::logic_error("next_batch: the previous batch has not been committed");
    TokenBatch batch;
    schedule_decodes(batch);
    schedule_prefills(batch);
    for (const SegmentId segment : numbered_segments_) segments_[segment].batch_id = kNone;
    numbered_segments_.clear();
    if (batch.num_tokens() == 0) {
        assert(running_.empty() && preempted_.empty() && next_in_order_ == order_.size());
        return std::nullopt;
    }
    awaited_ = batch.logit_request_ids;
    in_flight_ = true;
    ++stats_.steps;
    return batch;
}

void BatchPlanner::schedule_decodes(TokenBatch& batch) {
    for (size_t i = 0; i < running_.size(); ++i) {  // make_room() shortens running_ at its end
        const RequestId request = running_[i];
        if (requests_[request].status == Status::kDecode && make_room(request)) {
            append_span(batch, own_segment(request), 1);
        }
    }
    batch.num_decode_tokens = batch.num_tokens();
}

// False where the request itself was the youngest and gave way.
bool BatchPlanner::make_room(RequestId request) {
    StoredSegment& own = segments_[own_segment(request)];
    if (own.num_stored < static_cast<int64_t>(own.pages.size()) * page_size_) return true;
    while (pages_.num_free() == 0) {
        const bool is_youngest = running_.back() == request;
        preempt_youngest();
        if (is_youngest) return false;
    }
    pages_.allocate(own_segment(request), 1, own.pages);
    return true;
}

void BatchPlanner::preempt_youngest() {
    const RequestId request = running_.back();
    const SegmentId own = own_segment(request);
    if (requests_[request].status == Status::kPrefill) {
        assert(prefill_queue_.back() == own);  // admitted last
        prefill_queue_.pop_back();
    }
    pages_.release(own, segments_[own].pages);
    segments_[own].num_stored = 0;
    requests_[request].status = Status::kPreempted;
    running_.pop_back();
    preempted_.push_back(request);
    ++stats_.preemptions;
}

void BatchPlanner::schedule_prefills(TokenBatch& batch) {
    Demand demand;
    for (const RequestId request : running_) {
        demand.largest_own = std::max(demand.largest_own, largest_own_pages(request));
        demand.expected_growth +=
            expected_growth(request, static_cast<int64_t>(segments_[own_segment(request)].pages.size()));
    }
    while (batch.num_tokens() < max_batch_tokens_) {
        if (prefill_queue_.empty() && !try_admit_next(demand)) return;
        const SegmentId segment = prefill_queue_.front();
        const int32_t pending = segment_end(segment) - segments_[segment].begin - segments_[segment].num_stored;
        const int32_t count = std::min(pending, max_batch_tokens_ - batch.num_tokens());
        append_span(batch, segment, count);
        if (count < pending) return;
        prefill_queue_.pop_front();
        if (!is_shared(segment)) requests_[reader_of_own(segment)].status = Status::kDecode;
    }
}

int64_t BatchPlanner::expected_growth(RequestId request, int64_t pages_held) const {
    int32_t expected = expected_output_tokens_[request];
    if (learns_lengths_) expected = lengths_.expected(max_output_tokens_[request], expected);
    return std::max<int64_t>(own_pages(request, expected) - pages_held, 0);
}

bool BatchPlanner::try_admit_next(Demand& demand) {
    const bool returns = !preempted_.empty();
    if (!returns && next_in_order_ == order_.size()) return false;
    const RequestId request = returns ? preempted_.back() : order_[next_in_order_];
    const SegmentId own = own_segment(request);

    chain_.clear();  // segments to pin, deepest first; the ancestors of a pinned segment are pinned
    int64_t pinned_pages = 0;
    int32_t pinned_tokens = 0;
    for (SegmentId s = segments_[own].parent; s != kNone && !is_pinned(s); s = segments_[s].parent) {
        chain_.push_back(s);
        pinned_pages += shared_pages(s);
        pinned_tokens += shared_.num_tokens(s);
    }
    const int64_t prompt_pages = pages_for(num_tokens(request) - segments_[own].begin);
    const int64_t largest_own = std::max(demand.largest_own, largest_own_pages(request));
    const int64_t growth = demand.expected_growth + expected_growth(request, prompt_pages);

    const bool may = num_pinned_pages_ + pinned_pages + largest_own <= pages_.num_pages();
    if (running_.empty()) {
        assert(may);
    } else if (!may || pinned_pages + prompt_pages + growth > pages_.num_free()) {
        return false;
    }

    for (auto s = chain_.rbegin(); s != chain_.rend(); ++s) {
        pages_.allocate(*s, shared_pages(*s), segments_[*s].pages);
        prefill_queue_.push_back(*s);
    }
    num_pinned_pages_ += pinned_pages;
    pages_.allocate(own, prompt_pages, segments_[own].pages);
    prefill_queue_.push_back(own);
    demand = {largest_own, growth};
    if (returns) {
        preempted_.pop_back();
    } else {
        ++next_in_order_;
        num_cached_tokens_[request] = segments_[own].begin - pinned_tokens;
    }
    requests_[request].status = Status::kPrefill;
    running_.push_back(request);
    return true;
}

// The next `count` tokens of a segment become rows of the batch.
void BatchPlanner::append_span(TokenBatch& batch, SegmentId segment, int32_t count) {
    StoredSegment& stored = segments_[segment];
    const bool shared = is_shared(segment);
    const RequestId request = shared ? shared_.owner_request()[segment] : reader_of_own(segment);
    const int32_t prompt_length = prompts_.prompt_length(request);
    const int32_t begin = stored.begin + stored.num_stored;
    const int32_t end = begin + count;
    for (int32_t position = begin; position < end; ++position) {
        const int32_t offset = position - stored.begin;
        const bool in_prompt = position < prompt_length;
        batch.token_ids.push_back(in_prompt ? prompts_.row_data(request)[position]
                                            : requests_[request].output[position - prompt_length]);
        batch.positions.push_back(position);
        batch.slots.push_back(int64_t{stored.pages[offset / page_size_]} * page_size_ + offset % page_size_);
    }
    stored.num_stored += count;
    stats_.computed_prompt_tokens += std::max(std::min(end, prompt_length) - begin, 0);
    if (!shared) {
        int32_t& computed_end = requests_[request].computed_end;
        stats_.recomputed_tokens += std::max(std::min(end, computed_end) - begin, 0);
        stats_.recomputed_prompt_tokens += std::max(std::min({end, computed_end, prompt_length}) - begin, 0);
        computed_end = std::max(computed_end, end);
        if (end == num_tokens(request)) {
            batch.logit_rows.push_back(batch.num_tokens() - 1);
            batch.logit_request_ids.push_back(request);
        }
    }

    chain_.clear();
    for (SegmentId s = segment; s != kNone; s = segments_[s].parent) chain_.push_back(s);
    for (auto s = chain_.rbegin(); s != chain_.rend(); ++s) {
        batch.link_segment.push_back(batch_segment(batch, *s));
    }
    batch.link_indptr.push_back(static_cast<int32_t>(batch.link_segment.size()));
    batch.span_begin.push_back(begin);
    batch.span_indptr.push_back(batch.num_tokens());
}

// The batch's number for a segment. A segment has at most one span in a batch, before the spans of its readers, so
// num_stored is final when it is first named.
int32_t BatchPlanner::batch_segment(TokenBatch& batch, SegmentId segment) {
    StoredSegment& stored = segments_[segment];
    if (stored.batch_id != kNone) return stored.batch_id;
    stored.batch_id = batch.num_segments();
    numbered_segments_.push_back(segment);
    const auto pages_end = stored.pages.begin() + pages_for(stored.num_stored);
    batch.segment_page_ids.insert(batch.segment_page_ids.end(), stored.pages.begin(), pages_end);
    batch.segment_page_indptr.push_back(static_cast<int32_t>(batch.segment_page_ids.size()));
    batch.segment_begin.push_back(stored.begin);
    batch.segment_num_tokens.push_back(stored.num_stored);
    return stored.batch_id;
}

std::vector<RequestId> BatchPlanner::commit(std::span<const TokenId> sampled, std::span<const uint8_t> finished) {
    if (!in_flight_) throw std::logic_error("commit: no batch is in flight; call next_batch first");
    const auto check_size = [&](const char* name, size_t size) {
        if (size == awaited_.size()) return;
        throw std::invalid_argument(std::string(name) + ": expected " + std::to_string(awaited_.size()) +
                                    " entries, one for each of the batch's logit_rows, got " + std::to_string(size));
    };
    check_size("sampled", sampled.size());
    if (!finished.empty()) check_size("finished", finished.size());

    std::vector<RequestId> finished_requests;
    for (size_t i = 0; i < awaited_.size(); ++i) {
        Request& request = requests_[awaited_[i]];
        request.output.push_back(sampled[i]);
        const bool at_bound = static_cast<int32_t>(request.output.size()) == max_output_tokens_[awaited_[i]];
        if (at_bound || (!finished.empty() && finished[i])) {
            finish(awaited_[i]);
            finished_requests.push_back(awaited_[i]);
        }
    }
    if (!finished_requests.empty()) {
        std::erase_if(running_, [&](RequestId r) { return requests_[r].status == Status::kFinished; });
    }
    stats_.output_tokens += static_cast<int64_t>(awaited_.size());
    stats_.finished += static_cast<int64_t>(finished_requests.size());
    awaited_.clear();
    in_flight_ = false;
    return finished_requests;
}

void BatchPlanner::finish(RequestId request) {
    const SegmentId own = own_segment(request);
    requests_[request].status = Status::kFinished;
    lengths_.observe(static_cast<int32_t>(requests_[request].output.size()), max_output_tokens_[request]);
    pages_.release(own, segments_[own].pages);
    for (SegmentId s = segments_[own].parent; s != kNone; s = segments_[s].parent) {
        if (--num_unfinished_readers_[s] > 0) continue;
        num_pinned_pages_ -= static_cast<int64_t>(segments_[s].pages.size());
        pages_.release(s, segments_[s].pages);
    }
}

PlannerStats BatchPlanner::stats() const {
    PlannerStats stats = stats_;
    stats.num_pages = pages_.num_pages();
    stats.used_pages = pages_.num_used();
    stats.peak_pages = pages_.peak_used();
    stats.running = static_cast<int64_t>(running_.size());
    stats.waiting = static_cast<int64_t>(order_.size() - next_in_order_ + preempted_.size());
    return stats;
}

}  // namespace batchllm
