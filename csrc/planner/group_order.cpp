#include "planner/group_order.h"

#include <algorithm>
#include <limits>
#include <numeric>

namespace batchllm {

namespace {

// Totals over everything below a child.
struct Subtree {
    int64_t decode_tokens = 0;
    int64_t prefill_tokens = 0;
    RequestIndex first_request = std::numeric_limits<RequestIndex>::max();

    void add(const Subtree& child) {
        decode_tokens += child.decode_tokens;
        prefill_tokens += child.prefill_tokens;
        first_request = std::min(first_request, child.first_request);
    }
    // Division is correctly rounded, so equal ratios are equal as doubles.
    double ratio() const { return static_cast<double>(decode_tokens) / static_cast<double>(prefill_tokens); }
};

// Entities are the segments, then the requests. The top is one more parent, after the last segment.
class OrderBuilder {
 public:
    OrderBuilder(const Segments& segments, std::span<const int32_t> own_tokens,
                 std::span<const int32_t> expected_output_tokens, GroupOrder order)
        : segments_(segments),
          own_tokens_(own_tokens),
          expected_output_tokens_(expected_output_tokens),
          order_(order),
          top_(segments.num_segments()),
          num_entities_(segments.num_segments() + segments.num_requests()),
          subtree_(segments.num_segments()),
          child_indptr_(segments.num_segments() + 2, 0),
          children_(num_entities_) {
        for (int32_t entity = num_entities_ - 1; entity >= 0; --entity) {  // children before parents
            if (entity < top_) subtree_[entity].prefill_tokens += segments_.num_tokens(SegmentId{entity});
            if (parent(entity) != top_) subtree_[parent(entity)].add(subtree(entity));
        }
        collect_children();
    }

    // Parents before children: each divides its range of the order among its children.
    std::vector<RequestIndex> build() {
        std::vector<RequestIndex> order(segments_.num_requests());
        std::vector<int32_t> begin(segments_.num_segments());
        const auto hand_out = [&](int32_t node, int32_t next) {
            sort_children(node);
            for (int32_t i = child_indptr_[node]; i < child_indptr_[node + 1]; ++i) {
                const int32_t child = children_[i];
                if (child < top_) {
                    begin[child] = next;
                    next += segments_.num_readers()[child];
                } else {
                    order[next++] = child - top_;
                }
            }
        };
        hand_out(top_, 0);
        for (int32_t segment = 0; segment < top_; ++segment) hand_out(segment, begin[segment]);
        return order;
    }

 private:
    struct Child {
        double key;
        int32_t entity;
    };

    int32_t parent(int32_t entity) const {
        const SegmentId segment =
            entity < top_ ? segments_.parent()[entity] : segments_.request_segment()[entity - top_];
        return segment == kNoSegment ? top_ : segment.index;
    }

    Subtree subtree(int32_t entity) const {
        if (entity < top_) return subtree_[entity];
        const RequestIndex request = entity - top_;
        return {expected_output_tokens_[request], own_tokens_[request], request};
    }

    void collect_children() {
        for (int32_t entity = 0; entity < num_entities_; ++entity) ++child_indptr_[parent(entity) + 1];
        std::partial_sum(child_indptr_.begin(), child_indptr_.end(), child_indptr_.begin());
        std::vector<int32_t> cursor(child_indptr_.begin(), child_indptr_.end() - 1);
        for (int32_t entity = 0; entity < num_entities_; ++entity) children_[cursor[parent(entity)]++] = entity;
    }

    void sort_children(int32_t node) {
        const std::span children(children_.data() + child_indptr_[node], children_.data() + child_indptr_[node + 1]);
        sorted_.clear();
        for (const int32_t entity : children) {
            const Subtree below = subtree(entity);
            sorted_.push_back({order_ == GroupOrder::kArrival ? -below.first_request : below.ratio(), entity});
        }
        std::sort(sorted_.begin(), sorted_.end(), [](const Child& a, const Child& b) {
            return a.key > b.key || (a.key == b.key && a.entity < b.entity);
        });
        if (order_ == GroupOrder::kBlend) {
            take_from_both_ends(children);
        } else {
            std::transform(sorted_.begin(), sorted_.end(), children.begin(), [](const Child& c) { return c.entity; });
        }
    }

    void take_from_both_ends(std::span<int32_t> children) const {
        Subtree all, taken;
        for (const Child& child : sorted_) all.add(subtree(child.entity));
        auto front = sorted_.begin();
        auto back = sorted_.end();
        for (int32_t& child : children) {
            const bool from_front = taken.prefill_tokens == 0 || taken.ratio() <= all.ratio();
            child = from_front ? (front++)->entity : (--back)->entity;
            taken.add(subtree(child));
        }
    }

    const Segments& segments_;
    const std::span<const int32_t> own_tokens_, expected_output_tokens_;
    const GroupOrder order_;
    const int32_t top_, num_entities_;
    std::vector<Subtree> subtree_;       // [num_segments]
    std::vector<int32_t> child_indptr_;  // [num_segments + 2], CSR of children_
    std::vector<int32_t> children_;      // [num_entities]
    std::vector<Child> sorted_;          // scratch: the children of one node
};

}  // namespace

std::vector<RequestIndex> group_order(const Segments& segments, std::span<const int32_t> own_tokens,
                                      std::span<const int32_t> expected_output_tokens, GroupOrder order) {
    return OrderBuilder(segments, own_tokens, expected_output_tokens, order).build();
}

}  // namespace batchllm
