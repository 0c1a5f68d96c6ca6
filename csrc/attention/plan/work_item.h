// The work that a kernel executes: plain structs, no functions, so that code compiled for different instruction sets
// and for GPUs can share them.
//
// Positions are absolute token positions of a request. A context is a chain of segments, so the keys of an item are
// one run of positions [kv_begin, kv_end) that may cross from one segment's pages into the next one's:
//
//   positions   0 ............ 40 ......... 57 .. 60
//   pieces      | shared prefix | turn       | own |
//   item            [kv_begin ................ kv_end)
//
// Every position of an item is visible to at least one of its rows, so a kernel may read all of it.
#pragma once

#include <cstdint>

namespace batchllm {

// A run of positions whose K/V lie in one segment's pages.
struct KvPiece {
    int32_t first_page;      // into page_ids: the segment's page 0
    int32_t segment_begin;   // position of that page's first slot
    int32_t position_begin;  // the positions that a reader sees here
    int32_t position_end;
};

// One query token against the keys of one item.
struct WorkRow {
    int32_t token;     // row of q and out
    int32_t kv_begin;  // visible positions, inside the item's; never empty
    int32_t kv_end;
    int32_t slot;  // where the partial state goes; kWriteThrough: this item is all the row sees
};

constexpr int32_t kWriteThrough = -1;

// A tile of rows against a run of keys. A kernel runs it once per KV head; the query heads of that KV head are packed
// as rows, token by token.
struct WorkItem {
    int32_t row_begin;  // into rows
    int32_t row_end;
    int32_t piece_begin;  // into pieces; together they cover [kv_begin, kv_end) or more
    int32_t piece_end;
    int32_t kv_begin;
    int32_t kv_end;
};

// The unit of work of a thread: items with few rows for all KV heads, whose keys are adjacent in memory; or one item
// with many rows for one head, whose keys stay in the caches. Short items are grouped, so that the first keys of one
// are prefetched while the one before is computed.
struct WorkTask {
    int32_t item_begin;
    int32_t item_end;
    int32_t head_begin;
    int32_t head_end;
};

// The partial states of one row, in the order in which they are merged. Rows that see nothing have none.
struct MergeRow {
    int32_t token;
    int32_t slot_begin;
    int32_t slot_end;
};

}  // namespace batchllm
