// Which rows read which keys in one forward pass, as plain int32 arrays.
//
//   span      consecutive rows (query tokens) at consecutive positions: a decode token or a prefill chunk
//   link      one segment of the chain that a span reads, root first
//   segment   a run of tokens whose K/V lie in its own pages
//
// A row at position p sees, in each linked segment, the positions
//   [segment_begin, min(segment_begin + segment_num_tokens, p + 1))
// and of those at most `window_left` before p. A link ends where the next link of the chain begins, so a chain may
// leave a segment early.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <vector>

namespace batchllm {

// Bounds of a batch and of its heads, far beyond any model's. Within them a plan's indices and a kernel's offsets into
// scratch memory fit into int32, wherever positions begin, and a few wrong numbers cannot request all of memory.
inline constexpr int64_t kMaxRows = 1 << 24;
inline constexpr int64_t kMaxLinkRows = 1 << 26;  // pairs of a row and a link of its span
inline constexpr int32_t kMaxHeads = 1024;
inline constexpr int32_t kMaxHeadDim = 8192;

struct AttentionBatch {
    std::span<const int32_t> span_indptr;          // [num_spans + 1] rows of each span
    std::span<const int32_t> span_begin;           // [num_spans] position of the first row
    std::span<const int32_t> link_indptr;          // [num_spans + 1] links of each span
    std::span<const int32_t> link_segment;         // [num_links] root first
    std::span<const int32_t> segment_page_indptr;  // [num_segments + 1] pages of each segment
    std::span<const int32_t> segment_page_ids;     // [num_segment_pages]
    std::span<const int32_t> segment_begin;        // [num_segments] position of the first token
    std::span<const int32_t> segment_num_tokens;   // [num_segments] tokens stored
    int32_t made_for_page_size = 0;  // by a BatchPlanner: the arrays agree with each other; 0: they are somebody's

    int32_t num_spans() const { return static_cast<int32_t>(span_begin.size()); }
    int32_t num_segments() const { return static_cast<int32_t>(segment_begin.size()); }
    int32_t num_tokens() const { return span_indptr.back(); }
    int32_t num_rows(int32_t span) const { return span_indptr[span + 1] - span_indptr[span]; }

    // Throws std::invalid_argument that names array, index, expected and got: arrays that contradict each other,
    // positions that int32 does not hold, more rows than the bounds above.
    void validate(int32_t page_size) const;

    // The positions that a span may see through its link, an index into link_segment; begin <= end.
    struct Range {
        int32_t begin;
        int32_t end;
    };
    Range link_range(int32_t span, int32_t link) const {
        const int32_t segment = link_segment[link];
        const int32_t begin = segment_begin[segment];
        const bool is_last = link + 1 == link_indptr[span + 1];
        return {begin, is_last ? begin + segment_num_tokens[segment] : segment_begin[link_segment[link + 1]]};
    }

 private:
    void validate_arrays(int32_t page_size) const;
};

// The arrays of a batch, copied.
class BatchCopy {
 public:
    explicit BatchCopy(const AttentionBatch& batch);
    // Of these rows of a batch, ascending: each is a span over the same segments, which are not copied again. Throws
    // std::invalid_argument for rows that are none of the batch or not in order.
    BatchCopy(std::shared_ptr<const BatchCopy> all, std::span<const int32_t> rows);
    BatchCopy(const BatchCopy&) = delete;
    BatchCopy& operator=(const BatchCopy&) = delete;

    const AttentionBatch& view() const { return view_; }

 private:
    void copy(std::initializer_list<std::span<const int32_t>*> arrays);

    std::shared_ptr<const BatchCopy> all_;  // has the segments; null: this one
    std::vector<int32_t> ints_;             // all other arrays, concatenated
    AttentionBatch view_;
};

struct AttentionShape {
    int32_t num_qo_heads;
    int32_t num_kv_heads;
    int32_t head_dim;
    int32_t page_size;
    int32_t window_left = -1;  // positions before its own that a row still sees; -1: all

    bool operator==(const AttentionShape&) const = default;

    int32_t group_size() const { return num_qo_heads / num_kv_heads; }  // query heads of one KV head
    void validate() const;                                              // throws std::invalid_argument

    // A row at position p may see only positions [visible_begin(p), p + 1).
    int32_t visible_begin(int32_t position) const {
        return window_left < 0 || position < window_left ? 0 : position - window_left;
    }
};

}  // namespace batchllm
