#include "attention/plan/plan_draft.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "attention/plan/device_model.h"
#include "attention/plan/gpu_splits.h"

namespace batchllm {
namespace {

// Runs that are read once for several spans.
struct Shared {
    SharedRuns runs;
    bool full_alone = false;  // rows that fill a tile by themselves read their whole chain alone: no partial states
};

// Of a span that reads one of these runs, the first rows: those that fill tiles of a GPU.
int32_t num_full_rows(const AttentionBatch& batch, int32_t span, int32_t level, const CostModel& cost,
                      const SharedRuns& runs) {
    const int32_t num_rows = batch.num_rows(span), height = cost.max_tile_rows();
    if (num_rows < height || runs.empty()) return 0;
    const auto [begin, end] = planned_links(batch, span, level);
    const auto links = batch.link_segment.subspan(begin, end - begin);
    const bool shares = std::ranges::any_of(links, [&](int32_t segment) { return runs[segment] > 0; });
    return shares ? num_rows / height * height : 0;
}

// Where the rows and pieces of a group begin.
struct Group {
    int32_t row_begin;
    int32_t piece_begin;
};

// Groups and row tiles.
class TileMaker {
 public:
    TileMaker(const AttentionBatch& batch, const AttentionShape& shape, int32_t level, const CostModel& cost)
        : batch_(batch), shape_(shape), level_(level), cost_(cost) {
        draft_.pieces.reserve(batch.link_segment.size());
        draft_.rows.reserve(2 * batch.num_tokens());  // seldom more: a row reads shared keys and its own
        draft_.tiles.reserve(2 * batch.num_spans());
    }

    PlanDraft make(const Readers& readers, Shared shared) && {
        shared_ = std::move(shared);
        is_shared_.assign(batch_.num_segments(), false);
        for (int32_t segment = 0; segment < batch_.num_segments(); ++segment) {
            if (shared_.runs[segment] > 0) add_shared_group(segment, readers.of(segment));
        }
        draft_.num_shared_segments = static_cast<int32_t>(std::ranges::count(is_shared_, true));
        return std::move(*this).make_alone();
    }

    // Everything that is in no shared run.
    PlanDraft make_alone() && {
        add_span_groups();
        return std::move(draft_);
    }

 private:
    using Range = AttentionBatch::Range;

    // The number of links, this one the last, that are read once for several spans.
    int32_t shared_links(int32_t link) const {
        return shared_.runs.empty() ? 0 : shared_.runs[batch_.link_segment[link]];
    }

    // The first rows of a span, which share nothing.
    int32_t num_rows_alone(int32_t span) const {
        return shared_.full_alone ? num_full_rows(batch_, span, level_, cost_, shared_.runs) : 0;
    }

    void add_shared_group(int32_t segment, std::span<const ReaderLink> readers) {
        const int32_t num_links = shared_.runs[segment];
        const Group group = begin_group();
        for (const auto& [span, link] : readers) {
            add_span_rows(span,
                          {batch_.link_range(span, link - num_links + 1).begin, batch_.link_range(span, link).end},
                          {num_rows_alone(span), batch_.num_rows(span)});
        }
        if (shared_.full_alone && group.row_begin == std::ssize(draft_.rows)) return;
        const auto keys = [](const WorkRow& row) { return std::pair(row.kv_begin, row.kv_end); };
        const auto rows = std::span(draft_.rows).subspan(group.row_begin);
        if (!std::ranges::is_sorted(rows, {}, keys)) std::ranges::stable_sort(rows, {}, keys);
        const auto [span, last] = readers[0];
        for (int32_t link = last - num_links + 1; link <= last; ++link) is_shared_[batch_.link_segment[link]] = true;
        for (int32_t link = last - num_links + 1; link < last; ++link) add_piece(link, batch_.link_range(span, link));
        const int32_t begin = batch_.segment_begin[segment];  // a reader may leave the segment early
        add_piece(last, {begin, begin + batch_.segment_num_tokens[segment]});
        add_tiles(group);
    }

    // The links of a span that are in no shared run, as runs of neighbours.
    void add_span_groups() {
        for (int32_t span = 0; span < batch_.num_spans(); ++span) {
            auto [link, link_end] = planned_links(batch_, span, level_);
            const Range rows{num_rows_alone(span), batch_.num_rows(span)};
            if (rows.begin > 0) {
                add_span_group(span, {link, link_end}, {0, rows.begin});
                if (rows.begin == rows.end) continue;
            }
            while (link < link_end) {
                int32_t run_end = link;
                while (run_end < link_end && shared_links(run_end) == 0) ++run_end;
                const int32_t next = run_end + 1;
                if (run_end < link_end) run_end -= shared_links(run_end) - 1;
                if (link < run_end) add_span_group(span, {link, run_end}, rows);
                link = next;
            }
        }
    }

    void add_span_group(int32_t span, Range links, Range rows) {
        const Group group = begin_group();
        Range range = batch_.link_range(span, links.begin);
        add_piece(links.begin, range);
        for (int32_t link = links.begin + 1; link < links.end; ++link) {
            const Range next = batch_.link_range(span, link);
            add_piece(link, next);
            range.end = next.end;
        }
        add_span_rows(span, range, rows);
        add_tiles(group);
    }

