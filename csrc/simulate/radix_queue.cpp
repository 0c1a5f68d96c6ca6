#include "simulate/radix_queue.h"

#include <algorithm>
#include <iterator>
#include <set>
#include <utility>

namespace batchllm {

namespace {

constexpr size_t kMaxSorted = 128;  // a longer queue stays first come, first served
constexpr int32_t kInBatchTokens = 32;

}  // namespace

void RadixQueue::append(RequestIndex request) {
    ++size_;
    if (order_ == RadixOrder::kDepthFirst) {
        tree_.add_waiting(request, recorder_.num_tokens(request), num_arrivals_++);
    } else {
        by_prefix_.push_back(request);
    }
}

void RadixQueue::leave(RequestIndex request) {
    --size_;
    if (order_ == RadixOrder::kDepthFirst) {
        tree_.remove_waiting(request);
    } else {
        by_prefix_.pop_front();
    }
}

std::vector<RequestIndex> RadixQueue::first(size_t count) const {
    if (order_ == RadixOrder::kDepthFirst) return tree_.first_waiting(count);
    return {by_prefix_.begin(), by_prefix_.begin() + static_cast<int64_t>(std::min(count, by_prefix_.size()))};
}

void RadixQueue::sort() {
    if (order_ == RadixOrder::kLongestPrefix && by_prefix_.size() <= kMaxSorted) sort_by_longest_prefix();
}

void RadixQueue::sort_by_longest_prefix() {
    std::set<int32_t> ranks;  // of requests with little in the cache, all unlike each other
    const auto shares_with_earlier = [&](RequestIndex request) {
        const auto shares = [&](int32_t rank) {
            return index_.common_prefix(index_.request(rank), request) >= kInBatchTokens;
        };
        const auto next = ranks.lower_bound(index_.rank(request));
        return (next != ranks.end() && shares(*next)) || (next != ranks.begin() && shares(*std::prev(next)));
    };
    std::vector<std::pair<int32_t, RequestIndex>> keyed;  // (tokens found, negated; or 1 for the end of the queue)
    for (const RequestIndex request : by_prefix_) {
        const int32_t length = recorder_.num_tokens(request);
        const int32_t num_found = tree_.depth(tree_.match(request, length));
        int32_t key = -std::min(num_found, length - 1);
        if (num_found <= kInBatchTokens) {
            if (shares_with_earlier(request)) {
                key = 1;
            } else {
                ranks.insert(index_.rank(request));
            }
        }
        keyed.emplace_back(key, request);
    }
    std::stable_sort(keyed.begin(), keyed.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    std::transform(keyed.begin(), keyed.end(), by_prefix_.begin(), [](const auto& entry) { return entry.second; });
}

}  // namespace batchllm
