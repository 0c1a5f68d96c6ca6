#include <doctest/doctest.h>

#include <stdexcept>
#include <string>

#include "planner/choose_segments.h"
#include "planner/job_checks.h"
#include "random_job.h"

using namespace batchllm;
using batchllm::testing::Job;

TEST_CASE("the first wrong prompt is reported, on any number of threads") {
    // 2048 prompts of 600 tokens in 4 groups: enough for threads to share. Prompt r is in group 3 - r % 4, so that
    // later groups hold the earlier of the wrong prompts.
    Job job;
    for (int32_t request = 0; request < 2048; ++request) {
        std::vector<TokenId> prompt(600, 3 - request % 4);
        prompt.back() = request;
        job.add(prompt);
    }
    const Segments segments = choose_segments(PrefixTrie(job.prompts(1)), SharingLevels::kAny);
    REQUIRE(segments.num_segments() == 4);
    const std::vector<int32_t> max_output_tokens(2048, 1);
    for (const int num_threads : {1, 2, 3}) check_job(job.prompts(), segments, max_output_tokens, {}, num_threads);

    for (const RequestIndex wrong : {2047, 1027, 1025, 1024}) {  // from now on the smallest of several
        job.tokens[wrong * 600 + 17] = 99;
        for (const int num_threads : {1, 2, 3}) {
            std::string message;
            try {
                check_job(job.prompts(), segments, max_output_tokens, {}, num_threads);
            } catch (const std::invalid_argument& error) {
                message = error.what();
            }
            const SegmentId segment = segments.request_segment()[wrong];
            CHECK(message == "request " + std::to_string(wrong) + " reads segment " + std::to_string(segment.index) +
                                 " (owner_request " + std::to_string(segments.owner_request()[segment.index]) +
                                 "), but their prompts differ at token 17");
        }
    }
}
