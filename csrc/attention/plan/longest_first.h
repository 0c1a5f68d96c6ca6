// The order in which the items of a plan run.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace batchllm {

struct RankedItem {
    double cost;
    int32_t index;
};

// By descending cost, at least 0; items of equal cost keep their order.
std::vector<RankedItem> longest_first(std::span<const double> costs);

}  // namespace batchllm
