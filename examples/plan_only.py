"""The planner by itself, for your own engine; it needs only NumPy: python examples/plan_only.py"""

import numpy as np

import batchllm_ext as ext

rng = np.random.default_rng(0)
documents = [rng.integers(0, 1000, 300) for _ in range(4)]
prompts = [np.concatenate([document, rng.integers(0, 1000, 20)]) for document in documents for _ in range(8)]
rng.shuffle(prompts)
tokens = np.concatenate(prompts).astype(np.int32)
indptr = np.cumsum([0, *map(len, prompts)])

segments = ext.choose_segments(ext.PrefixTrie(tokens, indptr, drop_last=1), reader_cost=2)
bounds = np.full(len(prompts), 16, np.int32)
planner = ext.BatchPlanner(tokens, indptr, segments, max_output_tokens=bounds, num_pages=128)
num_steps = 0
while (batch := planner.next_batch()) is not None:
    sampled = np.zeros(len(batch.logit_rows), np.int32)  # what a model draws for batch.logit_rows
    planner.commit(sampled)
    num_steps += 1

stats = planner.stats
print(f"{stats['prompt_tokens']} prompt tokens, of which {stats['computed_prompt_tokens']} are computed")
print(f"{num_steps} steps, at most {stats['peak_pages']} of {stats['num_pages']} KV pages")
