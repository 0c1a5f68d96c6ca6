// Checks the arguments of BatchPlanner; everything after trusts them.
#pragma once

#include <cstdint>
#include <span>

#include "planner/prompts.h"
#include "planner/segments.h"

namespace batchllm {

// Throws std::invalid_argument that names the array, the index, what was expected and what was given. Compares every
// prompt with the tokens of its chain, because segments of another job would silently give wrong answers.
// expected_output_tokens may be empty, or 0 if unknown. num_threads 0: one per core; any number reports the wrong
// prompt with the smallest id.
void check_job(const Prompts& prompts, const Segments& segments, std::span<const int32_t> max_output_tokens,
               std::span<const int32_t> expected_output_tokens, int num_threads = 0);

// score_begin [num_requests], at least 1 each.
void check_score_begin(std::span<const int32_t> score_begin, const Prompts& prompts);

}  // namespace batchllm
