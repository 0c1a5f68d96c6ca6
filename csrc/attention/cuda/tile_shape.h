// How a tile of rows and keys is laid over a block's warps and its shared memory.
//
//   kRows x kKeys   the rows of a tile, and the keys that meet them at a time
//   kDimWarps       warps that share rows: each computes all their scores, and of their sums kHeadDim / kDimWarps
//                   columns; the others deal the rows
//   kStages         tiles of keys that are in shared memory at a time
//
// Wide tiles have many rows, which fill the tensor cores; a warp with 32 of them uses what it loads from shared memory
// twice. Narrow tiles, of few rows, leave the time to the loading of keys: their warps have few sums each, so that many
// blocks fit a multiprocessor, and nothing is merged between warps. That they all compute the same scores costs tensor
// cores that would wait for memory.
//
// Shared memory:  q of each of kQueries heads | k, v of each stage | slots of the keys of each stage | rows
//                 | what the rows of each warp see
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>

#include "attention/plan/work_item.h"

namespace batchllm::cuda {

// Where a key's K and V lie.
struct KeySlot {
    int32_t page_id;  // -1: there is no such key
    int32_t offset;   // slots into the page
};

constexpr int32_t kNoHead = -1;

// A packed row.
struct TileRow {
    WorkRow work;
    int32_t head;  // of the KV head's query heads; kNoHead: the tile has fewer rows
};

// Positions that rows see: by at least one of them, and by all.
struct VisibleRange {
    int any_begin, any_end;
    int all_begin, all_end;
};

template <int kHeadDimension, int kTileRows, int kTileKeys, int kRowDealers, int kDimDealers, int kKeyStages,
          int kQueryBuffers>
struct TileShape {
    static constexpr int kHeadDim = kHeadDimension;
    static constexpr int kRows = kTileRows;
    static constexpr int kKeys = kTileKeys;
    static constexpr int kRowWarps = kRowDealers;
    static constexpr int kDimWarps = kDimDealers;
    static constexpr int kThreads = 32 * kRowWarps * kDimWarps;
    static constexpr int kStages = kKeyStages;
    static constexpr int kQueries = kQueryBuffers;
    static constexpr int kRowBlocks = kRows / (16 * kRowWarps);  // of 16 rows, per warp
    static constexpr int kWarpDims = kHeadDim / kDimWarps;
    static constexpr int kChunks = kHeadDim / 8;  // 16 bytes each, of a row of q, k or v

    static constexpr int kQueryBytes = 2 * kRows * kHeadDim;
    static constexpr int kKeyBytes = 2 * kKeys * kHeadDim;  // of k or v in one stage
    static constexpr int kLoopBytes = kQueries * kQueryBytes + 2 * kStages * kKeyBytes;
    static constexpr int kSlotBytes = kStages * kKeys * static_cast<int>(sizeof(KeySlot));
    static constexpr int kRowBytes = kRows * static_cast<int>(sizeof(TileRow));
    static constexpr int kSharedBytes =
        kLoopBytes + kSlotBytes + kRowBytes + kThreads / 32 * static_cast<int>(sizeof(VisibleRange));

    static_assert(kRowBlocks * 16 * kRowWarps == kRows && kKeys % 16 == 0 && kWarpDims % 16 == 0);
    static_assert(kKeys * kChunks % kThreads == 0 && kKeys <= kThreads);
};

constexpr int kWideThreads = 128;
template <int kHeadDim, int kRows, int kKeys>
using WideShape = TileShape<kHeadDim, kRows, kKeys, kWideThreads / 32, 1, 2, 1>;

// A head's queries are loaded with its first keys, so there is room for as many as there are stages.
template <int kHeadDim, int kKeys, int kDimWarps, int kStages>
using NarrowShape = TileShape<kHeadDim, 16, kKeys, 1, kDimWarps, kStages, kStages>;

// Two blocks with wide tiles share a multiprocessor of sm_80 (164 KiB), but for head_dim 256; at least three with
// narrow ones.
template <int kHeadDim>
struct TileShapes {
    using Narrow = NarrowShape<kHeadDim, 32, 4, kHeadDim <= 64 ? 4 : 2>;
    using Medium = WideShape<kHeadDim, 64, kHeadDim <= 64 ? 64 : 48>;
    using Large = WideShape<kHeadDim, 128, 32>;
};

template <>
struct TileShapes<96> {
    using Narrow = NarrowShape<96, 32, 3, 3>;
    using Medium = WideShape<96, 64, 64>;
    using Large = WideShape<96, 128, 32>;
};

// With 128 rows the sums alone would take all registers.
template <>
struct TileShapes<256> {
    using Narrow = NarrowShape<256, 16, 4, 2>;
    using Medium = WideShape<256, 64, 32>;
    using Large = Medium;
};

constexpr int kNarrowRows = 16;  // packed rows of the highest narrow tile

template <int kHeadDim>
constexpr int kWideSharedBytes =
    std::max(TileShapes<kHeadDim>::Medium::kSharedBytes, TileShapes<kHeadDim>::Large::kSharedBytes);

constexpr int kHeadDims[] = {64, 96, 128, 256};  // those that kernels are compiled for

constexpr bool is_supported_head_dim(int head_dim) {
    return std::ranges::find(kHeadDims, head_dim) != std::end(kHeadDims);
}

// Packed rows of the largest tile.
constexpr int max_packed_rows(int head_dim) {
    return head_dim == 256 ? TileShapes<256>::Large::kRows : TileShapes<128>::Large::kRows;
}

// Where 16 bytes of a row stand in shared memory, in units of 8 elements: such that the same column of 8 neighbouring
// rows, which is what ldmatrix reads at once, lies in 8 different groups of banks. Groups of chunks keep their place;
// inside one they are permuted. (With 12 chunks, every other row begins half way through the banks.)
template <int kChunks>
struct Swizzle {
    static_assert(kChunks % 8 == 0 || kChunks % 8 == 4);
    static constexpr int kGroup = kChunks % 8 == 0 ? 8 : 4;

    static constexpr int key(int row) { return kGroup == 8 ? row & 7 : row >> 1 & 3; }
    static constexpr int at(int row, int chunk) { return row * kChunks + (chunk ^ key(row)); }

    // at(row, 2 * block + half), written so that all that depends on the lane is the same for many blocks.
    static constexpr int at(int row, int block, int half) {
        const int chunk = 2 * block;
        return row * kChunks + chunk / kGroup * kGroup + (chunk % kGroup ^ (half ^ key(row)));
    }
};

}  // namespace batchllm::cuda
