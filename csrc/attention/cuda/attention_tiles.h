// From the items of a plan to the tiles of the attention kernel.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "attention/cuda/attention_args.h"
#include "attention/plan/work_item.h"

namespace batchllm::cuda {

struct NumTiles {
    int32_t wide;
    int32_t narrow;
};

struct AttentionTiles {
    std::vector<AttentionTile> wide;
    std::vector<AttentionTile> narrow;  // of at most kNarrowRows packed rows

    NumTiles num() const { return {static_cast<int32_t>(wide.size()), static_cast<int32_t>(narrow.size())}; }
};

// Cuts the packed rows of each item into tiles of at most `max_rows`, both kinds in the order of the items. A tile's
// keys are those of its item that its own rows see.
AttentionTiles attention_tiles(std::span<const WorkItem> items, std::span<const WorkRow> rows, int32_t group_size,
                               int32_t max_rows);

// How many these are.
NumTiles num_attention_tiles(std::span<const WorkItem> items, int32_t group_size, int32_t max_rows);

}  // namespace batchllm::cuda
