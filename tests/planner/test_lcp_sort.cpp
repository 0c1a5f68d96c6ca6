#include <doctest/doctest.h>

#include <algorithm>
#include <limits>
#include <numeric>

#include "planner/lcp_sort.h"
#include "random_job.h"

using namespace batchllm;
using batchllm::testing::Job;
using batchllm::testing::RandomJobs;

namespace {

// std::sort of whole rows, and the common prefixes of neighbours.
SortedRows plainly_sorted(const Job& job, int32_t drop_last) {
    const Prompts prompts = job.prompts(drop_last);
    const auto row = [&](RequestIndex request) {
        const auto tokens = prompts.row(request);
        return std::vector<TokenId>(tokens.begin(), tokens.end());
    };
    SortedRows rows = {std::vector<RequestIndex>(prompts.num_requests()), {}};
    std::iota(rows.order.begin(), rows.order.end(), 0);
    std::sort(rows.order.begin(), rows.order.end(),
              [&](RequestIndex a, RequestIndex b) { return std::pair(row(a), a) < std::pair(row(b), b); });
    std::vector<TokenId> before;
    for (const RequestIndex request : rows.order) {
        const std::vector<TokenId> tokens = row(request);
        const auto parting = std::mismatch(tokens.begin(), tokens.end(), before.begin(), before.end()).first;
        rows.lcp.push_back(static_cast<int32_t>(parting - tokens.begin()));
        before = tokens;
    }
    return rows;
}

// On any number of threads, sharing every range, only larger ones, and none.
void check_sorted(const Job& job, int32_t drop_last = 0) {
    const SortedRows expected = plainly_sorted(job, drop_last);
    for (const int num_threads : {1, 2, 3}) {
        for (const int64_t min_shared_tokens : {int64_t{0}, int64_t{60}, int64_t{1} << 40}) {
            const SortedRows rows = lcp_sort(job.prompts(drop_last), num_threads, min_shared_tokens);
            CHECK(rows.order == expected.order);
            CHECK(rows.lcp == expected.lcp);
        }
    }
}

}  // namespace

TEST_CASE("rows are in std::sort's order, with the longest common prefixes of neighbours") {
    RandomJobs random(2);
    for (int i = 0; i < 300; ++i) check_sorted(random.job(40, 0), random.between(0, 2));
}

TEST_CASE("tokens are ordered as signed numbers, to both ends of their range") {
    RandomJobs random(3);
    constexpr TokenId kTokens[] = {std::numeric_limits<TokenId>::min(), -1, std::numeric_limits<TokenId>::max()};
    for (int i = 0; i < 100; ++i) {
        Job job = random.job(40, 0);
        for (TokenId& token : job.tokens) token = kTokens[token];
        check_sorted(job);
    }
}

TEST_CASE("equal rows, alternating halves, nested prefixes and a caterpillar are sorted") {
    Job equal, halves, nested, caterpillar;
    for (int32_t i = 0; i < 400; ++i) {
        equal.add(std::vector<TokenId>(50, 7));
        halves.add(std::vector<TokenId>(50, i % 2));
        nested.add(std::vector<TokenId>((i * 149) % 400, 7));  // all lengths, in no order
        std::vector<TokenId> leg((i * 149) % 400, 7);
        leg.push_back(i % 3 * 7);
        caterpillar.add(leg);
    }
    for (const Job& job : {equal, halves, nested, caterpillar}) check_sorted(job);
}

TEST_CASE("four thousand nested prompts are sorted without recursion") {
    Job job;
    for (int32_t i = 0; i < 4000; ++i) job.add(std::vector<TokenId>((int64_t{i} * 1499) % 4000, 7));
    const SortedRows rows = lcp_sort(job.prompts(), 2, 0);
    for (int32_t rank = 1; rank < 4000; ++rank) CHECK(rows.lcp[rank] == rank - 1);
}

TEST_CASE("common prefixes end where tokens differ, on both sides of a block edge") {
    for (const int32_t length : {0, 1, 31, 32, 33, 63, 64, 65, 200}) {
        for (int32_t differs = 0; differs <= length; ++differs) {
            Job job;
            std::vector<TokenId> prompt(length, 7);
            job.add(prompt);
            if (differs < length) prompt[differs] = 8;
            job.add(prompt);
            for (const int32_t from : {0, differs / 2, differs}) {
                CHECK(common_prefix(job.prompts(), 0, 1, from) == differs);
            }
        }
    }
}
