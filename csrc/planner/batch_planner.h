// Turns a job into token batches: next_batch() -> run the model -> commit(), until everything is answered.
//
// Segments. A shared segment is a run of prompt tokens. A request's own segment is the rest of its prompt (at least
// the last token) and what it generates, except the last token, whose K/V nobody reads.
//
// Order. Requests start in group order, depth-first over the forest of segments; a preempted one returns before
// any new one, and requests added later start after those that were there. Admission is first come, first served in
// that order: a request that does not fit is waited for.
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
//   when   pages of all pinned segments + the most that the own parts of running requests are expected to hold at
//          any time to come (KvForecast of expected lengths; never more than all at their longest) do not exceed it.
// Where nothing runs, `may` alone decides. When a decode finds no free page, the youngest running request gives its
// own pages back (its generated tokens are kept and computed again later). Pinned segments are never evicted.
//
// Why a job always ends. While something runs, the oldest running request finishes: by `may` it fits beside the pinned
// segments once all younger ones gave way; it decodes in every step, or is itself the youngest (only that one can be
// in prefill), and then prefill has the whole budget. Where nothing runs, the next request always passes `may`. A
// preempted one passed it when more was pinned. For a new one, order is depth-first, so every pinned segment outside
// its chain has had all its readers started, hence finished, hence is not pinned; what remains is its own chain and
// its own need, which fit the pool: else it was detached from its chain, or refused, when it was added.
//
// Requests added later bring segments of their own, which may borrow: where such a segment starts and its `source`,
// an older segment that begins with the same tokens, is pinned, it takes the source's pages instead of computing
// them, and holds the source until its own last reader finishes. Where the source is gone, it is computed like any
// other. A chain that would not fit the pool beside all of its sources does not borrow, so the argument above holds.
#pragma once

#include <cstdint>
#include <deque>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "planner/borrowing.h"
#include "planner/group_order.h"
#include "planner/ids.h"
#include "planner/kv_forecast.h"
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
    int32_t max_running_requests = std::numeric_limits<int32_t>::max();  // KV memory alone bounds them
    GroupOrder order = GroupOrder::kDecodeFirst;
};

struct PlannerStats {
    int64_t num_requests = 0;              // scheduled or refused
    int64_t prompt_tokens = 0;             // of scheduled requests
    int64_t cached_prompt_tokens = 0;      // num_cached_tokens of all requests that started
    int64_t borrowed_prompt_tokens = 0;    // of segments of added requests that took older ones' pages, each once
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
    explicit BatchPlanner(const PlannerOptions& options);

    // Adds requests, before or while others run; their ids follow those there are. The tokens of the prompts must
    // outlive the planner. max_output_tokens [num_requests], at least 1 each. expected_output_tokens [num_requests],
    // or empty; 0 where unknown: then max_output_tokens orders the request, and its group and the job teach its length.
    // reader_cost: borrowing must save more tokens than that a reader (choose_segments).
    // Returns the id of the first. Throws std::invalid_argument and adds nothing where check_job() does.
    RequestId add_requests(const Prompts& prompts, Segments segments, std::span<const int32_t> max_output_tokens,
                           std::span<const int32_t> expected_output_tokens = {}, double reader_cost = 0.0);

    std::optional<TokenBatch> next_batch();  // nullopt once every request is answered

    // sampled [num_logits] continues the batch's logit_request_ids; finished [num_logits] or empty. A request also
    // finishes at its max_output_tokens. Returns the requests that finished.
    std::vector<RequestId> commit(std::span<const TokenId> sampled, std::span<const uint8_t> finished);

    RequestId num_requests() const { return static_cast<RequestId>(place_.size()); }
    std::vector<RequestId> order() const;  // scheduled requests, first to start first
    const std::vector<std::pair<RequestId, std::string>>& refused() const { return refused_; }
    std::span<const TokenId> output_tokens(RequestId request) const;  // valid until the next call of commit()

    // Prompt tokens that others computed for a request; 0 before it starts. A shared segment is charged to its first
    // reader that starts. The sum is prompt_tokens less what was computed for the first time.
    int32_t num_cached_tokens(RequestId request) const;
    PlannerStats stats() const;

    // Recomputes every count, range, reader count and page owner from first principles; throws std::logic_error.
    void audit() const;

 private:
    // Inside, requests stand in plan order, so that those that run together are neighbours in memory: a request is
    // named by its place. Refused ones have none.
    using Place = int32_t;
    enum class Status : uint8_t { kWaiting, kPrefill, kDecode, kPreempted, kFinished };

    struct StoredSegment {  // shared or own
        SegmentId parent = kNone;
        int32_t begin = 0;         // position of its first token
        int32_t num_stored = 0;    // tokens with K/V, those of the batch in flight included
        int32_t batch_id = kNone;  // its number in the batch that is being built
        std::vector<PageId> pages = {};
    };
    struct SharedSegment {
        StoredSegment kv;
        const TokenId* prompt;   // of a request that holds its tokens
        int32_t end;             // position after its last token
        int32_t num_holders;     // unfinished readers, and pinned segments that borrow its pages
        SegmentId source;        // an older segment that begins with the same tokens, or kNone
        int32_t lengths_id = 0;  // while pinned: the estimator of its group, or of the closest one above
        bool borrows = false;    // its pages are the source's
    };
    struct Work {  // of a request that started
        StoredSegment own;
        std::vector<TokenId> output;
    };
    struct Request {
        const TokenId* prompt;
        RequestId id;
        int32_t prompt_length;
        int32_t max_output_tokens;
        int32_t expected_output_tokens;  // 0: unknown
        SegmentId parent;                // the deepest segment of its chain
        int32_t own_begin;               // position where its own segment begins
        int32_t num_cached_tokens = 0;
        int32_t computed_end = 0;  // own positions below it were computed before: again is recomputation
        int32_t lengths_id = 0;    // once started: the estimator it teaches, as SharedSegment has it
        Status status = Status::kWaiting;
        std::unique_ptr<Work> work = {};  // null until it starts: a job has far more requests than ever run at once

