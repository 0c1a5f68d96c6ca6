// Chooses into how many runs of keys the tiles of a GPU's plan are cut.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "attention/plan/device_model.h"
#include "attention/plan/gpu_time.h"
#include "attention/plan/work_item.h"

namespace batchllm {

struct GpuSplits {
    std::vector<int32_t> of_tile;
    double call_s;  // predicted time of the call
};

// Of the splits tried, those with the least time of the whole call (gpu_time.h), including the merge. `num_partials` of
// a tile are its rows that are also in others; `num_merged` is the total number of such packed rows.
GpuSplits gpu_splits(std::span<const GpuTile> tiles, std::span<const KvPiece> pieces, int64_t num_merged,
                     const GpuTime& time);

// Keys of each split of a tile except the last.
constexpr int64_t keys_per_split(int32_t num_keys, int32_t num_splits) {
    return round_up(ceil_div(num_keys, num_splits), kKeyTile);
}

}  // namespace batchllm
