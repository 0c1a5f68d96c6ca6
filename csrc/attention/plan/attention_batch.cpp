#include "attention/plan/attention_batch.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

namespace batchllm {
namespace {

using Array = std::span<const int32_t>;

constexpr int64_t kPositions = std::numeric_limits<int32_t>::max();

[[noreturn]] void fail(const std::string& message) {
    throw std::invalid_argument(message);
}

std::string at(const char* name, size_t index) {
    return std::string(name) + "[" + std::to_string(index) + "]";
}

void check_size(const char* name, Array array, size_t expected, const char* expected_text) {
    if (array.size() == expected) return;
    fail(std::string(name) + ": expected " + expected_text + " = " + std::to_string(expected) + " elements, got " +
         std::to_string(array.size()));
}

void check_indptr(const char* name, Array indptr, size_t total, const char* total_text) {
    if (indptr[0] != 0) fail(at(name, 0) + ": expected 0, got " + std::to_string(indptr[0]));
    bool descends = false;
    for (size_t i = 1; i < indptr.size(); ++i) descends |= indptr[i] < indptr[i - 1];
    if (descends) {
        const size_t i = std::ranges::is_sorted_until(indptr) - indptr.begin();
        fail(at(name, i) + ": expected at least " + at(name, i - 1) + " = " + std::to_string(indptr[i - 1]) + ", got " +
             std::to_string(indptr[i]));
    }
    if (static_cast<size_t>(indptr.back()) != total) {
        fail(at(name, indptr.size() - 1) + ": expected " + total_text + " = " + std::to_string(total) + ", got " +
             std::to_string(indptr.back()));
    }
}

void check_each(const char* name, Array array, int64_t begin, int64_t end) {
    if (array.empty()) return;
    int32_t least = array[0], most = array[0];
    for (const int32_t value : array) least = std::min(least, value), most = std::max(most, value);
    if (least >= begin && most < end) return;
    const auto is_wrong = [=](int32_t value) { return value < begin || value >= end; };
    const size_t i = std::ranges::find_if(array, is_wrong) - array.begin();
    fail(at(name, i) + ": expected a value in [" + std::to_string(begin) + ", " + std::to_string(end) + "), got " +
         std::to_string(array[i]));
}

void check_at_least(const char* name, int64_t value, int64_t least) {
    if (value < least) {
        fail(std::string(name) + ": expected at least " + std::to_string(least) + ", got " + std::to_string(value));
    }
}

void check_at_most(const char* name, int64_t value, int64_t most, const char* unit = "") {
    if (value > most) {
        fail(std::string(name) + ": expected at most " + std::to_string(most) + unit + ", got " +
             std::to_string(value));
    }
}

// Rows of a batch, each a span.
struct RowSpans {
    std::vector<int32_t> span_indptr{0}, span_begin, link_indptr{0}, link_segment;

    RowSpans(const AttentionBatch& batch, Array rows) {
        for (auto* of_rows : {&span_indptr, &span_begin, &link_indptr}) of_rows->reserve(rows.size() + 1);
        link_segment.reserve(batch.link_segment.size());
        int32_t span = 0;
        for (size_t i = 0; i < rows.size(); ++i) {
            const int32_t first = i == 0 ? 0 : rows[i - 1] + 1;
            if (rows[i] < first || rows[i] >= batch.num_tokens()) {
                fail(at("rows", i) + ": expected a row in [" + std::to_string(first) + ", " +
                     std::to_string(batch.num_tokens()) + "), got " + std::to_string(rows[i]));
            }
            while (batch.span_indptr[span + 1] <= rows[i]) ++span;
            span_begin.push_back(batch.span_begin[span] + rows[i] - batch.span_indptr[span]);
            span_indptr.push_back(static_cast<int32_t>(i) + 1);
            for (int32_t link = batch.link_indptr[span]; link < batch.link_indptr[span + 1]; ++link) {
                link_segment.push_back(batch.link_segment[link]);
            }
            link_indptr.push_back(static_cast<int32_t>(link_segment.size()));
        }
    }

