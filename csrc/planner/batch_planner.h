// Turns a job into token batches: next_batch() -> run the model -> commit(), until everything is answered.
//
// Segments. Shared segments are numbered [0, num_shared); request r's own segment is num_shared + r: the rest of
// its prompt (at least the last token) and what it generates, except the last token, whose K/V nobody reads.
//
// Order. Requests start in group order, depth-first over the forest of segments; a preempted one returns before
// any new one. Admission is first come, first served in that order: a request that does not fit is waited for.
//
// One step. All decodes, oldest request first, one token each: at most max_batch_tokens, because a request joins them
// by a prefill within that budget. Then prefill with the rest of the budget: a queue in order of admission, in which
// newly pinned segments stand root first before the request that brought them. So a prefix is computed once, in the
// same batch as its readers or an earlier one. Requests are admitted only when the queue runs dry, so pages are not
// held by prompts that wait for compute.
//
// Admission. A shared segment is pinned, with all its pages, when its first reader starts, and freed when its last
// reader finishes. A request holds the pages of its own prompt when it starts, and takes one more at a time.
//   may    pages of all pinned segments + the largest own need of any started, unfinished request, at its longest,
//          never exceed the pool;
//   when   pages for what is newly pinned, for the own prompt and for the expected growth of all that run are free.
//          Where nothing runs, `may` alone decides.
// When a decode finds no free page, the youngest running request gives its own pages back (its generated tokens
// are kept and computed again later). Pinned segments are never evicted.
//
// Why a job always ends. While something runs, the oldest running request finishes: by `may` it fits beside the pinned
// segments once all younger ones gave way; it decodes in every step, or is itself the youngest (only that one can be
// in prefill), and then prefill has the whole budget. Where nothing runs, the next request always passes `may`. A
// preempted one passed it when more was pinned. For a new one, order is depth-first, so every pinned segment outside
// its chain has had all its readers started, hence finished, hence is not pinned; what remains is its own chain and
// its own need, which fit the pool: else it was detached from its chain, or refused, when the job was planned.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "planner/ids.h"
#include "planner/length_estimator.h"
#include "planner/page_allocator.h"
#include "planner/prompts.h"
#include "planner/segments.h"
#include "planner/token_batch.h"

namespace batchllm {

struct PlannerOptions {
    int32_t num_pages;
    int32_t page_size = 16;
    int32_t max_batch_tokens = 1024;
};

struct PlannerStats {
    int64_t num_requests = 0;              // scheduled or refused
    int64_t prompt_tokens = 0;             // of scheduled requests
    int64_t computed_prompt_tokens = 0;    // recomputation included
    int64_t recomputed_prompt_tokens = 0;  // of them, after preemptions
    int64_t recomputed_tokens = 0;         // prompt and generated
    int64_t output_tokens = 0;
    int64_t steps = 0;
    int64_t preemptions = 0;
    int64_t num_pages = 0, used_pages = 0, peak_pages = 0;
    int64_t running = 0, waiting = 0, finished = 0;  // preempted requests wait
};

class BatchPlanner {
 public:
    // max_output_tokens [num_requests], at least 1 each. expected_output_tokens [num_requests] or empty: then
    // max_output_tokens orders the job, and admission learns from the requests that finish.
    BatchPlanner(const Prompts& prompts, Segments segments, std::vector<int32_t> max_output_tokens,
                 std::vector<int32_t> expected_output_tokens, const PlannerOptions& options);

    std::optional<TokenBatch> next_batch();  // nullopt once every request is answered

    // sampled [num_logits] continues the batch's logit_request_ids; finished [num_logits] or empty. A request also
    // finishes at its max_output_tokens. Returns the requests that finished.
    std::vector<RequestId> commit(std::span<const TokenId> sampled, std::span<const uint8_t> finished);

    RequestId num_requests() const { return static_cast<RequestId>(requests_.size()); }
    const std::vector<RequestId>& order() const { return order_; }  // scheduled requests, first to start first
    const std::vector<std::pair<RequestId, std::string>>& refused() const { return refused_; }
    const std::vector<TokenId>& output_tokens(RequestId request) const { return requests_[request].output; }

