// Turns a job into token batches: next_batch() -> run the model -> commit(), until everything is answered.
//
// Segments. A shared segment is a run of prompt tokens. A request's own segment is the rest of its prompt (at least
// the last token) and everything it generates except the last token, whose K/V nobody reads.
//
// Order. Requests start in group order, depth-first over the forest of segments. A preempted request returns before
// any new one starts, and requests added later start after the earlier ones. Admission is first come, first served in
// that order: if a request does not fit, the others wait for it.
//
// One step. All decodes, oldest request first, one token each: at most max_batch_tokens, because a request joins them
// by a prefill within that budget. Then prefill with the rest of the budget, from a queue in order of admission, in
// which newly pinned segments come root first before the request that brought them. So a prefix is computed once, in
// the same batch as its readers or an earlier one. Requests are admitted only when the queue is empty, so prompts that
// wait for compute hold no pages.
//
// Admission. A shared segment is pinned, with all its pages, when its first reader starts, and freed when its last
// reader finishes. A request holds the pages of its own prompt when it starts, and takes one more at a time.
//   may    pages of all pinned segments + the largest own need of any started, unfinished request, at its longest,
//          never exceed the pool;
//   when   pages of all pinned segments + the most that the own parts of running requests are expected to hold at
//          any later time (KvForecast of expected lengths; never more than all at their longest) do not exceed it.
// If nothing runs, `may` alone decides. When a decode finds no free page, the youngest running request gives its
// own pages back (its generated tokens are kept and computed again later). Pinned segments are never evicted.
//
// Why a job always ends. While something runs, the oldest running request finishes: by `may` it fits beside the pinned
// segments once all younger ones have given way. It decodes in every step, or it is itself the youngest (only that one
// can be in prefill), and then prefill has the whole budget. If nothing runs, the next request always passes `may`. A
// preempted one passed it when more was pinned. For a new one, order is depth-first, so every pinned segment outside
// its chain has had all its readers started, hence finished, hence is not pinned. What remains is its own chain and its
// own need, which fit the pool; otherwise it was detached from its chain, or refused, when it was added.
//
// Requests added later bring their own segments, which may borrow. If such a segment starts while its `source`, an
// older segment that begins with the same tokens, is pinned, it uses the source's pages instead of computing them, and
// holds the source until its own last reader finishes. If the source is gone, it is computed like any other. A chain
// that would not fit the pool beside all of its sources does not borrow, so the argument above holds.
//
// An aborted request counts as finished, without more output: reader counts and pages are released in the same way, so
// nothing above changes. What is half computed for later readers stays in the prefill queue.
//
// Tokens may be told one batch late. advance() counts one sampled token for each logit of the batch in flight, so that
// the next batch can be planned and queued behind it; commit() tells the tokens later:
//
//   next_batch 1 · advance · next_batch 2 · commit 1 · advance · next_batch 3 · commit 2 · ...
//
// Planning only needs to know how many tokens a request has, which does not depend on their values: requests that reach
// their max_output_tokens end in advance(), as if the tokens had been told. A row with an untold token names the logit
// row of the batch before that samples it. So lengths, pages and admission are those of committing at once, except for
// a request that stops by itself: it may already have a row in the batch in flight. That row is computed for nobody,
// its token is dropped, and the request's pages are free for the next batch, which comes after it on the device. Such a
// request ends one batch later, and each token is told once, so the argument above holds.
//
// If all layers of the model have a window (`window_left`), what no later row sees is dropped once the batch that last
// saw it has been followed by another (stored_segment.h). A segment, however long, then takes the pages of its window
// and one chunk: that is its size in the conditions above, and its own need at its longest. A span is linked to the
// segments of its chain only as far up as nothing is dropped.
//
// The output of a finished request is kept until it is forgotten, its prompt until all requests added with it have
// finished. Ids are never reused.
#pragma once

#include <cstdint>
#include <deque>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "planner/admission.h"
#include "planner/borrowing.h"
#include "planner/group_order.h"
#include "planner/ids.h"
#include "planner/length_forest.h"
#include "planner/page_allocator.h"
#include "planner/pinned_segments.h"
#include "planner/prompts.h"
#include "planner/segments.h"
#include "planner/stored_segment.h"
#include "planner/token_batch.h"

