"""vLLM with our attention answers like vLLM with its own, and reads the common beginnings of a step's requests once."""

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import vllm
from vllm import SamplingParams
from vllm.v1.attention.backends.cpu_attn import CPUAttentionMetadataBuilder

import batchllm_ext as ext
from batchllm.integrations.vllm_attention import SharedAttention, StepPlanner, span_arrays
from tests.engine import tiny

BLOCK_SIZE = 32
WORKER = "batchllm.integrations.vllm_attention.SharedAttentionWorker"
SIZES = {"hidden_size": 128, "head_dim": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
FAMILIES = {
    "llama": tiny.Family("Llama", SIZES),
    "mistral-window": tiny.Family("Mistral", SIZES | {"sliding_window": 40}),
}


def load(directory: Path, **options: Any) -> vllm.LLM:
    return vllm.LLM(
        str(directory),
        enforce_eager=True,
        block_size=BLOCK_SIZE,
        kv_cache_memory_bytes=1 << 26,
        max_model_len=tiny.MAX_MODEL_LEN,
        max_num_batched_tokens=100,  # so that prompts come in chunks
        seed=0,
        **{"dtype": "float32"} | options,
    )


def job() -> list[dict[str, Any]]:
    """Two levels of prefixes that end inside a block, duplicates, and a loner."""
    generator = random.Random(0)

    def text(length: int) -> list[int]:
        return [generator.randrange(tiny.NUM_SPECIAL, tiny.VOCAB_SIZE) for _ in range(length)]

    system = text(70)
    documents = [system + text(length) for length in (90, 33)]
    prompts = [document + text(length) for document in documents for length in (1, 9, 40)]
    return [{"prompt_token_ids": prompt} for prompt in [*prompts, prompts[0], documents[0][:96], text(5)]]


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_those_of_vllms_own_attention(family, tmp_path, monkeypatch):
    tiny.save(FAMILIES[family].model(), tmp_path)
    tiny.save_tokenizer(tmp_path)
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, logprobs=1)
    expected = load(tmp_path).generate(job(), params, use_tqdm=False)

    readers = []
    forward = SharedAttention.forward

    def counted(self: SharedAttention, *args: Any, **kwargs: Any) -> Any:
        metadata = args[5]
        if metadata is not None:
            readers.append(np.diff(metadata.spans[2]).max())  # links of a span: two shared prefixes and its own part
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(SharedAttention, "forward", counted)
    answers = load(tmp_path, worker_cls=WORKER).generate(job(), params, use_tqdm=False)
    assert max(readers) == 3
    for answer, wanted in zip(answers, expected, strict=True):
        assert answer.outputs[0].token_ids == wanted.outputs[0].token_ids
        assert answer.outputs[0].cumulative_logprob == pytest.approx(wanted.outputs[0].cumulative_logprob, abs=1e-3)

    readers.clear()  # and a model that is loaded without the worker has vLLM's own again
    load(tmp_path).generate(job()[:1], params, use_tqdm=False)
    assert readers == []


def test_a_step_as_spans():
    """Requests of 70, 40 and 64 tokens, the last one of each new: the first two begin with one block, of 32 tokens."""
    table = np.array([[7, 2, 5], [7, 3, 0], [1, 4, 0]], np.int32)
    arrays = span_arrays(np.array([0, 1, 2, 3], np.int32), np.array([70, 40, 64], np.int32), table, 32)
    links_of_span, links, pages_of_segment, pages, begin, num_tokens = arrays[2:]
    assert [array.tolist() for array in arrays[:2]] == [[0, 1, 2, 3], [69, 39, 63]]
    assert links_of_span.tolist() == [0, 2, 4, 5]
    assert links.tolist() == [0, 1, 0, 2, 3]
    assert pages_of_segment.tolist() == [0, 1, 3, 4, 6]
    assert pages.tolist() == [7, 2, 5, 3, 1, 4]
    assert (begin.tolist(), num_tokens.tolist()) == ([0, 32, 32, 0], [32, 38, 8, 64])


@pytest.mark.parametrize("seed", range(20))
def test_a_step_reads_what_each_request_s_blocks_hold(seed):
    """By the reference: over shared segments as over every request's blocks by themselves; the rest is NaN."""
    rng = np.random.default_rng(seed)
    free = rng.permutation(60).astype(np.int32)
    top, documents, own = free[:2], free[2:8].reshape(2, 3), free[8:48].reshape(8, 5)
    table = np.zeros((8, 5), np.int32)
    for request in range(8):
        prefix = np.concatenate((top, documents[rng.integers(2)]))[: rng.integers(6)]
        table[request] = np.concatenate((prefix, own[request]))[:5]
    seq_lens = rng.integers(1, 5 * 4 + 1, 8).astype(np.int32)
    num_rows = rng.integers(1, np.minimum(seq_lens, 4) + 1)
    starts = np.concatenate(([0], np.cumsum(num_rows))).astype(np.int32)
    num_blocks = -(-seq_lens // 4)
    each = np.arange(8, dtype=np.int32)
    alone = (
        *(starts, (seq_lens - num_rows).astype(np.int32), np.append(each, 8).astype(np.int32), each),
        np.concatenate(([0], np.cumsum(num_blocks))).astype(np.int32),
        np.concatenate([row[:count] for row, count in zip(table, num_blocks, strict=True)]),
        *(np.zeros(8, np.int32), seq_lens),
    )
    k_pages, v_pages = np.full((2, 60, 4, 1, 8), np.nan, np.float32)
    for row, length in zip(table, seq_lens.tolist(), strict=True):
        for position in range(length):
            k_pages[row[position // 4], position % 4] = rng.standard_normal((1, 8))
            v_pages[row[position // 4], position % 4] = rng.standard_normal((1, 8))
    q = rng.standard_normal((starts[-1], 2, 8)).astype(np.float32)
    out, lse = ext.attention_ref(*span_arrays(starts, seq_lens, table, 4), q, k_pages, v_pages)
    expected_out, expected_lse = ext.attention_ref(*alone, q, k_pages, v_pages)
    np.testing.assert_allclose(out, expected_out, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("options", "got"), [({"kv_cache_dtype": "fp8"}, "8 bits"), ({"dtype": "float16"}, "float16")])
def test_kv_that_our_kernel_does_not_read_is_refused(tmp_path, options, got):
    tiny.save(tiny.Family("Llama", SIZES).model(), tmp_path)
    tiny.save_tokenizer(tmp_path)
    with pytest.raises(NotImplementedError, match=f"takes KV in float32 or bfloat16, got .*{got}"):
        load(tmp_path, worker_cls=WORKER, **options)


@pytest.mark.parametrize("fields", [{"causal": False, "dynamic_causal": None}, {"causal": True, "dynamic_causal": 1}])
def test_a_step_that_is_not_causal_is_refused(monkeypatch, fields):
    monkeypatch.setattr(CPUAttentionMetadataBuilder, "build", lambda *args: SimpleNamespace(**fields))
    with pytest.raises(NotImplementedError, match="is causal, and this step's is not"):
        StepPlanner.__new__(StepPlanner).build(0, None)
