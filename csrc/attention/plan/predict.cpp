#include "attention/plan/predict.h"

#include <algorithm>

namespace batchllm {

int64_t attention_flops(const AttentionPlan& plan) {
    return int64_t{4} * plan.stats().num_scores * plan.shape().num_qo_heads * plan.shape().head_dim;
}

int64_t partial_bytes(const AttentionPlan& plan) {
    return int64_t{4} * plan.num_slots() * plan.shape().num_qo_heads * (plan.shape().head_dim + 1);
}

int64_t kv_bytes_per_token(const AttentionShape& shape, int64_t element_bytes) {
    return 2 * element_bytes * shape.num_kv_heads * shape.head_dim;
}

AttentionSeconds predict(const AttentionPlan& plan, const GpuPeaks& peaks) {
    constexpr int64_t kElementBytes = 2;
    const AttentionShape& shape = plan.shape();
    const PlanStats& stats = plan.stats();
    const int64_t num_rows = plan.num_tokens();
    const int64_t num_levels = std::max(stats.num_levels, 1);
    const int64_t kv_token = kv_bytes_per_token(shape, kElementBytes);
    const int64_t row = kElementBytes * shape.num_qo_heads * shape.head_dim;  // of q, or of out
    const int64_t state = row + int64_t{4} * shape.num_qo_heads;

    const double arithmetic = static_cast<double>(attention_flops(plan)) / peaks.flops_per_s;
    const auto seconds = [&](int64_t num_bytes, int64_t num_launches) {
        const double traffic = static_cast<double>(num_bytes) / peaks.bytes_per_s;
        return std::max(traffic, arithmetic) + static_cast<double>(num_launches) * peaks.launch_s;
    };
    const auto num_item_rows = static_cast<int64_t>(plan.rows().size());
    const int64_t planned =
        stats.kv_tokens_read * kv_token + (num_item_rows + num_rows) * row + 2 * partial_bytes(plan);
    const int64_t alone = stats.per_request_kv_tokens_read * kv_token + 2 * num_rows * row;
    // Of a row, every level writes a state, and every merge reads two and writes one.
    const int64_t cascade_row = num_levels * row + (num_levels + 3 * (num_levels - 1)) * state;
    return {
        .plan = seconds(planned, plan.merge_rows().empty() ? 1 : 2),
        .per_request = seconds(alone, 1),
        .cascade = seconds(stats.kv_tokens_read * kv_token + num_rows * cascade_row, 2 * num_levels - 1),
    };
}

}  // namespace batchllm
