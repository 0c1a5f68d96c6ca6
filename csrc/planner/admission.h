// Whether one more request may start beside the running ones: the two conditions at the top of batch_planner.h.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>

#include "planner/kv_forecast.h"

namespace batchllm {

class Admission {
 public:
    // A request's own part.
    struct OwnPart {
        int64_t num_pages;   // held now, or when it starts
        int64_t num_tokens;  // in them
        int64_t most_pages;  // at its longest
        int32_t num_steps;   // until it is expected to end
    };

    // most_decode_pages: that the own part of a request ever holds while it decodes.
    explicit Admission(int32_t page_size, int64_t most_decode_pages = std::numeric_limits<int64_t>::max())
        : forecast_(page_size, most_decode_pages) {}

    void add_running(const OwnPart& own) {
        forecast_.add(own.num_pages, own.num_tokens, own.num_steps);
        largest_ = std::max(largest_, own.most_pages);
        all_largest_ += own.most_pages;
        is_idle_ = false;
    }

    // Adds the request to the running ones if it may start with `pinned_pages` pinned, including its own chain. Throws
    // std::logic_error if nothing runs and it still may not start: nothing would ever make room for it.
    bool try_add(const OwnPart& own, int64_t pinned_pages, int64_t pool_pages) {
        const int64_t largest = std::max(largest_, own.most_pages);
        const int64_t all_largest = all_largest_ + own.most_pages;
        const bool may = pinned_pages + largest <= pool_pages;
        if (!may && is_idle_) {
            throw std::logic_error("next_batch: the next request can never start: nothing runs, " +
                                   std::to_string(pinned_pages) + " pages are pinned, its own part takes up to " +
                                   std::to_string(own.most_pages) + ", the pool has " + std::to_string(pool_pages));
        }
        forecast_.add(own.num_pages, own.num_tokens, own.num_steps);
        const bool when = is_idle_ || pinned_pages + std::min(forecast_.peak_pages(), all_largest) <= pool_pages;
        if (!may || !when) {
            forecast_.remove(own.num_pages, own.num_tokens, own.num_steps);
            return false;
        }
        largest_ = largest;
        all_largest_ = all_largest;
        is_idle_ = false;
        return true;
    }

 private:
    KvForecast forecast_;
    int64_t largest_ = 0;      // pages of the largest own part at its longest
    int64_t all_largest_ = 0;  // of all of them
    bool is_idle_ = true;
};

}  // namespace batchllm
