#include <doctest/doctest.h>

#include <vector>

#include "attention/cuda/attention_tiles.h"

using namespace batchllm;
using namespace batchllm::cuda;

TEST_CASE("tiles cover every packed row once, in the order of the items, with the keys their rows see") {
    // Two items: 5 rows of growing keys behind 4 rows that are skipped, and one row.
    std::vector<WorkRow> rows(4, {0, 0, 100, kWriteThrough});
    for (int32_t i = 0; i < 5; ++i) rows.push_back({i, 10 * i, 50 + i, i});
    rows.push_back({9, 3, 7, kWriteThrough});
    const std::vector<WorkItem> items{{4, 9, 2, 3, 0, 54}, {9, 10, 5, 7, 3, 7}};
    SUBCASE("a tile ends inside a token's heads") {
        const std::vector<AttentionTile> expected{{4, 0, 8, 2, 0, 52}, {4, 8, 15, 2, 20, 54}, {9, 0, 3, 5, 3, 7}};
        CHECK(attention_tiles(items, rows, 3, 8) == expected);
    }
    SUBCASE("a token's heads are more than a tile") {
        const std::vector<AttentionTile> expected{{9, 0, 128, 5, 3, 7}, {9, 128, 256, 5, 3, 7}, {9, 256, 300, 5, 3, 7}};
        CHECK(attention_tiles(std::span(items).subspan(1), rows, 300, 128) == expected);
    }
    SUBCASE("one tile an item") {
        const std::vector<AttentionTile> expected{{4, 0, 5, 2, 0, 54}, {9, 0, 1, 5, 3, 7}};
        CHECK(attention_tiles(items, rows, 1, 16) == expected);
    }
    CHECK(attention_tiles({}, rows, 3, 8).empty());
}
