#include "planner/batch_planner.h"

#include <algorithm>
#include <cassert>
#include <stdexcept>

namespace batchllm {

std::optional<TokenBatch> BatchPlanner::next_batch() {
    if (in_flight_) throw std::logic_error("next_batch: the previous batch has not been committed");
    TokenBatch batch;
    batch.page_size = page_size_;
    batch.reserve(last_size_);
    schedule_decodes(batch);
    schedule_prefills(batch);
    for (const SegmentId segment : numbered_segments_) shared_[segment].batch_number = kNone;
    numbered_segments_.clear();
    if (batch.num_tokens() == 0) {
        assert(running_.empty() && preempted_.empty() && num_waiting_ == 0);
        return std::nullopt;
    }
    batch.merge_output_rows();
    last_size_ = batch.size();
    in_flight_ = true;
    ++stats_.steps;
    return batch;
}

void BatchPlanner::schedule_decodes(TokenBatch& batch) {
    for (size_t i = 0; i < running_.size(); ++i) {  // make_room() shortens running_ at its end
        if (i + 16 < running_.size()) __builtin_prefetch(&request_at(running_[i + 16]));
        if (i + 8 < running_.size()) __builtin_prefetch(request_at(running_[i + 8]).work.get());
        if (i + 4 < running_.size()) {
            const Work& soon = *request_at(running_[i + 4]).work;
            __builtin_prefetch(soon.own.pages.data());
            __builtin_prefetch(soon.output.data() + soon.output.size());
        }
        const Place place = running_[i];
        if (request_at(place).status == Status::kDecode && make_room(place)) append_own_span(batch, place, 1);
    }
    batch.num_decode_tokens = batch.num_tokens();
}

// False if the request itself was the youngest and gave way.
bool BatchPlanner::make_room(Place place) {
    StoredSegment& own = request_at(place).work->own;
    if (own.num_stored < static_cast<int64_t>(own.pages.size()) * page_size_) return true;
    while (pages_.num_free() == 0) {
        const bool is_youngest = running_.back() == place;
        preempt_youngest();
        if (is_youngest) return false;
    }
    pages_.allocate(place, 1, own.pages);
    return true;
}

void BatchPlanner::preempt_youngest() {
    const Place place = running_.back();
    Request& request = request_at(place);
    if (request.status == Status::kPrefill) {
        assert(prefill_queue_.back() == AnySegment(place));  // admitted last
        prefill_queue_.pop_back();
    }
    pages_.release(place, request.work->own.pages);
    request.work->own.begin = request.own_begin;
    request.work->own.num_stored = 0;
    request.status = Status::kPreempted;
    running_.pop_back();
    preempted_.push_back(place);
    ++stats_.preemptions;
}

void BatchPlanner::schedule_prefills(TokenBatch& batch) {
    std::optional<Admission> admission;
    while (batch.num_tokens() < max_batch_tokens_) {
        if (prefill_queue_.empty()) {
            if (preempted_.empty() && num_waiting_ == 0) return;
            if (static_cast<int64_t>(running_.size()) >= max_running_requests_) return;
            if (!admission) admission = running_parts();
            if (!try_admit_next(*admission)) return;
        }
        const AnySegment segment = prefill_queue_.front();
        const int32_t pending = segment_end(segment) - stored(segment).begin - stored(segment).num_stored;
        const int32_t count = std::min(pending, max_batch_tokens_ - batch.num_tokens());
        if (segment.is_shared()) {
            append_shared_span(batch, segment.shared(), count);
        } else {
            append_own_span(batch, segment.reader(), count);
        }
        if (count < pending) return;
        prefill_queue_.pop_front();
        if (segment.is_own()) request_at(segment.reader()).status = Status::kDecode;
    }
}

// Called with nothing in prefill: every running request decodes.
Admission BatchPlanner::running_parts() {
    Admission admission(page_size_, window_.most_decode_pages());
    for (const Place place : running_) {
        const Request& request = request_at(place);
        const StoredSegment& own = request.work->own;
        admission.add_running({.num_pages = static_cast<int64_t>(own.pages.size()),
                               .num_tokens = own.num_stored,
                               .most_pages = largest_own_pages(request),
                               .num_steps = expected_steps(request, own.begin + own.num_stored - request.own_begin)});
    }
    return admission;
}

// How many more tokens a request's own part is expected to store beyond `num_own_tokens`.
int32_t BatchPlanner::expected_steps(const Request& request, int32_t num_own_tokens) {
    const int32_t last = request.prompt_length - request.own_begin + expected_output(request) - 1;
    return std::max(last - num_own_tokens, 0);
}

int32_t BatchPlanner::expected_output(const Request& request) {
    if (request.expected_output_tokens > 0) return request.expected_output_tokens;
    return std::min(lengths_.expected(request.population, request.id, request.num_output_tokens()),
                    request.max_output_tokens);
}

bool BatchPlanner::try_admit_next(Admission& admission) {
    const bool returns = !preempted_.empty();
    const Place place = returns ? preempted_.back() : next_in_order_;
    Request& request = request_at(place);

    chain_.clear();  // segments to pin, deepest first; the ancestors of a pinned segment are pinned
    int64_t pinned_pages = 0;
    int32_t pinned_tokens = 0;
    for (SegmentId s = request.parent; s != kNoSegment && !shared_[s].is_pinned; s = shared_[s].parent) {
        chain_.push_back(s);
        if (shared_.can_borrow(s)) continue;
        pinned_pages += shared_.most_pages(s);
        pinned_tokens += shared_[s].num_tokens();
    }
    const int32_t own_tokens = request.num_tokens() - request.own_begin;
    const int64_t own_pages = window_.most_pages(own_tokens);
    const auto decoding = static_cast<int32_t>(std::min<int64_t>(running_.size(), max_batch_tokens_ - 1));
    const int32_t prefill_steps = (pinned_tokens + own_tokens) / (max_batch_tokens_ - decoding);
    const auto steps = static_cast<int32_t>(std::min<int64_t>(
        int64_t{expected_steps(request, own_tokens)} + prefill_steps, std::numeric_limits<int32_t>::max()));
    const Admission::OwnPart own{
        .num_pages = own_pages, .num_tokens = own_tokens, .most_pages = largest_own_pages(request), .num_steps = steps};
    if (!admission.try_add(own, shared_.num_pinned_pages() + pinned_pages, pages_.num_pages())) return false;

    for (auto s = chain_.rbegin(); s != chain_.rend(); ++s) {
        const int32_t borrowed_tokens = shared_.pin(*s);
        stats_.borrowed_prompt_tokens += borrowed_tokens;
        if (borrowed_tokens == 0) prefill_queue_.push_back(*s);
    }
    if (returns) {
        preempted_.pop_back();
    } else {
        ++next_in_order_.index;
        --num_waiting_;
        skip_aborted();
        request.population = request.parent == kNoSegment ? LengthForest::kJob : shared_[request.parent].population;
        request.work = std::make_unique<Work>();
        request.work->own.begin = request.own_begin;
        request.work->num_cached_tokens = request.own_begin - pinned_tokens;
        stats_.cached_prompt_tokens += request.work->num_cached_tokens;
    }
    pages_.allocate(place, own_pages, request.work->own.pages);
    prefill_queue_.push_back(place);
    request.status = Status::kPrefill;
    running_.push_back(place);
    return true;
}

void BatchPlanner::skip_aborted() {
    while (next_in_order_.index < num_places() && request_at(next_in_order_).is_over()) ++next_in_order_.index;
}

void BatchPlanner::advance() {
    if (!in_flight_) throw std::logic_error("advance: no batch is in flight; call next_batch first");
    if (is_untold_) throw std::logic_error("advance: the tokens of the batch before have not been committed");
    slide_windows();
    int64_t num_finished = 0;
    for (size_t i = 0; i < awaited_.size(); ++i) {
        if (awaited_[i] == kNoPlace) continue;
        Request& request = request_at(awaited_[i]);
        request.work->output.push_back(kUntoldToken);
        request.work->untold = static_cast<int32_t>(i);
        ++stats_.output_tokens;
        lengths_.reach(request.population, request.num_output_tokens());
        if (request.num_output_tokens() < request.max_output_tokens) continue;
        finish(awaited_[i]);
        ++num_finished;
    }
    stats_.finished += num_finished;
    std::swap(untold_, awaited_);
    awaited_.clear();
    in_flight_ = false;
    is_untold_ = true;
    if (num_finished > 0) leave_queues();
}

std::vector<RequestId> BatchPlanner::commit(std::span<const TokenId> sampled, std::span<const uint8_t> finished) {
    if (!in_flight_ && !is_untold_) throw std::logic_error("commit: no batch is in flight; call next_batch first");
    const size_t num_logits = is_untold_ ? untold_.size() : awaited_.size();
    const auto check_size = [&](const char* name, size_t size) {
        if (size == num_logits) return;
        throw std::invalid_argument(std::string(name) + ": expected " + std::to_string(num_logits) +
                                    " entries, one for each of the batch's logit_rows, got " + std::to_string(size));
    };
    check_size("sampled", sampled.size());
    if (!finished.empty()) check_size("finished", finished.size());
    if (!is_untold_) advance();

    std::vector<RequestId> finished_requests;
    int64_t num_stopped = 0;
    for (size_t i = 0; i < untold_.size(); ++i) {
        if (untold_[i] == kNoPlace) continue;
        Request& request = request_at(untold_[i]);
        request.work->output.back() = sampled[i];
        request.work->untold = kNone;
        if (!finished.empty() && finished[i] && !request.is_over()) {
            lengths_.end(request.population, request.num_output_tokens());
            finish(untold_[i]);
            ++num_stopped;
        }
        if (request.is_over()) finished_requests.push_back(request.id);
    }
    stats_.finished += num_stopped;
    untold_.clear();
    is_untold_ = false;
    if (num_stopped > 0) leave_queues();
    return finished_requests;
}

// The batch in flight runs before anything is written into the pages that are returned here.
void BatchPlanner::slide_windows() {
    for (const AnySegment segment : grown_) {
        if (segment.is_shared()) {
            shared_.slide(segment.shared());
            continue;
        }
        StoredSegment& own = stored(segment);
        window_.slide(own);
        pages_.release_rest(segment, own.pages, window_.most_pages(segment_end(segment) - own.begin));
    }
    grown_.clear();
}

// Removes ended requests, and segments without readers, from every list.
void BatchPlanner::leave_queues() {
    const auto is_over = [&](Place place) { return request_at(place).is_over(); };
    std::erase_if(running_, is_over);
    std::erase_if(preempted_, is_over);
    const auto is_left = [&](AnySegment segment) {
        return segment.is_shared() ? !shared_[segment.shared()].is_pinned : is_over(segment.reader());
    };
    std::erase_if(prefill_queue_, is_left);
    std::erase_if(grown_, is_left);
    for (Place& place : awaited_) {
        if (place != kNoPlace && is_over(place)) place = kNoPlace;
    }
    skip_aborted();
}

// Stops waiting for the untold token of a request. False if there is none.
bool BatchPlanner::drop_untold(Request& request) {
    if (!request.work || request.work->untold == kNone) return false;
    untold_[request.work->untold] = kNoPlace;
    request.work->untold = kNone;
    return true;
}

void BatchPlanner::finish(Place place) {
    Request& request = request_at(place);
    request.status = Status::kFinished;
    if (request.work) pages_.release(place, request.work->own.pages);
    shared_.release_chain(request.parent);
    if (!next_score_.empty()) forgo_scores(request.id);
    Wave& wave = waves_[request.wave - first_wave_];
    if (--wave.num_unfinished == 0) wave.tokens_owner.reset();
    while (!waves_.empty() && waves_.front().num_unfinished == 0) {
        waves_.pop_front();
        ++first_wave_;
    }
}

PlannerStats BatchPlanner::stats() const {
    PlannerStats stats = stats_;
    stats.num_pages = pages_.num_pages();
    stats.used_pages = pages_.num_used();
    stats.peak_pages = pages_.peak_used();
    stats.running = static_cast<int64_t>(running_.size());
    stats.waiting = num_waiting_ + static_cast<int64_t>(preempted_.size());
    return stats;
}

std::vector<RequestId> BatchPlanner::order() const {
    std::vector<RequestId> order;
    order.reserve(requests_.size());
    for (const Request& request : requests_) {
        if (request.status != Status::kForgotten) order.push_back(request.id);
    }
    return order;
}

// kNoPlace if it was refused.
Place BatchPlanner::known(RequestId request) const {
    if (request < RequestId{0} || request >= next_request_id()) {
        throw std::out_of_range("request_id: expected 0 to " + std::to_string(next_request_id().index - 1) + ", got " +
                                std::to_string(request.index));
    }
    const Place place = request < first_id_ ? kNoPlace : place_of(request);
    const auto is_request = [&](const auto& refused) { return refused.first == request; };
    if (place == kNoPlace && std::ranges::none_of(refused_, is_request)) {
        throw std::out_of_range("request_id: request " + std::to_string(request.index) + " is forgotten");
    }
    return place;
}

std::span<const TokenId> BatchPlanner::output_tokens(RequestId request) const {
    const Place place = known(request);
    if (place == kNoPlace || !request_at(place).work) return {};
    const Work& work = *request_at(place).work;
    return std::span(work.output).first(work.output.size() - (work.untold != kNone));
}

int32_t BatchPlanner::num_cached_tokens(RequestId request) const {
    const Place place = known(request);
    return place == kNoPlace ? 0 : request_at(place).num_cached_tokens();
}

}  // namespace batchllm
