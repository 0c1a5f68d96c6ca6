// How long outputs will be, learned while a job runs.
//
// One LengthEstimator describes one population of requests: a group, or the whole job. It counts, for every bin of
// lengths, how many outputs came that far and how many ended there. Their quotient is the hazard, and the product of
// (1 - hazard) the survival curve S (Kaplan & Meier 1958). So outputs that still run count for what they have shown,
// and the short ones, which finish first, do not mislead. What nobody has reached is not believed to end.
//
// An estimate is the length that kQuantile of the outputs that came as far do not exceed. It decides only when
// requests are admitted: a bad one costs waiting or a preemption, never an answer. There is no sample to take
// beforehand: requests start in depth-first order, so the first subtrees, each run whole, are the sample.
#pragma once

#include <array>
#include <cstdint>

#include "planner/length_bins.h"

namespace batchllm {

class LengthEstimator {
 public:
    // Whether an output that grew to `length` is news: only then reach() need be called.
    static bool is_news(int32_t length) { return LengthBins::first(LengthBins::bin(length)) == length; }

    void reach(int32_t length) {  // an output has this many tokens, the first of their bin
        ++reached_[LengthBins::bin(length)];
        stale_ = true;
    }
    void end(int32_t length) {  // an output ended here by itself, not at its bound
        ++ended_[LengthBins::bin(length)];
        ++num_ended_;
        stale_ = true;
    }

    int64_t num_ended() const { return num_ended_; }

    // The final length of an output that has `length` tokens by now; INT32_MAX where none is known to end.
    int32_t expected(int32_t length) {
        if (stale_) refresh();
        return expected_[LengthBins::bin(length)];
    }

 private:
    static constexpr double kQuantile = 0.8;

    void refresh() {
        std::array<double, LengthBins::kNumBins + 1> survival;  // to the first length of each bin
        survival[0] = 1.0;
        for (int bin = 0; bin < LengthBins::kNumBins; ++bin) {
            survival[bin + 1] = survival[bin] * (1.0 - ended_[bin] / (reached_[bin] + 1.0));  // + 1: never certain
        }
        int last = 0;
        for (int bin = 0; bin < LengthBins::kNumBins; ++bin) {
            while (last < LengthBins::kNumBins && survival[last + 1] > (1.0 - kQuantile) * survival[bin]) ++last;
            expected_[bin] = last < LengthBins::kNumBins ? LengthBins::last(last) : INT32_MAX;
        }
        stale_ = false;
    }

    std::array<int32_t, LengthBins::kNumBins> reached_{}, ended_{};
    std::array<int32_t, LengthBins::kNumBins> expected_;  // by bin of the length so far
    int64_t num_ended_ = 0;
    bool stale_ = true;
};

}  // namespace batchllm
