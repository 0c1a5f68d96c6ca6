#include "fuzz_batch_planner.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "planner/batch_planner.h"
#include "planner/choose_segments.h"
#include "planner/prefix_trie.h"
#include "random_job.h"

namespace batchllm::testing {

namespace {

void expect(bool holds, const std::string& law) {
    if (!holds) throw std::logic_error("fuzz_batch_planner: " + law);
}

// Small numbers out of bytes; the lowest once the bytes are used up.
class Decisions {
 public:
    explicit Decisions(std::span<const uint8_t> bytes) : bytes_(bytes) {}

    int32_t between(int32_t low, int32_t high) {
        if (next_ == bytes_.size()) return low;
        return low + bytes_[next_++] % (high - low + 1);
    }

 private:
    std::span<const uint8_t> bytes_;
    size_t next_ = 0;
};

// A context's; that of one token more follows from it.
uint32_t hash_with(uint32_t hash, TokenId token) {
    return hash * 31 + static_cast<uint32_t>(token) + 1;
}

uint32_t hash_of(std::span<const TokenId> context) {
    uint32_t hash = 1;
    for (const TokenId token : context) hash = hash_with(hash, token);
    return hash;
}

struct FuzzRequest {
    std::vector<TokenId> context;  // prompt and what was generated
    int32_t prompt_length;
    int32_t max_output_tokens;
    int32_t ends_at;        // by itself, in output tokens; beyond the bound: never
    int32_t next_own = -1;  // position of its next own row
    int32_t own_begin = -1;
    int32_t num_restarts = 0;
    int32_t next_score;   // position of the next prompt token to be scored
    bool untold = false;  // the last token is not told yet
    bool finished = false;
    bool aborted = false;
    bool forgotten = false;
    bool was_refused = false;  // where it is forgotten
};

struct Drawn {  // by a batch, for its logit rows
    std::vector<RequestId> requests;
    std::vector<TokenId> sampled;
    std::vector<uint8_t> finished;
    std::vector<uint8_t> wasted;  // the request had stopped, which the planner had not been told
};

class Fuzz {
 public:
    explicit Fuzz(std::span<const uint8_t> bytes)
        : decide_(bytes),
          options_{.num_pages = decide_.between(4, 32),
                   .page_size = decide_.between(1, 3),
                   .max_batch_tokens = decide_.between(1, 12),
                   .max_running_requests = decide_.between(0, 3) == 0 ? decide_.between(1, 4) : 1000,
                   .window_left = decide_.between(0, 2) == 0 ? decide_.between(0, 9) : -1,
                   .order = static_cast<GroupOrder>(decide_.between(0, 2))},
          planner_(options_) {}

    FuzzCounts run() {
        add();
        int64_t num_rows = 0;
        int32_t arrivals_left = decide_.between(0, 3);
        const bool may_be_late = decide_.between(0, 1) == 1;
        while (true) {
            if (untold_ && decide_.between(0, 3) == 1) tell();
            auto batch = planner_.next_batch();
            planner_.audit();
            if (arrivals_left > 0 && (!batch || decide_.between(0, 3) == 0)) {
                --arrivals_left;
                ++counts_.arrivals;
                add();  // also while a batch is in flight
                planner_.audit();
                if (!batch) continue;
            }
            if (!batch && untold_) {
                tell();
                continue;
            }
            if (!batch) break;
            num_rows += batch->num_tokens();
            Drawn drawn = compute(*batch);
            if (untold_) tell();
            forget();  // also while a batch is in flight
            for (size_t i = 0; i < drawn.requests.size(); ++i)
                requests_[drawn.requests[i].index].untold |= !drawn.wasted[i];
            untold_ = std::move(drawn);
            if (may_be_late && decide_.between(0, 3) > 0) {
                planner_.advance();
                ++counts_.told_late;
            } else {
                tell();
            }
            planner_.audit();
            abort();
            forget();
            expect(planner_.stats().steps <= steps_allowed(), "no deadlock, no starvation");
        }
        check_end(num_rows);
        return counts_;
    }

