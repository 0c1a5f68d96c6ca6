#include "planner/segments.h"

#include <stdexcept>
#include <utility>

namespace batchllm {

Segments::Segments(std::vector<SegmentId> parent, std::vector<int32_t> token_begin, std::vector<int32_t> token_end,
                   std::vector<RequestIndex> owner_request, std::vector<SegmentId> request_segment,
                   int64_t prompt_tokens)
    : parent_(std::move(parent)),
      token_begin_(std::move(token_begin)),
      token_end_(std::move(token_end)),
      owner_request_(std::move(owner_request)),
      request_segment_(std::move(request_segment)),
      prompt_tokens_(prompt_tokens) {
    validate();
    count_readers();
}

void Segments::validate() const {
    const auto fail = [](const std::string& what) { throw std::invalid_argument(what); };
    const auto check_size = [&](const char* name, size_t size) {
        if (size == parent_.size()) return;
        fail(std::string(name) + ": expected one entry for each of the " + std::to_string(parent_.size()) +
             " segments in parent, got " + std::to_string(size));
    };
    check_size("token_begin", token_begin_.size());
    check_size("token_end", token_end_.size());
    check_size("owner_request", owner_request_.size());
    if (prompt_tokens_ < 0) fail("prompt_tokens: expected at least 0, got " + std::to_string(prompt_tokens_));

    const auto check_range = [&](const char* name, size_t index, int64_t value, int64_t low, int64_t end) {
        if (value >= low && value < end) return;
        fail(std::string(name) + "[" + std::to_string(index) + "]: expected " + std::to_string(low) + " to " +
             std::to_string(end - 1) + ", got " + std::to_string(value));
    };
    for (int32_t segment = 0; segment < num_segments(); ++segment) {
        check_range("parent", segment, parent_[segment].index, kNone, segment);
        check_range("owner_request", segment, owner_request_[segment], 0, num_requests());
        const int32_t begin = parent_[segment] == kNoSegment ? 0 : token_end_[parent_[segment].index];
        if (token_begin_[segment] != begin) {
            fail("token_begin[" + std::to_string(segment) + "]: expected " + std::to_string(begin) +
                 ", where its parent ends, got " + std::to_string(token_begin_[segment]));
        }
        if (token_end_[segment] <= begin) {
            fail("token_end[" + std::to_string(segment) + "]: expected more than token_begin " + std::to_string(begin) +
                 ", got " + std::to_string(token_end_[segment]));
        }
    }
    for (RequestIndex request = 0; request < num_requests(); ++request) {
        check_range("request_segment", request, request_segment_[request].index, kNone, num_segments());
    }
}

void Segments::count_readers() {
    num_readers_.assign(parent_.size(), 0);
    for (RequestIndex request = 0; request < num_requests(); ++request) {
        saved_tokens_ += covered_tokens(request);
        if (request_segment_[request] != kNoSegment) ++num_readers_[request_segment_[request].index];
    }
    for (SegmentId segment{num_segments() - 1}; segment.index >= 0; --segment.index) {
        const int32_t num_readers = num_readers_[segment.index];
        const SegmentId parent = parent_[segment.index];
        if (num_readers > 0) saved_tokens_ -= num_tokens(segment);
        if (parent != kNoSegment) num_readers_[parent.index] += num_readers;
    }
}

void Segments::detach(RequestIndex request) {
    saved_tokens_ -= covered_tokens(request);
    for (SegmentId segment = request_segment_[request]; segment != kNoSegment; segment = parent_[segment.index]) {
        if (--num_readers_[segment.index] == 0) saved_tokens_ += num_tokens(segment);
    }
    request_segment_[request] = kNoSegment;
}

std::string Segments::to_string() const {
    return "Segments: " + std::to_string(num_segments()) + " shared by " + std::to_string(num_requests()) +
           " requests, " + std::to_string(saved_tokens_) + " of " + std::to_string(prompt_tokens_) +
           " prompt tokens saved";
}

}  // namespace batchllm
