// BatchPlanner::audit(): what must hold after every next_batch() and commit(), from first principles.
#include <algorithm>
#include <set>
#include <stdexcept>

#include "planner/batch_planner.h"

namespace batchllm {

namespace {

void expect(bool holds, const std::string& law) {
    if (!holds) throw std::logic_error("BatchPlanner::audit: " + law);
}

}  // namespace

void BatchPlanner::audit() const {
    audit_pages();
    audit_queues();
    audit_untold();
    audit_counts();
}

// Every page that a segment lists is its own or its source's, no page is listed twice, and the stored tokens fit.
void BatchPlanner::audit_pages() const {
    pages_.audit();
    int64_t num_used = 0, num_pinned = 0;
    std::vector<bool> listed(pages_.peak_used(), false);
    const auto expect_owner = [&](AnySegment segment, const std::string& name, const StoredSegment& kv) {
        for (const PageId page : kv.pages) {
            expect(!listed[page] && pages_.owner(page) == segment, name + "owns the pages it lists");
            listed[page] = true;
        }
        num_used += static_cast<int64_t>(kv.pages.size());
    };
    const auto expect_window = [&](const std::string& name, int32_t begin, const StoredSegment& kv) {
        const int32_t num_dropped = kv.begin - begin;
        expect(num_dropped >= 0 && num_dropped % page_size_ == 0, name + "drops whole pages");
        expect(num_dropped == 0 || window_.drops(kv.num_stored + page_size_), name + "keeps its window");
        expect(in_flight_ || !window_.drops(kv.num_stored), name + "keeps nothing that no later row sees");
    };
    for (SegmentId s{0}; s.index < shared_.size(); ++s.index) {
        const SharedSegment& shared = shared_[s];
        const auto num_pages = static_cast<int64_t>(shared.kv.pages.size());
        const std::string name = "segment " + std::to_string(s.index) + ": ";
        expect(shared.batch_number == kNone, name + "has no number outside next_batch");
        if (!shared.is_pinned) {
            expect(num_pages == 0, name + "holds pages only while it is pinned");
            continue;
        }
        expect(shared.kv.begin + shared.kv.num_stored <= shared.end, name + "stores no more than it has");
        if (shared.borrows) {
            const SharedSegment& source = shared_[shared.source];
            const std::vector<PageId>& pages = shared_[shared_.stored_as(shared.source)].kv.pages;
            expect(num_pages == (shared_.stored_as(s) == s ? window_.pages_for(shared.num_tokens()) : 0),
                   name + "lists the pages that it reads only in part");
            expect(source.begin == shared.begin && source.end >= shared.end &&
                       std::equal(shared.kv.pages.begin(), shared.kv.pages.end(), pages.begin()),
                   name + "reads the first pages of its source");
            expect(source.end == shared.end || !shared_.has_dropped(shared.source), name + "reads what is kept");
            expect(std::equal(shared.prompt, shared.prompt + shared.end, source.prompt),
                   name + "has the tokens of its source");
            continue;
        }
        expect(num_pages == window_.most_pages(shared.end - shared.kv.begin), name + "is pinned with all it needs");
        expect_window(name, shared.begin, shared.kv);
        expect_owner(s, name, shared.kv);
        num_pinned += num_pages;
    }
    expect(num_pinned == shared_.num_pinned_pages(), "pinned pages are those of shared segments");
    for (Place place{0}; place.index < num_places(); ++place.index) {
        const Request& request = request_at(place);
        const std::string name = "request " + std::to_string(request.id.index) + ": ";
        if (request.work) expect_owner(place, name, request.work->own);
    }
    expect(num_used == pages_.num_used(), "used pages are those that segments list");

    int64_t largest_own = 0;
    for (const Request& request : requests_) {
        const std::string name = "request " + std::to_string(request.id.index) + ": ";
        if (request.status == Status::kForgotten) expect(!request.work, name + "keeps nothing once it is forgotten");
        if (request.status == Status::kWaiting) expect(!request.work, name + "has no work before it starts");
        if (!request.work) {
            expect(request.is_over() || request.status == Status::kWaiting, name + "has work once it started");
            continue;
        }
        const StoredSegment& own = request.work->own;
        if (request.status != Status::kFinished) largest_own = std::max(largest_own, largest_own_pages(request));
        if (request.status != Status::kPrefill && request.status != Status::kDecode) {
            expect(own.pages.empty(), name + "holds pages only while it runs");
            continue;
        }
        const auto num_pages = static_cast<int64_t>(own.pages.size());
        expect(num_pages <= largest_own_pages(request), name + "grows no larger than planned");
        expect_window(name, request.own_begin, own);
        const int64_t pending = request.num_tokens() - own.begin - own.num_stored;
        if (request.status == Status::kPrefill) {
            expect(pending >= 1, name + "is prefilled until nothing is pending");
            expect(num_pages == window_.most_pages(request.num_tokens() - own.begin),
                   name + "holds the pages that its prompt needs");
        } else {
            expect(pending == (in_flight_ ? 0 : 1), name + "has one token to decode");
            expect(num_pages == window_.pages_for(own.num_stored), name + "holds the pages of its tokens");
        }
    }
    expect(num_pinned + largest_own <= pages_.num_pages(), "the oldest request can always finish");
}

// Requests whose tokens are awaited or untold: each knows its row.
void BatchPlanner::audit_untold() const {
    expect(in_flight_ || awaited_.empty(), "only a batch in flight awaits tokens");
    expect(is_untold_ || untold_.empty(), "tokens that were told are awaited no more");
    for (const Place place : awaited_) {
        expect(place == kNoPlace || !request_at(place).is_over(), "no token is awaited of a request that is over");
    }
    int64_t num_untold = 0;
    for (const Request& request : requests_) {
        if (!request.work || request.work->untold == kNone) continue;
        ++num_untold;
        expect(untold_.at(request.work->untold) == place_of(request.id) && request.work->output.back() == kUntoldToken,
               "request " + std::to_string(request.id.index) + ": its last token is the one that is not told");
    }
    expect(num_untold == std::ssize(untold_) - std::count(untold_.begin(), untold_.end(), kNoPlace),
           "tokens that are not told are of requests that know it");
}

// Running, preempted and waiting requests in plan order; the prefill queue root first.
void BatchPlanner::audit_queues() const {
    for (const auto& [id, why] : refused_) {
        expect(id >= first_id_ && place_of(id) == kNoPlace, "a refused request has no place");
    }
    int64_t num_waiting = 0, num_forgotten = 0;
    for (Place place{0}; place.index < num_places(); ++place.index) {
        const Request& request = request_at(place);
        const bool is_named = request.status != Status::kForgotten;
        num_forgotten += !is_named;
        if (is_named) expect(place_of(request.id) == place, "a place holds the request that names it");
        const bool waits = request.status == Status::kWaiting;
        num_waiting += waits;
        expect(place >= next_in_order_ ? waits || request.is_over() : !waits, "requests start in order");
    }
    expect(num_waiting == num_waiting_, "waiting requests are counted");
    expect(num_forgotten == num_forgotten_places_, "places of forgotten requests are counted");
    const int64_t num_named = std::ssize(place_) - std::count(place_.begin(), place_.end(), kNoPlace);
    expect(num_named + num_forgotten == num_places(), "every place is named once");
    expect(next_in_order_.index == num_places() || !request_at(next_in_order_).is_over(),
           "the next in order is to start");
    std::vector<Place> started = running_;
    started.insert(started.end(), preempted_.rbegin(), preempted_.rend());
    for (size_t i = 0; i < started.size(); ++i) {
        const Status status = request_at(started[i]).status;
        const bool runs = status == Status::kPrefill || status == Status::kDecode;
        expect(i < running_.size() ? runs : status == Status::kPreempted, "queues hold what their name says");
        expect(i == 0 || started[i - 1] < started[i], "preempted requests are the youngest");
    }
    const auto is_live = [](const Request& request) {
        return request.status == Status::kPrefill || request.status == Status::kDecode ||
               request.status == Status::kPreempted;
    };
    expect(std::count_if(requests_.begin(), requests_.end(), is_live) == static_cast<int64_t>(started.size()),
           "every started, unfinished request runs or is preempted");

    std::set<AnySegment> queued;
    for (size_t i = 0; i < prefill_queue_.size(); ++i) {
        const AnySegment segment = prefill_queue_[i];
        const StoredSegment& kv = stored(segment);
        expect(queued.insert(segment).second && !kv.pages.empty(), "the prefill queue holds segments with pages, once");
        if (i > 0) expect(kv.num_stored == 0, "only the front of the prefill queue is half computed");
        expect(kv.begin + kv.num_stored < segment_end(segment), "the prefill queue has work");
        if (segment.is_shared()) continue;
        expect(i + 1 == prefill_queue_.size() && running_.back() == segment.reader() &&
                   request_at(running_.back()).status == Status::kPrefill,
               "the last to be prefilled is the youngest request");
    }
    for (const Place place : running_) {
        if (request_at(place).status == Status::kPrefill) {
            expect(queued.contains(place), "a request in prefill is queued");
        }
    }
    for (SegmentId s{0}; s.index < shared_.size(); ++s.index) {
        if (!shared_[s].is_pinned) continue;
        const bool complete = shared_[s].kv.begin + shared_[s].kv.num_stored == shared_[s].end;
        expect(complete != queued.contains(s), "a pinned segment is complete or queued");
    }
}

void BatchPlanner::audit_counts() const {
    std::vector<int32_t> num_holders(shared_.size(), 0);
    std::vector<bool> has_started(shared_.size(), false);
    std::vector<int32_t> num_unfinished(waves_.size(), 0);
    int64_t num_over = forgotten_.num_over, num_output_tokens = forgotten_.output_tokens;
    int64_t num_cached = forgotten_.cached_tokens, num_first_computed = forgotten_.first_computed_tokens;
    int64_t num_prompt_tokens_started = forgotten_.started_prompt_tokens;
    for (const Request& request : requests_) {
        if (request.status == Status::kForgotten) continue;
        const bool started = request.work != nullptr;
        num_over += request.is_over();
        num_output_tokens += request.num_output_tokens();
        num_cached += request.num_cached_tokens();
        expect(request.num_output_tokens() <= request.max_output_tokens, "outputs keep their bound");
        if (started) num_prompt_tokens_started += request.prompt_length;
        if (started) num_first_computed += request.prompt_length - request.own_begin;
        if (!request.is_over()) ++num_unfinished.at(request.wave - first_wave_);
        for (SegmentId s = request.parent; s != kNoSegment; s = shared_[s].parent) {
            num_holders[s.index] += !request.is_over();
            if (started) has_started[s.index] = true;
        }
    }
    for (size_t i = 0; i < waves_.size(); ++i) {
        expect(waves_[i].num_unfinished == num_unfinished[i], "unfinished requests of a wave are counted");
        expect(num_unfinished[i] > 0 || !waves_[i].tokens_owner, "tokens are given back with their last reader");
    }
    for (SegmentId s{shared_.size() - 1}; s.index >= 0; --s.index) {  // a source comes before those that borrow from it
        const std::string name = "segment " + std::to_string(s.index) + ": ";
        expect(num_holders[s.index] == shared_[s].num_holders,
               name + "counts its unfinished readers and its borrowers");
        expect(!has_started[s.index] || shared_[s].was_pinned, name + "is pinned when its first reader starts");
        expect(shared_[s].is_pinned == (shared_[s].was_pinned && num_holders[s.index] > 0),
               name + "is pinned from its first reader's start to its last reader's end");
        expect(num_holders[s.index] > 0 || !shared_[s].tokens_owner, name + "keeps no tokens that nobody will read");
        if (shared_[s].is_pinned && shared_[s].borrows) ++num_holders[shared_[s].source.index];
        if (shared_[s].was_pinned && !shared_[s].borrows) num_first_computed += shared_[s].num_tokens();
    }
    expect(num_cached == num_prompt_tokens_started - num_first_computed, "cached tokens are those not computed");
    expect(num_cached == stats_.cached_prompt_tokens, "cached tokens are counted");
    expect(num_over == stats_.finished + stats_.aborted, "finished and aborted requests are counted");
    expect(num_output_tokens == stats_.output_tokens, "output tokens are counted");
    const PlannerStats counted = stats();
    const int64_t num_refused = std::ssize(refused_) + forgotten_.num_refused;
    expect(counted.running + counted.waiting + counted.finished + counted.aborted + num_refused == stats_.num_requests,
           "every request runs, waits, is finished, aborted or refused");
}

}  // namespace batchllm
