// How the segments of added requests find existing segments.
//
//   there    P [0, 300) ── S [300, 900)
//   added    T [0, 500) with readers a, b      becomes  P' [0, 300) ── S' [300, 500) ── T' ...
//
// An added segment is cut where the older ones end; each piece whose tokens an older segment begins with gets that
// one as its source, and may take the source's pages instead of computing them. A source may be longer than the
// piece; existing segments are never split or renumbered. The own parts of the added requests are followed, too. Pieces
// that end at different tokens of one source are siblings, each from its source's first token.
#pragma once

#include <span>
#include <vector>

#include "planner/ids.h"
#include "planner/prompts.h"
#include "planner/segments.h"

namespace batchllm {

struct LiveSegment {
    SegmentId id;
    SegmentId parent;       // an id, or kNoSegment
    int32_t begin, end;     // positions
    const TokenId* prompt;  // of a request that holds its tokens
};

struct BorrowedSegments {
    Segments segments;
    std::vector<SegmentId> source;  // [num_segments] ids of live segments, or kNoSegment
};

// A cut gives every reader of a segment one more segment. It is made if it saves computing more than reader_cost tokens
// for each of them.
BorrowedSegments borrow_from(std::span<const LiveSegment> live, const Prompts& prompts, const Segments& added,
                             double reader_cost);

}  // namespace batchllm
