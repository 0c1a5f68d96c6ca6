#include "attention/plan/predict.h"

#include <algorithm>
#include <vector>

#include "attention/plan/gpu_time.h"

namespace batchllm {
namespace {

struct GpuTiles {
    std::vector<GpuTile> wide;
    std::vector<GpuTile> narrow;
};

// Items as the kernels of a GPU take them (attention/cuda/attention_tiles.h).
GpuTiles gpu_tiles(const AttentionPlan& plan) {
    const int32_t group_size = plan.shape().group_size();
    const int32_t height = gpu_tile_rows(plan.shape().head_dim);
    GpuTiles tiles;
    for (const WorkItem& item : plan.items()) {
        const int32_t num_packed = (item.row_end - item.row_begin) * group_size;
        for (int32_t begin = 0; begin < num_packed; begin += height) {
            const int32_t end = std::min(begin + height, num_packed);
            GpuTile tile{end - begin, 0, item.piece_begin, item.piece_end, item.kv_end, item.kv_begin};
            for (int32_t packed = begin; packed < end;) {
                const WorkRow& row = plan.rows()[item.row_begin + packed / group_size];
                const int32_t next = std::min(end, (packed / group_size + 1) * group_size);
                tile.kv_begin = std::min(tile.kv_begin, row.kv_begin);
                tile.kv_end = std::max(tile.kv_end, row.kv_end);
                if (row.slot != kWriteThrough) tile.num_partials += next - packed;
                packed = next;
            }
            (kind_of(tile.num_rows) == TileKind::kNarrow ? tiles.narrow : tiles.wide).push_back(tile);
        }
    }
    return tiles;
}

double call_s(const AttentionPlan& plan, const GpuTime& time, int64_t num_merged) {
    const GpuTiles tiles = gpu_tiles(plan);
    const double group_size = plan.shape().group_size();
    return time.call_s(time.tiles(TileKind::kWide, tiles.wide, plan.pieces()),
                       time.tiles(TileKind::kNarrow, tiles.narrow, plan.pieces()), group_size * plan.num_slots(),
                       group_size * static_cast<double>(num_merged));
}

double plan_s(const AttentionPlan& plan, const GpuTime& time) {
    return call_s(plan, time, std::ssize(plan.merge_rows()));
}

double cascade_s(const AttentionPlan& plan, const GpuModel& gpu, const CallStyle& style) {
    const AttentionShape& shape = plan.shape();
    const GpuTime time(gpu, shape, style);
    const int32_t num_levels = std::max(plan.stats().num_levels, 1);
    double seconds = 0.0;
    for (int32_t level = 0; level < num_levels; ++level) {
        const AttentionPlan launch = plan.cascade_level(gpu, style, level);
        const auto is_absent = [](const MergeRow& row) { return row.slot_begin == row.slot_end; };
        const int64_t num_absent = std::ranges::count_if(launch.merge_rows(), is_absent);
        seconds += call_s(launch, time, std::ssize(launch.merge_rows()) - num_absent);
        if (level == 0) continue;
        const auto num_rows = static_cast<double>((launch.num_tokens() - num_absent) * shape.group_size());
        seconds += gpu.launch_s + time.rows_s(3 * num_rows, style.result_bytes);  // two states to one
    }
    return seconds;
}

}  // namespace

int64_t attention_flops(const AttentionPlan& plan) {
    return int64_t{4} * plan.stats().num_scores * plan.shape().num_qo_heads * plan.shape().head_dim;
}

int64_t partial_bytes(const AttentionPlan& plan) {
    const int32_t head_dim = plan.shape().head_dim;
    const int64_t state_bytes = plan.is_for_gpu() ? our_style(head_dim).partial_bytes : 4 * (head_dim + 1);
    return state_bytes * plan.num_slots() * plan.shape().num_qo_heads;
}

int64_t kv_bytes_per_token(const AttentionShape& shape, int64_t element_bytes) {
    return 2 * element_bytes * shape.num_kv_heads * shape.head_dim;
}

AttentionSeconds predict(const AttentionPlan& plan, const GpuModel& gpu) {
    const AttentionShape& shape = plan.shape();
    const GpuTime time(gpu, shape, our_style(shape.head_dim));
    return {
        .plan = plan_s(plan, time),
        .per_request = plan_s(plan.for_gpu(gpu, Sharing::kNever), time),
        .cascade = cascade_s(plan, gpu, cascade_style(shape.head_dim)),
        .cascade_float32 = cascade_s(plan, gpu, float32_cascade_style(shape.head_dim)),
    };
}

}  // namespace batchllm
