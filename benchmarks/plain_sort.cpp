// The yardstick a planner has to beat: row ids sorted by memcmp, one run per thread and merged, then the longest common
// prefix of neighbours. Bytes of little-endian tokens order rows unlike the tokens do, but rows that share a prefix
// are neighbours in either order. bench_planner.py compiles this file and calls it.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <thread>
#include <vector>

namespace {

struct Rows {
    const int32_t* tokens;
    const int64_t* indptr;
    int32_t drop_last;

    const int32_t* data(int32_t row) const { return tokens + indptr[row]; }
    int64_t length(int32_t row) const { return std::max<int64_t>(indptr[row + 1] - indptr[row] - drop_last, 0); }
    bool before(int32_t a, int32_t b) const {
        const int64_t shorter = std::min(length(a), length(b));
        const int difference = std::memcmp(data(a), data(b), shorter * sizeof(int32_t));
        return difference != 0 ? difference < 0 : length(a) < length(b);
    }
};

}  // namespace

// Distinct prefixes of the rows: what PrefixTrie.num_tokens counts.
//   tokens [indptr[num_rows]], indptr [num_rows + 1]
extern "C" int64_t plain_sort(const int32_t* tokens, const int64_t* indptr, int32_t num_rows, int32_t drop_last,
                              int32_t num_threads) {
    const Rows rows = {tokens, indptr, drop_last};
    const auto before = [&](int32_t a, int32_t b) { return rows.before(a, b); };
    std::vector<int32_t> order(num_rows);
    std::iota(order.begin(), order.end(), 0);
    const auto bound = [&](int64_t thread) { return order.begin() + num_rows * thread / num_threads; };
    {
        std::vector<std::jthread> threads;
        for (int32_t t = 0; t < num_threads; ++t) {
            threads.emplace_back([&, t] { std::sort(bound(t), bound(t + 1), before); });
        }
    }
    for (int32_t t = 1; t < num_threads; ++t) std::inplace_merge(order.begin(), bound(t), bound(t + 1), before);

    std::vector<int64_t> num_prefixes(num_threads, 0);
    {
        std::vector<std::jthread> threads;
        for (int32_t t = 0; t < num_threads; ++t) {
            threads.emplace_back([&, t] {
                int64_t sum = 0;
                for (auto row = bound(t); row != bound(t + 1); ++row) {
                    sum += rows.length(*row);
                    if (row == order.begin()) continue;
                    const int32_t* a = rows.data(*row);
                    const int32_t* b = rows.data(*(row - 1));
                    sum -= std::mismatch(a, a + std::min(rows.length(*row), rows.length(*(row - 1))), b).first - a;
                }
                num_prefixes[t] = sum;
            });
        }
    }
    return std::accumulate(num_prefixes.begin(), num_prefixes.end(), int64_t{0});
}
