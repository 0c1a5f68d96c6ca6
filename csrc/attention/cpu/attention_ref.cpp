#include "attention/cpu/attention_ref.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "base/bf16.h"

namespace batchllm {
namespace {

template <typename T>
std::vector<double> read_row(const T* from, int64_t size) {
    std::vector<double> row(size);
    for (int64_t i = 0; i < size; ++i) row[i] = to_float(from[i]);
    return row;
}

std::vector<double> read_row(const void* data, DType dtype, int64_t offset, int64_t size) {
    return dtype == DType::kFloat32 ? read_row(static_cast<const float*>(data) + offset, size)
                                    : read_row(static_cast<const Bf16*>(data) + offset, size);
}

std::vector<double> read_key(const PagedTensor& pages, DType dtype, int64_t page_id, int64_t offset, int64_t kv_head,
                             int64_t head_dim) {
    const int64_t at = page_id * pages.page_stride + offset * pages.slot_stride + kv_head * pages.head_stride;
    return read_row(pages.data, dtype, at, head_dim);
}

void write_row(const OutputTensor& out, int64_t token, int64_t head, const std::vector<double>& row) {
    const int64_t offset = token * out.token_stride + head * out.head_stride;
    for (size_t d = 0; d < row.size(); ++d) {
        const float value = static_cast<float>(row[d]);
        if (out.dtype == DType::kFloat32) {
            static_cast<float*>(out.data)[offset + d] = value;
        } else {
            static_cast<Bf16*>(out.data)[offset + d] = from_float<Bf16>(value);
        }
    }
}

// The keys that a row at `position` of `span` sees.
struct Key {
    int64_t page_id;
    int64_t offset;
};

std::vector<Key> visible_keys(const AttentionBatch& batch, const AttentionShape& shape, int32_t span,
                              int32_t position) {
    std::vector<Key> keys;
    for (int32_t link = batch.link_indptr[span]; link < batch.link_indptr[span + 1]; ++link) {
        const int32_t segment = batch.link_segment[link];
        const int32_t* pages = batch.segment_page_ids.data() + batch.segment_page_indptr[segment];
        const auto range = batch.link_range(span, link);
        const int32_t end = std::min(range.end, position + 1);
        for (int32_t key = std::max(range.begin, shape.visible_begin(position)); key < end; ++key) {
            const int32_t slot = key - batch.segment_begin[segment];
            keys.push_back({pages[slot / shape.page_size], slot % shape.page_size});
        }
    }
    return keys;
}

}  // namespace

void attention_ref(const AttentionBatch& batch, const AttentionShape& shape, const AttentionParams& params) {
    const auto attend_row = [&](int64_t token, int64_t head, const std::vector<Key>& keys) {
        const int64_t kv_head = head / shape.group_size();
        const int64_t q_offset = token * params.q.token_stride + head * params.q.head_stride;
        const std::vector<double> q = read_row(params.q.data, params.q.dtype, q_offset, shape.head_dim);
        const double sink = params.sinks == nullptr ? -INFINITY : params.sinks[head];

        std::vector<double> scores;
        for (const Key& key : keys) {
            const auto k = read_key(params.k_pages, params.kv_dtype, key.page_id, key.offset, kv_head, shape.head_dim);
            double score = 0.0;
            for (int32_t d = 0; d < shape.head_dim; ++d) score += q[d] * k[d];
            score *= params.softmax_scale;
            if (params.soft_cap != 0.0f) score = params.soft_cap * std::tanh(score / params.soft_cap);
            scores.push_back(score);
        }
        double max = sink;
        for (double score : scores) max = std::max(max, score);
        double sum = sink == -INFINITY ? 0.0 : std::exp(sink - max);
        std::vector<double> out(shape.head_dim, 0.0);
        for (size_t i = 0; i < keys.size(); ++i) {
            const double weight = std::exp(scores[i] - max);
            const auto v =
                read_key(params.v_pages, params.kv_dtype, keys[i].page_id, keys[i].offset, kv_head, shape.head_dim);
            sum += weight;
            for (int32_t d = 0; d < shape.head_dim; ++d) out[d] += weight * v[d];
        }
        const bool empty = sum == 0.0;
        for (double& value : out) value = empty ? 0.0 : value / sum;
        write_row(params.out, token, head, out);
        if (params.lse.data == nullptr) return;
        params.lse.data[token * params.lse.token_stride + head * params.lse.head_stride] =
            empty ? -INFINITY : static_cast<float>(max + std::log(sum));
    };

    for (int32_t span = 0; span < batch.num_spans(); ++span) {
        for (int32_t row = 0; row < batch.num_rows(span); ++row) {
            const auto keys = visible_keys(batch, shape, span, batch.span_begin[span] + row);
            for (int32_t head = 0; head < shape.num_qo_heads; ++head) {
                attend_row(batch.span_indptr[span] + row, head, keys);
            }
        }
    }
}

}  // namespace batchllm
