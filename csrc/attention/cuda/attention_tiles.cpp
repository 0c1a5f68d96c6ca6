#include "attention/cuda/attention_tiles.h"

#include <algorithm>

#include "attention/cuda/tile_shape.h"

namespace batchllm::cuda {

AttentionTiles attention_tiles(std::span<const WorkItem> items, std::span<const WorkRow> rows, int32_t group_size,
                               int32_t max_rows) {
    AttentionTiles tiles;
    const NumTiles num_tiles = num_attention_tiles(items, group_size, max_rows);
    tiles.wide.reserve(num_tiles.wide);
    tiles.narrow.reserve(num_tiles.narrow);
    for (const WorkItem& item : items) {
        const int32_t num_packed = (item.row_end - item.row_begin) * group_size;
        for (int32_t begin = 0; begin < num_packed; begin += max_rows) {
            const int32_t end = std::min(begin + max_rows, num_packed);
            const auto tile_rows =
                rows.subspan(item.row_begin + begin / group_size, (end - 1) / group_size - begin / group_size + 1);
            AttentionTile tile{item.row_begin,          begin, end, item.piece_begin, tile_rows.front().kv_begin,
                               tile_rows.front().kv_end};
            for (const WorkRow& row : tile_rows) {
                tile.kv_begin = std::min(tile.kv_begin, row.kv_begin);
                tile.kv_end = std::max(tile.kv_end, row.kv_end);
            }
            (end - begin <= kNarrowRows ? tiles.narrow : tiles.wide).push_back(tile);
        }
    }
    return tiles;
}

NumTiles num_attention_tiles(std::span<const WorkItem> items, int32_t group_size, int32_t max_rows) {
    NumTiles num{0, 0};
    for (const WorkItem& item : items) {
        const int32_t num_packed = (item.row_end - item.row_begin) * group_size;
        const int32_t rest = num_packed % max_rows;
        (max_rows <= kNarrowRows ? num.narrow : num.wide) += num_packed / max_rows;
        if (rest > 0) ++(rest <= kNarrowRows ? num.narrow : num.wide);
    }
    return num;
}

}  // namespace batchllm::cuda
