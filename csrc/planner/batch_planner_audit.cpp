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
    audit_counts();
}

// Every page a segment lists is its own or its source's, no page is listed twice, and what is stored fits.
void BatchPlanner::audit_pages() const {
    pages_.audit();
    int64_t num_used = 0, num_pinned = 0;
    std::vector<bool> listed(pages_.num_pages(), false);
    const auto expect_owner = [&](SegmentId segment, const StoredSegment& kv) {
        for (const PageId page : kv.pages) {
            expect(!listed[page] && pages_.owner(page) == segment,
                   "segment " + std::to_string(segment) + ": owns the pages it lists");
            listed[page] = true;
        }
        num_used += static_cast<int64_t>(kv.pages.size());
    };
    for (SegmentId s = 0; s < num_shared(); ++s) {
        const SharedSegment& shared = shared_[s];
        const auto num_pages = static_cast<int64_t>(shared.kv.pages.size());
        const std::string name = "segment " + std::to_string(s) + ": ";
        expect(shared.kv.batch_id == kNone, name + "has no number outside next_batch");
        if (num_pages == 0) continue;
        expect(num_pages == shared_pages(s), name + "is pinned at full size");
        expect(shared.kv.num_stored <= num_tokens_of(shared), name + "stores no more than it has");
        if (shared.borrows) {
            const SharedSegment& source = shared_[shared.source];
            expect(source.kv.begin == shared.kv.begin && source.end >= shared.end &&
                       std::equal(shared.kv.pages.begin(), shared.kv.pages.end(), source.kv.pages.begin()),
                   name + "reads the first pages of its source");
            const TokenId* own = requests_[shared.owner_request].prompt;
            expect(std::equal(own, own + shared.end, requests_[source.owner_request].prompt),
                   name + "has the tokens of its source");
            continue;
        }
        expect_owner(s, shared.kv);
        num_pinned += num_pages;
    }
    expect(num_pinned == num_pinned_pages_, "pinned pages are those of shared segments");
    for (RequestId request = 0; request < num_requests(); ++request) {
        if (!requests_[request].work) continue;
        expect_owner(own_segment(request), requests_[request].work->own);
        expect(requests_[request].work->own.batch_id == kNone, "an own segment has no number outside next_batch");
    }
    expect(num_used == pages_.num_used(), "used pages are those that segments list");

    int64_t largest_own = 0;
    for (RequestId request = 0; request < num_requests(); ++request) {
        const Status status = requests_[request].status;
        const std::string name = "request " + std::to_string(request) + ": ";
        expect((requests_[request].work == nullptr) == (status == Status::kWaiting || status == Status::kRefused),
               name + "has work once it started");
        if (!requests_[request].work) continue;
        const StoredSegment& own = requests_[request].work->own;
        expect(own.parent == requests_[request].parent && own.begin == requests_[request].own_begin,
               name + "its own part continues its chain");
        if (status != Status::kPrefill && status != Status::kDecode) {
            expect(own.pages.empty(), name + "holds pages only while it runs");
            if (status == Status::kPreempted)
                largest_own = std::max(largest_own, largest_own_pages(requests_[request]));
            continue;
        }
        largest_own = std::max(largest_own, largest_own_pages(requests_[request]));
        const auto num_pages = static_cast<int64_t>(own.pages.size());
        expect(num_pages <= largest_own_pages(requests_[request]), name + "grows no larger than planned");
        const int64_t pending = requests_[request].num_tokens() - own.begin - own.num_stored;
        if (status == Status::kPrefill) {
            expect(pending >= 1, name + "is prefilled until nothing is pending");
            expect(num_pages == pages_for(requests_[request].num_tokens() - own.begin),
                   name + "holds its prompt's pages");
        } else {
            expect(pending == (in_flight_ ? 0 : 1), name + "has one token to decode");
            expect(num_pages == pages_for(own.num_stored), name + "holds the pages of its tokens");
        }
    }
    expect(num_pinned + largest_own <= pages_.num_pages(), "the oldest request can always finish");
}

