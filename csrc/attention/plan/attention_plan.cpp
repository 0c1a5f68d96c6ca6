#include "attention/plan/attention_plan.h"

#include <algorithm>
#include <stdexcept>

#include "attention/plan/device_model.h"
#include "attention/plan/draft_of_rows.h"
#include "attention/plan/gpu_splits.h"
#include "attention/plan/longest_first.h"

namespace batchllm {
namespace {

std::shared_ptr<const BatchCopy> checked(const AttentionBatch& batch, const AttentionShape& shape,
                                         int32_t num_threads) {
    shape.validate();
    if (num_threads < 1)
        throw std::invalid_argument("num_threads: expected at least 1, got " + std::to_string(num_threads));
    batch.validate(shape.page_size);
    return std::make_shared<const BatchCopy>(batch);
}

}  // namespace

// Makes a plan from a draft: row tiles -> items -> tasks and slots.
class PlanBuilder {
 public:
    PlanBuilder(PlanDraft draft, const CostModel& cost, AttentionPlan& plan)
        : plan_(plan), shape_(plan.shape_), cost_(cost), draft_(std::move(draft)) {
        plan_.pieces_ = std::move(draft_.pieces);
        plan_.num_shared_segments_ = draft_.num_shared_segments;
        split_tiles_into_items();
        sort_longest_first();
        if (!plan_.is_for_gpu_) add_tasks();
        assign_slots();
    }

 private:
    void split_tiles_into_items() {
        if (std::ranges::all_of(draft_.num_splits, [](int32_t splits) { return splits == 1; })) {
            plan_.rows_ = std::move(draft_.rows);
            plan_.items_ = std::move(draft_.tiles);
            for (const WorkItem& item : plan_.items_) {
                plan_.max_item_rows_ = std::max(plan_.max_item_rows_, item.row_end - item.row_begin);
            }
            return;
        }
        plan_.rows_.reserve(draft_.rows.size());
        plan_.items_.reserve(draft_.tiles.size());
        for (size_t i = 0; i < draft_.tiles.size(); ++i) {
            const WorkItem& tile = draft_.tiles[i];
            if (draft_.num_splits[i] == 1) {
                add_whole_tile(tile);
                continue;
            }
            const int64_t num_keys = keys_per_split(tile.kv_end - tile.kv_begin, draft_.num_splits[i]);
            for (int64_t begin = tile.kv_begin; begin < tile.kv_end; begin += num_keys) {
                const int64_t end = std::min<int64_t>(begin + num_keys, tile.kv_end);
                add_item(tile, static_cast<int32_t>(begin), static_cast<int32_t>(end));
            }
        }
    }

    void add_whole_tile(const WorkItem& tile) {
        const int32_t row_begin = static_cast<int32_t>(plan_.rows_.size());
        const int32_t num_rows = tile.row_end - tile.row_begin;
        plan_.rows_.insert(plan_.rows_.end(), draft_.rows.begin() + tile.row_begin, draft_.rows.begin() + tile.row_end);
        WorkItem item = tile;
        item.row_begin = row_begin;
        item.row_end = row_begin + num_rows;
        plan_.items_.push_back(item);
        plan_.max_item_rows_ = std::max(plan_.max_item_rows_, num_rows);
    }

    void add_item(const WorkItem& tile, int32_t kv_begin, int32_t kv_end) {
        const int32_t row_begin = static_cast<int32_t>(plan_.rows_.size());
        for (int32_t i = tile.row_begin; i < tile.row_end; ++i) {
            WorkRow row = draft_.rows[i];
            row.kv_begin = std::max(row.kv_begin, kv_begin);
            row.kv_end = std::min(row.kv_end, kv_end);
            if (row.kv_begin < row.kv_end) plan_.rows_.push_back(row);
        }
        const int32_t row_end = static_cast<int32_t>(plan_.rows_.size());
        plan_.items_.push_back({row_begin, row_end, tile.piece_begin, tile.piece_end, kv_begin, kv_end});
        plan_.max_item_rows_ = std::max(plan_.max_item_rows_, row_end - row_begin);
    }

    void sort_longest_first() {
        std::vector<double> costs;
        costs.reserve(plan_.items_.size());
        for (const WorkItem& item : plan_.items_) costs.push_back(cost_.task(item));
        order_ = longest_first(costs);
        std::vector<WorkItem> sorted;
        sorted.reserve(order_.size());
        for (const RankedItem& item : order_) sorted.push_back(plan_.items_[item.index]);
        plan_.items_ = std::move(sorted);
    }

    // Tasks of one item stay together: the second head finds the keys of the first nearby. Short items become one task.
    void add_tasks() {
        constexpr double kShortTasks = 4.0;  // this many take as long as the longest task
        const int32_t num_items = static_cast<int32_t>(plan_.items_.size());
        int32_t num_tasks = 0;
        for (const WorkItem& item : plan_.items_) num_tasks += cost_.tasks_per_item(item);
        plan_.tasks_.reserve(num_tasks);
        int32_t end = 0;
        for (int32_t begin = 0; begin < num_items; begin = end) {
            end = begin + 1;
            const int32_t num_heads = cost_.heads_per_task(plan_.items_[begin]);
            double cost = order_[begin].cost;
            while (cost_.is_narrow(plan_.items_[begin]) && end < num_items && cost_.is_narrow(plan_.items_[end])) {
                cost += order_[end].cost;
                if (cost > draft_.max_task_cost / kShortTasks) break;
                ++end;
            }
            for (int32_t head = 0; head < shape_.num_kv_heads; head += num_heads) {
                plan_.tasks_.push_back({begin, end, head, head + num_heads});
            }
        }
    }

