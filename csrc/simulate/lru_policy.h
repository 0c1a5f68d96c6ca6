// First come, first served over a cache of hashed KV blocks with LRU eviction: like vLLM's V1 engine.
//
// Modelled, after its scheduler, KV cache manager and block pool:
//   a step      running requests in order of admission (one token each, or the next chunk of their prefill), then
//               waiting ones, under max_batch_tokens and max_num_seqs. The first that finds no blocks ends it
//   blocks      are taken only for the tokens of this step; a block can be found once it is full, even in that step
//   lookup      when a request is admitted: full blocks of its tokens from the first to the first miss, and never the
//               last token, whose logits are needed
//   preemption  if a running request finds no block, the one admitted last gives its blocks back and waits at the
//               front; a step that preempts admits no request. On return it may find its own blocks again
//   eviction    blocks without users wait in a queue, a request's last block first; a request that needs a block takes
//               the oldest
//   windows     where every layer has one, a request gives back the blocks that no later row of it sees before it takes
//               others; they can still be found. A lookup then needs only the blocks that the next row sees, and takes
//               the longest prefix for which they are there
// Not modelled: what vLLM frees if only some layers have a window, speculative decoding, KV connectors, the block that
// it keeps for padding, its optional watermark, and the asynchronous scheduler's one step of delay.
#pragma once

#include <cstdint>

#include "simulate/simulation.h"

namespace batchllm {

// is_sorted: requests arrive in lexicographic order of their prompts instead of by id.
Simulation simulate_lru(const SimulatedJob& job, const PoolOptions& pool, int32_t max_num_seqs, bool is_sorted);

}  // namespace batchllm
