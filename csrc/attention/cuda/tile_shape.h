// How a tile of rows and keys is laid over a block's warps and its shared memory.
//
//   kRows x kKeys   the rows of a tile, and the keys that meet them at a time
//   kKeyWarps       warps that share rows and deal the keys among them; the others deal the rows
//
// Few rows leave the time to the loading of keys, so all warps take keys; many rows fill the tensor cores, and a warp
// with 32 of them uses what it loads from shared memory twice.
//
// Shared memory, while keys go by:  q | k, v of one stage | k, v of the other | slots of the keys of both
// and at the end, in the same place: the states of the rows, from each of the warps that share them
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>

namespace batchllm::cuda {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kStages = 2;

constexpr int larger(int a, int b) {
    return a > b ? a : b;
}

// Where a key's K and V lie.
struct KeySlot {
    int32_t page_id;  // -1: there is no such key
    int32_t offset;   // slots into the page
};

template <int kHeadDimension, int kTileRows, int kTileKeys, int kWarpsOverKeys>
struct TileShape {
    static constexpr int kHeadDim = kHeadDimension;
    static constexpr int kRows = kTileRows;
    static constexpr int kKeys = kTileKeys;
    static constexpr int kKeyWarps = kWarpsOverKeys;
    static constexpr int kRowWarps = kWarps / kKeyWarps;
    static constexpr int kRowBlocks = kRows / (16 * kRowWarps);  // of 16 rows, per warp
    static constexpr int kWarpKeys = kKeys / kKeyWarps;
    static constexpr int kChunks = kHeadDim / 8;  // 16 bytes each, of a row of q, k or v

    static constexpr int kQueryBytes = 2 * kRows * kHeadDim;
    static constexpr int kKeyBytes = 2 * kKeys * kHeadDim;  // of k or v in one stage
    static constexpr int kLoopBytes = kQueryBytes + 2 * kStages * kKeyBytes;
    static constexpr int kSlotBytes = kStages * kKeys * static_cast<int>(sizeof(KeySlot));
    static constexpr int kOutPitch = kHeadDim + 8;  // floats of one row; rows apart by 8 banks
    static constexpr int kStateBytes = kKeyWarps * kRows * (kOutPitch + 2) * static_cast<int>(sizeof(float));
    static constexpr int kSharedBytes = larger(kLoopBytes + kSlotBytes, kStateBytes);

    static_assert(kRowBlocks * 16 * kRowWarps == kRows && kWarpKeys % 16 == 0 && kHeadDim % 16 == 0);
    static_assert(kKeys * kChunks % kThreads == 0 && kKeys <= kThreads);
};

// The shapes of one head_dim. Two blocks share a multiprocessor of sm_80 (164 KiB), but for head_dim 256.
template <int kHeadDim>
struct TileShapes {
    using Small = TileShape<kHeadDim, 16, 64, 4>;
    using Medium = TileShape<kHeadDim, 64, 64, 1>;
    using Large = TileShape<kHeadDim, 128, 32, 1>;
};

// With 128 rows the sums alone would take all registers.
template <>
struct TileShapes<256> {
    using Small = TileShape<256, 32, 32, 2>;
    using Medium = TileShape<256, 64, 32, 1>;
    using Large = Medium;
};

template <int kHeadDim>
constexpr int kSharedBytes =
    larger(TileShapes<kHeadDim>::Small::kSharedBytes,
           larger(TileShapes<kHeadDim>::Medium::kSharedBytes, TileShapes<kHeadDim>::Large::kSharedBytes));

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
