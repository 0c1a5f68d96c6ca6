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
    // Their time with some splits.
    struct Cut {
        LaunchTime time;
        double num_partials = 0.0;
        double num_merged = 0.0;      // rows that no other tile reads keys of
        std::vector<int32_t> splits;  // of the tiles of each length
    };

    KindOfTiles(TileKind kind, std::span<const GpuTile> tiles, std::span<const KvPiece> pieces, const GpuTime& time)
        : kind_(kind), time_(time) {
        std::vector<GpuTile> own;
        own.reserve(tiles.size());
        std::vector<Tile> places;
        places.reserve(tiles.size());
        for (int32_t i = 0; i < std::ssize(tiles); ++i) {
            const GpuTile& tile = tiles[i];
            if (kind_of(tile.num_rows) != kind) continue;
            own.push_back(tile);
            places.push_back({i, time.keys_s(kind, tile.num_rows, tile.num_keys())});
            keys_sum_s_ += places.back().keys_s;
            num_partials_ += tile.num_partials;
        }
        memory_s_ = time.memory_s(kind, own, pieces);
        heads_per_block_ = time.heads_per_block(kind, std::ssize(own));
        const double share_s = time.share_s(kind, std::ssize(own), keys_sum_s_, heads_per_block_);
        short_s_.reserve(own.size());
        for (const Tile& tile : places) {
            if (tile.keys_s > share_s / kRounds) {
                longest_.push_back(tile);
            } else {
                short_s_.push_back(tile.keys_s);
            }
        }
        group_longest(tiles);
        short_ = time.blocks(kind, short_s_, heads_per_block_);
    }

    // Cuts the longest tile into this many parts, the others into as many as make their parts no longer.
    Cut cut(int32_t num_parts) {
        Cut result;
        result.num_partials = num_partials_;
        double added_s = 0.0;
        auto num_tiles = std::ssize(short_s_);
        std::vector<EqualTiles> parts;
        for (const Length& length : lengths_) {
            const double most_s = lengths_[0].keys_s / num_parts;
            const int32_t wanted = static_cast<int32_t>(std::ceil(length.keys_s / most_s - 1e-9));
            const int32_t most = std::max(1, length.num_keys / kMinSplitKeys);
            const int64_t keys = keys_per_split(length.num_keys, std::clamp(wanted, 1, most));
            const auto splits = static_cast<int32_t>(ceil_div(length.num_keys, keys));
            parts.push_back({time_.keys_s(kind_, length.num_rows, keys), splits * length.num_tiles});
            num_tiles += splits * length.num_tiles;
            result.splits.push_back(splits);
            if (splits == 1) continue;
            const double num_again = (splits - 1.0) * length.all_rows;
            const double num_alone = length.all_rows - length.all_partials;
            result.num_partials += num_again + num_alone;
            result.num_merged += num_alone;
            added_s += time_.rows_s(num_again, time_.query_bytes() + time_.style().partial_bytes) +
                       time_.rows_s(num_alone, time_.style().partial_bytes - time_.style().result_bytes);
        }
        std::ranges::sort(parts, std::greater<>(), &EqualTiles::keys_s);
        if (const int32_t heads = time_.heads_per_block(kind_, num_tiles); heads != heads_per_block_) {
            heads_per_block_ = heads;
            short_ = time_.blocks(kind_, short_s_, heads);
        }
        result.time = time_.blocks(kind_, parts, heads_per_block_);
        result.time.memory_s = memory_s_ + added_s;
        result.time.share_s += short_.share_s;
        result.time.rounds_s = std::max(result.time.rounds_s, short_.rounds_s);
        return result;
    }

    // A lower bound for every cut into more parts than this one.
    LaunchTime at_least(const Cut& cut) const {
        return {.memory_s = cut.time.memory_s, .share_s = time_.share_s(kind_, 0, keys_sum_s_, 1)};
    }

    // The most parts into which the longest tile may be cut.
    int32_t most_parts() const {
        return lengths_.empty() ? 1 : std::clamp(lengths_[0].num_keys / kMinSplitKeys, 1, kMostParts);
    }

    void write(const Cut& cut, std::vector<int32_t>& splits) const {
        for (const Tile& tile : longest_) splits[tile.index] = cut.splits[tile.length];
    }

 private:
    static constexpr double kRounds = 4.0;  // a block of at most a fourth of its place's time is not split
    static constexpr int32_t kMostParts = 128;

    // A tile that may be split.
    struct Tile {
        int32_t index;
        double keys_s;
        size_t length = 0;  // into lengths_
    };

    // Tiles that are split alike.
    struct Length {
        double keys_s;
        int32_t num_keys;
        int32_t num_rows;  // of one of them
        int64_t num_tiles = 0;
        double all_rows = 0.0, all_partials = 0.0;
    };

    void group_longest(std::span<const GpuTile> tiles) {
        std::ranges::sort(longest_, std::greater<>(), &Tile::keys_s);
        for (Tile& tile : longest_) {
            const GpuTile& load = tiles[tile.index];
            const bool is_new = lengths_.empty() || lengths_.back().keys_s != tile.keys_s ||
                                lengths_.back().num_keys != load.num_keys();
            if (is_new) lengths_.push_back({tile.keys_s, load.num_keys(), load.num_rows});
            Length& length = lengths_.back();
            ++length.num_tiles;
            length.all_rows += load.num_rows;
            length.all_partials += load.num_partials;
            tile.length = lengths_.size() - 1;
        }
    }

    TileKind kind_;
    const GpuTime& time_;
    std::vector<Tile> longest_;    // longest first
    std::vector<Length> lengths_;  // theirs
    std::vector<double> short_s_;  // the keys of the others
    LaunchTime short_;             // what those take, so many heads to a block
    int32_t heads_per_block_ = 1;
    double keys_sum_s_ = 0.0;
    double memory_s_ = 0.0;
    double num_partials_ = 0.0;
};

}  // namespace

GpuSplits gpu_splits(std::span<const GpuTile> tiles, std::span<const KvPiece> pieces, int64_t num_merged,
                     const GpuTime& time) {
    KindOfTiles kinds[] = {{TileKind::kWide, tiles, pieces, time}, {TileKind::kNarrow, tiles, pieces, time}};
    KindOfTiles::Cut cuts[] = {kinds[0].cut(1), kinds[1].cut(1)};
    LaunchTime times[] = {cuts[0].time, cuts[1].time};
    const auto seconds = [&] {
        return time.call_s(times[0], times[1], cuts[0].num_partials + cuts[1].num_partials,
                           static_cast<double>(num_merged) + cuts[0].num_merged + cuts[1].num_merged);
    };
    double least_s = seconds();
    for (size_t kind = 0; kind < std::size(kinds); ++kind) {
        KindOfTiles::Cut best = cuts[kind];
        for (int32_t parts = 2; parts <= kinds[kind].most_parts(); ++parts) {
            KindOfTiles::Cut tried = kinds[kind].cut(parts);
            if (tried.splits == cuts[kind].splits) continue;
            cuts[kind] = std::move(tried);
            times[kind] = kinds[kind].at_least(cuts[kind]);
            if (seconds() >= least_s) break;
            times[kind] = cuts[kind].time;
            if (const double tried_s = seconds(); tried_s < least_s) least_s = tried_s, best = cuts[kind];
        }
        times[kind] = best.time;
        cuts[kind] = std::move(best);
    }
    std::vector<int32_t> splits(tiles.size(), 1);
    for (size_t kind = 0; kind < std::size(kinds); ++kind) kinds[kind].write(cuts[kind], splits);
    return {std::move(splits), least_s};
}

}  // namespace batchllm
