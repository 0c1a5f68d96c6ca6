// The ids of a job. Ids that could be confused are distinct types, which do not convert: a planner's requests, their
// places in it, shared segments, and the owners of pages. The rest are plain numbers: tokens are data, nodes do not
// leave the trie, slots are computed from pages, and the requests of one call are indices into its arrays
// [num_requests].
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>

namespace batchllm {

using TokenId = int32_t;
using RequestIndex = int32_t;  // into Prompts and the arrays that come with them
using NodeId = int32_t;        // index into a PrefixTrie, preorder; 0 is the root
using PageId = int32_t;        // index into the KV pool

inline constexpr int32_t kNone = -1;  // no such node, request or number

// The id of the thing at `index`. As small and cheap as an int32.
template <typename Kind>
struct Id {
    int32_t index;

    friend constexpr auto operator<=>(Id, Id) = default;
};

using RequestId = Id<struct RequestKind>;        // of a BatchPlanner: counts everything ever added
using SegmentId = Id<struct SharedSegmentKind>;  // index into Segments, or of a BatchPlanner's shared segments
using Place = Id<struct PlaceKind>;              // where a BatchPlanner keeps a request

inline constexpr SegmentId kNoSegment{-1};
inline constexpr Place kNoPlace{-1};

// A segment of either kind: shared, or the own part of the request at a place.
class AnySegment {
 public:
    constexpr AnySegment(SegmentId shared) : is_own_(0), index_(static_cast<uint32_t>(shared.index)) {}
    constexpr AnySegment(Place reader) : is_own_(1), index_(static_cast<uint32_t>(reader.index)) {}

    bool is_own() const { return is_own_ != 0; }
    bool is_shared() const { return is_own_ == 0; }
    SegmentId shared() const { return {static_cast<int32_t>(index_)}; }
    Place reader() const { return {static_cast<int32_t>(index_)}; }

    friend constexpr bool operator==(AnySegment, AnySegment) = default;
    friend constexpr bool operator<(AnySegment a, AnySegment b) {  // shared segments first
        return a.is_own_ == b.is_own_ ? a.index_ < b.index_ : a.is_own_ < b.is_own_;
    }

 private:
    uint32_t is_own_ : 1;
    uint32_t index_ : 31;  // indices are below 2^31 - 1
};

inline constexpr AnySegment kNobody{kNoSegment};  // the owner of a free page

}  // namespace batchllm

template <typename Kind>
struct std::hash<batchllm::Id<Kind>> {
    size_t operator()(batchllm::Id<Kind> id) const { return std::hash<int32_t>()(id.index); }
};
