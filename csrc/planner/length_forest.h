// The populations whose output lengths are learned: the job, and under it every pinned group with enough readers.
//
//   job ─┬─ group A ── group A1      lengths of A1's requests are recorded for A1, A and the job; estimates come from
//        └─ group B                  the innermost of these that has seen enough outputs end
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "planner/ids.h"
#include "planner/length_estimator.h"

namespace batchllm {

class LengthForest {
 public:
    using Population = int32_t;
    static constexpr Population kJob = 0;

    // The population of a group with that many readers, pinned inside population `around`: its own if they are enough
    // to learn from, otherwise `around`.
    Population open(Population around, int32_t num_readers) {
        constexpr int32_t kWorthLearning = 64;
        if (num_readers < kWorthLearning) return around;
        if (unused_.empty()) {
            trees_.push_back({{}, around});
            return static_cast<Population>(trees_.size()) - 1;
        }
        const Population population = unused_.back();
        unused_.pop_back();
        trees_[population] = {{}, around};
        return population;
    }

    // Releases what open(around, ...) returned.
    void close(Population population, Population around) {
        if (population != around) unused_.push_back(population);
    }

    void reach(Population population, int32_t length) {  // an output grew to this many tokens
        if (!LengthEstimator::is_news(length)) return;
        for (; population != kNone; population = trees_[population].around) trees_[population].outputs.reach(length);
    }
    void end(Population population, int32_t length) {  // an output ended here by itself
        for (; population != kNone; population = trees_[population].around) trees_[population].outputs.end(length);
    }

    // The final length of a request's output, which has `length` tokens by now.
    int32_t expected(Population population, RequestId request, int32_t length) {
        constexpr int64_t kEnoughEnded = 32;  // to trust it alone; otherwise the one around it, finally the job
        while (trees_[population].outputs.num_ended() < kEnoughEnded && trees_[population].around != kNone) {
            population = trees_[population].around;
        }
        return trees_[population].outputs.expected(request, length);
    }

 private:
    struct Tree {
        LengthEstimator outputs;
        Population around;  // kNone for the job's
    };

    std::vector<Tree> trees_{{{}, kNone}};
    std::vector<Population> unused_;
};

}  // namespace batchllm