 private:
    void add() {
        const auto job = std::make_shared<Job>();  // the planner's, as long as it reads the prompts
        alive_jobs_.push_back(job);
        const int32_t num_requests = decide_.between(1, 10);
        const bool is_scored = decide_.between(0, 3) == 1;
        std::vector<int32_t> max_output, expected, score_begin, prompt_of_request;
        const int32_t knowledge = decide_.between(0, 2);  // nothing, something, of every request
        for (int32_t i = 0; i < num_requests; ++i) {
            FuzzRequest request;
            if (!requests_.empty() && decide_.between(0, 9) < 7) {  // the head of an earlier one, of any wave
                const FuzzRequest& other = requests_[decide_.between(0, static_cast<int32_t>(requests_.size()) - 1)];
                request.context.assign(other.context.begin(),
                                       other.context.begin() + decide_.between(0, other.prompt_length));
            }
            for (int32_t more = decide_.between(0, 7); more > 0; --more)
                request.context.push_back(decide_.between(0, 2));
            if (request.context.empty()) request.context.push_back(1);
            request.prompt_length = static_cast<int32_t>(request.context.size());
            request.max_output_tokens = decide_.between(1, 8);
            request.ends_at = decide_.between(1, 16);
            if (i > 0 && decide_.between(0, 5) == 1) {  // one more sample of the prompt before
                request = requests_.back();
                prompt_of_request.push_back(prompt_of_request.back());
            } else {
                prompt_of_request.push_back(static_cast<int32_t>(job->indptr.size()) - 1);
                job->add(request.context);
            }
            request.next_score = is_scored ? decide_.between(1, 12) : request.prompt_length;
            score_begin.push_back(request.next_score);
            max_output.push_back(request.max_output_tokens);
            expected.push_back(knowledge == 2 ? decide_.between(1, 8) : decide_.between(0, 4));
            requests_.push_back(request);
        }
        if (knowledge == 0) expected.clear();
        const auto levels = static_cast<SharingLevels>(decide_.between(0, 2));
        const double reader_cost = decide_.between(0, 2);
        const RequestOptions options{.expected_output_tokens = expected,
                                     .score_begin = is_scored ? score_begin : std::span<const int32_t>(),
                                     .reader_cost = reader_cost};
        const std::span<const int64_t> indptr(job->indptr);
        const Prompts prompts(job->tokens, indptr, 0, prompt_of_request, job);
        const PrefixTrie trie(Prompts(job->tokens, indptr, 1, prompt_of_request), 1);
        const RequestId first =
            planner_.add_requests(prompts, choose_segments(trie, levels, reader_cost), max_output, options);
        expect(first.index + num_requests == static_cast<int32_t>(requests_.size()), "ids follow those there are");
        slots_.resize(int64_t{options_.num_pages} * options_.page_size);
    }

    std::vector<bool> refused() const {
        std::vector<bool> refused(requests_.size(), false);
        for (const auto& [id, why] : planner_.refused()) refused[id.index] = true;
        return refused;
    }

    void abort() {
        std::vector<RequestId> aborted;
        const auto known_id = [&] { return RequestId{decide_.between(0, static_cast<int32_t>(requests_.size()) - 1)}; };
        if (decide_.between(0, 7) == 1) aborted = {known_id(), known_id()};
        std::erase_if(aborted, [&](RequestId id) { return requests_[id.index].forgotten; });
        planner_.abort(aborted);
        planner_.audit();
        for (const RequestId id : aborted) {
            FuzzRequest& request = requests_[id.index];
            if (request.finished || ended_by_length(request) || refused()[id.index] || request.aborted) continue;
            request.aborted = true;
            drop_untold(request);
        }
        counts_.aborted += static_cast<int64_t>(aborted.size());
    }

    // Some of those that ended.
    void forget() {
        std::vector<RequestId> forgotten;
        const bool all_leave = decide_.between(0, 15) == 1;
        const std::vector<bool> was_refused = refused();
        for (RequestId id{0}; id.index < static_cast<int32_t>(requests_.size()); ++id.index) {
            FuzzRequest& request = requests_[id.index];
            const bool is_over =
                request.finished || ended_by_length(request) || request.aborted || was_refused[id.index];
            if (request.forgotten || !is_over || !(all_leave || decide_.between(0, 7) == 1)) continue;
            check_output(id);
            forgotten.push_back(id);
            request.finished |= ended_by_length(request);
            drop_untold(request);
            request.forgotten = true;
            request.was_refused = was_refused[id.index];
        }
        planner_.forget(forgotten);
        planner_.audit();
        counts_.forgotten += static_cast<int64_t>(forgotten.size());
    }

