// Which keys of a batch are read once for several spans.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "attention/plan/attention_batch.h"
#include "attention/plan/device_model.h"

namespace batchllm {

// A segment as one span reads it.
struct ReaderLink {
    int32_t span;
    int32_t link;
};

// The links of a batch by segment.
class Readers {
 public:
    Readers(const AttentionBatch& batch, int32_t level);

    std::span<const ReaderLink> of(int32_t segment) const {
        return std::span(links_).subspan(indptr_[segment], indptr_[segment + 1] - indptr_[segment]);
    }

 private:
    std::vector<int32_t> indptr_;  // into links_
    std::vector<ReaderLink> links_;
};

constexpr int32_t kAllLevels = -1;

// The links of a span that are planned: all, or the one of that level of its chain, if it has one.
inline AttentionBatch::Range planned_links(const AttentionBatch& batch, int32_t span, int32_t level) {
    const AttentionBatch::Range all{batch.link_indptr[span], batch.link_indptr[span + 1]};
    if (level == kAllLevels) return all;
    const int32_t link = std::min(all.begin + level, all.end);
    return {link, std::min(link + 1, all.end)};
}

// For each segment the number of links of its readers' chains, itself the last, that form one run of keys read once for
// all of them; 0: it ends no run. Links that are in no run are read by each span separately.
using SharedRuns = std::vector<int32_t>;

SharedRuns share_always(const AttentionBatch& batch, const Readers& readers);

// If that costs less than reading the segment for every span.
SharedRuns share_where_it_pays(const AttentionBatch& batch, const Readers& readers, const CostModel& cost);

// The same with runs of several links: a segment that is short for its number of readers is read again with each of
// those that follow it, which saves every row a partial state. A partial state counts `state_weight` times.
SharedRuns share_runs(const AttentionBatch& batch, const Readers& readers, const CostModel& cost, double state_weight);

}  // namespace batchllm
