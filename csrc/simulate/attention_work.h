// The attention of rows, in layers with a window and in those without.
//
//   window_left   positions before its own that a row sees; -1: all
#pragma once

#include <algorithm>
#include <cstdint>

namespace batchllm {

// Of the positions that a row sees.
inline int64_t first_visible(int64_t position, int32_t window_left) {
    return window_left < 0 ? 0 : std::max<int64_t>(position - window_left, 0);
}

// Keys that rows at positions [begin, end) see, each up to itself.
inline int64_t num_attention_pairs(int64_t begin, int64_t end, int32_t window_left) {
    const auto up_to = [window_left](int64_t num_rows) {
        const int64_t num_hidden = first_visible(num_rows - 1, window_left);  // from the last row
        return (num_rows * (num_rows + 1) - num_hidden * (num_hidden + 1)) / 2;
    };
    return up_to(end) - up_to(begin);
}

}  // namespace batchllm
