// The arrays of a token batch, kept alive while they are read.
#pragma once

#include "attention/plan/attention_batch.h"
#include "bindings/array_in.h"

namespace batchllm {

struct BatchArrays {
    Tensor span_indptr, span_begin, link_indptr, link_segment;
    Tensor segment_page_indptr, segment_page_ids, segment_begin, segment_num_tokens;

    BatchArrays(pybind11::handle span_indptr, pybind11::handle span_begin, pybind11::handle link_indptr,
                pybind11::handle link_segment, pybind11::handle segment_page_indptr, pybind11::handle segment_page_ids,
                pybind11::handle segment_begin, pybind11::handle segment_num_tokens)
        : span_indptr("span_indptr", span_indptr),
          span_begin("span_begin", span_begin),
          link_indptr("link_indptr", link_indptr),
          link_segment("link_segment", link_segment),
          segment_page_indptr("segment_page_indptr", segment_page_indptr),
          segment_page_ids("segment_page_ids", segment_page_ids),
          segment_begin("segment_begin", segment_begin),
          segment_num_tokens("segment_num_tokens", segment_num_tokens) {}

    AttentionBatch batch() const {
        return {int32_array(span_indptr),   int32_array(span_begin),          int32_array(link_indptr),
                int32_array(link_segment),  int32_array(segment_page_indptr), int32_array(segment_page_ids),
                int32_array(segment_begin), int32_array(segment_num_tokens)};
    }
};

}  // namespace batchllm
