// What a plan believes about time, in nanoseconds of one core. Only ratios matter: they decide which segments are
// shared and where items are split. Measured with benchmarks/bench_attention.py on a 2-core AVX-512 machine.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>

#include "attention/attention_batch.h"

namespace batchllm {

constexpr int32_t kKeyTile = 64;         // keys that a kernel takes at a time
constexpr int32_t kMinSplitKeys = 256;   // shorter items cost more to merge than they balance
constexpr int32_t kBlockRows = 48;       // rows that AVX-512 kernels multiply at a time (AVX2: 24)
constexpr int32_t kMaxPackedRows = 240;  // query heads x tokens of one item, whole blocks: what a core's L2 holds
constexpr int32_t kNarrowRows = 16;      // items of at most so many rows are memory-bound: a task takes all KV heads

inline int32_t ceil_div(int32_t value, int32_t divisor) {
    return (value + divisor - 1) / divisor;
}

inline int32_t round_up(int32_t value, int32_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

// Query tokens of one item; at least one, however many heads share a KV head.
inline int32_t max_tile_rows(int32_t group_size) {
    return std::max(1, kMaxPackedRows / group_size);
}

// The height of the tiles of `num_rows` query tokens: about equal, rounded up to whole blocks of packed rows.
inline int32_t tile_rows(int32_t num_rows, int32_t group_size) {
    const int32_t max_rows = max_tile_rows(group_size);
    const int32_t num_tiles = std::max(1, (num_rows + max_rows - 1) / max_rows);
    const int32_t whole_blocks = kBlockRows / std::gcd(kBlockRows, group_size);  // fewest tokens that fill blocks
    return std::min(max_rows, round_up((num_rows + num_tiles - 1) / num_tiles, whole_blocks));
}

class CostModel {
 public:
    explicit CostModel(const AttentionShape& shape) : group_size_(shape.group_size()), scale_(shape.head_dim / 128.0) {}

    // One item, apart from its keys.
    double item() const { return 800.0; }

    bool is_narrow(int32_t num_rows) const { return num_rows * group_size_ <= kNarrowRows; }

    // `num_rows` query tokens (at most one tile) against `num_keys` keys: loading a key, and multiplying it by each
    // row.
    double tile(int32_t num_rows, int32_t num_keys) const {
        return scale_ * num_keys * (9.0 + 2.9 * num_rows * group_size_);
    }

    // Any number of query tokens against the same keys.
    double rows(int32_t num_rows, int32_t num_keys) const {
        const int32_t height = max_tile_rows(group_size_);
        const int32_t num_full = num_rows / height;
        return num_full * tile(height, num_keys) + (num_rows % height ? tile(num_rows % height, num_keys) : 0.0);
    }

    // Writing and merging one more partial state for each row.
    double partial_states(int32_t num_rows) const { return scale_ * 200.0 * num_rows * group_size_; }

 private:
    int32_t group_size_;
    double scale_;
};

}  // namespace batchllm
