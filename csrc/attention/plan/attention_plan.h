// From the arrays of a token batch to a list of WorkItems.
//
//   spans, links, segments  ->  groups: rows that read the same keys  ->  row tiles  ->  key splits = WorkItems
//
// A segment read by several spans becomes one group with the rows of all of them. What a span reads alone (its own
// part, and segments where sharing is predicted not to pay) becomes a group of that span, one run of keys. So a prefix
// part and an own part are the same structure, at any depth, for decodes and prefill chunks alike. A row that ends up
// in several items has one partial state in each; they are merged in a fixed order.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "attention/plan/attention_batch.h"
#include "attention/plan/gpu_model.h"
#include "attention/plan/plan_draft.h"
#include "attention/plan/work_item.h"

namespace batchllm {

struct PlanStats {
    int64_t kv_tokens_read = 0;              // keys read per KV head, all items
    int64_t per_request_kv_tokens_read = 0;  // the same if every span read its keys alone
    int64_t num_scores = 0;                  // visible (row, key) pairs of one query head
    int32_t num_shared_segments = 0;         // not read by each span separately
    int32_t num_levels = 0;                  // links of the longest chain
};

class AttentionPlan {
 public:
    // For the kernels of a CPU; those of a GPU can also execute it. Throws std::invalid_argument on arrays that
    // contradict each other. The plan copies what it needs. It is balanced for `num_threads` (at least 1), which
    // decides where long runs of keys are split. Any number of threads can run the plan, with the same bits.
    AttentionPlan(const AttentionBatch& batch, const AttentionShape& shape, int32_t num_threads, Sharing sharing);

    // The same for the kernels of a GPU.
    AttentionPlan(const AttentionBatch& batch, const AttentionShape& shape, const GpuModel& gpu, Sharing sharing);

    // For these rows of the batch, in ascending order: row i of q and out is rows[i]. The same work without the other
    // rows. Throws std::invalid_argument for rows that are not the plan's or not in order.
    AttentionPlan for_rows(std::span<const int32_t> rows) const;

    // Plans of the same batch: for a GPU; and for the launch of a cascade of that style for level `level` of all
    // chains.
    AttentionPlan for_gpu(const GpuModel& gpu, Sharing sharing) const;
    AttentionPlan cascade_level(const GpuModel& gpu, const CallStyle& style, int32_t level) const;

    const AttentionShape& shape() const { return shape_; }
    int32_t num_threads() const { return num_threads_; }  // for a GPU its multiprocessors
    bool is_for_gpu() const { return is_for_gpu_; }
    const GpuModel& gpu() const { return gpu_; }  // the plan's GPU; kDefaultGpu for a CPU plan
    int32_t num_tokens() const { return num_tokens_; }
    int32_t num_slots() const { return num_slots_; }          // partial states per query head
    int32_t max_page_id() const { return max_page_id_; }      // -1: no pages
    int32_t max_item_rows() const { return max_item_rows_; }  // query tokens of the widest item

    std::span<const WorkItem> items() const { return items_; }  // longest first
    // Every item for every KV head, in the items' order. A plan for a GPU has none, because each item is its own task.
    std::span<const WorkTask> tasks() const { return tasks_; }
    std::span<const WorkRow> rows() const { return rows_; }
    std::span<const KvPiece> pieces() const { return pieces_; }
    std::span<const int32_t> page_ids() const { return batch_->view().segment_page_ids; }
    std::span<const MergeRow> merge_rows() const { return merge_rows_; }  // rows with 0 or at least 2 partial states
    PlanStats stats() const;                                              // counted anew

 private:
    friend class PlanBuilder;
    AttentionPlan(std::shared_ptr<const BatchCopy> batch, const AttentionShape& shape, const PlanOptions& options);
    AttentionPlan(const AttentionPlan& all, std::span<const int32_t> rows);
    CostModel costs() const;

    std::shared_ptr<const BatchCopy> batch_;
    AttentionShape shape_;
    bool is_for_gpu_;
    GpuModel gpu_;
    int32_t num_threads_;
    int32_t num_tokens_;
    int32_t num_slots_ = 0;
    int32_t max_page_id_ = -1;
    int32_t max_item_rows_ = 0;
    std::vector<WorkItem> items_;
    std::vector<WorkTask> tasks_;
    std::vector<WorkRow> rows_;
    std::vector<KvPiece> pieces_;
    std::vector<MergeRow> merge_rows_;
    int32_t num_shared_segments_ = 0;
};

}  // namespace batchllm
