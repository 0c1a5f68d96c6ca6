// The most pages that the own parts of running requests will hold at any later time, if each ends when expected.
//
//   pages |        /|          A request holds the pages of its prompt, takes one more every page_size steps and
//         |   /|  / |          returns all at its end. The peak of the sum must fit, and that is far below the sum
//         |  / | /  |__        of the peaks if lengths differ.
//         | /  |/      |
//         +------------------ steps from now, in LengthBins: a request counts as long as the longest of its bin
//
// If windows slide, a request that will outgrow its window counts at its largest from now on.
//
// Never below the truth if requests end as expected: they decode in every step, and the one in prefill (there is at
// most one) gets the steps of its prefill on top.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>

#include "planner/length_bins.h"

namespace batchllm {

class KvForecast {
 public:
    // most_pages: that a request ever holds while it decodes.
    explicit KvForecast(int32_t page_size, int64_t most_pages = std::numeric_limits<int64_t>::max())
        : page_size_(page_size), most_pages_(most_pages) {}

    // A request that holds `num_pages` with `num_tokens` in them and ends after `num_steps` more, one token each.
    void add(int64_t num_pages, int64_t num_tokens, int32_t num_steps) {
        change(num_pages, num_tokens, num_steps, 1);
        Load& load = loads_[LengthBins::bin(num_steps)];
        load.num_steps = std::max(load.num_steps, num_steps);
        last_bin_ = std::max(last_bin_, LengthBins::bin(num_steps));
    }
    // The longest of its bin may stay too long, never too short.
    void remove(int64_t num_pages, int64_t num_tokens, int32_t num_steps) {
        change(num_pages, num_tokens, num_steps, -1);
    }

    int64_t peak_pages() const {
        int64_t peak = 0;
        Load running{};  // requests that end in this bin or a later one
        for (int bin = last_bin_; bin >= 0; --bin) {
            running.num_requests += loads_[bin].num_requests;
            running.num_pages += loads_[bin].num_pages;
            running.num_tokens += loads_[bin].num_tokens;
            running.num_full_pages += loads_[bin].num_full_pages;
            const int64_t steps = loads_[bin].num_steps;
            // Two bounds on sum ceil((tokens + steps) / page_size): growth rounded up, or the whole rounded up.
            const int64_t by_growth =
                running.num_pages + running.num_requests * ((steps + page_size_ - 1) / page_size_);
            const int64_t by_tokens =
                (running.num_tokens + running.num_requests * (steps + page_size_ - 1)) / page_size_;
            peak = std::max(peak, running.num_full_pages + std::min(by_growth, by_tokens));
        }
        return peak;
    }

 private:
    struct Load {
        int64_t num_requests, num_pages, num_tokens;  // of those that grow to their end
        int64_t num_full_pages;                       // of the others
        int32_t num_steps;                            // of the longest
    };

    void change(int64_t num_pages, int64_t num_tokens, int32_t num_steps, int64_t sign) {
        Load& load = loads_[LengthBins::bin(num_steps)];
        if ((num_tokens + num_steps + page_size_ - 1) / page_size_ > most_pages_) {
            load.num_full_pages += sign * std::max(num_pages, most_pages_);
            return;
        }
        load.num_requests += sign;
        load.num_pages += sign * num_pages;
        load.num_tokens += sign * num_tokens;
    }

    int64_t page_size_, most_pages_;
    std::array<Load, LengthBins::kNumBins> loads_{};
    int last_bin_ = 0;
};

}  // namespace batchllm
