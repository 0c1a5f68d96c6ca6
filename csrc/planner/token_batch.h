// One forward pass, as the int32 arrays that a model and an attention plan read.
//
//   spans     rows of one segment with consecutive positions: a decode token, or a prefill chunk
//             span i = rows [span_indptr[i], span_indptr[i + 1]) at positions span_begin[i], span_begin[i] + 1, ...
//   links     the chain of segments a span reads, root first, the span's own segment last
//             span i reads link_segment[link_indptr[i] .. link_indptr[i + 1])
//   segments  the batch's own numbering of those segments and the pages that hold their K/V
//             segment s = positions [segment_begin[s], segment_begin[s] + segment_num_tokens[s]),
//             in pages segment_page_ids[segment_page_indptr[s] .. segment_page_indptr[s + 1])
//             (a segment that borrows part of another lists the other's first pages)
//   scores    prompt tokens whose log-probabilities are wanted. The row at position p predicts position p + 1; a row of
//             a shared segment is computed once and predicts a different next token for each reader
//             row scored_rows[i] scores score_token_ids[scores_indptr[i] .. scores_indptr[i + 1]), for the requests
//             score_request_ids
//
// All K/V of the batch is written (slots) before any row attends. A row at position p then sees, in every linked
// segment, positions [segment_begin, min(segment_begin + segment_num_tokens, p + 1)).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "planner/ids.h"

namespace batchllm {

constexpr TokenId kUntoldToken = -1;  // instead of a token: elsewhere any id is a token
constexpr int64_t kNoSlot = -1;       // of a row that is not written

struct TokenBatch {
    struct Size {
        size_t tokens, logits, spans, links, segments, pages;
    };
    Size size() const {
        return {token_ids.size(),    logit_rows.size(),    span_begin.size(),
                link_segment.size(), segment_begin.size(), segment_page_ids.size()};
    }
    void reserve(const Size& size) {  // a batch is about as large as the one before
        for (auto* of_tokens : {&token_ids, &positions}) of_tokens->reserve(size.tokens);
        slots.reserve(size.tokens);
        logit_rows.reserve(size.logits);
        logit_request_ids.reserve(size.logits);
        for (auto* of_spans : {&span_indptr, &span_begin, &link_indptr}) of_spans->reserve(size.spans + 1);
        link_segment.reserve(size.links);
        for (auto* of_segments : {&segment_page_indptr, &segment_begin, &segment_num_tokens}) {
            of_segments->reserve(size.segments + 1);
        }
        segment_page_ids.reserve(size.pages);
    }

    int32_t num_tokens() const { return static_cast<int32_t>(token_ids.size()); }
    int32_t num_spans() const { return static_cast<int32_t>(span_begin.size()); }
    int32_t num_segments() const { return static_cast<int32_t>(segment_begin.size()); }
    int32_t num_prefill_tokens() const { return num_tokens() - num_decode_tokens; }

    void merge_output_rows();  // once, when the batch is complete

    // These rows as a batch over the same segments: the work left once the last layer's K and V are written.
    TokenBatch logit_batch() const;

    // For a device, into arrays of one size, at least num_tokens(): behind the batch's rows stand kNoSlot and 0. In the
    // place of a token that is not told yet stands ~i: logit row i of the batch before samples it.
    void write_rows(std::span<int64_t> to_slots, std::span<TokenId> to_token_ids,
                    std::span<int32_t> to_positions) const;

    int32_t page_size = 0;
    int32_t num_decode_tokens = 0;  // decodes are the first rows

    std::vector<TokenId> token_ids;  // [num_tokens]
    std::vector<int32_t> positions;  // [num_tokens]
    std::vector<int64_t> slots;      // [num_tokens]: page_id * page_size + offset where the row's K/V goes

    std::vector<int32_t> untold_rows;    // [num_untold]: rows whose token is not told yet (kUntoldToken)
    std::vector<int32_t> untold_logits;  // [num_untold]: the logit row of the batch before that samples it

    std::vector<int32_t> logit_rows;           // [num_logits]: rows whose logits are sampled, the last of their spans
    std::vector<RequestId> logit_request_ids;  // [num_logits]: the request that each of them continues

    std::vector<int32_t> scored_rows;          // [num_scored_rows], ascending
    std::vector<int32_t> scores_indptr = {0};  // [num_scored_rows + 1]
    std::vector<RequestId> score_request_ids;  // [num_scores]
    std::vector<TokenId> score_token_ids;      // [num_scores]

    std::vector<int32_t> output_rows;  // rows whose logits are needed: logit_rows and scored_rows, ascending

    std::vector<int32_t> span_indptr = {0};  // [num_spans + 1]
    std::vector<int32_t> span_begin;         // [num_spans]
    std::vector<int32_t> link_indptr = {0};  // [num_spans + 1]
    std::vector<int32_t> link_segment;       // [num_links]

    std::vector<int32_t> segment_page_indptr = {0};  // [num_segments + 1]
    std::vector<PageId> segment_page_ids;            // [num_segment_pages]
    std::vector<int32_t> segment_begin;              // [num_segments]
    std::vector<int32_t> segment_num_tokens;         // [num_segments]: stored once this batch is
};

}  // namespace batchllm