    static int32_t num_output(const FuzzRequest& request) {
        return static_cast<int32_t>(request.context.size()) - request.prompt_length;
    }

    // The planner knows, though the last token is not told.
    static bool ended_by_length(const FuzzRequest& request) {
        return request.untold && num_output(request) == request.max_output_tokens;
    }

    static void drop_untold(FuzzRequest& request) {
        if (request.untold) request.context.pop_back();
        request.untold = false;
    }

    void check_output(RequestId id) const {
        const FuzzRequest& request = requests_[id.index];
        const std::vector<TokenId> output(request.context.begin() + request.prompt_length,
                                          request.context.end() - request.untold);
        expect(std::ranges::equal(planner_.output_tokens(id), output), "outputs are kept");
    }

    // Each step computes a row, and rows are bounded: prompts and outputs, once more for every preemption, of which
    // there is at most one per step and request that runs.
    int64_t steps_allowed() const {
        int64_t num_tokens = 0;
        for (const FuzzRequest& request : requests_) num_tokens += request.prompt_length + request.max_output_tokens;
        return num_tokens * (static_cast<int64_t>(requests_.size()) + 1);
    }

    Drawn compute(const TokenBatch& batch) {
        expect(batch.num_tokens() >= 1 && batch.num_tokens() <= options_.max_batch_tokens, "a batch keeps its budget");
        std::vector<TokenId> token_ids = batch.token_ids;
        for (size_t i = 0; i < batch.untold_rows.size(); ++i) {
            expect(untold_ && token_ids[batch.untold_rows[i]] == kUntoldToken, "only what is not told is missing");
            token_ids[batch.untold_rows[i]] = untold_->sampled.at(batch.untold_logits[i]);
        }
        for (int32_t span = 0; span < batch.num_spans(); ++span) {  // what a span goes on from is there before it
            uint32_t hash = batch.span_begin[span] == 0 ? hash_of({}) : stored_before(batch, span).hash;
            for (int32_t row = batch.span_indptr[span]; row < batch.span_indptr[span + 1]; ++row) {
                hash = hash_with(hash, token_ids[row]);
                slots_[batch.slots[row]] = {token_ids[row], batch.positions[row], hash};
            }
        }
        Drawn drawn;
        for (int32_t span = 0; span < batch.num_spans(); ++span) {
            check_seen(batch, span);
            const size_t logit = drawn.sampled.size();
            if (logit == batch.logit_rows.size() || batch.logit_rows[logit] != batch.span_indptr[span + 1] - 1)
                continue;
            FuzzRequest& request = requests_[batch.logit_request_ids[logit].index];
            const uint32_t hash = slots_[batch.slots[batch.logit_rows[logit]]].hash;
            expect(hash == hash_of(request.context), "a request reads its own context");
            expect(!request.finished && !request.aborted, "a request that finished or was aborted does not run");
            drawn.requests.push_back(batch.logit_request_ids[logit]);
            drawn.sampled.push_back(static_cast<TokenId>(hash % 1000));
            const bool had_stopped = num_output(request) == request.ends_at;
            expect(!had_stopped || request.untold, "a request that stopped has at most the row in flight");
            counts_.wasted_rows += had_stopped;
            drawn.wasted.push_back(had_stopped);
            if (!had_stopped) request.context.push_back(drawn.sampled.back());
            drawn.finished.push_back(!had_stopped && num_output(request) == request.ends_at);
        }
        expect(drawn.sampled.size() == batch.logit_rows.size(), "logit rows are last rows of spans, in their order");
        check_own_rows(batch);
        check_scores(batch);
        return drawn;
    }

