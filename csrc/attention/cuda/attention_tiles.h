// From the items of a plan to the tiles of the attention kernel.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "attention/cuda/attention_args.h"
#include "attention/plan/work_item.h"

namespace batchllm::cuda {

// Cuts the packed rows of each item into tiles of at most `max_rows`, in the order of the items. A tile's keys are
// those of its item that its own rows see.
std::vector<AttentionTile> attention_tiles(std::span<const WorkItem> items, std::span<const WorkRow> rows,
                                           int32_t group_size, int32_t max_rows);

// How many these are.
int32_t num_attention_tiles(std::span<const WorkItem> items, int32_t group_size, int32_t max_rows);

}  // namespace batchllm::cuda
