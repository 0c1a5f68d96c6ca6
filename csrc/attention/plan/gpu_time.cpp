#include "attention/plan/gpu_time.h"

#include <functional>
#include <numeric>
#include <utility>

#include "base/ints.h"

namespace batchllm {
namespace {

constexpr int32_t kElementBytes = 2;

// The keys of one segment that a tile reads.
struct KeyRun {
    int32_t first_page;  // identifies the segment
    int32_t begin;
    int32_t end;
};

// Ordered by segment and first key. Tiles of shared keys come first, then those of each span, both in the order of
// their segments: seldom more than two runs that are sorted.
std::vector<KeyRun> key_runs(std::span<const GpuTile> tiles, std::span<const KvPiece> pieces) {
    std::vector<KeyRun> runs;
    runs.reserve(tiles.size());
    int64_t num_sorted = 1, second = 0;
    int64_t last = 0;
    const auto place = [](const KeyRun& run) { return int64_t{run.first_page} << 32 | run.begin; };
    for (const GpuTile& tile : tiles) {
        for (int32_t i = tile.piece_begin; i < tile.piece_end; ++i) {
            const KvPiece& piece = pieces[i];
            const KeyRun run{piece.first_page, std::max(tile.kv_begin, piece.position_begin),
                             std::min(tile.kv_end, piece.position_end)};
            if (run.begin >= run.end) continue;
            if (place(run) < last) ++num_sorted, second = std::ssize(runs);
            last = place(run);
            runs.push_back(run);
        }
    }
    if (num_sorted == 2) std::ranges::inplace_merge(runs, runs.begin() + second, {}, place);
    if (num_sorted > 2) std::ranges::sort(runs, {}, place);
    return runs;
}

// The rows that the tensor cores multiply for this many rows. The warps of a narrow tile all compute the same scores,
// which are half of the products.
int32_t multiplied_rows(TileKind kind, int32_t num_rows, int32_t head_dim) {
    if (kind == TileKind::kNarrow) return kGpuNarrowRows * 5 / 2;
    return num_rows <= 64 ? 64 : gpu_tile_rows(head_dim);
}

}  // namespace

GpuTime::GpuTime(const GpuModel& gpu, const AttentionShape& shape, CallStyle style)
    : gpu_(gpu), shape_(shape), style_(style) {
    const double load_s = 2.0 * kElementBytes * shape.head_dim / gpu.multiprocessor_bytes_per_s;
    for (const TileKind kind : {TileKind::kNarrow, TileKind::kWide}) {
        const auto key_s = [&](int32_t num_rows) {
            const double flops = 4.0 * shape.head_dim * multiplied_rows(kind, num_rows, shape.head_dim);
            return std::max(load_s, flops * gpu.num_multiprocessors / gpu.flops_per_s);
        };
        kernels_[static_cast<int>(kind)] = {.neighbours = blocks_per_multiprocessor(gpu, kind, shape.head_dim),
                                            .key_s = key_s(64),
                                            .high_key_s = key_s(65)};
    }
}

// `keys_of_tile` takes a tile by its place in descending order, once or several times, and never an earlier one.
template <typename KeysOfTile>
double GpuTime::rounds_s(TileKind kind, int64_t num_tiles, int32_t heads_per_block,
                         const KeysOfTile& keys_of_tile) const {
    const int64_t blocks_per_tile = ceil_div(shape_.num_kv_heads, heads_per_block);
    const int64_t num_blocks = num_tiles * blocks_per_tile;
    double seconds = 0.0;
    for (int64_t block = 0, round = 1; block < num_blocks; block += places(kind), ++round) {
        const double block_s = gpu_.block_s + heads_per_block * keys_of_tile(block / blocks_per_tile);
        seconds = std::max(seconds, static_cast<double>(round) * block_s);
    }
    return seconds;
}

LaunchTime GpuTime::blocks(TileKind kind, std::span<const EqualTiles> tiles, int32_t heads_per_block) const {
    int64_t num_tiles = 0;
    double keys_sum_s = 0.0;
    for (const EqualTiles& equal : tiles) {
        num_tiles += equal.num_tiles;
        keys_sum_s += static_cast<double>(equal.num_tiles) * equal.keys_s;
    }
    size_t equal = 0;
    int64_t before = 0;  // tiles in front of these
    const auto keys_of_tile = [&](int64_t tile) {
        while (tile >= before + tiles[equal].num_tiles) before += tiles[equal++].num_tiles;
        return tiles[equal].keys_s;
    };
    return {.share_s = share_s(kind, num_tiles, keys_sum_s, heads_per_block),
            .rounds_s = rounds_s(kind, num_tiles, heads_per_block, keys_of_tile)};
}

LaunchTime GpuTime::blocks(TileKind kind, std::span<double> keys_s, int32_t heads_per_block) const {
    constexpr int64_t kFewRounds = 8;  // for more, sorting all tiles is cheaper
    const auto num_tiles = std::ssize(keys_s);
    const double keys_sum_s = std::accumulate(keys_s.begin(), keys_s.end(), 0.0);
    const bool are_few = num_tiles * ceil_div(shape_.num_kv_heads, heads_per_block) <= kFewRounds * places(kind);
    if (!are_few) std::ranges::sort(keys_s, std::greater<>());
    auto placed = keys_s.begin();  // so far
    const auto keys_of_tile = [&](int64_t tile) {
        const auto at = keys_s.begin() + tile;
        if (are_few) std::nth_element(placed, at, keys_s.end(), std::greater<>());
        return *(placed = at);
    };
    return {.share_s = share_s(kind, num_tiles, keys_sum_s, heads_per_block),
            .rounds_s = rounds_s(kind, num_tiles, heads_per_block, keys_of_tile)};
}

double GpuTime::read_s(TileKind kind, std::span<const GpuTile> tiles, std::span<const KvPiece> pieces) const {
    const double key_bytes = 2.0 * kElementBytes * shape_.num_kv_heads * shape_.head_dim;
    const int64_t blocks_per_tile = ceil_div(shape_.num_kv_heads, heads_per_block(kind, std::ssize(tiles)));
    double num_keys = 0.0, num_rows = 0.0;
    const std::vector<KeyRun> runs = key_runs(tiles, pieces);
    for (size_t first = 0, last = 0; first < runs.size(); first = last) {
        double num_read = 0.0, num_distinct = 0.0;
        for (int32_t end = 0; last < runs.size() && runs[last].first_page == runs[first].first_page; ++last) {
            num_read += runs[last].end - runs[last].begin;
            num_distinct += std::max(0, runs[last].end - std::max(end, runs[last].begin));
            end = std::max(end, runs[last].end);
        }
        const bool fits = num_distinct * key_bytes <= static_cast<double>(gpu_.l2_bytes);
        const auto num_blocks = static_cast<int64_t>(last - first) * blocks_per_tile;
        num_keys += fits ? num_distinct : std::min(num_read, num_distinct * ceil_div(num_blocks, places(kind)));
    }
    for (const GpuTile& tile : tiles) num_rows += tile.num_rows;
    return num_keys * key_bytes / gpu_.bytes_per_s + rows_s(num_rows, query_bytes());
}

double GpuTime::memory_s(TileKind kind, std::span<const GpuTile> tiles, std::span<const KvPiece> pieces) const {
    double num_results = 0.0, num_partials = 0.0;
    for (const GpuTile& tile : tiles) {
        num_partials += tile.num_partials;
        num_results += tile.num_rows - tile.num_partials;
    }
    return read_s(kind, tiles, pieces) + rows_s(num_results, style_.result_bytes) +
           rows_s(num_partials, style_.partial_bytes);
}

LaunchTime GpuTime::tiles(TileKind kind, std::span<const GpuTile> tiles, std::span<const KvPiece> pieces) const {
    std::vector<double> seconds;
    for (const GpuTile& tile : tiles) seconds.push_back(keys_s(kind, tile.num_rows, tile.num_keys()));
    LaunchTime time = blocks(kind, seconds, heads_per_block(kind, std::ssize(tiles)));
    time.memory_s = memory_s(kind, tiles, pieces);
    return time;
}

double GpuTime::call_s(const LaunchTime& wide, const LaunchTime& narrow, double num_partials, double num_merged) const {
    const bool are_both = wide.share_s > 0.0 && narrow.share_s > 0.0;
    double seconds = gpu_.launch_s * (are_both && !style_.one_launch ? 2 : 1);
    if (style_.one_launch || gpu_.begins_early) {  // side by side
        seconds +=
            std::max({wide.memory_s + narrow.memory_s, wide.share_s + narrow.share_s, wide.rounds_s, narrow.rounds_s});
    } else {
        seconds += wide.seconds() + narrow.seconds();
    }
    if (num_merged == 0.0) return seconds;
    return seconds + gpu_.launch_s + rows_s(num_partials, style_.partial_bytes) +
           rows_s(num_merged, style_.result_bytes);
}

}  // namespace batchllm
