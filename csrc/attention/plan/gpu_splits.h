// Into how many runs of keys the tiles of a GPU's plan are cut.
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
    double call_s;  // that the call is predicted to take
};

// Of those tried the splits with which the whole call takes the least time (gpu_time.h), the merge included.
// `num_partials` of a tile are its rows that are also in others; `num_merged` packed rows are so in all.
GpuSplits gpu_splits(std::span<const GpuTile> tiles, std::span<const KvPiece> pieces, int64_t num_merged,
                     const GpuTime& time);

// Keys of each of a tile's splits but the last.
constexpr int64_t keys_per_split(int32_t num_keys, int32_t num_splits) {
    return round_up(ceil_div(num_keys, num_splits), kKeyTile);
}

}  // namespace batchllm
