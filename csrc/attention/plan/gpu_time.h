// How long attention launches take on a GPU: a model, not a measurement. Plans and predictions use it.
//
// A launch takes the longest of three:
//   memory   its bytes at the memory's rate. Keys that several of its tiles read are loaded once if the keys of their
//            segment fit into the L2 cache, otherwise once for all blocks that run at a time
//   share    the times of its blocks over all places for blocks
//   rounds   if more than k blocks for each place take t or longer, some place takes (k + 1) * t
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
#include "base/ints.h"

namespace batchllm {

// Packed rows of one KV head against a run of keys.
struct GpuTile {
    int32_t num_rows;      // packed
    int32_t num_partials;  // of these, the ones that write a partial state; the others write their result
    int32_t piece_begin;   // as WorkItem's
    int32_t piece_end;
    int32_t kv_begin;
    int32_t kv_end;

    int32_t num_keys() const { return kv_end - kv_begin; }
};

// How the tiles of a call are launched, and what is written for a packed row.
struct CallStyle {
    bool one_launch;  // for both kinds; otherwise one launch each
    int32_t result_bytes;
    int32_t partial_bytes;
};

// launch_attention's: 16 bits an element, and the `lse` of a partial state in float32.
constexpr CallStyle our_style(int32_t head_dim) {
    return {.one_launch = false, .result_bytes = 2 * head_dim, .partial_bytes = 2 * head_dim + 4};
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

// Tiles whose keys take equally long.
struct EqualTiles {
    double keys_s;  // of one KV head
    int64_t num_tiles;
};

class GpuTime {
 public:
    GpuTime(const GpuModel& gpu, const AttentionShape& shape, CallStyle style);

    const GpuModel& gpu() const { return gpu_; }
    const CallStyle& style() const { return style_; }

    // The keys of one KV head of a tile.
    double keys_s(TileKind kind, int32_t num_rows, int64_t num_keys) const {
        const Kernel& kernel = kernels_[static_cast<int>(kind)];
        return static_cast<double>(num_keys * kernel.neighbours) * (num_rows <= 64 ? kernel.key_s : kernel.high_key_s);
    }

    // Of one of `num_tiles` tiles of this kind.
    int32_t heads_per_block(TileKind kind, int64_t num_tiles) const {
        return kind == TileKind::kNarrow ? narrow_heads_per_block(num_tiles, shape_.num_kv_heads) : 1;
    }

    // Time of tiles whose keys take this long in total.
    double share_s(TileKind kind, int64_t num_tiles, double keys_s, int32_t heads_per_block) const {
        const int64_t num_blocks = num_tiles * ceil_div(shape_.num_kv_heads, heads_per_block);
        return (static_cast<double>(num_blocks) * gpu_.block_s + shape_.num_kv_heads * keys_s) /
               static_cast<double>(places(kind));
    }

    // share_s and rounds_s of tiles, longest first, whose blocks take so many KV heads.
    LaunchTime blocks(TileKind kind, std::span<const EqualTiles> tiles, int32_t heads_per_block) const;
    // The same, in any order: of each what its keys take. They are reordered.
    LaunchTime blocks(TileKind kind, std::span<double> keys_s, int32_t heads_per_block) const;

    // Reading q, K and V.
    double read_s(TileKind kind, std::span<const GpuTile> tiles, std::span<const KvPiece> pieces) const;
    int32_t query_bytes() const { return 2 * shape_.head_dim; }  // of a packed row
    // Time for this many bytes of packed rows of one KV head, and of all others.
    double rows_s(double num_rows, int32_t row_bytes) const {
        return num_rows * row_bytes * shape_.num_kv_heads / gpu_.bytes_per_s;
    }

    // Time for everything that tiles of one kind read and write.
    double memory_s(TileKind kind, std::span<const GpuTile> tiles, std::span<const KvPiece> pieces) const;

    LaunchTime tiles(TileKind kind, std::span<const GpuTile> tiles, std::span<const KvPiece> pieces) const;

    // Both kinds, then the merge of `num_partials` states to `num_merged` results, if there are any.
    double call_s(const LaunchTime& wide, const LaunchTime& narrow, double num_partials, double num_merged) const;

 private:
    struct Kernel {
        int32_t neighbours;  // blocks that share a multiprocessor
        double key_s;        // of a block that has it to itself, of up to 64 rows
        double high_key_s;   // of more
    };

    template <typename KeysOfTile>
    double rounds_s(TileKind kind, int64_t num_tiles, int32_t heads_per_block, const KeysOfTile& keys_of_tile) const;

    int64_t places(TileKind kind) const {  // for blocks, on all multiprocessors
        return int64_t{gpu_.num_multiprocessors} * kernels_[static_cast<int>(kind)].neighbours;
    }

    GpuModel gpu_;
    AttentionShape shape_;
    CallStyle style_;
    Kernel kernels_[2];  // by TileKind
};

}  // namespace batchllm
