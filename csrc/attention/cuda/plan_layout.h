// A plan in one buffer of int32, which the host writes and one copy uploads.
//
//   wide_tiles | narrow_tiles | rows | pieces | page_ids | merge_rows
//
// A layout has room for plans up to its sizes. Its arrays stand where they stand whatever plan is in them, so a CUDA
// graph that was captured with one plan may be replayed with another. Behind the plan's tiles follow empty ones, behind
// its merge rows those of token -1: nothing to do for a kernel. The other arrays are read through these two only, so
// behind the plan's they may hold anything.
#pragma once

#include <cstdint>
#include <span>

#include "attention/cuda/attention_args.h"
#include "attention/plan/attention_batch.h"
#include "attention/plan/attention_plan.h"

namespace batchllm::cuda {

struct PlanSizes {
    int32_t num_rows = 0;  // of q
    int32_t num_wide_tiles = 0;
    int32_t num_narrow_tiles = 0;
    int32_t num_item_rows = 0;
    int32_t num_pieces = 0;
    int32_t num_page_ids = 0;
    int32_t num_merged_rows = 0;
    int32_t num_partial_rows = 0;
};

struct NamedSize {
    const char* name;
    int32_t PlanSizes::* member;
};
inline constexpr NamedSize kNamedSizes[] = {
    {"num_rows", &PlanSizes::num_rows},
    {"num_wide_tiles", &PlanSizes::num_wide_tiles},
    {"num_narrow_tiles", &PlanSizes::num_narrow_tiles},
    {"num_item_rows", &PlanSizes::num_item_rows},
    {"num_pieces", &PlanSizes::num_pieces},
    {"num_page_ids", &PlanSizes::num_page_ids},
    {"num_merged_rows", &PlanSizes::num_merged_rows},
    {"num_partial_rows", &PlanSizes::num_partial_rows},
};

// What is packed of a plan.
struct PlanArrays {
    std::span<const WorkItem> items;
    std::span<const WorkRow> rows;
    std::span<const KvPiece> pieces;
    std::span<const int32_t> page_ids;
    std::span<const MergeRow> merge_rows;
    int32_t num_tokens;
    int32_t num_slots;
    int32_t max_page_id;
};

inline PlanArrays plan_arrays(const AttentionPlan& plan) {
    return {plan.items(),      plan.rows(),       plan.pieces(),    plan.page_ids(),
            plan.merge_rows(), plan.num_tokens(), plan.num_slots(), plan.max_page_id()};
}

PlanSizes plan_sizes(const PlanArrays& plan, const AttentionShape& shape);

// Where the arrays of a buffer begin.
struct PackedPlan {
    const AttentionTile* wide_tiles;
    const AttentionTile* narrow_tiles;
    const WorkRow* rows;
    const KvPiece* pieces;
    const int32_t* page_ids;
    const MergeRow* merge_rows;
};

class PlanLayout {
 public:
    // num_pages: of k_pages and v_pages. Throws std::invalid_argument for a head_dim that no kernel is compiled for,
    // and for more tiles than a launch takes.
    PlanLayout(const AttentionShape& shape, const PlanSizes& sizes, int64_t num_pages);

    const AttentionShape& shape() const { return shape_; }
    const PlanSizes& sizes() const { return sizes_; }
    int64_t num_pages() const { return num_pages_; }
    int64_t num_ints() const;  // of the buffer

    // Memory for partial states: out [num_partial_rows, num_qo_heads, head_dim] in 16 bits, then lse in 32 without
    // head_dim.
    int64_t num_partial_outs() const;
    int64_t num_workspace_floats() const;

    bool has_room_for(const PlanSizes& sizes) const;

    // `buffer` of num_ints(). Throws std::invalid_argument that names the size which exceeds the layout's.
    void pack(const PlanArrays& plan, std::span<int32_t> buffer) const;
    PackedPlan arrays(const int32_t* buffer) const;

    AttentionCall call(const PackedPlan& plan, const AttentionParams& params, void* partial_out,
                       float* partial_lse) const;

 private:
    AttentionShape shape_;
    PlanSizes sizes_;
    int64_t num_pages_;
};

}  // namespace batchllm::cuda
