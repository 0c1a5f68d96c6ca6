#include "planner/job_checks.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/parallel.h"

namespace batchllm {

namespace {

constexpr int64_t kMinSharedTokens = 1 << 20;  // below, starting a thread costs more than it saves

[[noreturn]] void fail(const std::string& what) {
    throw std::invalid_argument(what);
}

[[noreturn]] void fail_entry(const char* name, RequestIndex request, const std::string& what) {
    fail(std::string(name) + "[" + std::to_string(request) + "]: " + what);
}

void check_entries(const char* name, std::span<const int32_t> entries, int32_t least, const Prompts& prompts) {
    if (static_cast<int64_t>(entries.size()) != prompts.num_requests()) {
        fail(std::string(name) + ": expected one entry for each of the " + std::to_string(prompts.num_requests()) +
             " prompts, got " + std::to_string(entries.size()));
    }
    for (RequestIndex request = 0; request < prompts.num_requests(); ++request) {
        if (entries[request] >= least) continue;
        fail_entry(name, request,
                   "expected at least " + std::to_string(least) + ", got " + std::to_string(entries[request]));
    }
}

void check_output_tokens(const char* name, std::span<const int32_t> counts, int32_t least, const Prompts& prompts) {
    check_entries(name, counts, least, prompts);
    for (RequestIndex request = 0; request < prompts.num_requests(); ++request) {
        if (counts[request] > std::numeric_limits<int32_t>::max() - prompts.prompt_length(request)) {
            fail_entry(name, request, "prompt and output together exceed 2^31 - 1 tokens");
        }
    }
}

// The readers of a segment follow each other, so that its owner's tokens stay in the cache while they are compared.
std::vector<RequestIndex> requests_by_segment(const Segments& segments) {
    std::vector<RequestIndex> next(segments.num_segments() + 2, 0);  // by request_segment + 1: those without one first
    for (const SegmentId segment : segments.request_segment()) ++next[segment.index + 2];
    std::partial_sum(next.begin(), next.end(), next.begin());
    std::vector<RequestIndex> requests(segments.num_requests());
    for (RequestIndex request = 0; request < segments.num_requests(); ++request) {
        requests[next[segments.request_segment()[request].index + 1]++] = request;
    }
    return requests;
}

bool agree(const Prompts& prompts, RequestIndex a, RequestIndex b, int32_t num_tokens) {
    if (a == b) return true;
    const size_t length = num_tokens;
    const auto row_a = prompts.prompt(a), row_b = prompts.prompt(b);
    return length <= std::min(row_a.size(), row_b.size()) &&
           std::memcmp(row_a.data(), row_b.data(), length * sizeof(TokenId)) == 0;
}

// [num_segments]: whether its owner's prompt holds the tokens of its whole chain. A request that agrees with the owner
// of such a segment needs no check of the segments above: one comparison, in one direction, instead of one for each.
std::vector<uint8_t> owners_that_hold_their_chain(const Prompts& prompts, const Segments& segments) {
    std::vector<uint8_t> holds(segments.num_segments());
    for (int32_t s = 0; s < segments.num_segments(); ++s) {
        const SegmentId parent = segments.parent()[s];
        holds[s] = parent == kNoSegment ||
                   (holds[parent.index] && agree(prompts, segments.owner_request()[s],
                                                 segments.owner_request()[parent.index], segments.token_begin()[s]));
    }
    return holds;
}

// From the deepest segment up, each against the prompt that owns it: slower, but tells where they differ.
void check_chain(const Prompts& prompts, const Segments& segments, RequestIndex request) {
    for (SegmentId s = segments.request_segment()[request]; s != kNoSegment; s = segments.parent()[s.index]) {
        const RequestIndex owner = segments.owner_request()[s.index];
        const int32_t begin = segments.token_begin()[s.index];
        const int32_t end = segments.token_end()[s.index];
        const TokenId* owned = prompts.row_data(owner);
        const TokenId* row = prompts.row_data(request);
        const bool owner_holds_it = end <= prompts.prompt_length(owner);
        if (owner_holds_it && std::equal(owned + begin, owned + end, row + begin)) continue;

        const std::string name =
            "segment " + std::to_string(s.index) + " (owner_request " + std::to_string(owner) + ")";
        if (!owner_holds_it) {
            fail(name + " ends at token " + std::to_string(end) + ", but its owner's prompt has " +
                 std::to_string(prompts.prompt_length(owner)));
        }
        const auto differs = std::mismatch(owned + begin, owned + end, row + begin).first;
        fail("request " + std::to_string(request) + " reads " + name + ", but their prompts differ at token " +
             std::to_string(differs - owned));
    }
}

void check_prompt(const Prompts& prompts, const Segments& segments, const std::vector<uint8_t>& holds_chain,
                  RequestIndex request) {
    const int32_t length = prompts.prompt_length(request);
    if (length == 0) fail("prompt " + std::to_string(request) + " is empty");
    const int32_t covered = segments.covered_tokens(request);
    if (covered >= length) {
        fail("segments: the chain of request " + std::to_string(request) + " covers " + std::to_string(covered) +
             " tokens of its prompt of " + std::to_string(length) +
             "; the last prompt token must be its own (build the trie with drop_last=1)");
    }
    const SegmentId segment = segments.request_segment()[request];
    if (segment == kNoSegment) return;
    if (holds_chain[segment.index] && agree(prompts, request, segments.owner_request()[segment.index], covered)) return;
    check_chain(prompts, segments, request);
}

}  // namespace

void check_score_begin(std::span<const int32_t> score_begin, const Prompts& prompts) {
    check_entries("score_begin", score_begin, 1, prompts);
}

void check_job(const Prompts& prompts, const Segments& segments, std::span<const int32_t> max_output_tokens,
               std::span<const int32_t> expected_output_tokens, int num_threads) {
    check_output_tokens("max_output_tokens", max_output_tokens, 1, prompts);
    if (!expected_output_tokens.empty())
        check_output_tokens("expected_output_tokens", expected_output_tokens, 0, prompts);
    if (segments.num_requests() != prompts.num_requests()) {
        fail("segments: made for " + std::to_string(segments.num_requests()) + " requests, but there are " +
             std::to_string(prompts.num_requests()) + " prompts");
    }
    // Checked segment by segment and reported by request: the smallest wrong one is checked again, and throws.
    const std::vector<RequestIndex> requests = requests_by_segment(segments);
    const std::vector<uint8_t> holds_chain = owners_that_hold_their_chain(prompts, segments);
    std::atomic<RequestIndex> first_wrong = prompts.num_requests();
    const int num_parts = prompts.num_prompt_tokens() < kMinSharedTokens ? 1 : resolve_num_threads(num_threads);
    for_each_part(prompts.num_requests(), num_parts, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            if (i + 1 < end) __builtin_prefetch(prompts.row_data(requests[i + 1]));  // a quarter faster
            RequestIndex wrong = first_wrong;
            if (requests[i] > wrong) continue;
            try {
                check_prompt(prompts, segments, holds_chain, requests[i]);
            } catch (const std::invalid_argument&) {
                while (requests[i] < wrong && !first_wrong.compare_exchange_weak(wrong, requests[i])) {
                }
            }
        }
    });
    if (first_wrong < prompts.num_requests()) check_prompt(prompts, segments, holds_chain, first_wrong);
}

}  // namespace batchllm