    Group begin_group() const {
        return {static_cast<int32_t>(draft_.rows.size()), static_cast<int32_t>(draft_.pieces.size())};
    }

    // Of the group that was added last.
    void add_tiles(const Group& group) {
        add_row_tiles(draft_, group.row_begin, {group.piece_begin, begin_group().piece_begin}, cost_);
    }

    void add_piece(int32_t link, Range range) {
        if (range.begin == range.end) return;
        const int32_t segment = batch_.link_segment[link];
        draft_.pieces.push_back(
            {batch_.segment_page_indptr[segment], batch_.segment_begin[segment], range.begin, range.end});
    }

    // Those of these rows of a span that see some of the range. They are ordered by what they see.
    void add_span_rows(int32_t span, Range range, Range rows) {
        const int32_t first_token = batch_.span_indptr[span], first_position = batch_.span_begin[span];
        for (int32_t row = std::max(rows.begin, range.begin - first_position); row < rows.end; ++row) {
            const int32_t position = first_position + row;
            const int32_t begin = std::max(range.begin, shape_.visible_begin(position));
            const int32_t end = std::min(range.end, position + 1);
            if (begin >= end) return;  // a window that is past the range
            draft_.rows.push_back({first_token + row, begin, end, kWriteThrough});
        }
    }

    const AttentionBatch& batch_;
    const AttentionShape& shape_;
    int32_t level_;
    const CostModel& cost_;
    Shared shared_;
    std::vector<bool> is_shared_;  // of each segment: in a run
    PlanDraft draft_;
};

// Splits of tiles that would keep one thread busy while others have run out of work.
class CpuSplits {
 public:
    CpuSplits(const CostModel& cost, int32_t num_threads) : cost_(cost), num_threads_(num_threads) {}

    void choose(PlanDraft& draft) const {
        constexpr double kItemsPerThread = 4.0;
        double total = 0.0;
        for (const WorkItem& tile : draft.tiles) total += cost_.task(tile) * cost_.tasks_per_item(tile);
        draft.max_task_cost = num_threads_ == 1 ? total : total / (kItemsPerThread * num_threads_);
        draft.num_splits.reserve(draft.tiles.size());
        for (const WorkItem& tile : draft.tiles) draft.num_splits.push_back(num_splits(tile, draft.max_task_cost));
    }

 private:
    // The number of splits for a tile whose tasks are too long: the one with which they would end first if threads had
    // nothing else to do. Nine tasks on two threads take as long as ten, and a disturbed thread keeps the others
    // waiting for part of its last task.
    int32_t num_splits(const WorkItem& tile, double max_task_cost) const {
        const double cost = cost_.task(tile);
        if (cost <= max_task_cost) return 1;
        constexpr double kPartOfLastTask = 0.25;
        const int32_t num_keys = tile.kv_end - tile.kv_begin;
        const double most = std::min<double>(num_keys / kMinSplitKeys, 2 * cost / max_task_cost);
        const double cost_of_split = cost_.item() + cost_.partial_states(tile.row_end - tile.row_begin);
        int32_t best = 1;
        double best_time = std::numeric_limits<double>::infinity();
        for (int32_t splits = 1; splits <= most; ++splits) {
            const int64_t rounds = ceil_div(int64_t{splits} * cost_.tasks_per_item(tile), num_threads_);
            const double time = (static_cast<double>(rounds) + kPartOfLastTask) *
                                (cost / splits + cost_.heads_per_task(tile) * cost_of_split);
            if (time < best_time) best = splits, best_time = time;
        }
        return best;
    }

