#include "attention/cuda/plan_layout.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "attention/cuda/attention_tiles.h"
#include "attention/cuda/tile_shape.h"
#include "attention/plan/gpu_model.h"
#include "cuda/launch_grid.h"

namespace batchllm::cuda {
namespace {

// What plans are made by is true of the kernels.
template <int kHeadDim>
constexpr bool kIsModelled =
    max_packed_rows(kHeadDim) == gpu_tile_rows(kHeadDim) &&
    TileShapes<kHeadDim>::Narrow::kSharedBytes == gpu_block_bytes(TileKind::kNarrow, kHeadDim) &&
    kWideSharedBytes<kHeadDim> == gpu_block_bytes(TileKind::kWide, kHeadDim);
static_assert(kNarrowRows == kGpuNarrowRows && kIsModelled<64> && kIsModelled<96> && kIsModelled<128> &&
              kIsModelled<256>);

constexpr AttentionTile kNoTile{};
constexpr MergeRow kNoMergeRow{-1, 0, 0};

template <typename T>
constexpr int64_t kInts = sizeof(T) / sizeof(int32_t);

// Writes `values` and then `filler`, `size` in all.
template <typename T>
int32_t* write(std::span<const T> values, int32_t size, const T& filler, int32_t* to) {
    std::memcpy(to, values.data(), values.size_bytes());
    for (int64_t i = std::ssize(values); i < size; ++i) std::memcpy(to + i * kInts<T>, &filler, sizeof(T));
    return to + size * kInts<T>;
}

// The same, leaving what follows as it is.
template <typename T>
int32_t* write(std::span<const T> values, int32_t size, int32_t* to) {
    std::memcpy(to, values.data(), values.size_bytes());
    return to + size * kInts<T>;
}

PlanSizes sizes_with(const PlanArrays& plan, NumTiles num_tiles) {
    const auto size = [](const auto& span) { return static_cast<int32_t>(span.size()); };
    return {
        .num_rows = plan.num_tokens,
        .num_wide_tiles = num_tiles.wide,
        .num_narrow_tiles = num_tiles.narrow,
        .num_item_rows = size(plan.rows),
        .num_pieces = size(plan.pieces),
        .num_page_ids = size(plan.page_ids),
        .num_merged_rows = size(plan.merge_rows),
        .num_partial_rows = plan.num_slots,
    };
}

template <typename T>
const T* take(const int32_t*& from, int32_t size) {
    const auto* array = reinterpret_cast<const T*>(from);
    from += size * kInts<T>;
    return array;
}

}  // namespace

PlanSizes plan_sizes(const PlanArrays& plan, const AttentionShape& shape) {
    return sizes_with(plan, num_attention_tiles(plan.items, shape.group_size(), max_packed_rows(shape.head_dim)));
}

PlanLayout::PlanLayout(const AttentionShape& shape, const PlanSizes& sizes, int64_t num_pages)
    : shape_(shape), sizes_(sizes), num_pages_(num_pages) {
    if (!is_supported_head_dim(shape.head_dim)) {
        throw std::invalid_argument("head_dim: expected 64, 96, 128 or 256 on a GPU, got " +
                                    std::to_string(shape.head_dim));
    }
    for (const NamedSize& size : {NamedSize{"num_wide_tiles", &PlanSizes::num_wide_tiles},
                                  NamedSize{"num_narrow_tiles", &PlanSizes::num_narrow_tiles}}) {
        if (int64_t{sizes.*size.member} * shape.num_kv_heads > kMaxBlocks) {
            throw std::invalid_argument(std::string(size.name) + ": expected at most " +
                                        std::to_string(kMaxBlocks / shape.num_kv_heads) + ", got " +
                                        std::to_string(sizes.*size.member));
        }
    }
}

int64_t PlanLayout::num_ints() const {
    return (int64_t{sizes_.num_wide_tiles} + sizes_.num_narrow_tiles) * kInts<AttentionTile> +
           sizes_.num_item_rows * kInts<WorkRow> + sizes_.num_pieces * kInts<KvPiece> + sizes_.num_page_ids +
           sizes_.num_merged_rows * kInts<MergeRow>;
}

int64_t PlanLayout::num_partial_outs() const {
    return int64_t{sizes_.num_partial_rows} * shape_.num_qo_heads * shape_.head_dim;
}

int64_t PlanLayout::num_workspace_floats() const {
    return num_partial_outs() / 2 + int64_t{sizes_.num_partial_rows} * shape_.num_qo_heads;
}

bool PlanLayout::has_room_for(const PlanSizes& sizes) const {
    return std::ranges::all_of(kNamedSizes,
                               [&](const NamedSize& size) { return sizes.*size.member <= sizes_.*size.member; });
}

void PlanLayout::pack(const PlanArrays& plan, std::span<int32_t> buffer) const {
    const AttentionTiles tiles =
        attention_tiles(plan.items, plan.rows, shape_.group_size(), max_packed_rows(shape_.head_dim));
    const PlanSizes needed = sizes_with(plan, tiles.num());
    for (const auto& [name, member] : kNamedSizes) {
        if (needed.*member <= sizes_.*member) continue;
        throw std::invalid_argument("plan: " + std::string(name) + " is " + std::to_string(needed.*member) +
                                    ", but the layout has room for " + std::to_string(sizes_.*member));
    }
    if (plan.max_page_id >= num_pages_) {
        throw std::invalid_argument("plan: expected page ids in [0, " + std::to_string(num_pages_) + "), got " +
                                    std::to_string(plan.max_page_id));
    }
    assert(std::ssize(buffer) == num_ints());
    int32_t* to = buffer.data();
    to = write(std::span<const AttentionTile>(tiles.wide), sizes_.num_wide_tiles, kNoTile, to);
    to = write(std::span<const AttentionTile>(tiles.narrow), sizes_.num_narrow_tiles, kNoTile, to);
    to = write(plan.rows, sizes_.num_item_rows, to);
    to = write(plan.pieces, sizes_.num_pieces, to);
    to = write(plan.page_ids, sizes_.num_page_ids, to);
    write(plan.merge_rows, sizes_.num_merged_rows, kNoMergeRow, to);
}

PackedPlan PlanLayout::arrays(const int32_t* buffer) const {
    PackedPlan plan{};
    plan.wide_tiles = take<AttentionTile>(buffer, sizes_.num_wide_tiles);
    plan.narrow_tiles = take<AttentionTile>(buffer, sizes_.num_narrow_tiles);
    plan.rows = take<WorkRow>(buffer, sizes_.num_item_rows);
    plan.pieces = take<KvPiece>(buffer, sizes_.num_pieces);
    plan.page_ids = take<int32_t>(buffer, sizes_.num_page_ids);
    plan.merge_rows = take<MergeRow>(buffer, sizes_.num_merged_rows);
    return plan;
}

AttentionCall PlanLayout::call(const PackedPlan& plan, const AttentionParams& params, void* partial_out,
                               float* partial_lse) const {
    return {
        .head_dim = shape_.head_dim,
        .num_wide_tiles = sizes_.num_wide_tiles,
        .num_narrow_tiles = sizes_.num_narrow_tiles,
        .num_merge_rows = sizes_.num_merged_rows,
        .merge_rows = plan.merge_rows,
        .args = {.wide_tiles = plan.wide_tiles,
                 .narrow_tiles = plan.narrow_tiles,
                 .rows = plan.rows,
                 .pieces = plan.pieces,
                 .page_ids = plan.page_ids,
                 .num_kv_heads = shape_.num_kv_heads,
                 .group_size = shape_.group_size(),
                 .page_size = shape_.page_size,
                 .heads_per_block = narrow_heads_per_block(sizes_.num_narrow_tiles, shape_.num_kv_heads),
                 .score_factor =
                     params.softmax_scale * (params.soft_cap == 0.0f ? kLog2E : 2.0f * kLog2E / params.soft_cap),
                 .soft_cap = params.soft_cap * kLog2E,
                 .params = params,
                 .partial_out = partial_out,
                 .partial_lse = partial_lse},
    };
}

}  // namespace batchllm::cuda
