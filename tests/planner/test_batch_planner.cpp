#include <doctest/doctest.h>

#include <algorithm>
#include <map>

#include "planner/batch_planner.h"
#include "planner/choose_segments.h"
#include "random_job.h"

using namespace batchllm;
using batchllm::testing::Job;
using batchllm::testing::RandomJobs;

namespace {

struct StoredToken {
    TokenId token;
    int32_t position;
};

// What a span's last row sees, read from the slots that this batch and earlier ones wrote.
std::vector<TokenId> context_of(const TokenBatch& batch, int32_t span, int32_t page_size,
                                const std::map<int64_t, StoredToken>& slots) {
    std::vector<TokenId> context;
    for (int32_t link = batch.link_indptr[span]; link < batch.link_indptr[span + 1]; ++link) {
        const int32_t segment = batch.link_segment[link];
        REQUIRE(batch.segment_begin[segment] == static_cast<int32_t>(context.size()));
        for (int32_t i = 0; i < batch.segment_num_tokens[segment]; ++i) {
            const PageId page = batch.segment_page_ids[batch.segment_page_indptr[segment] + i / page_size];
            const StoredToken& stored = slots.at(int64_t{page} * page_size + i % page_size);
            REQUIRE(stored.position == static_cast<int32_t>(context.size()));
            context.push_back(stored.token);
        }
    }
    return context;
}

TokenId next_token(const std::vector<TokenId>& context) {
    uint32_t hash = 1;
    for (const TokenId token : context) hash = hash * 31 + static_cast<uint32_t>(token);
    return static_cast<TokenId>(hash % 1000);
}

// Runs a job; every answer must be what its request gets alone.
void run_and_check(BatchPlanner& planner, const Job& job, const std::vector<int32_t>& max_output,
                   const PlannerOptions& options) {
    std::map<int64_t, StoredToken> slots;
    std::vector<int> num_finished(planner.num_requests(), 0);
    while (auto batch = planner.next_batch()) {
        planner.audit();
        CHECK(batch->num_tokens() <= options.max_batch_tokens);
        for (int32_t row = 0; row < batch->num_tokens(); ++row) {
            slots[batch->slots[row]] = {batch->token_ids[row], batch->positions[row]};
        }
        std::vector<TokenId> sampled;
        for (int32_t span = 0; span < batch->num_spans(); ++span) {
            const auto context = context_of(*batch, span, options.page_size, slots);
            if (sampled.size() < batch->logit_rows.size() &&
                batch->logit_rows[sampled.size()] == batch->span_indptr[span + 1] - 1) {
                sampled.push_back(next_token(context));
            }
        }
        REQUIRE(sampled.size() == batch->logit_rows.size());
        for (const RequestId request : planner.commit(sampled, {})) ++num_finished[request];
        planner.audit();
    }
    CHECK(planner.stats().used_pages == 0);
    for (const RequestId request : planner.order()) {
        CHECK(num_finished[request] == 1);
        std::vector<TokenId> context = job.prompt(request), alone;
        for (int32_t i = 0; i < max_output[request]; ++i) {
            alone.push_back(next_token(context));
            context.push_back(alone.back());
        }
        CHECK(planner.output_tokens(request) == alone);
    }
}

}  // namespace

TEST_CASE("every request of every job gets the answer it gets alone") {
    RandomJobs random(1);
    int64_t num_preemptions = 0, num_refused = 0;
    for (int i = 0; i < 1500; ++i) {
        const Job job = random.job(16, 1);
        const Prompts prompts = job.prompts();
        std::vector<int32_t> max_output, expected;
        for (RequestId request = 0; request < prompts.num_requests(); ++request) {
            max_output.push_back(random.between(1, 8));
            if (i % 2 == 0) expected.push_back(random.between(1, 4));
        }
        const PlannerOptions options = {.num_pages = random.between(8, 24),
                                        .page_size = random.between(1, 3),
                                        .max_batch_tokens = random.between(1, 12)};
        const auto levels = std::vector{SharingLevels::kNone, SharingLevels::kSingle, SharingLevels::kAny}[i % 3];
        BatchPlanner planner(options);
        planner.add_requests(prompts, choose_segments(PrefixTrie(job.prompts(1)), levels), max_output, expected);
        run_and_check(planner, job, max_output, options);
        num_preemptions += planner.stats().preemptions;
        num_refused += static_cast<int64_t>(planner.refused().size());
    }
    CHECK(num_preemptions > 100);
    CHECK(num_refused > 100);
}

TEST_CASE("a segment without readers is never computed") {
    Job job;
    job.add({1, 2, 3});
    job.add({1, 2, 4});
    const Segments segments({kNone, 0}, {0, 1}, {1, 2}, {0, 0}, {0, kNone});
    const PlannerOptions options = {.num_pages = 8, .page_size = 1, .max_batch_tokens = 16};
    BatchPlanner planner(options);
    planner.add_requests(job.prompts(), segments, std::vector{1, 1});
    run_and_check(planner, job, {1, 1}, options);
    CHECK(planner.stats().computed_prompt_tokens == 6);
}