namespace batchllm {

struct PlannerOptions {
    int32_t num_pages;
    int32_t page_size = 16;
    int32_t max_batch_tokens = 1024;
    int32_t max_running_requests = std::numeric_limits<int32_t>::max();  // by default only KV memory bounds them
    int32_t window_left = -1;  // positions before its own that a row sees in the layer that sees most; -1: all
    GroupOrder order = GroupOrder::kDecodeFirst;
    RequestId first_request_id{0};  // where ids begin
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
    int64_t running = 0, waiting = 0;   // preempted requests wait
    int64_t finished = 0, aborted = 0;  // aborted ones are not among the finished
};

// Optional facts about added requests; each array has [num_requests] or is empty.
struct RequestOptions {
    // 0 if unknown: then max_output_tokens orders the request, and its length is learned from its group and the job.
    std::span<const int32_t> expected_output_tokens = {};
    // The position of the first prompt token whose log-probability is wanted, at least 1 (nothing predicts the first
    // token); the prompt's length or more for none. Empty: none for any request.
    std::span<const int32_t> score_begin = {};
    // Borrowing must save more tokens than that per reader (choose_segments).
    double reader_cost = 0.0;
};

class BatchPlanner {
 public:
    explicit BatchPlanner(const PlannerOptions& options);

    // Adds requests, before or while others run; their ids follow the existing ones. max_output_tokens [num_requests],
    // at least 1 each. The owner of the prompts' tokens is released once all requests of this call have finished.
    // Returns the id of the first. If check_job() throws std::invalid_argument, nothing is added.
    RequestId add_requests(const Prompts& prompts, Segments segments, std::span<const int32_t> max_output_tokens,
                           const RequestOptions& options = {});

    // nullopt once every request is answered. Throws std::logic_error if the batch before is in flight, or if the
    // waiting requests could never start, which the argument above excludes.
    std::optional<TokenBatch> next_batch();

    // Lets another batch follow the one in flight before its tokens are told. Throws std::logic_error if none is in
    // flight, or if the tokens of the batch before it have not been told.
    void advance();

    // sampled [num_logits] continues the logit_request_ids of the oldest batch with untold tokens; finished
    // [num_logits] or empty. A request also finishes at its max_output_tokens. Returns the requests that finished.
    // Tokens of requests that were aborted or forgotten since, or that the commit before ended, are dropped.
    std::vector<RequestId> commit(std::span<const TokenId> sampled, std::span<const uint8_t> finished);

    // Ends requests in any state; finished or refused ones are left as they are. Throws std::logic_error while a batch
    // is in flight, std::out_of_range like output_tokens(), and then aborts none.
    void abort(std::span<const RequestId> requests);

    // Drops what is kept of requests that finished, were aborted or refused. Throws std::invalid_argument if one of
    // them still runs or waits, std::out_of_range like output_tokens(), and then forgets none.
    void forget(std::span<const RequestId> requests);

    RequestId next_request_id() const { return {first_id_.index + static_cast<int32_t>(place_.size())}; }
    std::vector<RequestId> order() const;  // scheduled requests that are not forgotten, first to start first
    const std::vector<std::pair<RequestId, std::string>>& refused() const { return refused_; }  // and not forgotten

    // The told tokens. Valid until the next call of advance() or commit(). Throws std::out_of_range for an id that
    // was never given or is forgotten.
    std::span<const TokenId> output_tokens(RequestId request) const;

    // Prompt tokens that others computed for a request; 0 before it starts. A shared segment is charged to its first
    // reader that starts. The sum is prompt_tokens minus what was computed for the first time.
    int32_t num_cached_tokens(RequestId request) const;
    PlannerStats stats() const;

    // Recomputes every count, range, reader count and page owner from first principles; throws std::logic_error.
    void audit() const;

 private:
    // Internally requests are stored in plan order, so that those that run together are neighbours in memory, and are
    // identified by their place. Refused ones have none.
    enum class Status : uint8_t { kWaiting, kPrefill, kDecode, kPreempted, kFinished, kForgotten };

    struct Work {  // of a request that started
        StoredSegment own;
        std::vector<TokenId> output;
        int32_t num_cached_tokens = 0;
        int32_t computed_end = 0;  // own positions below it were computed before; computing them again is recomputation
        int32_t untold = kNone;    // the logit row of untold_ that samples the last output token
    };
    struct Request {
        const TokenId* prompt;
        RequestId id;
        int32_t prompt_length;
        int32_t max_output_tokens;
        int32_t expected_output_tokens;                            // 0: unknown
        SegmentId parent;                                          // the deepest segment of its chain
        int32_t own_begin;                                         // position where its own segment begins
        LengthForest::Population population = LengthForest::kJob;  // once started: the one it teaches
        int32_t wave;                                              // into waves_, counted from the first ever
        Status status = Status::kWaiting;
        std::unique_ptr<Work> work = {};  // null until it starts: far fewer requests run at once than a job has

        int32_t num_cached_tokens() const { return work ? work->num_cached_tokens : 0; }
        int32_t num_output_tokens() const { return work ? static_cast<int32_t>(work->output.size()) : 0; }
        int32_t num_tokens() const { return prompt_length + num_output_tokens(); }  // prompt and generated
        bool is_over() const { return status == Status::kFinished || status == Status::kForgotten; }
    };
    struct Wave {  // requests added together
        std::shared_ptr<const void> tokens_owner;
        int32_t num_unfinished;
    };
    struct Forgotten {  // sums over requests and segments that are gone, for the audit
        int64_t num_over = 0, num_refused = 0;
        int64_t output_tokens = 0, cached_tokens = 0, started_prompt_tokens = 0, first_computed_tokens = 0;
    };

