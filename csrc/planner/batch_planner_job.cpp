// How a BatchPlanner adds requests: decisions made once for them, before any batch.
#include <algorithm>
#include <limits>
#include <stdexcept>
#include <utility>

#include "planner/batch_planner.h"
#include "planner/job_checks.h"

namespace batchllm {

BatchPlanner::BatchPlanner(const PlannerOptions& options)
    : page_size_(at_least(1, options.page_size, "page_size")),
      max_batch_tokens_(at_least(1, options.max_batch_tokens, "max_batch_tokens")),
      max_running_requests_(at_least(1, options.max_running_requests, "max_running_requests")),
      group_order_(options.order),
      window_(options.window_left, page_size_, max_batch_tokens_),
      first_id_(options.first_request_id),
      pages_(at_least(1, options.num_pages, "num_pages")),
      shared_(window_, pages_, lengths_) {}

RequestId BatchPlanner::add_requests(const Prompts& prompts, Segments segments,
                                     std::span<const int32_t> max_output_tokens, const RequestOptions& options) {
    const RequestId first_request = next_request_id();
    const std::span<const int32_t> expected_output_tokens = options.expected_output_tokens;
    check_job(prompts, segments, max_output_tokens, expected_output_tokens);
    if (!options.score_begin.empty()) check_score_begin(options.score_begin, prompts);
    if (prompts.num_requests() > std::numeric_limits<int32_t>::max() - first_request.index) {
        throw std::invalid_argument("add_requests: a planner takes at most 2^31 - 1 requests in its life, " +
                                    std::to_string(first_request.index) + " were added before");
    }
    const int32_t first_segment = shared_.size();
    BorrowedSegments borrowed = borrow(prompts, std::move(segments), options.reader_cost);
    Segments& forest = borrowed.segments;
    const std::vector<bool> refused = detach_or_refuse(prompts, forest, max_output_tokens);

    const auto known_output = [&](RequestIndex request) {  // 0: unknown
        return expected_output_tokens.empty() ? 0
                                              : std::min(expected_output_tokens[request], max_output_tokens[request]);
    };
    std::vector<int32_t> own_tokens(prompts.num_requests());
    std::vector<int32_t> expected(prompts.num_requests());
    for (RequestIndex request = 0; request < prompts.num_requests(); ++request) {
        own_tokens[request] = prompts.prompt_length(request) - forest.covered_tokens(request);
        expected[request] = known_output(request) > 0 ? known_output(request) : max_output_tokens[request];
    }
    const std::vector<RequestIndex> order = group_order(forest, own_tokens, expected, group_order_);

    if (requests_.empty()) {  // later additions are small: let the arrays double
        shared_.reserve(forest.num_segments());
        requests_.reserve(prompts.num_requests());
        place_.reserve(prompts.num_requests());
    }
    const auto in_planner = [&](SegmentId segment) {
        return segment == kNoSegment ? kNoSegment : SegmentId{first_segment + segment.index};
    };
    for (int32_t segment = 0; segment < forest.num_segments(); ++segment) {
        const bool is_read = forest.num_readers()[segment] > 0;
        shared_.add({
            .kv = {.begin = forest.token_begin()[segment]},
            .parent = in_planner(forest.parent()[segment]),
            .prompt = prompts.row_data(forest.owner_request()[segment]),
            .begin = forest.token_begin()[segment],
            .end = forest.token_end()[segment],
            .num_holders = forest.num_readers()[segment],
            .source = borrowed.source[segment],
            .tokens_owner = is_read ? prompts.tokens_owner() : nullptr,
        });
    }
    const Place first{num_places()};
    const int32_t wave = first_wave_ + static_cast<int32_t>(waves_.size());
    place_.resize(place_.size() + prompts.num_requests(), kNoPlace);
    for (const RequestIndex request : order) {
        if (refused[request]) continue;
        const RequestId id{first_request.index + request};
        place_of(id) = {num_places()};
        stats_.prompt_tokens += prompts.prompt_length(request);
        requests_.push_back({
            .prompt = prompts.row_data(request),
            .id = id,
            .prompt_length = prompts.prompt_length(request),
            .max_output_tokens = max_output_tokens[request],
            .expected_output_tokens = known_output(request),
            .parent = in_planner(forest.request_segment()[request]),
            .own_begin = forest.covered_tokens(request),
            .wave = wave,
        });
    }
    const int32_t num_added = num_places() - first.index;
    if (num_added > 0) waves_.push_back({prompts.tokens_owner(), num_added});
    num_waiting_ += num_added;
    stats_.num_requests += prompts.num_requests();
    if (!options.score_begin.empty()) want_scores(first, first_request, options.score_begin);
    forgo_sources_that_do_not_fit(first);
    return first_request;
}

// Requests that can never fit, by local number. Those that fit only in one piece are detached from their chains.
std::vector<bool> BatchPlanner::detach_or_refuse(const Prompts& prompts, Segments& segments,
                                                 std::span<const int32_t> max_output_tokens) {
    std::vector<bool> refused(prompts.num_requests(), false);
    std::vector<int64_t> chain_pages(segments.num_segments());
    for (SegmentId s{0}; s.index < segments.num_segments(); ++s.index) {
        const SegmentId parent = segments.parent()[s.index];
        chain_pages[s.index] =
            window_.most_pages(segments.num_tokens(s)) + (parent == kNoSegment ? 0 : chain_pages[parent.index]);
    }
    for (RequestIndex request = 0; request < prompts.num_requests(); ++request) {
        const int64_t num_tokens = int64_t{prompts.prompt_length(request)} + max_output_tokens[request] - 1;
        const SegmentId segment = segments.request_segment()[request];
        const int64_t own_pages = window_.most_pages(num_tokens - segments.covered_tokens(request));
        if (own_pages + (segment == kNoSegment ? 0 : chain_pages[segment.index]) <= pages_.num_pages()) continue;
        segments.detach(request);  // in one piece it rounds up to whole pages only once
        const int64_t num_pages = window_.most_pages(num_tokens);
        if (num_pages <= pages_.num_pages()) continue;
        refused[request] = true;
        const RequestId id{next_request_id().index + request};
        refused_.emplace_back(id, "request " + std::to_string(id.index) + " needs " + std::to_string(num_pages) +
                                      " KV pages of " + std::to_string(page_size_) + " tokens (prompt " +
                                      std::to_string(prompts.prompt_length(request)) + " + max_output_tokens " +
                                      std::to_string(max_output_tokens[request]) + "), the pool has " +
                                      std::to_string(pages_.num_pages()));
    }
    return refused;
}

// Segments that a scored request reads are computed, not borrowed, because the predictions of their rows are not kept.
void BatchPlanner::want_scores(Place first, RequestId first_id, std::span<const int32_t> score_begin) {
    for (auto request = requests_.begin() + first.index; request != requests_.end(); ++request) {
        const int32_t begin = score_begin[request->id.index - first_id.index];
        if (begin >= request->prompt_length) continue;
        next_score_[request->id] = begin;
        for (SegmentId s = request->parent; s != kNoSegment; s = shared_[s].parent) {
            shared_[s].source = kNoSegment;
            scored_readers_[s].push_back(request->id);
        }
    }
}

BorrowedSegments BatchPlanner::borrow(const Prompts& prompts, Segments segments, double reader_cost) const {
    std::vector<LiveSegment> live;
    for (SegmentId s{0}; s.index < shared_.size(); ++s.index) {
        const SharedSegment& shared = shared_[s];
        if (shared.num_holders == 0) continue;
        live.push_back({s, shared.parent, shared.begin, shared.end, shared.prompt});
    }
    if (live.empty()) {
        std::vector<SegmentId> no_source(segments.num_segments(), kNoSegment);
        return {std::move(segments), std::move(no_source)};
    }
    return borrow_from(live, prompts, segments, reader_cost);
}

// A borrowed segment holds its whole source. If the chain of a request would not fit the pool with all of its sources,
// no segment of the chain borrows.
void BatchPlanner::forgo_sources_that_do_not_fit(Place first) {
    for (auto request = requests_.begin() + first.index; request != requests_.end(); ++request) {
        int64_t needed = largest_own_pages(*request);
        for (SegmentId s = request->parent; s != kNoSegment; s = shared_[s].parent) {
            needed += shared_.most_held_pages(s);
        }
        if (needed <= pages_.num_pages()) continue;
        for (SegmentId s = request->parent; s != kNoSegment; s = shared_[s].parent) shared_[s].source = kNoSegment;
    }
}

}  // namespace batchllm
