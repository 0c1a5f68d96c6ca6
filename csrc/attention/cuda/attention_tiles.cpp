#include "attention/cuda/attention_tiles.h"

#include <algorithm>

#include "attention/cuda/tile_shape.h"

namespace batchllm::cuda {

AttentionTiles attention_tiles(std::span<const WorkItem> items, std::span<const WorkRow> rows, int32_t group_size,
                               int32_t max_rows) {
    AttentionTiles tiles;
    for (auto* of_kind : {&tiles.wide, &tiles.narrow}) of_kind->reserve(items.size());  // an item is seldom cut
    const auto add = [&](const AttentionTile& tile) {
        (tile.packed_end - tile.packed_begin <= kNarrowRows ? tiles.narrow : tiles.wide).push_back(tile);
    };
    for (const WorkItem& item : items) {
        const int32_t num_packed = (item.row_end - item.row_begin) * group_size;
        if (num_packed <= max_rows) {  // its rows see all of its keys
            add({item.row_begin, 0, num_packed, item.piece_begin, item.kv_begin, item.kv_end});
            continue;
        }
        for (int32_t begin = 0; begin < num_packed; begin += max_rows) {
            const int32_t end = std::min(begin + max_rows, num_packed);
            AttentionTile tile{item.row_begin, begin, end, item.piece_begin, item.kv_end, item.kv_begin};
            const int32_t first = begin / group_size, last = (end - 1) / group_size;
            for (const WorkRow& row : rows.subspan(item.row_begin + first, last - first + 1)) {
                tile.kv_begin = std::min(tile.kv_begin, row.kv_begin);
                tile.kv_end = std::max(tile.kv_end, row.kv_end);
            }
            add(tile);
        }
    }
    return tiles;
}

NumTiles num_attention_tiles(std::span<const WorkItem> items, int32_t group_size, int32_t max_rows) {
    NumTiles num{0, 0};
    for (const WorkItem& item : items) {
        int32_t num_packed = (item.row_end - item.row_begin) * group_size;
        for (; num_packed > max_rows; num_packed -= max_rows) ++(max_rows <= kNarrowRows ? num.narrow : num.wide);
        if (num_packed > 0) ++(num_packed <= kNarrowRows ? num.narrow : num.wide);
    }
    return num;
}

}  // namespace batchllm::cuda
