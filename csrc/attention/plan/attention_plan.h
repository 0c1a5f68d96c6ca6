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
#include <span>
#include <string>
#include <vector>

#include "attention/plan/attention_batch.h"
#include "attention/plan/device_model.h"
#include "attention/plan/work_item.h"

namespace batchllm {

struct PlanStats {
    int64_t kv_tokens_read = 0;              // keys read per KV head, all items
    int64_t per_request_kv_tokens_read = 0;  // the same if every span read its keys alone
    int64_t num_scores = 0;                  // visible (row, key) pairs of one query head
    int32_t num_shared_segments = 0;         // read once for several spans
    int32_t num_levels = 0;                  // links of the longest chain
};

// Which segments with several readers are read once for all of them.
enum class Sharing : uint8_t { kNever, kWhereItPays, kAlways };

class AttentionPlan {
 public:
    // Throws std::invalid_argument on arrays that contradict each other. The plan keeps copies of what it needs.
    // `num_threads` (at least 1; of a GPU its multiprocessors) is what the plan is balanced for: it decides where long
    // runs of keys are split. Whatever number of threads runs the plan, the results are the same bit for bit.
    AttentionPlan(const AttentionBatch& batch, const AttentionShape& shape, int32_t num_threads, Sharing sharing,
                  PlanDevice device = PlanDevice::kCpu);

    const AttentionShape& shape() const { return shape_; }
    int32_t num_threads() const { return num_threads_; }
    int32_t num_tokens() const { return num_tokens_; }
    int32_t num_slots() const { return num_slots_; }          // partial states per query head
    int32_t max_page_id() const { return max_page_id_; }      // -1: no pages
    int32_t max_item_rows() const { return max_item_rows_; }  // query tokens of the widest item

    std::span<const WorkItem> items() const { return items_; }  // longest first
    std::span<const WorkTask> tasks() const { return tasks_; }  // every item for every KV head, in the items' order
    std::span<const WorkRow> rows() const { return rows_; }
    std::span<const KvPiece> pieces() const { return pieces_; }
    std::span<const int32_t> page_ids() const { return page_ids_; }
    std::span<const MergeRow> merge_rows() const { return merge_rows_; }  // rows with 0 or at least 2 partial states
    const PlanStats& stats() const { return stats_; }

 private:
    friend class PlanBuilder;

    AttentionShape shape_;
    int32_t num_threads_;
    int32_t num_tokens_;
    int32_t num_slots_ = 0;
    int32_t max_page_id_ = -1;
    int32_t max_item_rows_ = 0;
    std::vector<WorkItem> items_;
    std::vector<WorkTask> tasks_;
    std::vector<WorkRow> rows_;
    std::vector<KvPiece> pieces_;
    std::vector<int32_t> page_ids_;
    std::vector<MergeRow> merge_rows_;
    PlanStats stats_;
};

}  // namespace batchllm
