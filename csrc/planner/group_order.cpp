#include "planner/group_order.h"

#include <algorithm>
#include <numeric>

namespace batchllm {

std::vector<RequestId> group_order(const Segments& segments, std::span<const int32_t> own_tokens,
                                   std::span<const int32_t> expected_output_tokens) {
    // Entities: the segments, then the requests. The top is entity `num_entities`, one past the last.
    const int32_t num_segments = segments.num_segments();
    const int32_t num_entities = num_segments + segments.num_requests();
    const auto parent = [&](int32_t entity) {
        const SegmentId segment =
            entity < num_segments ? segments.parent()[entity] : segments.request_segment()[entity - num_segments];
        return segment == kNone ? num_entities : segment;
    };

    std::vector<int64_t> decode_tokens(num_entities + 1, 0), prefill_tokens(num_entities + 1, 0);
    for (int32_t entity = num_entities - 1; entity >= 0; --entity) {  // children before parents
        if (entity < num_segments) {
            prefill_tokens[entity] += segments.num_tokens(entity);
        } else {
            decode_tokens[entity] = expected_output_tokens[entity - num_segments];
            prefill_tokens[entity] = own_tokens[entity - num_segments];
        }
        decode_tokens[parent(entity)] += decode_tokens[entity];
        prefill_tokens[parent(entity)] += prefill_tokens[entity];
    }
    // Division is correctly rounded, so equal ratios are equal as doubles.
    std::vector<double> ratio(num_entities);
    for (int32_t entity = 0; entity < num_entities; ++entity) {
        ratio[entity] = static_cast<double>(decode_tokens[entity]) / static_cast<double>(prefill_tokens[entity]);
    }

    // Children of every segment and of the top, as CSR; then sorted in place.
    std::vector<int32_t> child_indptr(num_entities + 2, 0), children(num_entities);
    for (int32_t entity = 0; entity < num_entities; ++entity) ++child_indptr[parent(entity) + 1];
    std::partial_sum(child_indptr.begin(), child_indptr.end(), child_indptr.begin());
    std::vector<int32_t> cursor(child_indptr.begin(), child_indptr.end() - 1);
    for (int32_t entity = 0; entity < num_entities; ++entity) children[cursor[parent(entity)]++] = entity;
    const auto sort_children = [&](int32_t entity) {
        std::stable_sort(children.begin() + child_indptr[entity], children.begin() + child_indptr[entity + 1],
                         [&](int32_t a, int32_t b) { return ratio[a] > ratio[b]; });
    };
    for (SegmentId segment = 0; segment < num_segments; ++segment) sort_children(segment);
    sort_children(num_entities);

    // Depth-first with a stack of half-walked child ranges.
    std::vector<RequestId> order;
    order.reserve(segments.num_requests());
    std::copy(child_indptr.begin(), child_indptr.end() - 1, cursor.begin());
    std::vector<int32_t> open = {num_entities};
    while (!open.empty()) {
        const int32_t current = open.back();
        if (cursor[current] == child_indptr[current + 1]) {
            open.pop_back();
            continue;
        }
        const int32_t child = children[cursor[current]++];
        if (child < num_segments) {
            open.push_back(child);
        } else {
            order.push_back(child - num_segments);
        }
    }
    return order;
}

}  // namespace batchllm
