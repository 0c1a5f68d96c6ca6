// How long launches of attention take on a GPU: a model, not a measurement. Plans are made by it, and predictions.
//
// A launch takes the longest of three:
//   memory   its bytes at the memory's rate. Keys that several of its tiles read come from there once if those of their
//            segment fit into the L2 cache, else once for all blocks that run at a time
//   share    the times of its blocks over all places for blocks
//   rounds   where more than k blocks for each place take t or longer, some place takes (k + 1) * t
// A block has an even share of its multiprocessor. It loads its keys at the L2 cache's rate, or multiplies them by its
// rows at the peak (as many as the kernel has, padding included), whichever is longer, for each of its KV heads, and
// takes block_s besides.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "attention/plan/attention_batch.h"
#include "attention/plan/gpu_model.h"
#include "attention/plan/work_item.h"

namespace batchllm {

// Packed rows of one KV head against a run of keys.
struct GpuTile {
    int32_t num_rows;      // packed
    int32_t num_partials;  // of them that write a partial state; the others their result
    int32_t piece_begin;   // as WorkItem's
    int32_t piece_end;
    int32_t kv_begin;
    int32_t kv_end;

    int32_t num_keys() const { return kv_end - kv_begin; }
};

// How the tiles of a call are launched, and what is written of a packed row.
struct CallStyle {
    bool one_launch;  // of both kinds; else a launch each
    int32_t result_bytes;
    int32_t partial_bytes;
};

// launch_attention's: results in 16 bits, partial states in float32.
constexpr CallStyle our_style(int32_t head_dim) {
    return {.one_launch = false, .result_bytes = 2 * head_dim, .partial_bytes = 4 * (head_dim + 1)};
}

// A level of a cascade: all that it writes are states, `out` in 16 bits and `lse` in float32.
constexpr CallStyle cascade_style(int32_t head_dim) {
    return {.one_launch = true, .result_bytes = 2 * head_dim + 4, .partial_bytes = 2 * head_dim + 4};
}

struct LaunchTime {
    double memory_s = 0.0;
    double share_s = 0.0;
    double rounds_s = 0.0;

    double seconds() const { return std::max({memory_s, share_s, rounds_s}); }
};

constexpr TileKind kind_of(int32_t num_rows) {
    return num_rows <= kGpuNarrowRows ? TileKind::kNarrow : TileKind::kWide;
}

constexpr CallStyle float32_cascade_style(int32_t head_dim) {
    return {.one_launch = true, .result_bytes = 4 * (head_dim + 1), .partial_bytes = 4 * (head_dim + 1)};
}

class GpuTime {
 public:
    GpuTime(const GpuModel& gpu, const AttentionShape& shape, CallStyle style);

    const GpuModel& gpu() const { return gpu_; }
    const CallStyle& style() const { return style_; }

    // The keys of one KV head of a tile.
    double keys_s(TileKind kind, int32_t num_rows, int64_t num_keys) const;

    // share_s and rounds_s of tiles whose keys take so long, longest first; of `num_tiles` of their kind in all.
    LaunchTime blocks(TileKind kind, std::span<const double> keys_s, int64_t num_tiles) const;

    // Reading q, K and V.
    double read_s(TileKind kind, std::span<const GpuTile> tiles, std::span<const KvPiece> pieces) const;
    int32_t query_bytes() const { return 2 * shape_.head_dim; }  // of a packed row
    // So many bytes of packed rows of one KV head, and of all others.
    double rows_s(double num_rows, int32_t row_bytes) const {
        return num_rows * row_bytes * shape_.num_kv_heads / gpu_.bytes_per_s;
    }

    // The tiles of one kind, all that they read and write.
    LaunchTime tiles(TileKind kind, std::span<const GpuTile> tiles, std::span<const KvPiece> pieces) const;

    // Both kinds, then the merge of `num_partials` states to `num_merged` results, if there are any.
    double call_s(const LaunchTime& wide, const LaunchTime& narrow, double num_partials, double num_merged) const;

 private:
    int64_t places(TileKind kind) const;  // for blocks, on all multiprocessors
    int32_t heads_per_block(TileKind kind, int64_t num_tiles) const;

    GpuModel gpu_;
    AttentionShape shape_;
    CallStyle style_;
};

}  // namespace batchllm
