#include "attention/plan/shared_runs.h"

#include <algorithm>
#include <numeric>

namespace batchllm {
namespace {

constexpr int32_t kNone = -1;

template <typename Visit>
void for_each_link(const AttentionBatch& batch, int32_t level, const Visit& visit) {
    for (int32_t span = 0; span < batch.num_spans(); ++span) {
        const auto [begin, end] = planned_links(batch, span, level);
        for (int32_t link = begin; link < end; ++link) visit(span, link);
    }
}

// Decides segment by segment, roots first.
class RunChooser {
 public:
    RunChooser(const AttentionBatch& batch, const Readers& readers, const CostModel& cost, double state_weight)
        : batch_(batch), readers_(readers), cost_(cost), state_weight_(state_weight) {}

    SharedRuns choose() && {
        const int32_t num_segments = batch_.num_segments();
        std::vector<int32_t> by_depth;  // those with several readers
        for (int32_t segment = 0; segment < num_segments; ++segment) {
            if (readers_.of(segment).size() >= 2) by_depth.push_back(segment);
        }
        std::ranges::stable_sort(by_depth, {}, [&](int32_t segment) { return depth(segment); });
        runs_.assign(num_segments, 0);
        open_.assign(num_segments, {});
        for (const int32_t segment : by_depth) {
            Run& run = open_[segment];
            if (const int32_t before = segment_before(segment); before != kNone && runs_[before] == 0) {
                run = open_[before];
            }
            ++run.num_links;
            run.num_keys += batch_.segment_num_tokens[segment];
            if (pays(segment, run.num_keys)) runs_[segment] = run.num_links;
        }
        return std::move(runs_);
    }

 private:
    // Links that are undecided except that they end no run.
    struct Run {
        int32_t num_links = 0;
        int32_t num_keys = 0;
    };

    int32_t depth(int32_t segment) const {
        const auto links = readers_.of(segment);
        return links.empty() ? 0 : links[0].link - batch_.link_indptr[links[0].span];
    }

    // The segment that all readers read before this one; kNone if it differs.
    int32_t segment_before(int32_t segment) const {
        int32_t before = kNone;
        for (const auto& [span, link] : readers_.of(segment)) {
            const int32_t own = link == batch_.link_indptr[span] ? kNone : batch_.link_segment[link - 1];
            if (own == kNone || (before != kNone && own != before)) return kNone;
            before = own;
        }
        return before;
    }

    struct Costs {
        int32_t num_rows = 0;
        double alone = 0.0;
    };

    Costs costs(std::span<const ReaderLink> links, int32_t num_keys) const {
        Costs costs;
        for (const ReaderLink& reader : links) {
            const int32_t rows = batch_.num_rows(reader.span);
            costs.num_rows += rows;
            costs.alone += cost_.rows(rows, num_keys);
        }
        return costs;
    }

    double shared(int32_t num_rows, int32_t num_keys) const {
        return cost_.rows(num_rows, num_keys) + cost_.item() + state_weight_ * cost_.partial_states(num_rows);
    }

    // Compared with reading the run again for everything that follows it: segments that are worth their own run with
    // it, and spans.
    bool pays(int32_t segment, int32_t num_keys) const {
        const auto links = readers_.of(segment);
        int32_t num_rows = 0;
        double again = 0.0;
        for (size_t begin = 0, end = 0; begin < links.size(); begin = end) {
            const int32_t next = segment_behind(links[begin]);
            end = begin + 1;
            while (next != kNone && end < links.size() && segment_behind(links[end]) == next) ++end;
            const Costs group = costs(links.subspan(begin, end - begin), num_keys);
            num_rows += group.num_rows;
            again += group.alone;
            if (end - begin < 2) continue;
            const int32_t with_next = num_keys + batch_.segment_num_tokens[next];
            const bool is_run =
                shared(group.num_rows, with_next) < costs(links.subspan(begin, end - begin), with_next).alone;
            if (is_run) again += cost_.rows(group.num_rows, num_keys) - group.alone;
        }
        return shared(num_rows, num_keys) < again;
    }

    int32_t segment_behind(const ReaderLink& reader) const {
        const int32_t next = reader.link + 1;
        return next < batch_.link_indptr[reader.span + 1] ? batch_.link_segment[next] : kNone;
    }

    const AttentionBatch& batch_;
    const Readers& readers_;
    const CostModel& cost_;
    double state_weight_;
    SharedRuns runs_;
    std::vector<Run> open_;
};

}  // namespace

Readers::Readers(const AttentionBatch& batch, int32_t level) : indptr_(batch.num_segments() + 1, 0) {
    for_each_link(batch, level, [&](int32_t /*span*/, int32_t link) { ++indptr_[batch.link_segment[link] + 1]; });
    std::partial_sum(indptr_.begin(), indptr_.end(), indptr_.begin());
    links_.resize(indptr_.back());
    for_each_link(batch, level,
                  [&](int32_t span, int32_t link) { links_[indptr_[batch.link_segment[link]]++] = {span, link}; });
    std::shift_right(indptr_.begin(), indptr_.end(), 1);  // each has become the end of its own, the next one's begin
    indptr_[0] = 0;
}

SharedRuns share_always(const AttentionBatch& batch, const Readers& readers) {
    SharedRuns runs(batch.num_segments());
    for (int32_t segment = 0; segment < batch.num_segments(); ++segment)
        runs[segment] = readers.of(segment).size() >= 2;
    return runs;
}

SharedRuns share_where_it_pays(const AttentionBatch& batch, const Readers& readers, const CostModel& cost) {
    SharedRuns runs(batch.num_segments());
    for (int32_t segment = 0; segment < batch.num_segments(); ++segment) {
        const int32_t num_keys = batch.segment_num_tokens[segment];
        int32_t num_rows = 0;
        double cost_alone = 0.0;
        for (const ReaderLink& reader : readers.of(segment)) {
            const int32_t rows = batch.num_rows(reader.span);
            num_rows += rows;
            cost_alone += cost.rows(rows, num_keys);
        }
        const double cost_shared = cost.rows(num_rows, num_keys) + cost.item() + cost.partial_states(num_rows);
        runs[segment] = readers.of(segment).size() >= 2 && cost_shared < cost_alone;
    }
    return runs;
}

SharedRuns share_runs(const AttentionBatch& batch, const Readers& readers, const CostModel& cost, double state_weight) {
    return RunChooser(batch, readers, cost, state_weight).choose();
}

}  // namespace batchllm
