#include "attention/plan/draft_of_rows.h"

#include <vector>

namespace batchllm {
namespace {

constexpr int32_t kNoRow = -1;

// Of the tiles' segments those that are read once for several rows.
int32_t num_shared_segments(const PlanDraft& draft, size_t num_page_ids) {
    std::vector<bool> is_shared(num_page_ids);  // by the segment's first page
    int32_t num_shared = 0;
    for (const WorkItem& tile : draft.tiles) {
        if (tile.row_end - tile.row_begin < 2) continue;
        for (int32_t i = tile.piece_begin; i < tile.piece_end; ++i) {
            const int32_t segment = draft.pieces[i].first_page;
            num_shared += !is_shared[segment];
            is_shared[segment] = true;
        }
    }
    return num_shared;
}

}  // namespace

PlanDraft draft_of_rows(const AttentionPlan& plan, std::span<const int32_t> rows, const CostModel& cost) {
    std::vector<int32_t> new_row(plan.num_tokens(), kNoRow);
    for (size_t i = 0; i < rows.size(); ++i) new_row[rows[i]] = static_cast<int32_t>(i);
    PlanDraft draft;
    draft.pieces.assign(plan.pieces().begin(), plan.pieces().end());
    draft.rows.reserve(plan.rows().size());
    draft.tiles.reserve(plan.items().size());
    for (const WorkItem& item : plan.items()) {
        const auto row_begin = static_cast<int32_t>(draft.rows.size());
        for (const WorkRow& row : plan.rows().subspan(item.row_begin, item.row_end - item.row_begin)) {
            const int32_t token = new_row[row.token];
            if (token != kNoRow) draft.rows.push_back({token, row.kv_begin, row.kv_end, kWriteThrough});
        }
        add_row_tiles(draft, row_begin, {item.piece_begin, item.piece_end}, cost);
    }
    draft.num_shared_segments = num_shared_segments(draft, plan.page_ids().size());
    if (plan.is_for_gpu()) {
        draft.num_splits.assign(draft.tiles.size(), 1);
    } else {
        choose_cpu_splits(draft, cost, plan.num_threads());
    }
    return draft;
}

}  // namespace batchllm
