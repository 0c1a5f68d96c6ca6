#include <doctest/doctest.h>

#include <algorithm>
#include <functional>
#include <random>
#include <vector>

#include "attention/plan/gpu_time.h"

using namespace batchllm;

namespace {

constexpr AttentionShape kShape{.num_qo_heads = 32, .num_kv_heads = 8, .head_dim = 128, .page_size = 16};

// Some place takes (k + 1) * t where more than k blocks for each place take t or longer.
double rounds_s(const GpuModel& gpu, TileKind kind, std::vector<double> keys_s, int32_t heads) {
    std::ranges::sort(keys_s, std::greater<>());
    std::vector<double> blocks_s;
    for (const double seconds : keys_s) blocks_s.insert(blocks_s.end(), 8 / heads, gpu.block_s + heads * seconds);
    const size_t places = gpu.num_multiprocessors * blocks_per_multiprocessor(gpu, kind, kShape.head_dim);
    double longest_s = 0.0;
    for (size_t k = 0; k * places < blocks_s.size(); ++k) {
        longest_s = std::max(longest_s, static_cast<double>(k + 1) * blocks_s[k * places]);
    }
    return longest_s;
}

}  // namespace

TEST_CASE("tiles in any order, or equal ones together, take what they take one by one") {
    std::mt19937 random(0);
    for (const int32_t num_tiles : {0, 1, 100, 1000, 5000}) {
        for (const auto& [kind, heads] : {std::pair(TileKind::kNarrow, 2), std::pair(TileKind::kWide, 1)}) {
            for (const GpuModel& gpu : kGpus) {
                CAPTURE(num_tiles);
                const GpuTime time(gpu, kShape, our_style(kShape.head_dim));
                std::vector<double> keys_s;
                std::vector<EqualTiles> equal;
                double sum_s = 0.0;
                for (int32_t tile = 0; tile < num_tiles; ++tile) {
                    const double seconds = time.keys_s(kind, 16, 64 * (1 + random() % 9));
                    keys_s.push_back(seconds);
                    sum_s += seconds;
                    const auto same = std::ranges::find(equal, seconds, &EqualTiles::keys_s);
                    same == equal.end() ? equal.push_back({seconds, 1}) : void(++same->num_tiles);
                }
                std::ranges::sort(equal, std::greater<>(), &EqualTiles::keys_s);
                const double expected_s = rounds_s(gpu, kind, keys_s, heads);
                const double share_s = time.share_s(kind, num_tiles, sum_s, heads);
                CHECK(time.blocks(kind, equal, heads).rounds_s == expected_s);
                CHECK(time.blocks(kind, equal, heads).share_s == doctest::Approx(share_s));
                CHECK(time.blocks(kind, keys_s, heads).rounds_s == expected_s);
                CHECK(time.blocks(kind, keys_s, heads).share_s == doctest::Approx(share_s));
            }
        }
    }
}

TEST_CASE("keys that several tiles read come from memory once where they fit into the L2 cache") {
    const GpuModel& gpu = *find_gpu("h100");
    const GpuTime time(gpu, kShape, our_style(kShape.head_dim));
    constexpr double kKeyBytes = 2.0 * 2 * 8 * 128;
    // Two segments, which begin at pages 0 and 100; tiles come in no order of theirs, and overlap.
    const std::vector<KvPiece> pieces{{100, 0, 0, 1000}, {0, 0, 0, 1600}};
    const auto tile = [](int32_t piece, int32_t begin, int32_t end) {
        return GpuTile{.num_rows = 4,
                       .num_partials = 0,
                       .piece_begin = piece,
                       .piece_end = piece + 1,
                       .kv_begin = begin,
                       .kv_end = end};
    };
    const std::vector<GpuTile> tiles{tile(0, 500, 1000), tile(1, 0, 1600), tile(0, 0, 700), tile(1, 100, 200)};
    const double expected_s = 2600 * kKeyBytes / gpu.bytes_per_s + time.rows_s(16, time.query_bytes());
    CHECK(time.read_s(TileKind::kNarrow, tiles, pieces) == doctest::Approx(expected_s));
}