    Request& request_at(Place place) { return requests_[place.index]; }
    const Request& request_at(Place place) const { return requests_[place.index]; }
    StoredSegment& stored(AnySegment segment) {
        return segment.is_shared() ? shared_[segment.shared()].kv : request_at(segment.reader()).work->own;
    }
    const StoredSegment& stored(AnySegment segment) const { return const_cast<BatchPlanner*>(this)->stored(segment); }
    Place& place_of(RequestId request) { return place_[request.index - first_id_.index]; }
    Place place_of(RequestId request) const { return place_[request.index - first_id_.index]; }

    BorrowedSegments borrow(const Prompts& prompts, Segments segments, double reader_cost) const;
    std::vector<bool> detach_or_refuse(const Prompts& prompts, Segments& segments,
                                       std::span<const int32_t> max_output_tokens);
    void want_scores(Place first, RequestId first_id, std::span<const int32_t> score_begin);
    void forgo_sources_that_do_not_fit(Place first);

    void schedule_decodes(TokenBatch& batch);
    void schedule_prefills(TokenBatch& batch);
    bool make_room(Place place);
    void preempt_youngest();
    Admission running_parts();
    bool try_admit_next(Admission& admission);
    void append_shared_span(TokenBatch& batch, SegmentId segment, int32_t count);
    void append_own_span(TokenBatch& batch, Place place, int32_t count);
    void append_places(TokenBatch& batch, StoredSegment& kv, int32_t count) const;
    void append_chain(TokenBatch& batch, SegmentId deepest);
    static void end_span(TokenBatch& batch, int32_t begin);
    int32_t batch_number(TokenBatch& batch, SegmentId segment);
    int32_t append_segment(TokenBatch& batch, const StoredSegment& kv) const;
    void append_scores(TokenBatch& batch, AnySegment segment, int32_t begin, int32_t end);
    void forgo_scores(RequestId request);
    int32_t expected_output(const Request& request);
    int32_t expected_steps(const Request& request, int32_t num_own_tokens);
    void finish(Place place);
    void slide_windows();
    void leave_queues();
    bool drop_untold(Request& request);
    void skip_aborted();
    Place known(RequestId request) const;
    void compact();

    void audit_pages() const;
    void audit_queues() const;
    void audit_untold() const;
    void audit_counts() const;

    int32_t segment_end(AnySegment segment) const {  // position after its last known token
        return segment.is_shared() ? shared_[segment.shared()].end : request_at(segment.reader()).num_tokens();
    }
    int32_t num_places() const { return static_cast<int32_t>(requests_.size()); }
    int64_t largest_own_pages(const Request& request) const {  // nobody reads the K/V of the last token
        return window_.most_pages(int64_t{request.prompt_length} - request.own_begin + request.max_output_tokens - 1);
    }

    const int32_t page_size_;
    const int32_t max_batch_tokens_;
    const int32_t max_running_requests_;
    const GroupOrder group_order_;
    const KvWindow window_;

    RequestId first_id_;        // lower ids are forgotten, or belong to an earlier planner
    std::vector<Place> place_;  // by id - first_id_; kNoPlace if refused or forgotten
    std::vector<std::pair<RequestId, std::string>> refused_;
    std::vector<Request> requests_;  // by place
    std::deque<Wave> waves_;
    int32_t first_wave_ = 0;
    Forgotten forgotten_;
    int32_t num_forgotten_places_ = 0;

    PageAllocator pages_;
    LengthForest lengths_;
    PinnedSegments shared_;

    // The position of the next prompt token to score, for requests that have any, and those requests by segment.
    std::unordered_map<RequestId, int32_t> next_score_;
    std::unordered_map<SegmentId, std::vector<RequestId>> scored_readers_;

    Place next_in_order_{0};                // the first request that has not started
    int64_t num_waiting_ = 0;               // requests that have not started and are not aborted
    std::vector<Place> running_;            // oldest first
    std::vector<Place> preempted_;          // a stack, oldest on top; all are younger than the running ones
    std::deque<AnySegment> prefill_queue_;  // at most one own segment, the youngest running request's, at the back

    bool in_flight_ = false, is_untold_ = false;
    std::vector<AnySegment> grown_;             // by the batch in flight, if windows slide
    std::vector<Place> awaited_;                // those that the batch in flight samples for; kNoPlace: ended since
    std::vector<Place> untold_;                 // the same for the batch before, if it is not told yet
    TokenBatch::Size last_size_{};              // of the batch before
    std::vector<SegmentId> numbered_segments_;  // those with a batch_number
    std::vector<SegmentId> chain_;              // scratch

    PlannerStats stats_;
};

}  // namespace batchllm