    AttentionBatch over_segments_of(AttentionBatch batch) const {
        batch.span_indptr = span_indptr;
        batch.span_begin = span_begin;
        batch.link_indptr = link_indptr;
        batch.link_segment = link_segment;
        return batch;
    }
};

}  // namespace

void AttentionShape::validate() const {
    check_at_least("num_kv_heads", num_kv_heads, 1);
    check_at_least("num_qo_heads", num_qo_heads, 1);
    check_at_least("head_dim", head_dim, 1);
    check_at_least("page_size", page_size, 1);
    check_at_least("window_left", window_left, -1);
    check_at_most("num_qo_heads", num_qo_heads, kMaxHeads);
    check_at_most("head_dim", head_dim, kMaxHeadDim);
    if (num_qo_heads % num_kv_heads != 0) {
        fail("num_qo_heads: expected a multiple of num_kv_heads = " + std::to_string(num_kv_heads) + ", got " +
             std::to_string(num_qo_heads));
    }
}

void AttentionBatch::validate(int32_t page_size) const {
    if (page_size != made_for_page_size) validate_arrays(page_size);
    check_at_most("span_indptr", num_tokens(), kMaxRows, " rows");
    int64_t num_link_rows = 0;
    for (int32_t span = 0; span < num_spans(); ++span) {
        const int64_t end = int64_t{span_begin[span]} + num_rows(span);
        if (end > kPositions) fail(at("span_begin", span) + ": the span's last position does not fit into int32");
        num_link_rows += int64_t{num_rows(span)} * (link_indptr[span + 1] - link_indptr[span]);
    }
    check_at_most("link_indptr", num_link_rows, kMaxLinkRows, " pairs of a row and a link");
}

void AttentionBatch::validate_arrays(int32_t page_size) const {
    for (const auto& [name, array] :
         {std::pair("span_begin", span_begin), std::pair("link_segment", link_segment),
          std::pair("segment_begin", segment_begin), std::pair("segment_page_ids", segment_page_ids)}) {
        check_at_most(name, std::ssize(array), kPositions, " elements");
    }
    check_size("span_indptr", span_indptr, span_begin.size() + 1, "num_spans + 1");
    check_size("link_indptr", link_indptr, span_begin.size() + 1, "num_spans + 1");
    check_size("segment_num_tokens", segment_num_tokens, segment_begin.size(), "num_segments");
    check_size("segment_page_indptr", segment_page_indptr, segment_begin.size() + 1, "num_segments + 1");
    check_indptr("span_indptr", span_indptr, static_cast<size_t>(std::max(span_indptr.back(), 0)), "num_tokens");
    check_indptr("link_indptr", link_indptr, link_segment.size(), "the size of link_segment");
    check_indptr("segment_page_indptr", segment_page_indptr, segment_page_ids.size(), "the size of segment_page_ids");
    check_each("span_begin", span_begin, 0, kPositions);
    check_each("link_segment", link_segment, 0, num_segments());
    check_each("segment_page_ids", segment_page_ids, 0, kPositions);
    check_each("segment_begin", segment_begin, 0, kPositions);
    check_each("segment_num_tokens", segment_num_tokens, 0, kPositions);

    for (int32_t segment = 0; segment < num_segments(); ++segment) {
        const int64_t num_tokens = segment_num_tokens[segment];
        const int64_t num_pages = segment_page_indptr[segment + 1] - segment_page_indptr[segment];
        const int64_t needed = (num_tokens + page_size - 1) / page_size;
        if (num_pages < needed) {
            fail(at("segment_num_tokens", segment) + " = " + std::to_string(num_tokens) + ": expected at least " +
                 std::to_string(needed) + " pages of page_size " + std::to_string(page_size) + ", got " +
                 std::to_string(num_pages));
        }
        if (segment_begin[segment] + num_tokens > kPositions) {
            fail(at("segment_begin", segment) + ": the segment's last position does not fit into int32");
        }
    }
    for (int32_t span = 0; span < num_spans(); ++span) {
        for (int32_t link = link_indptr[span] + 1; link < link_indptr[span + 1]; ++link) {
            const int32_t before = link_segment[link - 1];
            const int32_t begin = segment_begin[link_segment[link]];
            const int32_t end = segment_begin[before] + segment_num_tokens[before];
            if (begin < segment_begin[before] || begin > end) {
                fail(at("link_segment", link) + ": expected a segment that begins in [" +
                     std::to_string(segment_begin[before]) + ", " + std::to_string(end) +
                     "], where the link before it can end, got segment " + std::to_string(link_segment[link]) +
                     " that begins at " + std::to_string(begin));
            }
        }
    }
}

BatchCopy::BatchCopy(const AttentionBatch& batch) : view_(batch) {
    copy({&view_.span_indptr, &view_.span_begin, &view_.link_indptr, &view_.link_segment, &view_.segment_page_indptr,
          &view_.segment_page_ids, &view_.segment_begin, &view_.segment_num_tokens});
}

BatchCopy::BatchCopy(std::shared_ptr<const BatchCopy> all, std::span<const int32_t> rows) : all_(std::move(all)) {
    const RowSpans spans(all_->view(), rows);
    view_ = spans.over_segments_of(all_->view());
    copy({&view_.span_indptr, &view_.span_begin, &view_.link_indptr, &view_.link_segment});
    if (all_->all_ != nullptr) all_ = all_->all_;
}

// Lets these arrays of the view be in ints_.
void BatchCopy::copy(std::initializer_list<Array*> arrays) {
    size_t num_ints = 0;
    for (const Array* array : arrays) num_ints += array->size();
    ints_.reserve(num_ints);  // so that none of them moves
    for (Array* array : arrays) {
        const size_t begin = ints_.size();
        ints_.insert(ints_.end(), array->begin(), array->end());
        *array = std::span(ints_).subspan(begin);
    }
}

}  // namespace batchllm
