#include "planner/lcp_sort.h"

#include <algorithm>
#include <cstring>
#include <thread>

namespace batchllm {

namespace {

constexpr int64_t kMinRowsPerThread = 4096;  // below, starting a thread costs more than it saves

// Merge sort that carries LCPs. Every token of a row is matched at most once over the whole sort, so the cost is
// O(distinguishing tokens + rows * log(rows)); comparing rows from their start costs a shared prefix log(rows)
// times over.
class LcpMergeSort {
 public:
    explicit LcpMergeSort(const Prompts& prompts) : prompts_(prompts) {}

    // Sorts rows [begin, end) of `source` into `target`; both hold the same rows on entry, `source` is scratch.
    void sort(SortedRow* source, SortedRow* target, int64_t begin, int64_t end, int num_threads) const {
        if (end - begin < 2) return;
        const int64_t middle = begin + (end - begin) / 2;
        if (num_threads > 1 && end - begin >= 2 * kMinRowsPerThread) {
            std::jthread left([&] { sort(target, source, begin, middle, num_threads / 2); });
            sort(target, source, middle, end, num_threads - num_threads / 2);
        } else {
            sort(target, source, begin, middle, 1);
            sort(target, source, middle, end, 1);
        }
        merge(source + begin, source + middle, source + end, target + begin);
    }

 private:
    // Both heads are compared with the row written last, which precedes them. The head that shares more with it
    // comes first, without a look at its tokens; only equal LCPs need tokens, from there on.
    void merge(const SortedRow* a, const SortedRow* middle, const SortedRow* end, SortedRow* out) const {
        const SortedRow* const a_end = middle;
        const SortedRow* b = middle;
        int32_t lcp_a = a->lcp;
        int32_t lcp_b = b->lcp;
        while (a != a_end && b != end) {
            bool a_first = lcp_a > lcp_b;
            int32_t lcp_ab = std::min(lcp_a, lcp_b);
            if (lcp_a == lcp_b) {
                lcp_ab = common_prefix(prompts_, a->request, b->request, lcp_a);
                a_first = !follows(a->request, b->request, lcp_ab);
            }
            if (a_first) {
                *out++ = {a->request, lcp_a};
                lcp_b = lcp_ab;
                if (++a != a_end) lcp_a = a->lcp;
            } else {
                *out++ = {b->request, lcp_b};
                lcp_a = lcp_ab;
                if (++b != end) lcp_b = b->lcp;
            }
        }
        if (a != a_end) out = put_rest(a, a_end, lcp_a, out);
        if (b != end) put_rest(b, end, lcp_b, out);
    }

    static SortedRow* put_rest(const SortedRow* row, const SortedRow* end, int32_t first_lcp, SortedRow* out) {
        *out++ = {row->request, first_lcp};
        return std::copy(row + 1, end, out);
    }

    bool follows(RequestId a, RequestId b, int32_t lcp) const {
        if (lcp == prompts_.row_length(a)) return false;
        return lcp == prompts_.row_length(b) || prompts_.row_data(a)[lcp] > prompts_.row_data(b)[lcp];
    }

    const Prompts& prompts_;
};

}  // namespace

int32_t common_prefix(const Prompts& prompts, RequestId a, RequestId b, int32_t from) {
    constexpr int32_t kBlock = 32;  // 128 bytes: memcmp finds the block, a short loop the token
    const TokenId* row_a = prompts.row_data(a);
    const TokenId* row_b = prompts.row_data(b);
    const int32_t end = std::min(prompts.row_length(a), prompts.row_length(b));
    int32_t i = from;
    while (end - i >= kBlock && std::memcmp(row_a + i, row_b + i, kBlock * sizeof(TokenId)) == 0) i += kBlock;
    while (i < end && row_a[i] == row_b[i]) ++i;
    return i;
}

std::vector<SortedRow> lcp_sort(const Prompts& prompts, int num_threads) {
    if (num_threads <= 0) num_threads = std::max(1u, std::thread::hardware_concurrency());
    std::vector<SortedRow> rows(prompts.num_requests());
    for (RequestId request = 0; request < prompts.num_requests(); ++request) rows[request] = {request, 0};
    std::vector<SortedRow> scratch = rows;
    LcpMergeSort(prompts).sort(scratch.data(), rows.data(), 0, prompts.num_requests(), num_threads);
    return rows;
}

}  // namespace batchllm
