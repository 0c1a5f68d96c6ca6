// One body for two uses: bytes decide a job, its pool, its arrivals and its ends; then everything BatchPlanner
// promises is checked while it runs. test_batch_planner.cpp feeds it random bytes for a fixed number of jobs; built
// with -fsanitize=fuzzer, LLVMFuzzerTestOneInput can call it as it stands. A broken promise throws.
//
//   never deadlocks, never starves     the job ends within a bound of steps, every request is answered once
//   never exceeds the pool             audit() after every call; the peak
//   every page returns                 none is used at the end
//   preempted work is recomputed once  own rows go on where they stopped, or begin anew once for a preemption
//   a shared segment is computed once  rows computed = prompts less what is cached + decodes + what preemption cost
//   answers depend on nothing else     each is what its request gets alone, from the K/V that its rows can see
//   tokens may be told late            one batch later, in any step: what is planned knows where they will stand
//   what leaves is gone                aborted requests run no more, forgotten ones are unknown, prompts are given back
//   what a window left is gone         rows see all of their windows; a segment takes the pages of one and a chunk
//   a score is of its own token        each wanted prompt token is predicted once, by a row that sees all before it
#pragma once

#include <cstdint>
#include <span>

namespace batchllm::testing {

struct FuzzCounts {  // what a run met, so that a test can tell that its bytes are worth something
    int64_t requests = 0, refused = 0, preemptions = 0, arrivals = 0, borrowed_tokens = 0;
    int64_t aborted = 0, forgotten = 0;
    int64_t told_late = 0, wasted_rows = 0;  // batches; rows of requests that had stopped by then
    int64_t cut_spans = 0;                   // that no longer see the first tokens of their context

    void operator+=(const FuzzCounts& other);
};

FuzzCounts fuzz_batch_planner(std::span<const uint8_t> bytes);

}  // namespace batchllm::testing
