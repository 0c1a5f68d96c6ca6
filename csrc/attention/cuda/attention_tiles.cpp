#include "attention/cuda/attention_tiles.h"

#include <algorithm>

namespace batchllm::cuda {

std::vector<AttentionTile> attention_tiles(std::span<const WorkItem> items, std::span<const WorkRow> rows,
                                           int32_t group_size, int32_t max_rows) {
    std::vector<AttentionTile> tiles;
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
            tiles.push_back(tile);
        }
    }
    return tiles;
}

int32_t num_attention_tiles(std::span<const WorkItem> items, int32_t group_size, int32_t max_rows) {
    int32_t num_tiles = 0;
    for (const WorkItem& item : items) {
        num_tiles += ((item.row_end - item.row_begin) * group_size + max_rows - 1) / max_rows;
    }
    return num_tiles;
}

}  // namespace batchllm::cuda