    const CostModel& cost_;
    int32_t num_threads_;
};

// Chooses the splits, and returns the predicted time of the call.
double split_for_gpu(PlanDraft& draft, int32_t num_tokens, int32_t group_size, const GpuTime& time) {
    std::vector<int32_t> num_tiles(num_tokens, 0);
    for (const WorkRow& row : draft.rows) ++num_tiles[row.token];
    std::vector<GpuTile> tiles;
    tiles.reserve(draft.tiles.size());
    for (const WorkItem& item : draft.tiles) {
        GpuTile tile{.num_rows = (item.row_end - item.row_begin) * group_size,
                     .num_partials = 0,
                     .piece_begin = item.piece_begin,
                     .piece_end = item.piece_end,
                     .kv_begin = item.kv_begin,
                     .kv_end = item.kv_end};
        int32_t num_partials = 0;
        for (int32_t row = item.row_begin; row < item.row_end; ++row) {
            num_partials += num_tiles[draft.rows[row].token] > 1;
        }
        tile.num_partials = num_partials * group_size;
        tiles.push_back(tile);
    }
    const int64_t num_merged = std::ranges::count_if(num_tiles, [](int32_t number) { return number != 1; });
    GpuSplits splits = gpu_splits(tiles, draft.pieces, num_merged * group_size, time);
    draft.num_splits = std::move(splits.of_tile);
    return splits.call_s;
}

// The least time of a call in which every span reads its keys separately: that of the spans of one row alone.
double alone_at_least_s(const AttentionBatch& batch, const AttentionShape& shape, int32_t level, const GpuTime& time) {
    int64_t num_keys = 0;
    for (int32_t span = 0; span < batch.num_spans(); ++span) {
        const auto [begin, end] = planned_links(batch, span, level);
        if (begin == end || batch.num_rows(span) != 1) continue;
        const int32_t position = batch.span_begin[span];
        const int32_t first = std::max(batch.link_range(span, begin).begin, shape.visible_begin(position));
        num_keys += std::max(0, std::min(batch.link_range(span, end - 1).end, position + 1) - first);
    }
    const TileKind kind = kind_of(shape.group_size());
    const double keys_s = time.keys_s(kind, shape.group_size(), num_keys);
    return time.call_s({.share_s = time.share_s(kind, 0, keys_s, 1)}, {}, 0.0, 0.0);
}

bool any_full_rows(const AttentionBatch& batch, int32_t level, const CostModel& cost, const SharedRuns& runs) {
    for (int32_t span = 0; span < batch.num_spans(); ++span) {
        if (num_full_rows(batch, span, level, cost, runs) > 0) return true;
    }
    return false;
}

PlanDraft draft_for_gpu(const AttentionBatch& batch, const AttentionShape& shape, const PlanOptions& options) {
    const CostModel cost(shape, gpu_costs(*options.gpu, shape.head_dim));
    const CallStyle style = options.cascade == nullptr ? our_style(shape.head_dim) : *options.cascade;
    const GpuTime time(*options.gpu, shape, style);
    const auto make = [&] { return TileMaker(batch, shape, options.level, cost); };
    const auto split = [&](PlanDraft& draft) {
        return split_for_gpu(draft, batch.num_tokens(), shape.group_size(), time);
    };
    if (options.sharing == Sharing::kNever) {
        PlanDraft alone = make().make_alone();
        split(alone);
        return alone;
    }
    const Readers readers(batch, options.level);
    PlanDraft best;
    Shared best_shared;
    double best_s = std::numeric_limits<double>::infinity();
    const auto consider = [&](Shared shared) {
        PlanDraft draft = make().make(readers, shared);
        const double seconds = split(draft);
        if (seconds >= best_s) return;
        best_s = seconds;
        best = std::move(draft);
        best_shared = std::move(shared);
    };
    if (options.sharing == Sharing::kAlways) {
        consider({share_always(batch, readers)});
        return best;
    }
    SharedRuns before(batch.num_segments(), 0);  // make_alone's
    for (const double state_weight : {1.0, 4.0}) {
        SharedRuns runs = share_runs(batch, readers, cost, state_weight);
        if (runs == before) continue;  // the same tiles
        before = runs;
        consider({std::move(runs)});
    }
    if (any_full_rows(batch, options.level, cost, best_shared.runs))
        consider({.runs = best_shared.runs, .full_alone = true});
    if (alone_at_least_s(batch, shape, options.level, time) > best_s) return best;
    PlanDraft alone = make().make_alone();
    if (split(alone) <= best_s) return alone;
    return best;
}

PlanDraft draft_for_cpu(const AttentionBatch& batch, const AttentionShape& shape, const PlanOptions& options) {
    const CostModel cost(shape, kCpuCosts);
    TileMaker maker(batch, shape, options.level, cost);
    PlanDraft draft;
    if (options.sharing == Sharing::kNever) {
        draft = std::move(maker).make_alone();
    } else {
        const Readers readers(batch, options.level);
        draft = std::move(maker).make(
            readers, {options.sharing == Sharing::kAlways ? share_always(batch, readers)
                                                          : share_where_it_pays(batch, readers, cost)});
    }
    choose_cpu_splits(draft, cost, options.num_threads);
    return draft;
}

}  // namespace

void add_row_tiles(PlanDraft& draft, int32_t row_begin, AttentionBatch::Range pieces, const CostModel& cost) {
    const auto row_end = static_cast<int32_t>(draft.rows.size());
    const int32_t height = row_end - row_begin <= 1 ? 1 : cost.tile_rows(row_end - row_begin);
    const WorkRow* const rows = draft.rows.data();
    for (int32_t begin = row_begin; begin < row_end;) {
        WorkItem tile{begin, begin + 1, pieces.begin, pieces.end, rows[begin].kv_begin, rows[begin].kv_end};
        const int32_t most = std::min(begin + height, row_end);
        for (; tile.row_end < most && rows[tile.row_end].kv_begin <= tile.kv_end; ++tile.row_end) {
            tile.kv_end = std::max(tile.kv_end, rows[tile.row_end].kv_end);
        }
        draft.tiles.push_back(tile);
        begin = tile.row_end;
    }
}

void choose_cpu_splits(PlanDraft& draft, const CostModel& cost, int32_t num_threads) {
    CpuSplits(cost, num_threads).choose(draft);
}

PlanDraft draft_plan(const AttentionBatch& batch, const AttentionShape& shape, const PlanOptions& options) {
    return options.gpu == nullptr ? draft_for_cpu(batch, shape, options) : draft_for_gpu(batch, shape, options);
}

}  // namespace batchllm
