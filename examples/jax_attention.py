"""Our planner and kernels under JAX, by DLPack: 8 questions on one document in one step, inside jax.jit."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

import batchllm_ext as ext

num_qo_heads, num_kv_heads, head_dim, page_size = 8, 2, 64, 16

rng = np.random.default_rng(0)
document = rng.integers(0, 1000, 200)
prompts = [np.concatenate([document, rng.integers(0, 1000, 10)]) for _ in range(8)]
tokens, indptr = np.concatenate(prompts).astype(np.int32), np.cumsum([0, *map(len, prompts)])
segments = ext.choose_segments(ext.PrefixTrie(tokens, indptr, drop_last=1), reader_cost=2)
bounds = np.full(len(prompts), 1, np.int32)
planner = ext.BatchPlanner(tokens, indptr, segments, max_output_tokens=bounds, num_pages=64, page_size=page_size)
batch = planner.next_batch()
plan = ext.plan_attention(
    batch, num_qo_heads=num_qo_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, page_size=page_size
)
# JAX's arrays are immutable, so the pool of KV pages is NumPy's.
k_pages, v_pages = np.zeros((2, 64, page_size, num_kv_heads, head_dim), np.float32)


def append_and_attend(q: jax.Array, k: jax.Array, v: jax.Array) -> np.ndarray:
    ext.append_kv(k, v, batch.slots, k_pages, v_pages)
    return ext.attention(plan, q, k_pages, v_pages)[0]


@jax.jit
def layer(x: jax.Array) -> jax.Array:
    q, k, v = jnp.split(x, [num_qo_heads, num_qo_heads + num_kv_heads], axis=1)
    return io_callback(append_and_attend, jax.ShapeDtypeStruct(q.shape, q.dtype), q, k, v, ordered=True)


x = jax.random.normal(jax.random.key(0), (batch.num_tokens, num_qo_heads + 2 * num_kv_heads, head_dim))
print(f"{len(tokens)} prompt tokens, attention of {batch.num_tokens} rows:", layer(x).shape)