// Running, preempted and waiting requests in plan order; the prefill queue root first.
void BatchPlanner::audit_queues() const {
    std::vector<int64_t> rank(num_requests(), -1);
    for (size_t i = 0; i < order_.size(); ++i) {
        expect(rank[order_[i]] < 0, "order names a request once");
        rank[order_[i]] = static_cast<int64_t>(i);
    }
    for (RequestId request = 0; request < num_requests(); ++request) {
        expect((rank[request] < 0) == (requests_[request].status == Status::kRefused), "order names all but refused");
    }
    for (size_t i = 0; i < order_.size(); ++i) {
        const bool waits = requests_[order_[i]].status == Status::kWaiting;
        expect(waits == (i >= next_in_order_), "requests start in order");
    }
    std::vector<RequestId> started = running_;
    started.insert(started.end(), preempted_.rbegin(), preempted_.rend());
    for (size_t i = 0; i < started.size(); ++i) {
        const Status status = requests_[started[i]].status;
        const bool runs = status == Status::kPrefill || status == Status::kDecode;
        expect(i < running_.size() ? runs : status == Status::kPreempted, "queues hold what their name says");
        expect(i == 0 || rank[started[i - 1]] < rank[started[i]], "preempted requests are the youngest");
    }
    const auto is_live = [](const Request& request) {
        return request.status == Status::kPrefill || request.status == Status::kDecode ||
               request.status == Status::kPreempted;
    };
    expect(std::count_if(requests_.begin(), requests_.end(), is_live) == static_cast<int64_t>(started.size()),
           "every started, unfinished request runs or is preempted");

    std::set<SegmentId> queued;
    for (size_t i = 0; i < prefill_queue_.size(); ++i) {
        const SegmentId segment = prefill_queue_[i];
        const StoredSegment& kv = stored(segment);
        expect(queued.insert(segment).second && !kv.pages.empty(), "the prefill queue holds segments with pages, once");
        if (i > 0) expect(kv.num_stored == 0, "only the front of the prefill queue is half computed");
        expect(kv.begin + kv.num_stored < segment_end(segment), "the prefill queue has work");
        if (is_shared(segment)) continue;
        expect(i + 1 == prefill_queue_.size() && running_.back() == reader_of_own(segment) &&
                   requests_[running_.back()].status == Status::kPrefill,
               "the last to be prefilled is the youngest request");
    }
    for (const RequestId request : running_) {
        if (requests_[request].status == Status::kPrefill) {
            expect(queued.contains(own_segment(request)), "a request in prefill is queued");
        }
    }
    for (SegmentId s = 0; s < num_shared(); ++s) {
        if (!is_pinned(s)) continue;
        const bool complete = shared_[s].kv.num_stored == num_tokens_of(shared_[s]);
        expect(complete != queued.contains(s), "a pinned segment is complete or queued");
    }
}

void BatchPlanner::audit_counts() const {
    std::vector<int32_t> num_holders(num_shared(), 0);
    std::vector<bool> has_started(num_shared(), false);
    int64_t num_finished = 0, num_output_tokens = 0, num_cached = 0;
    int64_t num_first_computed = 0, num_prompt_tokens_started = 0;
    for (RequestId id = 0; id < num_requests(); ++id) {
        const Request& request = requests_[id];
        const bool finished = request.status == Status::kFinished;
        const bool started = finished || (request.status != Status::kWaiting && request.status != Status::kRefused);
        num_finished += finished;
        num_output_tokens += request.num_output_tokens();
        num_cached += request.num_cached_tokens;
        expect(request.num_output_tokens() <= request.max_output_tokens, "outputs keep their bound");
        expect(started || request.num_cached_tokens == 0, "nothing is cached for a request before it starts");
        if (started) num_prompt_tokens_started += request.prompt_length;
        if (started) num_first_computed += request.prompt_length - request.own_begin;
        for (SegmentId s = request.parent; s != kNone; s = shared_[s].kv.parent) {
            num_holders[s] += !finished;
            if (started) has_started[s] = true;
        }
    }
    for (SegmentId s = num_shared() - 1; s >= 0; --s) {  // a source comes before those that borrow from it
        const std::string name = "segment " + std::to_string(s) + ": ";
        expect(num_holders[s] == shared_[s].num_holders, name + "counts its unfinished readers and its borrowers");
        expect(is_pinned(s) == (has_started[s] && num_holders[s] > 0),
               name + "is pinned from its first reader's start to its last reader's end");
        if (is_pinned(s) && shared_[s].borrows) ++num_holders[shared_[s].source];
        if (has_started[s] && !shared_[s].borrows) num_first_computed += num_tokens_of(shared_[s]);
    }
    expect(num_cached == num_prompt_tokens_started - num_first_computed, "cached tokens are those not computed");
    expect(num_cached == stats_.cached_prompt_tokens, "cached tokens are counted");
    expect(num_finished == stats_.finished, "finished requests are counted");
    expect(num_output_tokens == stats_.output_tokens, "output tokens are counted");
    const PlannerStats counted = stats();
    expect(
        counted.running + counted.waiting + counted.finished + static_cast<int64_t>(refused_.size()) == num_requests(),
        "every request runs, waits, is finished or refused");
}

}  // namespace batchllm
