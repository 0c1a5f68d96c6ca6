#include <doctest/doctest.h>

#include <algorithm>

#include "planner/choose_segments.h"
#include "planner/group_order.h"
#include "random_job.h"

using namespace batchllm;
using batchllm::testing::Job;
using batchllm::testing::RandomJobs;

namespace {

// The definition, recursively.
class PlainOrder {
 public:
    PlainOrder(const Segments& segments, const std::vector<int32_t>& own, const std::vector<int32_t>& output)
        : segments_(segments), own_(own), output_(output) {}

    std::vector<RequestId> order(SegmentId parent = kNone) const {
        struct Child {
            double ratio;
            std::vector<RequestId> requests;
        };
        std::vector<Child> children;
        for (SegmentId s = 0; s < segments_.num_segments(); ++s) {
            if (segments_.parent()[s] != parent) continue;
            const auto [decode, prefill] = totals(s);
            children.push_back({decode / prefill, order(s)});
        }
        for (RequestId request = 0; request < segments_.num_requests(); ++request) {
            if (segments_.request_segment()[request] != parent) continue;
            children.push_back({static_cast<double>(output_[request]) / own_[request], {request}});
        }
        std::stable_sort(children.begin(), children.end(), [](auto& a, auto& b) { return a.ratio > b.ratio; });
        std::vector<RequestId> all;
        for (const Child& child : children) all.insert(all.end(), child.requests.begin(), child.requests.end());
        return all;
    }

 private:
    std::pair<double, double> totals(SegmentId segment) const {
        double decode = 0.0;
        double prefill = segments_.num_tokens(segment);
        for (SegmentId s = segment + 1; s < segments_.num_segments(); ++s) {
            if (segments_.parent()[s] != segment) continue;
            const auto [child_decode, child_prefill] = totals(s);
            decode += child_decode;
            prefill += child_prefill;
        }
        for (RequestId request = 0; request < segments_.num_requests(); ++request) {
            if (segments_.request_segment()[request] != segment) continue;
            decode += output_[request];
            prefill += own_[request];
        }
        return {decode, prefill};
    }

    const Segments& segments_;
    const std::vector<int32_t>&own_, &output_;
};

}  // namespace

TEST_CASE("order is its recursive definition") {
    RandomJobs random(1);
    for (int i = 0; i < 1000; ++i) {
        const Job job = random.job(30, 1);
        const Segments segments = choose_segments(PrefixTrie(job.prompts(1)), SharingLevels::kAny);
        std::vector<int32_t> own, output;
        for (RequestId request = 0; request < segments.num_requests(); ++request) {
            own.push_back(job.prompts().prompt_length(request) - segments.covered_tokens(request));
            output.push_back(random.between(1, 5));
        }
        CHECK(group_order(segments, own, output) == PlainOrder(segments, own, output).order());
    }
}

TEST_CASE("a forest ten thousand segments deep is walked without recursion") {
    std::vector<int32_t> parent, begin, end, owner, request_segment;
    for (int32_t i = 0; i < 10'000; ++i) {
        parent.push_back(i - 1);
        begin.push_back(i);
        end.push_back(i + 1);
        owner.push_back(i);
        request_segment.push_back(i);
    }
    const Segments segments(parent, begin, end, owner, request_segment);
    const std::vector<int32_t> ones(10'000, 1);
    const std::vector<RequestId> order = group_order(segments, ones, ones);
    CHECK(order.front() == 0);  // ratio 1 beats everything below, which shares prefill and decode one to two
    CHECK(order.size() == 10'000);
}
