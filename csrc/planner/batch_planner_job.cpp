// BatchPlanner's constructor: what is decided once for a job, before any batch.
#include <algorithm>
#include <stdexcept>

#include "planner/batch_planner.h"
#include "planner/group_order.h"
#include "planner/job_checks.h"

namespace batchllm {

namespace {

int32_t positive(int32_t value, const char* name) {
    if (value >= 1) return value;
    throw std::invalid_argument(std::string(name) + ": expected at least 1, got " + std::to_string(value));
}

}  // namespace

BatchPlanner::BatchPlanner(const Prompts& prompts, Segments segments, std::vector<int32_t> max_output_tokens,
                           std::vector<int32_t> expected_output_tokens, const PlannerOptions& options)
    : prompts_(prompts),
      shared_(std::move(segments)),
      max_output_tokens_(std::move(max_output_tokens)),
      expected_output_tokens_(std::move(expected_output_tokens)),
      page_size_(positive(options.page_size, "page_size")),
      max_batch_tokens_(positive(options.max_batch_tokens, "max_batch_tokens")),
      learns_lengths_(expected_output_tokens_.empty()),
      pages_(positive(options.num_pages, "num_pages")) {
    if (learns_lengths_) expected_output_tokens_ = max_output_tokens_;
    check_job(prompts_, shared_, max_output_tokens_, expected_output_tokens_);
    for (RequestId request = 0; request < prompts_.num_requests(); ++request) {
        expected_output_tokens_[request] = std::min(expected_output_tokens_[request], max_output_tokens_[request]);
    }
    requests_.resize(prompts_.num_requests());
    num_cached_tokens_.assign(prompts_.num_requests(), 0);
    refuse_or_detach();

    std::vector<int32_t> own_tokens(num_requests());
    for (RequestId request = 0; request < num_requests(); ++request) {
        own_tokens[request] = prompts_.prompt_length(request) - shared_.covered_tokens(request);
    }
    order_ = group_order(shared_, own_tokens, expected_output_tokens_);
    std::erase_if(order_, [&](RequestId request) { return requests_[request].status == Status::kRefused; });

    num_unfinished_readers_ = shared_.num_readers();
    segments_.reserve(shared_.num_segments() + num_requests());
    for (SegmentId segment = 0; segment < shared_.num_segments(); ++segment) {
        segments_.push_back({.parent = shared_.parent()[segment], .begin = shared_.token_begin()[segment]});
    }
    for (RequestId request = 0; request < num_requests(); ++request) {
        segments_.push_back({.parent = shared_.request_segment()[request], .begin = shared_.covered_tokens(request)});
    }
    stats_.num_requests = num_requests();
    for (const RequestId request : order_) stats_.prompt_tokens += prompts_.prompt_length(request);
}

int64_t BatchPlanner::own_pages(RequestId request, int64_t num_output_tokens) const {
    const int64_t own_prompt = prompts_.prompt_length(request) - shared_.covered_tokens(request);
    return pages_for(own_prompt + num_output_tokens - 1);  // nobody reads the K/V of the last token
}

void BatchPlanner::refuse_or_detach() {
    std::vector<int64_t> chain_pages(shared_.num_segments());
    for (SegmentId s = 0; s < shared_.num_segments(); ++s) {
        const SegmentId parent = shared_.parent()[s];
        chain_pages[s] = shared_pages(s) + (parent == kNone ? 0 : chain_pages[parent]);
    }
    for (RequestId request = 0; request < num_requests(); ++request) {
        const SegmentId segment = shared_.request_segment()[request];
        const int64_t needed = largest_own_pages(request) + (segment == kNone ? 0 : chain_pages[segment]);
        if (needed <= pages_.num_pages()) continue;
        shared_.detach(request);  // in one piece it rounds up to whole pages only once
        const int64_t needed_alone = largest_own_pages(request);
        if (needed_alone <= pages_.num_pages()) continue;
        requests_[request].status = Status::kRefused;
        refused_.emplace_back(request, "request " + std::to_string(request) + " needs " + std::to_string(needed_alone) +
                                           " KV pages of " + std::to_string(page_size_) + " tokens (prompt " +
                                           std::to_string(prompts_.prompt_length(request)) + " + max_output_tokens " +
                                           std::to_string(max_output_tokens_[request]) + "), the pool has " +
                                           std::to_string(pages_.num_pages()));
    }
}

}  // namespace batchllm