    // A row with one partial state writes its result; the others get neighbouring slots, in the order of plan.rows.
    void assign_slots() {
        std::vector<int32_t> next_slot(plan_.num_tokens_, 0);  // of each token; first, how many states it has
        for (const WorkRow& row : plan_.rows_) ++next_slot[row.token];
        plan_.merge_rows_.reserve(plan_.num_tokens_ - std::ranges::count(next_slot, 1));
        for (int32_t token = 0; token < plan_.num_tokens_; ++token) {
            const int32_t num_states = next_slot[token];
            next_slot[token] = num_states == 1 ? kWriteThrough : plan_.num_slots_;
            if (num_states == 1) continue;
            plan_.merge_rows_.push_back({token, plan_.num_slots_, plan_.num_slots_ + num_states});
            plan_.num_slots_ += num_states;
        }
        for (WorkRow& row : plan_.rows_) {
            if (next_slot[row.token] != kWriteThrough) row.slot = next_slot[row.token]++;
        }
    }

    AttentionPlan& plan_;
    const AttentionShape& shape_;
    const CostModel& cost_;
    PlanDraft draft_;
    std::vector<RankedItem> order_;  // longest first
};

AttentionPlan::AttentionPlan(const AttentionBatch& batch, const AttentionShape& shape, int32_t num_threads,
                             Sharing sharing)
    : AttentionPlan(checked(batch, shape, num_threads), shape, {num_threads, sharing}) {}

AttentionPlan::AttentionPlan(const AttentionBatch& batch, const AttentionShape& shape, const GpuModel& gpu,
                             Sharing sharing)
    : AttentionPlan(checked(batch, shape, gpu.num_multiprocessors), shape, {gpu.num_multiprocessors, sharing, &gpu}) {}

AttentionPlan::AttentionPlan(std::shared_ptr<const BatchCopy> batch, const AttentionShape& shape,
                             const PlanOptions& options)
    : batch_(std::move(batch)),
      shape_(shape),
      is_for_gpu_(options.gpu != nullptr),
      gpu_(options.gpu == nullptr ? kDefaultGpu : *options.gpu),
      num_threads_(options.num_threads) {
    const AttentionBatch& view = batch_->view();
    num_tokens_ = view.num_tokens();
    int32_t max_page_id = -1;
    for (const int32_t page_id : view.segment_page_ids) max_page_id = std::max(max_page_id, page_id);
    max_page_id_ = max_page_id;
    PlanBuilder(draft_plan(view, shape_, options), costs(), *this);
}

AttentionPlan::AttentionPlan(const AttentionPlan& all, std::span<const int32_t> rows)
    : batch_(std::make_shared<const BatchCopy>(all.batch_, rows)),
      shape_(all.shape_),
      is_for_gpu_(all.is_for_gpu_),
      gpu_(all.gpu_),
      num_threads_(all.num_threads_),
      num_tokens_(batch_->view().num_tokens()),
      max_page_id_(all.max_page_id_) {
    PlanBuilder(draft_of_rows(all, rows, costs()), costs(), *this);
}

PlanStats AttentionPlan::stats() const {
    PlanStats stats{.num_shared_segments = num_shared_segments_};
    for (const WorkItem& item : items_) stats.kv_tokens_read += item.kv_end - item.kv_begin;
    for (const WorkRow& row : rows_) stats.num_scores += row.kv_end - row.kv_begin;
    const AttentionBatch& batch = batch_->view();
    const int32_t height = costs().max_tile_rows();
    for (int32_t span = 0; span < batch.num_spans(); ++span) {
        const int32_t first_link = batch.link_indptr[span], end_link = batch.link_indptr[span + 1];
        if (first_link == end_link) continue;
        stats.num_levels = std::max(stats.num_levels, end_link - first_link);
        const int32_t chain_begin = batch.link_range(span, first_link).begin;
        const int32_t chain_end = batch.link_range(span, end_link - 1).end;
        for (int32_t row = 0; row < batch.num_rows(span); row += height) {
            const int32_t first = batch.span_begin[span] + row;
            const int32_t last = batch.span_begin[span] + std::min(row + height, batch.num_rows(span)) - 1;
            const int32_t begin = std::max(chain_begin, shape_.visible_begin(first));
            stats.per_request_kv_tokens_read += std::max(0, std::min(chain_end, last + 1) - begin);
        }
    }
    return stats;
}

CostModel AttentionPlan::costs() const {
    return {shape_, is_for_gpu_ ? gpu_costs(gpu_, shape_.head_dim) : kCpuCosts};
}

AttentionPlan AttentionPlan::for_rows(std::span<const int32_t> rows) const {
    return {*this, rows};
}

AttentionPlan AttentionPlan::for_gpu(const GpuModel& gpu, Sharing sharing) const {
    return {batch_, shape_, {gpu.num_multiprocessors, sharing, &gpu}};
}

AttentionPlan AttentionPlan::cascade_level(const GpuModel& gpu, const CallStyle& style, int32_t level) const {
    return {batch_, shape_, {gpu.num_multiprocessors, Sharing::kAlways, &gpu, &style, level}};
}

}  // namespace batchllm
