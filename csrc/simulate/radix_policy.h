// A radix cache, exact to the token, with a queue ordered by what is cached, like SGLang.
//
// Modelled, after its scheduler, schedule policy and radix cache, at page size 1:
//   a step      prefill alone while anything can be admitted, up to max_batch_tokens with at most one request cut into
//               chunks; else one decode of all that run
//   cache       a request's tokens enter the tree when its prefill step is over, so requests of one step do not share;
//               generated ones when it finishes. Nodes on the paths of running requests are locked; of the others the
//               least recently used leaf is evicted
//   order lpm   longest cached prefix first. With more than 128 waiting: first come, first served. A request with at
//               most 32 cached tokens that shares 32 or more with an earlier such one in the queue goes to its end
//   order dfs   depth-first through the tree, the child with more waiting requests first
//   admission   while the prompt and all of max_output_tokens (at most 4096) fit beside what runs, of whose remaining
//               max_output_tokens a share is reserved, new_token_ratio: 0.7 at first, less with every decode step
//               (down to 0.098 after 600), estimated anew after a retraction. Tried again when a request leaves
//   retraction  where a decode finds no room, the request with the fewest generated tokens (of these the longest
//               prompt) goes to the end of the queue; its prompt stays in the tree, unlocked
//   cap         of running requests: 2,048, the least that SGLang derives where none is given
//   windows     save attention, not memory: all K/V is kept, as SGLang does for models whose layers all have one
// Simplified: with order dfs the queue is matched against the tree as the tree changes instead of anew in every step,
// and requests that end at one node come in order of arrival; what waiting requests match is then evicted after all
// else. Where nothing runs, the next request is admitted if it fits at all. A chunk that finds no room waits, and if
// nothing else is left to give way, all others are retracted; SGLang ends with an error there. Not modelled: the pool
// of their own that layers with a window have in some models, the overlap scheduler's one step of delay, mixed chunks,
// priorities, hierarchical caches.
#pragma once

#include <cstdint>

#include "simulate/radix_queue.h"
#include "simulate/simulation.h"

namespace batchllm {

Simulation simulate_radix(const SimulatedJob& job, const PoolOptions& pool, RadixOrder order,
                          int32_t max_running_requests);

}  // namespace batchllm
