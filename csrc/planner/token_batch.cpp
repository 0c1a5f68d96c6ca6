#include "planner/token_batch.h"

namespace batchllm {

TokenBatch TokenBatch::logit_batch() const {
    TokenBatch result;
    result.segment_page_indptr = segment_page_indptr;
    result.segment_page_ids = segment_page_ids;
    result.segment_begin = segment_begin;
    result.segment_num_tokens = segment_num_tokens;
    result.logit_request_ids = logit_request_ids;
    int32_t span = 0;
    for (const int32_t row : logit_rows) {
        while (span_indptr[span + 1] <= row) ++span;
        result.num_decode_tokens += row < num_decode_tokens;
        result.token_ids.push_back(token_ids[row]);
        result.positions.push_back(positions[row]);
        result.slots.push_back(slots[row]);
        result.logit_rows.push_back(result.num_tokens() - 1);
        result.span_begin.push_back(positions[row]);
        result.span_indptr.push_back(result.num_tokens());
        result.link_segment.insert(result.link_segment.end(), link_segment.begin() + link_indptr[span],
                                   link_segment.begin() + link_indptr[span + 1]);
        result.link_indptr.push_back(static_cast<int32_t>(result.link_segment.size()));
    }
    return result;
}

}  // namespace batchllm
