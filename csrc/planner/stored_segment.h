// Which K/V of a segment is kept, and how many pages that takes.
//
//   positions   begin of the segment ... kv.begin ............. next row ............. end
//                                dropped |  stored: seen by rows to come  |  to be computed, in chunks
//
// Where every layer has a window, a row sees its own position and at most `window_left` before it, and so do all rows
// that come later, readers' too: their positions are no lower. What lies further back is dropped in whole pages, which
// hold the segment's next tokens, or are given back where it needs no more. Without a window nothing is dropped.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "planner/ids.h"

namespace batchllm {

struct StoredSegment {       // shared, or a request's own
    int32_t begin = 0;       // position of its first token that is kept
    int32_t num_stored = 0;  // tokens with K/V from there on, those of the batch in flight included
    std::vector<PageId> pages = {};
};

inline int32_t at_least(int32_t least, int32_t value, const char* name) {
    if (value >= least) return value;
    throw std::invalid_argument(std::string(name) + ": expected at least " + std::to_string(least) + ", got " +
                                std::to_string(value));
}

class KvWindow {
 public:
    // window_left: of the layer that sees most; -1: all. Throws std::invalid_argument for what is below its bound.
    KvWindow(int32_t window_left, int32_t page_size, int32_t max_batch_tokens)
        : page_size_(at_least(1, page_size, "page_size")),
          num_kept_(at_least(-1, window_left, "window_left") < 0 ? kAll : std::max(window_left, 1)) {
        at_least(1, max_batch_tokens, "max_batch_tokens");
        if (!slides()) return;
        most_decode_pages_ = pages_for(int64_t{num_kept_} + page_size);
        most_pages_ = pages_for(int64_t{num_kept_} + page_size - 1 + max_batch_tokens);
    }

    bool slides() const { return num_kept_ != kAll; }
    int64_t pages_for(int64_t num_tokens) const { return (num_tokens + page_size_ - 1) / page_size_; }

    // That a segment holds at any time until it has so many tokens, whatever chunks it is computed in.
    int64_t most_pages(int64_t num_tokens) const { return std::min(pages_for(num_tokens), most_pages_); }
    int64_t most_pages() const { return most_pages_; }  // of any
    // The same of any that grows by one token at a time.
    int64_t most_decode_pages() const { return most_decode_pages_; }

    // The first pages of a segment of so many tokens, all computed, that no later row sees.
    int32_t num_dropped_pages(int32_t num_tokens) const { return std::max(num_tokens - num_kept_, 0) / page_size_; }
    // Whether anything of a segment of so many tokens is ever dropped.
    bool drops(int32_t num_tokens) const { return num_dropped_pages(num_tokens) > 0; }

    // Drops what no later row sees, once all that is stored is computed: the pages that held it come last.
    void slide(StoredSegment& kv) const {
        const int32_t num_pages = num_dropped_pages(kv.num_stored);
        if (num_pages == 0) return;
        std::rotate(kv.pages.begin(), kv.pages.begin() + num_pages, kv.pages.end());
        kv.begin += num_pages * page_size_;
        kv.num_stored -= num_pages * page_size_;
    }

 private:
    static constexpr int32_t kAll = std::numeric_limits<int32_t>::max();

    int32_t page_size_;
    int32_t num_kept_;  // the last ones that are stored: at least one, so that what is pinned has a page
    int64_t most_pages_ = std::numeric_limits<int64_t>::max();
    int64_t most_decode_pages_ = std::numeric_limits<int64_t>::max();
};

}  // namespace batchllm
