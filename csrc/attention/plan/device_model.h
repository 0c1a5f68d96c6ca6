// The costs that a plan assumes, in nanoseconds of one core or multiprocessor. Only ratios matter: they decide which
// segments are shared, how high tiles are, and where items are split.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>

#include "attention/plan/attention_batch.h"
#include "attention/plan/gpu_model.h"
#include "attention/plan/work_item.h"
#include "base/ints.h"

namespace batchllm {

constexpr int32_t kKeyTile = 64;        // keys that a kernel takes at a time
constexpr int32_t kMinSplitKeys = 256;  // shorter items cost more to merge than they balance

// How a device's kernels process an item. Packed rows are query heads x tokens of one KV head; times of keys and states
// are for head_dim 128.
struct DeviceCosts {
    int32_t max_packed_rows;  // of a tile
    int32_t block_rows;       // packed rows that are multiplied at a time: tiles are whole blocks
    int32_t narrow_rows;      // items of at most this many are memory-bound: a task takes all KV heads; 0: never
    double item;              // an item, apart from its keys
    double key;               // loading K and V of a key
    double packed_row;        // multiplying a key by a packed row
    bool overlaps;            // keys are loaded while others are multiplied
    double state;             // writing and merging one more partial state of a packed row
};

// Measured with benchmarks/bench_attention.py on a 2-core AVX-512 machine. Blocks of 48 rows are those of AVX-512
// (AVX2: 24); five of them are what a core's L2 holds.
inline constexpr DeviceCosts kCpuCosts{
    .max_packed_rows = 240,
    .block_rows = 48,
    .narrow_rows = 16,
    .item = 800.0,
    .key = 9.0,
    .packed_row = 2.9,
    .overlaps = false,
    .state = 200.0,
};

// A multiprocessor's share of what a GPU sustains, assumed: 85 % of its memory's rate and 60 % of its peak.
constexpr DeviceCosts gpu_costs(const GpuModel& gpu, int32_t head_dim) {
    constexpr double kKeyBytes = 2 * 2 * 128, kStateBytes = 2 * (2 * 128 + 4), kFlops = 4 * 128;
    const double byte = 1e9 * gpu.num_multiprocessors / (0.85 * gpu.bytes_per_s);
    const double flop = 1e9 * gpu.num_multiprocessors / (0.6 * gpu.flops_per_s);
    const int32_t max_packed_rows = gpu_tile_rows(head_dim);
    return {
        .max_packed_rows = max_packed_rows,
        .block_rows = max_packed_rows,  // tiles are filled, not made equal
        .narrow_rows = 0,
        .item = 1e9 * gpu.block_s,
        .key = kKeyBytes * byte,
        .packed_row = kFlops * flop,
        .overlaps = true,
        .state = kStateBytes * byte,
    };
}

class CostModel {
 public:
    CostModel(const AttentionShape& shape, const DeviceCosts& costs)
        : costs_(costs),
          num_kv_heads_(shape.num_kv_heads),
          group_size_(shape.group_size()),
          max_tile_rows_(std::max(1, costs.max_packed_rows / group_size_)),
          whole_blocks_(costs.block_rows / std::gcd(costs.block_rows, group_size_)),
          scale_(shape.head_dim / 128.0) {}

    // Query tokens of the highest tile; at least one, however many heads share a KV head.
    int32_t max_tile_rows() const { return max_tile_rows_; }

    // The height of the tiles of `num_rows` query tokens: about equal, rounded up to whole blocks of packed rows.
    int32_t tile_rows(int32_t num_rows) const {
        const int64_t num_tiles = std::max<int64_t>(1, ceil_div(num_rows, max_tile_rows()));
        const int64_t rows = round_up(ceil_div(num_rows, num_tiles), whole_blocks_);
        return static_cast<int32_t>(std::min<int64_t>(max_tile_rows(), rows));
    }

    bool is_narrow(const WorkItem& item) const { return num_rows(item) * group_size_ <= costs_.narrow_rows; }

    // See WorkTask.
    int32_t heads_per_task(const WorkItem& item) const { return is_narrow(item) ? num_kv_heads_ : 1; }
    int32_t tasks_per_item(const WorkItem& item) const { return num_kv_heads_ / heads_per_task(item); }
    double task(const WorkItem& item) const {
        return heads_per_task(item) * (costs_.item + tile(num_rows(item), item.kv_end - item.kv_begin));
    }

    // One item, apart from its keys.
    double item() const { return costs_.item; }

    // `num_rows` query tokens (at most one tile) against `num_keys` keys.
    double tile(int32_t num_rows, int32_t num_keys) const {
        const double multiplying = costs_.packed_row * num_rows * group_size_;
        const double a_key = costs_.overlaps ? std::max(costs_.key, multiplying) : costs_.key + multiplying;
        return scale_ * num_keys * a_key;
    }

    // Any number of query tokens against the same keys.
    double rows(int32_t num_rows, int32_t num_keys) const {
        const int32_t height = max_tile_rows();
        if (num_rows > 0 && num_rows <= height) return tile(num_rows, num_keys);
        const int32_t num_full = num_rows / height;
        return num_full * tile(height, num_keys) + (num_rows % height ? tile(num_rows % height, num_keys) : 0.0);
    }

    // Writing and merging one more partial state for each row.
    double partial_states(int32_t num_rows) const { return scale_ * costs_.state * num_rows * group_size_; }

 private:
    static int32_t num_rows(const WorkItem& item) { return item.row_end - item.row_begin; }

    DeviceCosts costs_;
    int32_t num_kv_heads_;
    int32_t group_size_;
    int32_t max_tile_rows_;
    int32_t whole_blocks_;  // the fewest query tokens that fill whole blocks
    double scale_;
};

}  // namespace batchllm
