// TokenBatch for Python.
#include <string>

#include "bindings/array_in.h"
#include "bindings/array_out.h"
#include "bindings/bindings.h"
#include "planner/token_batch.h"

namespace py = pybind11;

namespace batchllm {
namespace {

template <typename T>
std::span<T> writable(const Tensor& tensor, std::span<const T> elements) {
    tensor.expect_writable();
    return {const_cast<T*>(elements.data()), elements.size()};
}

void write_rows(const TokenBatch& batch, py::handle slots_object, py::handle token_ids_object,
                py::handle positions_object) {
    const Tensor slots("slots", slots_object), token_ids("token_ids", token_ids_object),
        positions("positions", positions_object);
    const auto to_slots = writable(slots, int64_array(slots));
    const auto to_token_ids = writable(token_ids, int32_array(token_ids));
    const auto to_positions = writable(positions, int32_array(positions));
    Dim num_rows{"num_rows"};
    for (const Tensor* tensor : {&slots, &token_ids, &positions}) check_shape(*tensor, {&num_rows});
    if (num_rows.size < batch.num_tokens()) {
        throw py::value_error("slots: expected num_rows of at least num_tokens = " +
                              std::to_string(batch.num_tokens()) + ", got " + std::to_string(num_rows.size));
    }
    batch.write_rows(to_slots, to_token_ids, to_positions);
}

}  // namespace

void bind_token_batch(py::module_& module) {
    py::class_<TokenBatch> batch(module, "TokenBatch", "What one forward pass computes; decodes come first.");
    batch.def_property_readonly("num_tokens", &TokenBatch::num_tokens);
    batch.def_property_readonly("num_spans", &TokenBatch::num_spans);
    batch.def_readonly("num_decode_tokens", &TokenBatch::num_decode_tokens);
    batch.def_property_readonly("num_prefill_tokens", &TokenBatch::num_prefill_tokens);
    batch.def("write_rows", &write_rows, py::kw_only(), py::arg("slots"), py::arg("token_ids"), py::arg("positions"),
              "Into arrays for a device, which may have room for more rows.");
    batch.def(
        "logit_batch", &TokenBatch::logit_batch,
        "The output_rows as a batch over the same segments: what is left to compute once the last layer's K and V "
        "are written.");
    def_array(batch, "token_ids", &TokenBatch::token_ids, "[num_tokens]");
    def_array(batch, "positions", &TokenBatch::positions, "[num_tokens]");
    def_array(batch, "slots", &TokenBatch::slots, "[num_tokens] page_id * page_size + offset of the row's K/V");
    def_array(batch, "untold_rows", &TokenBatch::untold_rows, "rows whose token, -1 in token_ids, is not told yet");
    def_array(batch, "untold_logits", &TokenBatch::untold_logits, "the logit row of the batch before that samples it");
    def_array(batch, "logit_rows", &TokenBatch::logit_rows, "rows whose logits are sampled, the last of their spans");
    def_array(batch, "logit_request_ids", &TokenBatch::logit_request_ids);
    def_array(batch, "scored_rows", &TokenBatch::scored_rows, "rows that predict prompt tokens to be scored");
    def_array(batch, "scores_indptr", &TokenBatch::scores_indptr);
    def_array(batch, "score_request_ids", &TokenBatch::score_request_ids);
    def_array(batch, "score_token_ids", &TokenBatch::score_token_ids, "the token at position positions[row] + 1");
    def_array(batch, "output_rows", &TokenBatch::output_rows,
              "rows whose logits are read: those of logit_rows and scored_rows, ascending");
    def_array(batch, "span_indptr", &TokenBatch::span_indptr);
    def_array(batch, "span_begin", &TokenBatch::span_begin, "position of a span's first row");
    def_array(batch, "link_indptr", &TokenBatch::link_indptr);
    def_array(batch, "link_segment", &TokenBatch::link_segment, "segments a span reads, its own last");
    def_array(batch, "segment_page_indptr", &TokenBatch::segment_page_indptr);
    def_array(batch, "segment_page_ids", &TokenBatch::segment_page_ids);
    def_array(batch, "segment_begin", &TokenBatch::segment_begin);
    def_array(batch, "segment_num_tokens", &TokenBatch::segment_num_tokens);
    batch.def("__str__", [](const TokenBatch& self) {
        return "TokenBatch: " + std::to_string(self.num_decode_tokens) + " decode and " +
               std::to_string(self.num_prefill_tokens()) + " prefill tokens in " + std::to_string(self.num_spans()) +
               " spans over " + std::to_string(self.num_segments()) + " segments";
    });
}

}  // namespace batchllm
