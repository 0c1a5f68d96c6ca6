#include <doctest/doctest.h>

#include <utility>
#include <vector>

#include "attention/cuda/attention_tiles.h"
#include "attention/plan/gpu_model.h"

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
        CHECK(attention_tiles(items, rows, 3, 8).narrow == expected);
    }
    SUBCASE("a token's heads are more than a tile") {
        const std::vector<AttentionTile> expected{{9, 0, 128, 5, 3, 7}, {9, 128, 256, 5, 3, 7}, {9, 256, 300, 5, 3, 7}};
        CHECK(attention_tiles(std::span(items).subspan(1), rows, 300, 128).wide == expected);
    }
    SUBCASE("one tile an item") {
        const std::vector<AttentionTile> expected{{4, 0, 5, 2, 0, 54}, {9, 0, 1, 5, 3, 7}};
        CHECK(attention_tiles(items, rows, 1, 16).narrow == expected);
    }
    SUBCASE("up to 16 packed rows are narrow, also behind wide tiles of the same item") {
        const AttentionTiles tiles = attention_tiles(std::span(items).first(1), rows, 28, 128);
        CHECK(tiles.wide == std::vector<AttentionTile>{{4, 0, 128, 2, 0, 54}});
        CHECK(tiles.narrow == std::vector<AttentionTile>{{4, 128, 140, 2, 40, 54}});
        for (const auto& [group_size, is_wide] : {std::pair{16, false}, std::pair{17, true}}) {
            CHECK(attention_tiles(std::span(items).last(1), rows, group_size, 128).wide.size() == is_wide);
        }
    }
    for (int32_t group_size : {1, 3, 16, 17, 43, 300}) {
        for (int32_t max_rows : {8, 16, 64, 128}) {
            const AttentionTiles tiles = attention_tiles(items, rows, group_size, max_rows);
            const NumTiles num = num_attention_tiles(items, group_size, max_rows);
            CHECK(num.wide == std::ssize(tiles.wide));
            CHECK(num.narrow == std::ssize(tiles.narrow));
        }
    }
    CHECK(attention_tiles({}, rows, 3, 8).narrow.empty());
}

TEST_CASE("a block takes as many heads of a narrow tile as leave enough blocks") {
    for (int32_t num_kv_heads : {1, 2, 3, 4, 5, 8, 16}) {
        int32_t before = 1;
        for (int32_t num_tiles : {0, 1, 60, 127, 128, 256, 400, 512, 1024, 100000}) {
            const int32_t heads = narrow_heads_per_block(num_tiles, num_kv_heads);
            CHECK(before <= heads);
            CHECK(heads <= num_kv_heads);
            if (heads > 1) CHECK(num_tiles * ((num_kv_heads + heads - 1) / heads) >= 1024);
            before = heads;
        }
        CHECK(before == num_kv_heads);
    }
}
