#include "planner/token_batch.h"

#include <algorithm>
#include <iterator>

namespace batchllm {

void TokenBatch::merge_output_rows() {
    if (scored_rows.empty()) {
        output_rows = logit_rows;
        return;
    }
    output_rows.reserve(logit_rows.size() + scored_rows.size());
    std::ranges::set_union(logit_rows, scored_rows, std::back_inserter(output_rows));
}

void TokenBatch::write_rows(std::span<int64_t> to_slots, std::span<TokenId> to_token_ids,
                            std::span<int32_t> to_positions) const {
    const auto write = [](const auto& values, const auto& to, auto filler) {
        std::ranges::fill(std::ranges::copy(values, to.begin()).out, to.end(), filler);
    };
    write(slots, to_slots, kNoSlot);
    write(token_ids, to_token_ids, TokenId{0});
    write(positions, to_positions, int32_t{0});
    for (size_t i = 0; i < untold_rows.size(); ++i) to_token_ids[untold_rows[i]] = ~untold_logits[i];
}

TokenBatch TokenBatch::logit_batch() const {
    TokenBatch result;
    result.page_size = page_size;
    result.segment_page_indptr = segment_page_indptr;
    result.segment_page_ids = segment_page_ids;
    result.segment_begin = segment_begin;
    result.segment_num_tokens = segment_num_tokens;
    result.logit_request_ids = logit_request_ids;
    result.scores_indptr = scores_indptr;
    result.score_request_ids = score_request_ids;
    result.score_token_ids = score_token_ids;
    const auto in_result = [&](int32_t row) {
        return static_cast<int32_t>(std::ranges::lower_bound(output_rows, row) - output_rows.begin());
    };
    std::ranges::transform(logit_rows, std::back_inserter(result.logit_rows), in_result);
    std::ranges::transform(untold_rows, std::back_inserter(result.untold_rows), in_result);  // each has logits
    result.untold_logits = untold_logits;
    std::ranges::transform(scored_rows, std::back_inserter(result.scored_rows), in_result);
    int32_t span = 0;
    for (const int32_t row : output_rows) {
        while (span_indptr[span + 1] <= row) ++span;
        result.num_decode_tokens += row < num_decode_tokens;
        result.token_ids.push_back(token_ids[row]);
        result.positions.push_back(positions[row]);
        result.slots.push_back(slots[row]);
        result.span_begin.push_back(positions[row]);
        result.span_indptr.push_back(result.num_tokens());
        result.link_segment.insert(result.link_segment.end(), link_segment.begin() + link_indptr[span],
                                   link_segment.begin() + link_indptr[span + 1]);
        result.link_indptr.push_back(static_cast<int32_t>(result.link_segment.size()));
    }
    result.merge_output_rows();
    return result;
}

}  // namespace batchllm
