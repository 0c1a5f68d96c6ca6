#include "planner/batch_planner.h"

#include <algorithm>
#include <cassert>
#include <stdexcept>

namespace batchllm {

std::optional<TokenBatch> BatchPlanner::next_batch() {
    if (in_flight_) throw std::logic_error("next_batch: the previous batch has not been committed");
    TokenBatch batch;
    batch.reserve(last_size_);
    schedule_decodes(batch);
    schedule_prefills(batch);
    for (const SegmentId segment : numbered_segments_) stored(segment).batch_id = kNone;
    numbered_segments_.clear();
    if (batch.num_tokens() == 0) {
        assert(running_.empty() && preempted_.empty() && num_waiting() == 0);
        return std::nullopt;
    }
    last_size_ = batch.size();
    in_flight_ = true;
    ++stats_.steps;
    return batch;
}

void BatchPlanner::schedule_decodes(TokenBatch& batch) {
    for (size_t i = 0; i < running_.size(); ++i) {  // make_room() shortens running_ at its end
        if (i + 16 < running_.size()) __builtin_prefetch(&requests_[running_[i + 16]]);
        if (i + 8 < running_.size()) __builtin_prefetch(requests_[running_[i + 8]].work.get());
        if (i + 4 < running_.size()) {
            const Work& soon = *requests_[running_[i + 4]].work;
            __builtin_prefetch(soon.own.pages.data());
            __builtin_prefetch(soon.output.data() + soon.output.size());
        }
        const Place place = running_[i];
        if (requests_[place].status == Status::kDecode && make_room(place)) append_span(batch, own_segment(place), 1);
    }
    batch.num_decode_tokens = batch.num_tokens();
}

// False where the request itself was the youngest and gave way.
bool BatchPlanner::make_room(Place place) {
    StoredSegment& own = requests_[place].work->own;
    if (own.num_stored < static_cast<int64_t>(own.pages.size()) * page_size_) return true;
    while (pages_.num_free() == 0) {
        const bool is_youngest = running_.back() == place;
        preempt_youngest();
        if (is_youngest) return false;
    }
    pages_.allocate(own_segment(place), 1, own.pages);
    return true;
}

void BatchPlanner::preempt_youngest() {
    const Place place = running_.back();
    Request& request = requests_[place];
    if (request.status == Status::kPrefill) {
        assert(prefill_queue_.back() == own_segment(place));  // admitted last
        prefill_queue_.pop_back();
    }
    pages_.release(own_segment(place), request.work->own.pages);
    request.work->own.num_stored = 0;
    request.status = Status::kPreempted;
    running_.pop_back();
    preempted_.push_back(place);
    ++stats_.preemptions;
}

void BatchPlanner::schedule_prefills(TokenBatch& batch) {
    std::optional<Demand> demand;
    while (batch.num_tokens() < max_batch_tokens_) {
        if (prefill_queue_.empty()) {
            if (preempted_.empty() && num_waiting() == 0) return;
            if (static_cast<int64_t>(running_.size()) >= max_running_requests_) return;
            if (!demand) demand = demand_of_running();
            if (!try_admit_next(*demand)) return;
        }
        const SegmentId segment = prefill_queue_.front();
        const int32_t pending = segment_end(segment) - stored(segment).begin - stored(segment).num_stored;
        const int32_t count = std::min(pending, max_batch_tokens_ - batch.num_tokens());
        append_span(batch, segment, count);
        if (count < pending) return;
        prefill_queue_.pop_front();
        if (!is_shared(segment)) requests_[reader_of_own(segment)].status = Status::kDecode;
    }
}

// Called with nothing in prefill: every running request decodes.
BatchPlanner::Demand BatchPlanner::demand_of_running() {
    Demand demand{KvForecast(page_size_)};
    for (const Place place : running_) {
        const Request& request = requests_[place];
        demand.largest_own = std::max(demand.largest_own, largest_own_pages(request));
        demand.all_largest_own += largest_own_pages(request);
        demand.forecast.add(static_cast<int64_t>(request.work->own.pages.size()), request.work->own.num_stored,
                            expected_steps(request, request.work->own.num_stored));
    }
    return demand;
}

// How many more tokens a request's own part is expected to store beyond `num_own_tokens`.
int32_t BatchPlanner::expected_steps(const Request& request, int32_t num_own_tokens) {
    const int32_t last = request.prompt_length - request.own_begin + expected_output(request) - 1;
    return std::max(last - num_own_tokens, 0);
}

int32_t BatchPlanner::expected_output(const Request& request) {
    if (request.expected_output_tokens > 0) return request.expected_output_tokens;
    constexpr int64_t kEnoughEnded = 32;  // to believe the group alone; else the one around it, at last the job
    int32_t group = request.lengths_id;
    while (lengths_[group].outputs.num_ended() < kEnoughEnded && lengths_[group].parent != kNone) {
        group = lengths_[group].parent;
    }
    return std::min(lengths_[group].outputs.expected(request.id, request.num_output_tokens()),
                    request.max_output_tokens);
}

bool BatchPlanner::try_admit_next(Demand& demand) {
    const bool returns = !preempted_.empty();
    const Place place = returns ? preempted_.back() : next_in_order_;
    Request& request = requests_[place];

    chain_.clear();  // segments to pin, deepest first; the ancestors of a pinned segment are pinned
    int64_t pinned_pages = 0;
    int32_t pinned_tokens = 0;
    for (SegmentId s = request.parent; s != kNone && !is_pinned(s); s = shared_[s].kv.parent) {
        chain_.push_back(s);
        if (can_borrow(s)) continue;
        pinned_pages += shared_pages(s);
        pinned_tokens += num_tokens_of(shared_[s]);
    }
    const int32_t own_tokens = request.num_tokens() - request.own_begin;
    const int64_t own_pages = pages_for(own_tokens);
    const int64_t pinned_then = num_pinned_pages_ + pinned_pages;
    const int64_t largest_own = std::max(demand.largest_own, largest_own_pages(request));
    const int64_t all_largest_own = demand.all_largest_own + largest_own_pages(request);

    const bool may = pinned_then + largest_own <= pages_.num_pages();
    const int32_t decoding = static_cast<int32_t>(std::min<int64_t>(running_.size(), max_batch_tokens_ - 1));
    const int32_t prefill_steps = (pinned_tokens + own_tokens) / (max_batch_tokens_ - decoding);
    const auto steps = static_cast<int32_t>(std::min<int64_t>(
        int64_t{expected_steps(request, own_tokens)} + prefill_steps, std::numeric_limits<int32_t>::max()));
    demand.forecast.add(own_pages, own_tokens, steps);
    if (running_.empty()) {
        assert(may);
    } else if (!may || pinned_then + std::min(demand.forecast.peak_pages(), all_largest_own) > pages_.num_pages()) {
        demand.forecast.remove(own_pages, own_tokens, steps);
        return false;
    }
    demand.largest_own = largest_own;
    demand.all_largest_own = all_largest_own;

    for (auto s = chain_.rbegin(); s != chain_.rend(); ++s) pin(*s);
    if (returns) {
        preempted_.pop_back();
    } else {
        ++next_in_order_;
        request.num_cached_tokens = request.own_begin - pinned_tokens;
        stats_.cached_prompt_tokens += request.num_cached_tokens;
        request.lengths_id = request.parent == kNone ? 0 : shared_[request.parent].lengths_id;
        request.work = std::make_unique<Work>();
        request.work->own.parent = request.parent;
        request.work->own.begin = request.own_begin;
    }
    pages_.allocate(own_segment(place), own_pages, request.work->own.pages);
    prefill_queue_.push_back(own_segment(place));
    request.status = Status::kPrefill;
    running_.push_back(place);
    return true;
}

void BatchPlanner::pin(SegmentId shared) {
    SharedSegment& segment = shared_[shared];
    segment.lengths_id = open_lengths(shared);
    if (can_borrow(shared)) {
        SharedSegment& source = shared_[segment.source];
        const auto end = source.kv.pages.begin() + shared_pages(shared);
        segment.kv.pages.assign(source.kv.pages.begin(), end);
        segment.kv.num_stored = num_tokens_of(segment);  // by the time it is read: the source is queued before it
        segment.borrows = true;
        ++source.num_holders;
        stats_.borrowed_prompt_tokens += num_tokens_of(segment);
        return;
    }
    pages_.allocate(shared, shared_pages(shared), segment.kv.pages);
    num_pinned_pages_ += static_cast<int64_t>(segment.kv.pages.size());
    prefill_queue_.push_back(shared);
}

// One holder less; the last one frees it.
void BatchPlanner::release(SegmentId shared) {
    SharedSegment& segment = shared_[shared];
    if (--segment.num_holders > 0) return;
    const SegmentId parent = segment.kv.parent;
    if (segment.lengths_id != (parent == kNone ? 0 : shared_[parent].lengths_id)) {
        unused_lengths_.push_back(segment.lengths_id);
    }
    if (segment.borrows) {
        segment.kv.pages = {};
        release(segment.source);
        return;
    }
    num_pinned_pages_ -= static_cast<int64_t>(segment.kv.pages.size());
    pages_.release(shared, segment.kv.pages);
}

// The estimator for a segment that is being pinned: its own where enough requests read it to learn from.
int32_t BatchPlanner::open_lengths(SegmentId shared) {
    constexpr int32_t kWorthLearning = 64;  // readers
    const SegmentId parent = shared_[shared].kv.parent;
    const int32_t around = parent == kNone ? 0 : shared_[parent].lengths_id;
    if (shared_[shared].num_holders < kWorthLearning) return around;
    if (unused_lengths_.empty()) {
        lengths_.push_back({{}, around});
        return static_cast<int32_t>(lengths_.size()) - 1;
    }
    const int32_t id = unused_lengths_.back();
    unused_lengths_.pop_back();
    lengths_[id] = {{}, around};
    return id;
}

// The next `count` tokens of a segment become rows of the batch.
void BatchPlanner::append_span(TokenBatch& batch, SegmentId segment, int32_t count) {
    StoredSegment& kv = stored(segment);
    Request* const request = is_shared(segment) ? nullptr : &requests_[reader_of_own(segment)];
    const TokenId* const prompt = request ? request->prompt : shared_[segment].prompt;
    const int32_t prompt_end = request ? request->prompt_length : shared_[segment].end;
    const int32_t begin = kv.begin + kv.num_stored;
    const int32_t end = begin + count;
    for (int32_t position = begin; position < end; ++position) {
        const int32_t offset = position - kv.begin;
        batch.token_ids.push_back(position < prompt_end ? prompt[position]
                                                        : request->work->output[position - prompt_end]);
        batch.positions.push_back(position);
        batch.slots.push_back(int64_t{kv.pages[offset / page_size_]} * page_size_ + offset % page_size_);
    }
    kv.num_stored += count;
    stats_.computed_prompt_tokens += std::max(std::min(end, prompt_end) - begin, 0);
    if (request) {
        int32_t& computed_end = request->computed_end;
        stats_.recomputed_tokens += std::max(std::min(end, computed_end) - begin, 0);
        stats_.recomputed_prompt_tokens += std::max(std::min({end, computed_end, prompt_end}) - begin, 0);
        computed_end = std::max(computed_end, end);
        if (end == request->num_tokens()) {
            batch.logit_rows.push_back(batch.num_tokens() - 1);
            batch.logit_request_ids.push_back(request->id);
            awaited_.push_back(reader_of_own(segment));
        }
    }

    chain_.clear();
    for (SegmentId s = segment; s != kNone; s = stored(s).parent) chain_.push_back(s);
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
    while (is_shared(segment) && shared_[segment].borrows &&
           shared_[shared_[segment].source].end == segment_end(segment)) {
        segment = shared_[segment].source;  // all of it: one segment for the readers of both
    }
    StoredSegment& kv = stored(segment);
    if (kv.batch_id != kNone) return kv.batch_id;
    kv.batch_id = batch.num_segments();
    numbered_segments_.push_back(segment);
    const auto pages_end = kv.pages.begin() + pages_for(kv.num_stored);
    batch.segment_page_ids.insert(batch.segment_page_ids.end(), kv.pages.begin(), pages_end);
    batch.segment_page_indptr.push_back(static_cast<int32_t>(batch.segment_page_ids.size()));
    batch.segment_begin.push_back(kv.begin);
    batch.segment_num_tokens.push_back(kv.num_stored);
    return kv.batch_id;
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
        request.work->output.push_back(sampled[i]);
        const int32_t num_output_tokens = request.num_output_tokens();
        if (LengthEstimator::is_news(num_output_tokens)) {
            for (int32_t id = request.lengths_id; id != kNone; id = lengths_[id].parent) {
                lengths_[id].outputs.reach(num_output_tokens);
            }
        }
        const bool by_itself = !finished.empty() && finished[i];
        if (by_itself || num_output_tokens == request.max_output_tokens) {
            finish(awaited_[i], by_itself);
            finished_requests.push_back(request.id);
        }
    }
    if (!finished_requests.empty()) {
        std::erase_if(running_, [&](Place place) { return requests_[place].status == Status::kFinished; });
    }
    stats_.output_tokens += static_cast<int64_t>(awaited_.size());
    stats_.finished += static_cast<int64_t>(finished_requests.size());
    awaited_.clear();
    in_flight_ = false;
    return finished_requests;
}

