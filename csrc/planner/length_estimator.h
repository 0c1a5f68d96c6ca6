// How long outputs will be, where only a bound is known.
//
// Learns a quantile of (output tokens / max_output_tokens) over all requests that finished. It decides only when
// requests are admitted: a bad guess costs waiting or a preemption, never an answer. The first to finish are the
// short ones, so nothing is believed before kMinFinished of them.
#pragma once

#include <array>
#include <cstdint>

namespace batchllm {

class LengthEstimator {
 public:
    void observe(int32_t output_tokens, int32_t max_output_tokens) {
        const int64_t bin = (int64_t{output_tokens} * kNumBins - 1) / max_output_tokens;
        ++count_[bin];
        ++num_finished_;
        quantile_bin_ = find_quantile();
    }

    // `initial` until enough requests have finished; then at least 1 and at most max_output_tokens.
    int32_t expected(int32_t max_output_tokens, int32_t initial) const {
        if (num_finished_ < kMinFinished) return initial;
        return static_cast<int32_t>((int64_t{max_output_tokens} * (quantile_bin_ + 1) + kNumBins - 1) / kNumBins);
    }

 private:
    static constexpr int kNumBins = 64;
    static constexpr int64_t kMinFinished = 32;
    static constexpr double kQuantile = 0.8;

    int find_quantile() const {
        int bin = 0;
        int64_t below = count_[0];
        while (static_cast<double>(below) < kQuantile * static_cast<double>(num_finished_)) below += count_[++bin];
        return bin;
    }

    std::array<int64_t, kNumBins> count_{};  // bin b: ratios in (b / kNumBins, (b + 1) / kNumBins]
    int64_t num_finished_ = 0;
    int quantile_bin_ = 0;
};

}  // namespace batchllm
