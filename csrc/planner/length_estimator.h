// Learns output lengths while a job runs.
//
// One LengthEstimator describes one population of requests: a group, or the whole job. It counts, for every bin of
// lengths, how many outputs reached it and how many ended there. Their quotient is the hazard, and the product of
// (1 - hazard) the survival curve S (Kaplan & Meier 1958). So running outputs count for the length they have
// reached, and the short ones, which finish first, do not mislead. Lengths that no output has reached are assumed not
// to end.
//
// What matters is the sum over the running requests. So they are spread evenly over the quantiles of their population
// instead of all using the same one: together they end as the population does. kLeastQuantile leaves out the shortest
// tenth: on log-normal lengths (sigma 1) in tight pools that took recomputed tokens from 4.9 % to 0.02 % for 3 % more
// steps; all at quantile 0.8 took 59 % more.
//
// An estimate only decides when requests are admitted: a bad one costs waiting or a preemption, never an answer. No
// sample is taken beforehand: requests start in depth-first order, so the first subtrees, each run whole, are the
// sample.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>

#include "planner/ids.h"
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

    // The final length of request `id`, whose output has `length` tokens by now: its quantile of the outputs that
    // reached that length. INT32_MAX if too few are known to end.
    int32_t expected(RequestId id, int32_t length) {
        if (stale_) refresh();
        const int bin = LengthBins::bin(length);
        const double survive = (1.0 - quantile_of(id)) * survival_[bin];
        if (survival_.back() > survive) return INT32_MAX;
        const auto first = survival_.begin() + bin + 1;
        const auto last = std::partition_point(first, survival_.end(), [&](double s) { return s > survive; });
        return last == survival_.end() ? INT32_MAX : LengthBins::last(static_cast<int>(last - survival_.begin()) - 1);
    }

 private:
    static constexpr double kLeastQuantile = 0.1;

    static double quantile_of(RequestId id) {  // multiples of the golden ratio fill [0, 1) evenly, in any order of ids
        const double turns = 0.6180339887498949 * id.index;
        return kLeastQuantile + (1.0 - kLeastQuantile) * (turns - std::floor(turns));
    }

    void refresh() {
        survival_[0] = 1.0;
        for (int bin = 0; bin < LengthBins::kNumBins; ++bin) {
            survival_[bin + 1] = survival_[bin] * (1.0 - ended_[bin] / (reached_[bin] + 1.0));  // + 1: never certain
        }
        stale_ = false;
    }

    std::array<int32_t, LengthBins::kNumBins> reached_{}, ended_{};
    std::array<double, LengthBins::kNumBins + 1> survival_;  // share of the outputs that come to a bin
    int64_t num_ended_ = 0;
    bool stale_ = true;
};

}  // namespace batchllm
