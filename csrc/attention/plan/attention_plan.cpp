#include "attention/plan/attention_plan.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <tuple>

namespace batchllm {

// Builds a plan in passes: groups -> row tiles -> items -> tasks and slots.
class PlanBuilder {
 public:
    PlanBuilder(const AttentionBatch& batch, AttentionPlan& plan, Sharing sharing, PlanDevice device)
        : batch_(batch), plan_(plan), shape_(plan.shape_), cost_(shape_, device) {
        if (sharing != Sharing::kNever) {
            choose_shared_segments(sharing);
            add_shared_groups();
        }
        add_span_groups();
        split_tiles_into_items();
        sort_longest_first();
        add_tasks();
        assign_slots();
        count_reads();
    }

 private:
    struct Tile {
        WorkItem item;  // rows in tile_rows_
        double cost;    // of the longest task that it makes
    };

    bool is_shared(int32_t segment) const { return !readers_.empty() && is_shared_[segment]; }

    // Segment s is read through reader_links_[readers_[s] .. readers_[s + 1]).
    struct ReaderLink {
        int32_t span;
        int32_t link;
    };

    void choose_shared_segments(Sharing sharing) {
        readers_.assign(batch_.num_segments() + 1, 0);
        for (int32_t segment : batch_.link_segment) ++readers_[segment + 1];
        std::partial_sum(readers_.begin(), readers_.end(), readers_.begin());
        reader_links_.resize(batch_.link_segment.size());
        std::vector<int32_t> next(readers_.begin(), readers_.end() - 1);
        for (int32_t span = 0; span < batch_.num_spans(); ++span) {
            for (int32_t link = batch_.link_indptr[span]; link < batch_.link_indptr[span + 1]; ++link) {
                reader_links_[next[batch_.link_segment[link]]++] = {span, link};
            }
        }
        is_shared_.assign(batch_.num_segments(), false);
        for (int32_t segment = 0; segment < batch_.num_segments(); ++segment) {
            const int32_t num_readers = readers_[segment + 1] - readers_[segment];
            is_shared_[segment] = num_readers >= 2 && (sharing == Sharing::kAlways || sharing_pays(segment));
            plan_.stats_.num_shared_segments += is_shared_[segment];
        }
    }

    bool sharing_pays(int32_t segment) const {
        const int32_t num_keys = batch_.segment_num_tokens[segment];
        int32_t num_rows = 0;
        double cost_alone = 0.0;
        for (int32_t i = readers_[segment]; i < readers_[segment + 1]; ++i) {
            const int32_t rows = batch_.num_rows(reader_links_[i].span);
            num_rows += rows;
            cost_alone += cost_.rows(rows, num_keys);
        }
        return cost_.rows(num_rows, num_keys) + cost_.item() + cost_.partial_states(num_rows) < cost_alone;
    }

    void add_shared_groups() {
        for (int32_t segment = 0; segment < batch_.num_segments(); ++segment) {
            if (!is_shared_[segment]) continue;
            group_rows_.clear();
            for (int32_t i = readers_[segment]; i < readers_[segment + 1]; ++i) {
                const auto [span, link] = reader_links_[i];
                add_span_rows(span, batch_.link_range(span, link));
            }
            const auto by_keys = [](const WorkRow& a, const WorkRow& b) {
                return std::tie(a.kv_begin, a.kv_end) < std::tie(b.kv_begin, b.kv_end);
            };
            std::stable_sort(group_rows_.begin(), group_rows_.end(), by_keys);
            const int32_t piece = static_cast<int32_t>(plan_.pieces_.size());
            const int32_t begin = batch_.segment_begin[segment];
            add_piece(segment, {begin, begin + batch_.segment_num_tokens[segment]});
            add_tiles(piece);
        }
    }

    // The links of a span that are not shared, as runs of neighbours.
    void add_span_groups() {
        for (int32_t span = 0; span < batch_.num_spans(); ++span) {
            int32_t link = batch_.link_indptr[span];
            const int32_t link_end = batch_.link_indptr[span + 1];
            while (link < link_end) {
                if (is_shared(batch_.link_segment[link])) {
                    ++link;
                    continue;
                }
                const int32_t piece = static_cast<int32_t>(plan_.pieces_.size());
                AttentionBatch::Range run = batch_.link_range(span, link);
                for (; link < link_end && !is_shared(batch_.link_segment[link]); ++link) {
                    const AttentionBatch::Range range = batch_.link_range(span, link);
                    add_piece(batch_.link_segment[link], range);
                    run.end = range.end;
                }
                group_rows_.clear();
                add_span_rows(span, run);
                add_tiles(piece);
            }
        }
    }

    void add_piece(int32_t segment, AttentionBatch::Range range) {
        if (range.begin == range.end) return;
        plan_.pieces_.push_back(
            {batch_.segment_page_indptr[segment], batch_.segment_begin[segment], range.begin, range.end});
    }

