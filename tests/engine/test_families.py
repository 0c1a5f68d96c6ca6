"""Every supported architecture against transformers, on tiny models whose every weight is drawn."""

import random

import pytest
import torch
from transformers import AutoModelForCausalLM

from batchllm import LLM
from tests.engine import tiny
from tests.engine.teacher import assert_logits_agree, our_logits, transformers_logits

TOLERANCE = 1e-4


def job(seed: int = 0) -> tuple[list[list[int]], list[list[int]]]:
    """12 prompts of 3 to 120 tokens over two levels of sharing, and a continuation for each."""
    generator = random.Random(seed)

    def ids(count: int) -> list[int]:
        return [generator.randrange(tiny.NUM_SPECIAL, tiny.VOCAB_SIZE) for _ in range(count)]

    root = ids(20)
    branches = [root + ids(50), root + ids(30)]
    prompts = [branch + ids(length) for branch in branches for length in (1, 9, 50)]
    prompts += [list(root), list(root), branches[0][:33], ids(3), ids(120), [*branches[1], 7]]
    generator.shuffle(prompts)
    return prompts, [ids(4) for _ in prompts]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_logits_equal_transformers(tiny_model, family):
    directory = tiny_model(family)
    reference = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    prompts, continuations = job()
    theirs = transformers_logits(reference, prompts, continuations)
    ours = our_logits(LLM(directory, dtype="float32", page_size=4, max_batch_tokens=64), prompts, continuations)
    assert_logits_agree(ours, theirs, TOLERANCE)


def test_shards_give_the_same_logits_as_one_file(tiny_model, tmp_path):
    sharded = tiny.save(tiny.FAMILIES["llama"].model(), tmp_path / "sharded", max_shard_size="20KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    prompts, continuations = job()
    ours = [our_logits(LLM(path, dtype="float32"), prompts, continuations) for path in (sharded, tiny_model("llama"))]
    for one, other in zip(*ours, strict=True):
        assert torch.equal(one, other)
