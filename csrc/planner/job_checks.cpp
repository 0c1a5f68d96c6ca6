#include "planner/job_checks.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

namespace batchllm {

namespace {

[[noreturn]] void fail(const std::string& what) {
    throw std::invalid_argument(what);
}

void check_output_tokens(const char* name, std::span<const int32_t> counts, int32_t least, const Prompts& prompts) {
    if (static_cast<int64_t>(counts.size()) != prompts.num_requests()) {
        fail(std::string(name) + ": expected one entry for each of the " + std::to_string(prompts.num_requests()) +
             " prompts, got " + std::to_string(counts.size()));
    }
    for (RequestId request = 0; request < prompts.num_requests(); ++request) {
        const auto fail_entry = [&](const std::string& what) {
            fail(std::string(name) + "[" + std::to_string(request) + "]: " + what);
        };
        if (counts[request] < least) {
            fail_entry("expected at least " + std::to_string(least) + ", got " + std::to_string(counts[request]));
        }
        if (counts[request] > std::numeric_limits<int32_t>::max() - prompts.prompt_length(request)) {
            fail_entry("prompt and output together exceed 2^31 - 1 tokens");
        }
    }
}

// From the deepest segment up, each against the prompt that owns it.
void check_chain(const Prompts& prompts, const Segments& segments, RequestId request) {
    for (SegmentId s = segments.request_segment()[request]; s != kNone; s = segments.parent()[s]) {
        const RequestId owner = segments.owner_request()[s];
        const int32_t begin = segments.token_begin()[s];
        const int32_t end = segments.token_end()[s];
        const TokenId* owned = prompts.row_data(owner);
        const TokenId* row = prompts.row_data(request);
        const bool owner_holds_it = end <= prompts.prompt_length(owner);
        if (owner_holds_it && std::equal(owned + begin, owned + end, row + begin)) continue;

        const std::string name = "segment " + std::to_string(s) + " (owner_request " + std::to_string(owner) + ")";
        if (!owner_holds_it) {
            fail(name + " ends at token " + std::to_string(end) + ", but its owner's prompt has " +
                 std::to_string(prompts.prompt_length(owner)));
        }
        const auto differs = std::mismatch(owned + begin, owned + end, row + begin).first;
        fail("request " + std::to_string(request) + " reads " + name + ", but their prompts differ at token " +
             std::to_string(differs - owned));
    }
}

}  // namespace

void check_job(const Prompts& prompts, const Segments& segments, std::span<const int32_t> max_output_tokens,
               std::span<const int32_t> expected_output_tokens) {
    check_output_tokens("max_output_tokens", max_output_tokens, 1, prompts);
    if (!expected_output_tokens.empty())
        check_output_tokens("expected_output_tokens", expected_output_tokens, 0, prompts);
    if (segments.num_requests() != prompts.num_requests()) {
        fail("segments: made for " + std::to_string(segments.num_requests()) + " requests, but there are " +
             std::to_string(prompts.num_requests()) + " prompts");
    }
    for (RequestId request = 0; request < prompts.num_requests(); ++request) {
        const int32_t length = prompts.prompt_length(request);
        if (length == 0) fail("prompt " + std::to_string(request) + " is empty");
        const int32_t covered = segments.covered_tokens(request);
        if (covered >= length) {
            fail("segments: the chain of request " + std::to_string(request) + " covers " + std::to_string(covered) +
                 " tokens of its prompt of " + std::to_string(length) +
                 "; the last prompt token must be its own (build the trie with drop_last=1)");
        }
        check_chain(prompts, segments, request);
    }
}

}  // namespace batchllm