    // The rows of a span that see some of the range. Rows of one span are ordered by what they see.
    void add_span_rows(int32_t span, AttentionBatch::Range range) {
        for (int32_t row = 0; row < batch_.num_rows(span); ++row) {
            const int32_t position = batch_.span_begin[span] + row;
            const int32_t begin = std::max(range.begin, shape_.visible_begin(position));
            const int32_t end = std::min(range.end, position + 1);
            if (begin < end) group_rows_.push_back({batch_.span_indptr[span] + row, begin, end, kWriteThrough});
        }
    }

    // Cuts the group's rows into tiles. A tile also ends where no row reads the next key, so
    // that every key of an item is visible to one of its rows.
    void add_tiles(int32_t piece_begin) {
        const int32_t num_rows = static_cast<int32_t>(group_rows_.size());
        const int32_t piece_end = static_cast<int32_t>(plan_.pieces_.size());
        const int32_t height = cost_.tile_rows(num_rows);
        int32_t end = 0;
        for (int32_t begin = 0; begin < num_rows; begin = end) {
            const int32_t kv_begin = group_rows_[begin].kv_begin;
            int32_t kv_end = group_rows_[begin].kv_end;
            for (end = begin + 1; end < num_rows && end - begin < height; ++end) {
                if (group_rows_[end].kv_begin > kv_end) break;
                kv_end = std::max(kv_end, group_rows_[end].kv_end);
            }
            const int32_t row = static_cast<int32_t>(tile_rows_.size());
            tile_rows_.insert(tile_rows_.end(), group_rows_.begin() + begin, group_rows_.begin() + end);
            const WorkItem item{row, row + end - begin, piece_begin, piece_end, kv_begin, kv_end};
            tiles_.push_back({item, task_cost(item)});
        }
    }

    bool is_narrow(const WorkItem& item) const { return cost_.is_narrow(item.row_end - item.row_begin); }

    // See WorkTask.
    int32_t heads_per_task(const WorkItem& item) const { return is_narrow(item) ? shape_.num_kv_heads : 1; }
    int32_t tasks_per_item(const WorkItem& item) const { return shape_.num_kv_heads / heads_per_task(item); }
    double task_cost(const WorkItem& item) const {
        const double one_head = cost_.item() + cost_.tile(item.row_end - item.row_begin, item.kv_end - item.kv_begin);
        return heads_per_task(item) * one_head;
    }

    // Splits the keys of tiles that would keep one thread busy while others have run out of work.
    void split_tiles_into_items() {
        constexpr double kItemsPerThread = 4.0;
        double total = 0.0;
        for (const Tile& tile : tiles_) total += tile.cost * tasks_per_item(tile.item);
        max_task_cost_ = plan_.num_threads_ == 1 ? total : total / (kItemsPerThread * plan_.num_threads_);

        plan_.rows_.reserve(tile_rows_.size());
        for (const Tile& tile : tiles_) {
            const int32_t num_keys = tile.item.kv_end - tile.item.kv_begin;
            const int64_t keys_per_split = round_up(ceil_div(num_keys, num_splits(tile)), kKeyTile);
            for (int64_t begin = tile.item.kv_begin; begin < tile.item.kv_end; begin += keys_per_split) {
                const int64_t end = std::min<int64_t>(begin + keys_per_split, tile.item.kv_end);
                add_item(tile.item, static_cast<int32_t>(begin), static_cast<int32_t>(end));
            }
        }
    }

    // Into how many a tile is split whose tasks are too long: the number with which they would end first if
    // threads had nothing else. Nine tasks on two threads take as long as ten, and the thread that is disturbed keeps
    // the others waiting for a part of its last task.
    int32_t num_splits(const Tile& tile) const {
        if (tile.cost <= max_task_cost_) return 1;
        constexpr double kPartOfLastTask = 0.25;
        const int32_t num_keys = tile.item.kv_end - tile.item.kv_begin;
        const double most = std::min<double>(num_keys / kMinSplitKeys, 2 * tile.cost / max_task_cost_);
        const int32_t num_heads = heads_per_task(tile.item);
        const double cost_of_split = cost_.item() + cost_.partial_states(tile.item.row_end - tile.item.row_begin);
        int32_t best = 1;
        double best_time = std::numeric_limits<double>::infinity();
        for (int32_t splits = 1; splits <= most; ++splits) {
            const int64_t rounds = ceil_div(int64_t{splits} * tasks_per_item(tile.item), plan_.num_threads_);
            const double time =
                (static_cast<double>(rounds) + kPartOfLastTask) * (tile.cost / splits + num_heads * cost_of_split);
            if (time < best_time) best = splits, best_time = time;
        }
        return best;
    }

    void add_item(const WorkItem& tile, int32_t kv_begin, int32_t kv_end) {
        const int32_t row_begin = static_cast<int32_t>(plan_.rows_.size());
        for (int32_t i = tile.row_begin; i < tile.row_end; ++i) {
            WorkRow row = tile_rows_[i];
            row.kv_begin = std::max(row.kv_begin, kv_begin);
            row.kv_end = std::min(row.kv_end, kv_end);
            if (row.kv_begin < row.kv_end) plan_.rows_.push_back(row);
        }
        const int32_t row_end = static_cast<int32_t>(plan_.rows_.size());
        plan_.items_.push_back({row_begin, row_end, tile.piece_begin, tile.piece_end, kv_begin, kv_end});
        plan_.max_item_rows_ = std::max(plan_.max_item_rows_, row_end - row_begin);
    }

