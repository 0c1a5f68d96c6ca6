// The shared segments of a job: runs of prompt tokens whose K/V is stored once and read by several requests.
//
//   segment 0 [0, 500) ─┬─ segment 1 [500, 900)   a request names its deepest segment; its chain is that segment
//                       └─ segment 2 [500, 620)   and its ancestors, and covers positions [0, token_end)
//
// The part of a request that its chain does not cover is its own. In a single-level choice there are no parents: every
// segment starts at position 0.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "planner/ids.h"

namespace batchllm {

class Segments {
 public:
    // parent, token_begin, token_end, owner_request [num_segments]; request_segment [num_requests]. Parents precede
    // children, and a segment begins where its parent ends (at 0 without one): std::invalid_argument otherwise.
    Segments(std::vector<SegmentId> parent, std::vector<int32_t> token_begin, std::vector<int32_t> token_end,
             std::vector<RequestIndex> owner_request, std::vector<SegmentId> request_segment,
             int64_t prompt_tokens = 0);

    int32_t num_segments() const { return static_cast<int32_t>(parent_.size()); }
    RequestIndex num_requests() const { return static_cast<RequestIndex>(request_segment_.size()); }

    const std::vector<SegmentId>& parent() const { return parent_; }  // kNoSegment at the top
    const std::vector<int32_t>& token_begin() const { return token_begin_; }
    const std::vector<int32_t>& token_end() const { return token_end_; }
    const std::vector<RequestIndex>& owner_request() const { return owner_request_; }  // its prompt holds the tokens
    const std::vector<int32_t>& num_readers() const { return num_readers_; }  // requests with it in their chain
    const std::vector<SegmentId>& request_segment() const { return request_segment_; }  // deepest one, or kNoSegment

    int32_t num_tokens(SegmentId segment) const { return token_end_[segment.index] - token_begin_[segment.index]; }
    int32_t covered_tokens(RequestIndex request) const {
        return request_segment_[request] == kNoSegment ? 0 : token_end_[request_segment_[request].index];
    }
    int64_t saved_tokens() const { return saved_tokens_; }    // prompt tokens not computed, compared with no sharing
    int64_t prompt_tokens() const { return prompt_tokens_; }  // of all requests; 0 if the builder did not say

    void detach(RequestIndex request);  // from its chain: all of its prompt becomes its own
    std::string to_string() const;

 private:
    void validate() const;
    void count_readers();

    std::vector<SegmentId> parent_;
    std::vector<int32_t> token_begin_, token_end_;
    std::vector<RequestIndex> owner_request_;
    std::vector<SegmentId> request_segment_;
    std::vector<int32_t> num_readers_;
    int64_t prompt_tokens_;
    int64_t saved_tokens_ = 0;
};

}  // namespace batchllm
