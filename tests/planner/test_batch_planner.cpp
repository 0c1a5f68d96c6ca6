#include <doctest/doctest.h>

#include <chrono>
#include <cstdlib>
#include <limits>
#include <random>
#include <string>

#include "fuzz_batch_planner.h"
#include "planner/batch_planner.h"
#include "planner/choose_segments.h"
#include "random_job.h"

using namespace batchllm;
using namespace batchllm::testing;

namespace {

FuzzCounts fuzz(uint32_t seed) {
    std::mt19937 random(seed);
    std::vector<uint8_t> bytes(std::uniform_int_distribution<>(1, 400)(random));
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
    CAPTURE(seed);
    FuzzCounts counts;
    REQUIRE_NOTHROW(counts = fuzz_batch_planner(bytes));
    return counts;
}

void add(BatchPlanner& planner, const Job& job, const std::vector<int32_t>& max_output_tokens) {
    const PrefixTrie trie(job.prompts(1));
    planner.add_requests(job.prompts(), choose_segments(trie, SharingLevels::kAny), max_output_tokens);
    planner.audit();
}

// As many as BATCHLLM_RANDOM_JOBS says, where it is set: on an emulated CPU 26,000 take minutes.
constexpr uint32_t kNumRandomJobs = 26'000;
uint32_t num_random_jobs() {
    const char* const given = std::getenv("BATCHLLM_RANDOM_JOBS");
    return given ? static_cast<uint32_t>(std::stoul(given)) : kNumRandomJobs;
}

// One batch, after which requests go on to their bounds; false where there is nothing to do.
bool step(BatchPlanner& planner) {
    const auto batch = planner.next_batch();
    planner.audit();
    if (!batch) return false;
    planner.commit(std::vector<TokenId>(batch->logit_rows.size(), 5), {});
    planner.audit();
    return true;
}

}  // namespace