    // What was drawn and is not told yet.
    void tell() {
        const Drawn drawn = *std::exchange(untold_, std::nullopt);
        for (const RequestId id : drawn.requests) requests_[id.index].untold = false;
        for (const RequestId id : planner_.commit(drawn.sampled, drawn.finished)) {
            FuzzRequest& request = requests_[id.index];
            expect(!request.finished && !request.aborted &&
                       num_output(request) == std::min(request.ends_at, request.max_output_tokens),
                   "a request finishes once, when it ends");
            request.finished = true;
        }
        planner_.audit();
    }

    struct StoredToken {
        TokenId token = -1;
        int32_t position = -1;
        uint32_t hash = 0;  // of the context that it ends
    };

    const StoredToken& stored(const TokenBatch& batch, int32_t segment, int32_t offset) const {
        const PageId page = batch.segment_page_ids[batch.segment_page_indptr[segment] + offset / options_.page_size];
        return slots_.at(int64_t{page} * options_.page_size + offset % options_.page_size);
    }

    // What stands before a span's first row.
    const StoredToken& stored_before(const TokenBatch& batch, int32_t span) const {
        for (int32_t link = batch.link_indptr[span]; link < batch.link_indptr[span + 1]; ++link) {
            const int32_t segment = batch.link_segment[link];
            const int32_t offset = batch.span_begin[span] - 1 - batch.segment_begin[segment];
            if (offset >= 0 && offset < batch.segment_num_tokens[segment]) return stored(batch, segment, offset);
        }
        throw std::logic_error("fuzz_batch_planner: a span goes on from what is stored");
    }

    // What a span's rows see, in the slots that this batch and earlier ones wrote: all of their windows, without a gap,
    // of one context.
    void check_seen(const TokenBatch& batch, int32_t span) {
        int32_t position = batch.segment_begin[batch.link_segment[batch.link_indptr[span]]];
        const int32_t unseen = options_.window_left < 0 ? 0 : batch.span_begin[span] - options_.window_left;
        expect(position <= std::max(unseen, 0), "a row sees its window");
        counts_.cut_spans += position > 0;
        std::optional<uint32_t> hash;
        for (int32_t link = batch.link_indptr[span]; link < batch.link_indptr[span + 1]; ++link) {
            const int32_t segment = batch.link_segment[link];
            expect(batch.segment_begin[segment] == position, "chains have no gaps");
            for (int32_t i = 0; i < batch.segment_num_tokens[segment]; ++i, ++position) {
                const StoredToken& seen = stored(batch, segment, i);
                expect(seen.position == position, "K/V of another position");
                expect(!hash || seen.hash == hash_with(*hash, seen.token), "K/V of another context");
                hash = seen.hash;
            }
        }
    }

    // Own rows of a request go on where they stopped. They begin anew only after a preemption, from the first one, and
    // the work that was lost is done again once: nothing is recomputed that the preemption did not take.
    void check_own_rows(const TokenBatch& batch) {
        size_t logit = 0;
        for (int32_t span = 0; span < batch.num_spans(); ++span) {
            if (logit == batch.logit_rows.size() || batch.logit_rows[logit] != batch.span_indptr[span + 1] - 1)
                continue;
            FuzzRequest& request = requests_[batch.logit_request_ids[logit++].index];
            const int32_t own = batch.link_segment[batch.link_indptr[span + 1] - 1];
            const int32_t end = batch.span_begin[span] + batch.span_indptr[span + 1] - batch.span_indptr[span];
            if (request.own_begin < 0) request.own_begin = batch.segment_begin[own];
            const int32_t num_moved = batch.segment_begin[own] - request.own_begin;
            expect(options_.window_left < 0 ? num_moved == 0 : num_moved % options_.page_size == 0,
                   "an own part begins where it began, or whole pages from there where a window slides");
            // The span that samples ends the own part; it goes on by one token, or is the last chunk of a prefill.
            const bool goes_on = request.next_own == batch.span_begin[span] && end == request.next_own + 1;
            if (!goes_on && request.next_own >= 0) ++request.num_restarts;
            request.next_own = end;
        }
    }

