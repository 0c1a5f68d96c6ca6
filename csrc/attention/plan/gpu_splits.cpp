#include "attention/plan/gpu_splits.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <iterator>
#include <utility>

namespace batchllm {
namespace {

// The tiles of one kernel, of which some are split.
class KindOfTiles {
 public:
    // What they take with some splits.
    struct Cut {
        LaunchTime time;
        double num_partials = 0.0;
        double num_merged = 0.0;      // rows that no other tile reads keys of
        std::vector<int32_t> splits;  // of the longest tiles
    };

    KindOfTiles(TileKind kind, std::span<const GpuTile> tiles, std::span<const KvPiece> pieces, const GpuTime& time)
        : kind_(kind), time_(time) {
        std::vector<GpuTile> own;
        for (int32_t i = 0; i < std::ssize(tiles); ++i) {
            if (kind_of(tiles[i].num_rows) != kind) continue;
            own.push_back(tiles[i]);
            tiles_.push_back({i, tiles[i], time.keys_s(kind, tiles[i].num_rows, tiles[i].num_keys())});
        }
        const LaunchTime whole = time.tiles(kind, own, pieces);
        std::ranges::stable_sort(tiles_, std::greater<>(), &Tile::keys_s);
        const auto is_short = [&](const Tile& tile) { return tile.keys_s <= whole.share_s / kRounds; };
        num_longest_ = std::ranges::find_if(tiles_, is_short) - tiles_.begin();
        for (size_t i = num_longest_; i < tiles_.size(); ++i) short_s_.push_back(tiles_[i].keys_s);
        memory_s_ = whole.memory_s;
        for (const Tile& tile : tiles_) num_partials_ += tile.load.num_partials;
    }

    // The longest tile into so many parts, the others into as many as make theirs no longer.
    Cut cut(int32_t num_parts) const {
        Cut result;
        result.num_partials = num_partials_;
        double added_s = 0.0;
        std::vector<double> parts_s;
        for (size_t i = 0; i < num_longest_; ++i) {
            const auto& [index, load, keys_s] = tiles_[i];
            const double most_s = tiles_[0].keys_s / num_parts;
            const int32_t wanted = static_cast<int32_t>(std::ceil(keys_s / most_s - 1e-9));
            const int32_t most = std::max(1, load.num_keys() / kMinSplitKeys);
            const int64_t keys = keys_per_split(load.num_keys(), std::clamp(wanted, 1, most));
            const auto splits = static_cast<int32_t>(ceil_div(load.num_keys(), keys));
            parts_s.insert(parts_s.end(), splits, time_.keys_s(kind_, load.num_rows, keys));
            result.splits.push_back(splits);
            if (splits == 1) continue;
            const int32_t num_alone = load.num_rows - load.num_partials;
            const double num_again = (splits - 1.0) * load.num_rows;
            result.num_partials += num_again + num_alone;
            result.num_merged += num_alone;
            added_s += time_.rows_s(num_again, time_.query_bytes() + time_.style().partial_bytes) +
                       time_.rows_s(num_alone, time_.style().partial_bytes - time_.style().result_bytes);
        }
        std::ranges::sort(parts_s, std::greater<>());
        const auto num_tiles = static_cast<int64_t>(parts_s.size() + short_s_.size());
        result.time = time_.blocks(kind_, parts_s, num_tiles);
        const LaunchTime rest = time_.blocks(kind_, short_s_, num_tiles);
        result.time.memory_s = memory_s_ + added_s;
        result.time.share_s += rest.share_s;
        result.time.rounds_s = std::max(result.time.rounds_s, rest.rounds_s);
        return result;
    }

    // Into so many parts the longest tile may be cut.
    int32_t most_parts() const {
        if (num_longest_ == 0) return 1;
        return std::clamp(tiles_[0].load.num_keys() / kMinSplitKeys, 1, kMostParts);
    }

    void write(const Cut& cut, std::vector<int32_t>& splits) const {
        for (size_t i = 0; i < num_longest_; ++i) splits[tiles_[i].index] = cut.splits[i];
    }

 private:
    static constexpr double kRounds = 4.0;  // a block that takes a fourth of what its place does waits for no split
    static constexpr int32_t kMostParts = 128;

    struct Tile {
        int32_t index;
        GpuTile load;
        double keys_s;
    };

    TileKind kind_;
    const GpuTime& time_;
    std::vector<Tile> tiles_;      // longest first
    size_t num_longest_ = 0;       // of these, that may be split
    std::vector<double> short_s_;  // the keys of the others
    double memory_s_ = 0.0;
    double num_partials_ = 0.0;
};

}  // namespace

GpuSplits gpu_splits(std::span<const GpuTile> tiles, std::span<const KvPiece> pieces, int64_t num_merged,
                     const GpuTime& time) {
    const KindOfTiles kinds[] = {{TileKind::kWide, tiles, pieces, time}, {TileKind::kNarrow, tiles, pieces, time}};
    KindOfTiles::Cut cuts[] = {kinds[0].cut(1), kinds[1].cut(1)};
    const auto seconds = [&] {
        return time.call_s(cuts[0].time, cuts[1].time, cuts[0].num_partials + cuts[1].num_partials,
                           static_cast<double>(num_merged) + cuts[0].num_merged + cuts[1].num_merged);
    };
    double least_s = seconds();
    for (size_t kind = 0; kind < std::size(kinds); ++kind) {
        for (int32_t parts = 2; parts <= kinds[kind].most_parts(); ++parts) {
            KindOfTiles::Cut before = std::exchange(cuts[kind], kinds[kind].cut(parts));
            if (const double tried_s = seconds(); tried_s < least_s) {
                least_s = tried_s;
            } else {
                cuts[kind] = std::move(before);
            }
        }
    }
    std::vector<int32_t> splits(tiles.size(), 1);
    for (size_t kind = 0; kind < std::size(kinds); ++kind) kinds[kind].write(cuts[kind], splits);
    return {std::move(splits), least_s};
}

}  // namespace batchllm