void BatchPlanner::finish(Place place, bool by_itself) {
    Request& request = requests_[place];
    request.status = Status::kFinished;
    if (by_itself) {
        for (int32_t group = request.lengths_id; group != kNone; group = lengths_[group].parent) {
            lengths_[group].outputs.end(request.num_output_tokens());
        }
    }
    pages_.release(own_segment(place), request.work->own.pages);
    for (SegmentId s = request.parent; s != kNone;) {
        const SegmentId parent = shared_[s].kv.parent;
        release(s);
        s = parent;
    }
}

PlannerStats BatchPlanner::stats() const {
    PlannerStats stats = stats_;
    stats.num_pages = pages_.num_pages();
    stats.used_pages = pages_.num_used();
    stats.peak_pages = pages_.peak_used();
    stats.running = static_cast<int64_t>(running_.size());
    stats.waiting = num_waiting() + static_cast<int64_t>(preempted_.size());
    return stats;
}

std::vector<RequestId> BatchPlanner::order() const {
    std::vector<RequestId> order;
    order.reserve(requests_.size());
    for (const Request& request : requests_) order.push_back(request.id);
    return order;
}

std::span<const TokenId> BatchPlanner::output_tokens(RequestId request) const {
    if (place_[request] == kNone || !requests_[place_[request]].work) return {};
    return requests_[place_[request]].work->output;
}

int32_t BatchPlanner::num_cached_tokens(RequestId request) const {
    return place_[request] == kNone ? 0 : requests_[place_[request]].num_cached_tokens;
}

}  // namespace batchllm
