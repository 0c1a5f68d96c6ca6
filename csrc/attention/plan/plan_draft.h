// The first passes of a plan: spans, links, segments -> groups of rows that read the same keys -> row tiles, and the
// number of runs of keys into which each is split.
#pragma once

#include <cstdint>
#include <vector>

#include "attention/plan/attention_batch.h"
#include "attention/plan/device_model.h"
#include "attention/plan/gpu_model.h"
#include "attention/plan/gpu_time.h"
#include "attention/plan/shared_runs.h"
#include "attention/plan/work_item.h"

namespace batchllm {

// Which segments with several readers are read once for all.
enum class Sharing : uint8_t { kNever, kWhereItPays, kAlways };

struct PlanOptions {
    int32_t num_threads;  // of a GPU its multiprocessors
    Sharing sharing;
    const GpuModel* gpu = nullptr;       // null: a CPU
    const CallStyle* cascade = nullptr;  // null: none, but our launches
    int32_t level = kAllLevels;          // otherwise only what a cascade launches for that link of every chain
};

struct PlanDraft {
    std::vector<KvPiece> pieces;
    std::vector<WorkRow> rows;  // of the tiles, without slots
    std::vector<WorkItem> tiles;
    std::vector<int32_t> num_splits;  // of each tile
    int32_t num_shared_segments = 0;
    double max_task_cost = 0.0;  // on a CPU; longer tiles were split, if that helps
};

// On a GPU, if sharing may pay: of several ways to share, the one with the least time (gpu_time.h).
PlanDraft draft_plan(const AttentionBatch& batch, const AttentionShape& shape, const PlanOptions& options);

// Cuts the rows of a draft from `row_begin` on, ordered by what they see of these pieces, into tiles. A tile also ends
// where no row reads the next key, so that every key of an item is visible to one of its rows.
void add_row_tiles(PlanDraft& draft, int32_t row_begin, AttentionBatch::Range pieces, const CostModel& cost);

// Splits tiles that would keep one thread busy while others have run out of work.
void choose_cpu_splits(PlanDraft& draft, const CostModel& cost, int32_t num_threads);

}  // namespace batchllm
