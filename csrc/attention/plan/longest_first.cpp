#include "attention/plan/longest_first.h"

#include <algorithm>
#include <bit>
#include <numeric>

namespace batchllm {
namespace {

bool is_before(const RankedItem& a, const RankedItem& b) {
    return a.cost != b.cost ? a.cost > b.cost : a.index < b.index;
}

// Orders doubles of at least 0 as they do, and divides each power of two evenly.
uint64_t bits(double cost) {
    return std::bit_cast<uint64_t>(cost);
}

}  // namespace

// A counting sort by the leading bits, into about as many buckets as there are items: most have one item, or items of
// equal cost, which are in order then. A comparison sort would mispredict half of its branches.
std::vector<RankedItem> longest_first(std::span<const double> costs) {
    if (costs.empty()) return {};
    const auto [least, most] = std::ranges::minmax(costs);
    const uint64_t range = bits(most) - bits(least);
    const auto width = [](uint64_t value) { return static_cast<int>(std::bit_width(value)); };
    const int shift = std::max(0, width(range) - width(costs.size()));
    const auto bucket = [&](double cost) { return (bits(most) - bits(cost)) >> shift; };

    std::vector<int32_t> ends((range >> shift) + 1, 0);  // of the buckets, in sorted
    for (const double cost : costs) ++ends[bucket(cost)];
    std::exclusive_scan(ends.begin(), ends.end(), ends.begin(), 0);
    std::vector<RankedItem> sorted(costs.size());
    for (int32_t i = 0; i < std::ssize(costs); ++i) sorted[ends[bucket(costs[i])]++] = {costs[i], i};

    int32_t begin = 0;
    for (const int32_t end : ends) {
        const auto items = std::span(sorted).subspan(begin, end - begin);
        if (!std::ranges::is_sorted(items, is_before)) std::ranges::sort(items, is_before);
        begin = end;
    }
    return sorted;
}

}  // namespace batchllm
