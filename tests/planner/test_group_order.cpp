#include <doctest/doctest.h>

#include <algorithm>
#include <cstdlib>
#include <iterator>

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
    PlainOrder(const Segments& segments, const std::vector<int32_t>& own, const std::vector<int32_t>& output,
               GroupOrder order)
        : segments_(segments), own_(own), output_(output), order_(order) {}

    std::vector<RequestIndex> order(SegmentId parent = kNoSegment) const {
        std::vector<Child> children;
        for (SegmentId s{0}; s.index < segments_.num_segments(); ++s.index) {
            if (segments_.parent()[s.index] != parent) continue;
            const auto [decode, prefill] = totals(s);
            children.push_back({decode, prefill, order(s)});
        }
        for (RequestIndex request = 0; request < segments_.num_requests(); ++request) {
            if (segments_.request_segment()[request] != parent) continue;
            children.push_back({1.0 * output_[request], 1.0 * own_[request], {request}});
        }
        std::stable_sort(children.begin(), children.end(), [&](const Child& a, const Child& b) {
            return order_ == GroupOrder::kArrival ? a.smallest_id() < b.smallest_id() : a.ratio() > b.ratio();
        });
        if (order_ == GroupOrder::kBlend) children = blended(children);
        std::vector<RequestIndex> all;
        for (const Child& child : children) all.insert(all.end(), child.requests.begin(), child.requests.end());
        return all;
    }

 private:
    struct Child {
        double decode, prefill;
        std::vector<RequestIndex> requests;

        double ratio() const { return decode / prefill; }
        RequestIndex smallest_id() const { return *std::min_element(requests.begin(), requests.end()); }
    };

    static std::vector<Child> blended(std::vector<Child> children) {
        double decode = 0.0, prefill = 0.0, decode_taken = 0.0, prefill_taken = 0.0;
        for (const Child& child : children) decode += child.decode, prefill += child.prefill;
        std::vector<Child> taken;
        while (!children.empty()) {
            const auto next =
                decode_taken * prefill <= decode * prefill_taken ? children.begin() : std::prev(children.end());
            decode_taken += next->decode;
            prefill_taken += next->prefill;
            taken.push_back(*next);
            children.erase(next);
        }
        return taken;
    }

    std::pair<double, double> totals(SegmentId segment) const {
        double decode = 0.0;
        double prefill = segments_.num_tokens(segment);
        for (SegmentId s{segment.index + 1}; s.index < segments_.num_segments(); ++s.index) {
            if (segments_.parent()[s.index] != segment) continue;
            const auto [child_decode, child_prefill] = totals(s);
            decode += child_decode;
            prefill += child_prefill;
        }
        for (RequestIndex request = 0; request < segments_.num_requests(); ++request) {
            if (segments_.request_segment()[request] != segment) continue;
            decode += output_[request];
            prefill += own_[request];
        }
        return {decode, prefill};
    }

    const Segments& segments_;
    const std::vector<int32_t>&own_, &output_;
    const GroupOrder order_;
};

}  // namespace

TEST_CASE("order is its recursive definition") {
    RandomJobs random(1);
    for (int i = 0; i < 1000; ++i) {
        const Job job = random.job(30, 1);
        const Segments segments = choose_segments(PrefixTrie(job.prompts(1)), SharingLevels::kAny);
        std::vector<int32_t> own, output;
        for (RequestIndex request = 0; request < segments.num_requests(); ++request) {
            own.push_back(job.prompts().prompt_length(request) - segments.covered_tokens(request));
            output.push_back(random.between(1, 5));
        }
        for (const auto order : {GroupOrder::kDecodeFirst, GroupOrder::kArrival, GroupOrder::kBlend}) {
            CHECK(group_order(segments, own, output, order) == PlainOrder(segments, own, output, order).order());
        }
        CHECK(group_order(segments, own, output) == group_order(segments, own, output, GroupOrder::kDecodeFirst));
    }
}

TEST_CASE("a blend keeps every stretch near the mix of the whole") {
    // 50 requests that decode 9 tokens for each prompt token, and 50 with 9 prompt tokens for each decoded one.
    std::vector<int32_t> own, output;
    for (int32_t request = 0; request < 100; ++request) {
        own.push_back(request < 50 ? 1 : 9);
        output.push_back(request < 50 ? 9 : 1);
    }
    const Segments loners({}, {}, {}, {}, std::vector<SegmentId>(100, kNoSegment));
    const auto largest_imbalance = [&](GroupOrder order) {
        int32_t imbalance = 0, largest = 0;
        for (const RequestIndex request : group_order(loners, own, output, order)) {
            imbalance += output[request] - own[request];
            largest = std::max(largest, std::abs(imbalance));
        }
        return largest;
    };
    CHECK(largest_imbalance(GroupOrder::kBlend) == 8);
    CHECK(largest_imbalance(GroupOrder::kDecodeFirst) == 8 * 50);
}

TEST_CASE("arrival starts the tree of the first request, whole") {
    // 0 and 2 read segment 0; 1 is alone; 3 and 4 read segment 1.
    const Segments segments({kNoSegment, kNoSegment}, {0, 0}, {5, 5}, {0, 3}, {{0}, kNoSegment, {0}, {1}, {1}});
    const std::vector<int32_t> own(5, 1), output = {1, 9, 1, 5, 5};
    CHECK(group_order(segments, own, output, GroupOrder::kArrival) == std::vector<RequestIndex>{0, 2, 1, 3, 4});
    CHECK(group_order(segments, own, output) == std::vector<RequestIndex>{1, 3, 4, 0, 2});
}

TEST_CASE("a forest ten thousand segments deep is walked without recursion") {
    std::vector<SegmentId> parent, request_segment;
    std::vector<int32_t> begin, end, owner;
    for (int32_t i = 0; i < 10'000; ++i) {
        parent.push_back({i - 1});
        begin.push_back(i);
        end.push_back(i + 1);
        owner.push_back(i);
        request_segment.push_back({i});
    }
    const Segments segments(parent, begin, end, owner, request_segment);
    const std::vector<int32_t> ones(10'000, 1);
    const std::vector<RequestIndex> order = group_order(segments, ones, ones);
    CHECK(order.front() == 0);  // ratio 1 beats everything below, which shares prefill and decode one to two
    CHECK(order.size() == 10'000);
}