    // [num_requests]: prompt tokens that others computed for a request. A shared segment is charged to its first
    // reader that starts. The sum is prompt_tokens less what was computed for the first time.
    const std::vector<int32_t>& num_cached_tokens() const { return num_cached_tokens_; }
    PlannerStats stats() const;

    // Recomputes every count, range, reader count and page owner from first principles; throws std::logic_error.
    void audit() const;

 private:
    enum class Status : uint8_t { kWaiting, kPrefill, kDecode, kPreempted, kFinished, kRefused };

    struct Request {
        Status status = Status::kWaiting;
        int32_t computed_end = 0;  // own positions below it were computed before: again is recomputation
        std::vector<TokenId> output;
    };
    struct StoredSegment {  // shared or own
        SegmentId parent;
        int32_t begin;             // position of its first token
        int32_t num_stored = 0;    // tokens with K/V, those of the batch in flight included
        int32_t batch_id = kNone;  // its number in the batch that is being built
        std::vector<PageId> pages = {};
    };
    struct Demand {  // of the running requests, in pages
        int64_t largest_own = 0;
        int64_t expected_growth = 0;
    };

    void refuse_or_detach();
    void schedule_decodes(TokenBatch& batch);
    void schedule_prefills(TokenBatch& batch);
    bool make_room(RequestId request);
    void preempt_youngest();
    bool try_admit_next(Demand& demand);
    void append_span(TokenBatch& batch, SegmentId segment, int32_t count);
    int32_t batch_segment(TokenBatch& batch, SegmentId segment);
    void finish(RequestId request);
    void audit_pages() const;
    void audit_queues() const;
    void audit_counts() const;

    SegmentId own_segment(RequestId request) const { return shared_.num_segments() + request; }
    bool is_shared(SegmentId segment) const { return segment < shared_.num_segments(); }
    RequestId reader_of_own(SegmentId segment) const { return segment - shared_.num_segments(); }
    bool is_pinned(SegmentId shared) const { return !segments_[shared].pages.empty(); }

    int32_t num_tokens(RequestId request) const {  // prompt and generated
        return prompts_.prompt_length(request) + static_cast<int32_t>(requests_[request].output.size());
    }
    int32_t segment_end(SegmentId segment) const {  // position after its last known token
        return is_shared(segment) ? shared_.token_end()[segment] : num_tokens(reader_of_own(segment));
    }
    int64_t pages_for(int64_t num_tokens) const { return (num_tokens + page_size_ - 1) / page_size_; }
    int64_t shared_pages(SegmentId shared) const { return pages_for(shared_.num_tokens(shared)); }
    int64_t own_pages(RequestId request, int64_t num_output_tokens) const;
    int64_t largest_own_pages(RequestId request) const { return own_pages(request, max_output_tokens_[request]); }
    int64_t expected_growth(RequestId request, int64_t pages_held) const;

    Prompts prompts_;
    Segments shared_;  // the forest, less what was detached
    std::vector<int32_t> max_output_tokens_;
    std::vector<int32_t> expected_output_tokens_;
    const int32_t page_size_;
    const int32_t max_batch_tokens_;
    const bool learns_lengths_;

    std::vector<RequestId> order_;
    std::vector<std::pair<RequestId, std::string>> refused_;

    std::vector<Request> requests_;                // [num_requests]
    std::vector<StoredSegment> segments_;          // [num_shared + num_requests]
    std::vector<int32_t> num_unfinished_readers_;  // [num_shared]
    std::vector<int32_t> num_cached_tokens_;       // [num_requests]

    PageAllocator pages_;
    int64_t num_pinned_pages_ = 0;
    LengthEstimator lengths_;

    size_t next_in_order_ = 0;             // the first request in order_ that never started
    std::vector<RequestId> running_;       // oldest first
    std::vector<RequestId> preempted_;     // a stack, oldest on top: all are younger than those that run
    std::deque<SegmentId> prefill_queue_;  // at most one own segment, the youngest running request's, at the back

    bool in_flight_ = false;
    std::vector<RequestId> awaited_;            // logit_request_ids of the batch in flight
    std::vector<SegmentId> numbered_segments_;  // those with a batch_id
    std::vector<SegmentId> chain_;              // scratch

    PlannerStats stats_;
};

}  // namespace batchllm