        int32_t num_output_tokens() const { return work ? static_cast<int32_t>(work->output.size()) : 0; }
        int32_t num_tokens() const { return prompt_length + num_output_tokens(); }  // prompt and generated
    };
    struct GroupLengths {
        LengthEstimator outputs;
        int32_t parent;  // the estimator of the group around; kNone for the job's
    };
    struct Demand {  // of the running requests
        KvForecast forecast;
        int64_t largest_own = 0;      // in pages
        int64_t all_largest_own = 0;  // summed
    };

    // A SegmentId inside the planner: shared_ where it is >= 0, a request's own below kNone.
    static SegmentId own_segment(Place request) { return kNone - 1 - request; }
    static Place reader_of_own(SegmentId segment) { return kNone - 1 - segment; }
    static bool is_shared(SegmentId segment) { return segment >= 0; }
    StoredSegment& stored(SegmentId segment) {
        return is_shared(segment) ? shared_[segment].kv : requests_[reader_of_own(segment)].work->own;
    }
    const StoredSegment& stored(SegmentId segment) const { return const_cast<BatchPlanner*>(this)->stored(segment); }

    BorrowedSegments borrow(const Prompts& prompts, Segments segments, double reader_cost) const;
    std::vector<bool> detach_or_refuse(const Prompts& prompts, Segments& segments,
                                       std::span<const int32_t> max_output_tokens);
    void forgo_sources_that_do_not_fit(Place first);
    int64_t held_pages(SegmentId shared) const;

    void schedule_decodes(TokenBatch& batch);
    void schedule_prefills(TokenBatch& batch);
    bool make_room(Place place);
    void preempt_youngest();
    Demand demand_of_running();
    bool try_admit_next(Demand& demand);
    void pin(SegmentId shared);
    void release(SegmentId shared);
    void append_span(TokenBatch& batch, SegmentId segment, int32_t count);
    int32_t batch_segment(TokenBatch& batch, SegmentId segment);
    int32_t open_lengths(SegmentId shared);
    int32_t expected_output(const Request& request);
    int32_t expected_steps(const Request& request, int32_t num_own_tokens);
    void finish(Place place, bool by_itself);

    void audit_pages() const;
    void audit_queues() const;
    void audit_counts() const;

    bool is_pinned(SegmentId shared) const { return !shared_[shared].kv.pages.empty(); }
    bool can_borrow(SegmentId shared) const {
        return shared_[shared].source != kNone && is_pinned(shared_[shared].source);
    }
    int32_t segment_end(SegmentId segment) const {  // position after its last known token
        return is_shared(segment) ? shared_[segment].end : requests_[reader_of_own(segment)].num_tokens();
    }
    int32_t num_tokens_of(const SharedSegment& shared) const { return shared.end - shared.kv.begin; }
    int64_t pages_for(int64_t num_tokens) const { return (num_tokens + page_size_ - 1) / page_size_; }
    Place num_places() const { return static_cast<Place>(requests_.size()); }
    int64_t num_waiting() const { return num_places() - next_in_order_; }  // those that never started
    SegmentId num_shared() const { return static_cast<SegmentId>(shared_.size()); }
    int64_t shared_pages(SegmentId shared) const { return pages_for(num_tokens_of(shared_[shared])); }
    int64_t largest_own_pages(const Request& request) const {  // nobody reads the K/V of the last token
        return pages_for(int64_t{request.prompt_length} - request.own_begin + request.max_output_tokens - 1);
    }

    const int32_t page_size_;
    const int32_t max_batch_tokens_;
    const int32_t max_running_requests_;
    const GroupOrder group_order_;

    std::vector<std::pair<RequestId, std::string>> refused_;
    std::vector<Place> place_;           // [num_requests]; kNone where refused
    std::vector<Request> requests_;      // by place
    std::vector<SharedSegment> shared_;  // parents precede children

    PageAllocator pages_;
    int64_t num_pinned_pages_ = 0;  // borrowed ones counted once

    std::vector<GroupLengths> lengths_;  // [0] is the job's; the others of pinned segments
    std::vector<int32_t> unused_lengths_;

    Place next_in_order_ = 0;              // the first request that never started
    std::vector<Place> running_;           // oldest first
    std::vector<Place> preempted_;         // a stack, oldest on top: all are younger than those that run
    std::deque<SegmentId> prefill_queue_;  // at most one own segment, the youngest running request's, at the back

    bool in_flight_ = false;
    std::vector<Place> awaited_;                // the batch in flight samples a token of each
    TokenBatch::Size last_size_{};              // of the batch before
    std::vector<SegmentId> numbered_segments_;  // those with a batch_id
    std::vector<SegmentId> chain_;              // scratch

    PlannerStats stats_;
};

}  // namespace batchllm
