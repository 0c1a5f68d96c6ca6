// Waiting requests of a radix scheduler, in the order in which it would start them.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "planner/ids.h"
#include "simulate/prompt_index.h"
#include "simulate/radix_tree.h"
#include "simulate/recorder.h"

namespace batchllm {

enum class RadixOrder { kLongestPrefix, kDepthFirst };

class RadixQueue {
 public:
    RadixQueue(RadixOrder order, const PromptIndex& index, const Recorder& recorder, RadixTree& tree)
        : order_(order), index_(index), recorder_(recorder), tree_(tree) {}

    int64_t size() const { return size_; }
    void append(RequestIndex request);
    void sort();  // before each look at the queue
    std::vector<RequestIndex> first(size_t count) const;
    void leave(RequestIndex request);  // the first one

 private:
    void sort_by_longest_prefix();

    const RadixOrder order_;
    const PromptIndex& index_;
    const Recorder& recorder_;
    RadixTree& tree_;  // holds the queue itself where the order is depth-first
    std::deque<RequestIndex> by_prefix_;
    int64_t size_ = 0;
    int64_t num_arrivals_ = 0;
};

}  // namespace batchllm