    void sort_longest_first() {
        std::vector<int32_t> order(plan_.items_.size());
        std::iota(order.begin(), order.end(), 0);
        std::vector<double> costs;
        for (const WorkItem& item : plan_.items_) costs.push_back(task_cost(item));
        std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return costs[a] > costs[b]; });
        std::vector<WorkItem> sorted;
        sorted.reserve(order.size());
        for (int32_t i : order) sorted.push_back(plan_.items_[i]);
        plan_.items_ = std::move(sorted);
    }

    // Tasks of one item stay together: the second head finds the keys of the first nearby. Short items become one task.
    void add_tasks() {
        constexpr double kShortTasks = 4.0;  // of them take as long as the longest task
        const int32_t num_items = static_cast<int32_t>(plan_.items_.size());
        int32_t end = 0;
        for (int32_t begin = 0; begin < num_items; begin = end) {
            end = begin + 1;
            const int32_t num_heads = heads_per_task(plan_.items_[begin]);
            double cost = task_cost(plan_.items_[begin]);
            while (is_narrow(plan_.items_[begin]) && end < num_items && is_narrow(plan_.items_[end])) {
                cost += task_cost(plan_.items_[end]);
                if (cost > max_task_cost_ / kShortTasks) break;
                ++end;
            }
            for (int32_t head = 0; head < shape_.num_kv_heads; head += num_heads) {
                plan_.tasks_.push_back({begin, end, head, head + num_heads});
            }
        }
    }

    // A row with one partial state writes its result; the others get neighbouring slots, in the order of plan.rows.
    void assign_slots() {
        std::vector<int32_t> num_states(plan_.num_tokens_, 0);
        for (const WorkRow& row : plan_.rows_) ++num_states[row.token];
        std::vector<int32_t> next_slot(plan_.num_tokens_);
        for (int32_t token = 0; token < plan_.num_tokens_; ++token) {
            if (num_states[token] == 1) continue;
            next_slot[token] = plan_.num_slots_;
            plan_.num_slots_ += num_states[token];
            plan_.merge_rows_.push_back({token, next_slot[token], plan_.num_slots_});
        }
        for (WorkRow& row : plan_.rows_) {
            if (num_states[row.token] > 1) row.slot = next_slot[row.token]++;
        }
    }

    void count_reads() {
        PlanStats& stats = plan_.stats_;
        for (const WorkItem& item : plan_.items_) stats.kv_tokens_read += item.kv_end - item.kv_begin;
        for (const WorkRow& row : plan_.rows_) stats.num_scores += row.kv_end - row.kv_begin;
        const int32_t height = cost_.max_tile_rows();
        for (int32_t span = 0; span < batch_.num_spans(); ++span) {
            if (batch_.link_indptr[span] == batch_.link_indptr[span + 1]) continue;
            stats.num_levels = std::max(stats.num_levels, batch_.link_indptr[span + 1] - batch_.link_indptr[span]);
            const int32_t chain_begin = batch_.link_range(span, batch_.link_indptr[span]).begin;
            const int32_t chain_end = batch_.link_range(span, batch_.link_indptr[span + 1] - 1).end;
            for (int32_t row = 0; row < batch_.num_rows(span); row += height) {
                const int32_t first = batch_.span_begin[span] + row;
                const int32_t last = batch_.span_begin[span] + std::min(row + height, batch_.num_rows(span)) - 1;
                const int32_t begin = std::max(chain_begin, shape_.visible_begin(first));
                stats.per_request_kv_tokens_read += std::max(0, std::min(chain_end, last + 1) - begin);
            }
        }
    }

    const AttentionBatch& batch_;
    AttentionPlan& plan_;
    const AttentionShape& shape_;
    const CostModel cost_;
    std::vector<int32_t> readers_;
    std::vector<ReaderLink> reader_links_;
    std::vector<uint8_t> is_shared_;
    std::vector<WorkRow> group_rows_;
    std::vector<WorkRow> tile_rows_;
    std::vector<Tile> tiles_;
    double max_task_cost_ = 0.0;
};

AttentionPlan::AttentionPlan(const AttentionBatch& batch, const AttentionShape& shape, int32_t num_threads,
                             Sharing sharing, PlanDevice device)
    : shape_(shape), num_threads_(num_threads) {
    shape.validate();
    if (num_threads < 1)
        throw std::invalid_argument("num_threads: expected at least 1, got " + std::to_string(num_threads));
    batch.validate(shape.page_size);
    num_tokens_ = batch.num_tokens();
    page_ids_.assign(batch.segment_page_ids.begin(), batch.segment_page_ids.end());
    for (int32_t page_id : page_ids_) max_page_id_ = std::max(max_page_id_, page_id);
    PlanBuilder(batch, *this, sharing, device);
}

}  // namespace batchllm