    // Every prompt token that is to be scored is predicted once, in order, by a row that sees all before it and nothing
    // else.
    void check_scores(const TokenBatch& batch) {
        expect(batch.scores_indptr.size() == batch.scored_rows.size() + 1, "scores have rows");
        for (size_t i = 0; i < batch.scored_rows.size(); ++i) {
            const int32_t row = batch.scored_rows[i];
            expect(i == 0 || batch.scored_rows[i - 1] < row, "scored rows ascend");
            for (int32_t j = batch.scores_indptr[i]; j < batch.scores_indptr[i + 1]; ++j) {
                FuzzRequest& request = requests_[batch.score_request_ids[j].index];
                expect(request.next_score == batch.positions[row] + 1, "each token is scored once, in order");
                const std::span<const TokenId> before = std::span(request.context).first(request.next_score);
                expect(slots_[batch.slots[row]].hash == hash_of(before), "a score is of its own context");
                expect(request.context[request.next_score] == batch.score_token_ids[j], "a score is of its own token");
                ++request.next_score;
            }
        }
    }

    void check_end(int64_t num_rows) {
        const PlannerStats stats = planner_.stats();
        expect(stats.used_pages == 0 && stats.running == 0 && stats.waiting == 0, "every page returns");
        expect(stats.peak_pages <= options_.num_pages, "the pool is never exceeded");
        int64_t num_restarts = 0;
        std::vector<bool> refused = this->refused();
        bool any_aborted = false;
        for (size_t id = 0; id < requests_.size(); ++id) {
            const FuzzRequest& request = requests_[id];
            if (request.was_refused) refused[id] = true;
            any_aborted |= request.aborted;
            expect((request.finished || request.aborted) != refused[id], "every request ends, or was refused");
            const int32_t longest = request.prompt_length + request.max_output_tokens - 1;
            int32_t pages = (longest + options_.page_size - 1) / options_.page_size;
            if (options_.window_left >= 0) {  // the longest chunk, what it sees, and what shares a page with that
                const int32_t seen = std::max(options_.window_left, 1) + options_.max_batch_tokens;
                pages = std::min(pages, (seen + options_.page_size - 1 + options_.page_size - 1) / options_.page_size);
            }
            expect(refused[id] == (pages > options_.num_pages), "refused are those that do not fit alone");
            if (request.finished) expect(request.next_score >= request.prompt_length, "every token is scored");
            if (!request.forgotten) check_output(RequestId{static_cast<int32_t>(id)});
            num_restarts += request.num_restarts;
        }
        expect(num_restarts <= stats.preemptions, "work is done again once for a preemption");
        expect(std::ranges::all_of(alive_jobs_, [](const auto& job) { return job.expired(); }),
               "prompts are given back when all their requests ended");
        const int64_t num_decoded = stats.output_tokens - stats.finished;  // the last token is never an input
        const int64_t num_planned =
            stats.prompt_tokens - stats.cached_prompt_tokens + num_decoded + stats.recomputed_tokens;
        if (!any_aborted) expect(num_rows == num_planned + counts_.wasted_rows, "a shared segment is computed once");
        counts_.requests = static_cast<int64_t>(requests_.size());
        counts_.refused = std::ranges::count(refused, true);
        counts_.preemptions = stats.preemptions;
        counts_.borrowed_tokens = stats.borrowed_prompt_tokens;
    }

    Decisions decide_;
    const PlannerOptions options_;
    BatchPlanner planner_;
    std::vector<std::weak_ptr<const Job>> alive_jobs_;
    std::vector<FuzzRequest> requests_;
    std::vector<StoredToken> slots_;
    std::optional<Drawn> untold_;
    FuzzCounts counts_;
};

}  // namespace

void FuzzCounts::operator+=(const FuzzCounts& other) {
    requests += other.requests;
    refused += other.refused;
    preemptions += other.preemptions;
    arrivals += other.arrivals;
    borrowed_tokens += other.borrowed_tokens;
    aborted += other.aborted;
    forgotten += other.forgotten;
    told_late += other.told_late;
    wasted_rows += other.wasted_rows;
    cut_spans += other.cut_spans;
}

FuzzCounts fuzz_batch_planner(std::span<const uint8_t> bytes) {
    return Fuzz(bytes).run();
}

}  // namespace batchllm::testing