TEST_CASE("every random job keeps every promise of the planner") {
    const uint32_t num_jobs = num_random_jobs();
    FuzzCounts counts;
    for (uint32_t seed = 0; seed < num_jobs; ++seed) counts += fuzz(seed);
    // Fewer jobs vary more.
    const double part = (num_jobs < kNumRandomJobs ? 0.8 : 1.0) * num_jobs / kNumRandomJobs;
    CHECK(counts.requests > 200'000 * part);
    CHECK(counts.preemptions > 6000 * part);
    CHECK(counts.refused > 10'000 * part);
    CHECK(counts.arrivals > 20'000 * part);
    CHECK(counts.borrowed_tokens > 4000 * part);
    CHECK(counts.aborted > 10'000 * part);
    CHECK(counts.forgotten > 50'000 * part);
    CHECK(counts.told_late > 50'000 * part);
    CHECK(counts.wasted_rows > 3000 * part);
    CHECK(counts.cut_spans > 30'000 * part);
    MESSAGE(counts.requests, " requests, ", counts.preemptions, " preemptions, ", counts.refused, " refused, ",
            counts.borrowed_tokens, " tokens borrowed, ", counts.aborted, " aborted, ", counts.forgotten,
            " forgotten, ", counts.told_late, " batches told late, ", counts.wasted_rows, " rows wasted, ",
            counts.cut_spans, " spans cut by windows");
}

// make fuzz
TEST_CASE("every random job keeps every promise, for as long as one likes" *
          doctest::skip(std::getenv("BATCHLLM_FUZZ_SECONDS") == nullptr)) {
    const auto end =
        std::chrono::steady_clock::now() + std::chrono::seconds(std::atoi(std::getenv("BATCHLLM_FUZZ_SECONDS")));
    uint32_t seed = std::random_device()();
    int64_t num_jobs = 0;
    for (; std::chrono::steady_clock::now() < end; ++num_jobs) fuzz(seed++);
    MESSAGE(num_jobs, " jobs");
}

TEST_CASE("no bytes are a job, too") {
    CHECK(fuzz_batch_planner({}).requests == 1);
}

TEST_CASE("a segment without readers is never computed") {
    Job job;
    job.add({1, 2, 3});
    job.add({1, 2, 4});
    const Segments segments({kNoSegment, {0}}, {0, 1}, {1, 2}, {0, 0}, {{0}, kNoSegment});
    BatchPlanner planner({.num_pages = 8, .page_size = 1, .max_batch_tokens = 16});
    planner.add_requests(job.prompts(), segments, std::vector{1, 1});
    const auto batch = planner.next_batch();
    REQUIRE(batch);
    CHECK(batch->num_tokens() == 6);
    CHECK(planner.commit(std::vector{7, 7}, {}).size() == 2);
    CHECK(!planner.next_batch());
}

TEST_CASE("rows for a device name the row that samples a token which is not told, and have nothing behind them") {
    Job job;
    for (const TokenId first : {1, 2}) job.add({first, 8, 9});
    BatchPlanner planner({.num_pages = 16, .page_size = 4, .max_batch_tokens = 16});
    add(planner, job, {4, 4});
    REQUIRE(planner.next_batch());
    planner.advance();
    TokenBatch batch = planner.next_batch().value();
    CHECK(batch.untold_rows == std::vector<int32_t>{0, 1});
    CHECK(batch.untold_logits == std::vector<int32_t>{0, 1});
    batch.untold_logits = {1, 0};
    std::vector<int64_t> slots(4, 7);
    std::vector<int32_t> token_ids(4, 7), positions(4, 7);
    batch.write_rows(slots, token_ids, positions);
    CHECK(slots == std::vector<int64_t>{batch.slots[0], batch.slots[1], kNoSlot, kNoSlot});
    CHECK(token_ids == std::vector<int32_t>{~1, ~0, 0, 0});
    CHECK(positions == std::vector<int32_t>{batch.positions[0], batch.positions[1], 0, 0});
}

TEST_CASE("limits up to the largest int32 are limits like others") {
    constexpr int32_t kMost = std::numeric_limits<int32_t>::max();
    Job job;
    for (const TokenId last : {1, 2, 3}) job.add({7, 8, last});
    BatchPlanner planner({.num_pages = kMost, .page_size = kMost, .max_batch_tokens = kMost});
    add(planner, job, std::vector(3, kMost - 3));
    CHECK(planner.refused().empty());
    const auto batch = planner.next_batch();
    REQUIRE(batch);
    // Each of the four segments has a page, in order, and its tokens are at the page's beginning.
    std::vector<int64_t> slots = {0, 1};
    for (int64_t page = 1; page < 4; ++page) slots.push_back(page * kMost);
    CHECK(std::vector<int64_t>(batch->slots.begin(), batch->slots.end()) == slots);
    CHECK(planner.commit(std::vector{5, 5, 5}, std::vector<uint8_t>{1, 1, 1}).size() == 3);
    CHECK(planner.stats().used_pages == 0);
}

TEST_CASE("what is borrowed whole is read as its source") {
    Job first, added;
    for (const TokenId last : {1, 2}) first.add({7, 8, 9, last});
    for (const TokenId last : {3, 4}) added.add({7, 8, 9, last});
    BatchPlanner planner({.num_pages = 16, .page_size = 2, .max_batch_tokens = 16});
    add(planner, first, {4, 4});
    REQUIRE(step(planner));
    add(planner, added, {4, 4});
    const auto batch = planner.next_batch();
    REQUIRE(batch);
    CHECK(planner.stats().borrowed_prompt_tokens == 3);
    CHECK(batch->num_segments() == 1 + 4);  // of all readers, and their own
}

TEST_CASE("a source that would leave a chain no room is not borrowed from") {
    // The source holds 5 pages of 12. Of the two that share half of it the second needs 8 of its own: were the half
    // borrowed by the first, the second could never start.
    Job first, added;
    const std::vector<TokenId> head = {1, 1, 1, 1, 1, 1, 1, 1}, rest(12, 2);
    for (const TokenId last : {3, 4}) {
        std::vector<TokenId> prompt = head;
        prompt.insert(prompt.end(), rest.begin(), rest.end());
        prompt.push_back(last);
        first.add(prompt);
        prompt = head;
        prompt.push_back(last);
        added.add(prompt);
    }
    BatchPlanner planner({.num_pages = 12, .page_size = 4, .max_batch_tokens = 64, .order = GroupOrder::kArrival});
    add(planner, first, {4, 4});
    REQUIRE(step(planner));
    add(planner, added, {1, 30});
    while (step(planner)) {
    }
    CHECK(planner.stats().finished == 4);
    CHECK(planner.stats().borrowed_prompt_tokens == 0);
}

TEST_CASE("a source outlives its own readers, forgotten or not, while it is borrowed from") {
    Job first, added;
    for (const TokenId last : {1, 2}) first.add({7, 8, 9, last});
    added.add({7, 8, 9, 3});
    BatchPlanner planner({.num_pages = 16, .page_size = 2, .max_batch_tokens = 16});
    add(planner, first, {2, 2});
    REQUIRE(step(planner));
    add(planner, added, {9});
    REQUIRE(step(planner));
    CHECK(planner.stats().finished == 2);
    CHECK(planner.stats().borrowed_prompt_tokens == 3);
    planner.forget(std::vector<RequestId>{{0}, {1}});
    planner.audit();
    while (step(planner)) {
    }
    CHECK(planner.stats().finished == 3);
    CHECK(planner.stats().used_pages == 0);
}

TEST_CASE("a sliding window bounds what a segment holds, so the same pool runs more requests in fewer steps") {
    constexpr int32_t kDocument = 400, kNumRequests = 8, kOutput = 200, kPageSize = 4, kChunk = 16;
    Job job;
    for (TokenId request = 0; request < kNumRequests; ++request) {
        std::vector<TokenId> prompt(kDocument, 1);
        prompt.push_back(10 + request);
        job.add(prompt);
    }
    struct Run {
        int64_t steps = 0, most_running = 0, document_pages = 0, pages_after_document = 0, peak_pages = 0;
    };
    const auto run = [&](int32_t window_left) {
        BatchPlanner planner(
            {.num_pages = 200, .page_size = kPageSize, .max_batch_tokens = kChunk, .window_left = window_left});
        add(planner, job, std::vector<int32_t>(kNumRequests, kOutput));
        Run run;
        run.document_pages = (step(planner), planner.stats().used_pages);  // its first chunk
        while (planner.stats().output_tokens == 0 && step(planner)) {
        }
        run.pages_after_document = planner.stats().used_pages;
        do {
            run.most_running = std::max(run.most_running, planner.stats().running);
        } while (step(planner));
        CHECK(planner.stats().finished == kNumRequests);
        run.steps = planner.stats().steps;
        run.peak_pages = planner.stats().peak_pages;
        return run;
    };
    const Run all = run(-1), window = run(31);
    CHECK(all.document_pages == kDocument / kPageSize + 1);
    CHECK(window.document_pages <= (31 + kPageSize - 1 + kChunk + kPageSize - 1) / kPageSize + 1);
    CHECK(window.pages_after_document < window.document_pages + kNumRequests);
    CHECK(all.most_running < kNumRequests);
    CHECK(window.most_running == kNumRequests);
    CHECK(window.steps < all.steps);
    // The document's last window, and of each request a window and a token, in pages where they may begin anywhere.
    CHECK(window.peak_pages <= (kNumRequests + 1) * (31 + 1 + 2 * kPageSize) / kPageSize);
    CHECK(all.peak_pages > 150);
}
