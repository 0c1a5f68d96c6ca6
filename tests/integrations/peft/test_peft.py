"""A model in memory with adapters of PEFT answers as PEFT has it answer."""

import peft
import pytest
import torch
import transformers

from batchllm.integrations.transformers import generate
from tests.engine import tiny
from tests.integrations.test_transformers import NUM_NEW, SMALL, by_transformers, state, tokens_of


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> transformers.PreTrainedTokenizerFast:
    directory = tmp_path_factory.mktemp("tokenizer")
    tiny.save_tokenizer(directory)
    return transformers.PreTrainedTokenizerFast.from_pretrained(directory)


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"lora_dropout": 0.5}], ids=["lora", "dora", "dropout"])
def test_adapters_answer_as_in_peft(tokenizer, settings):
    prompts = tiny.shared_prompts(10)
    plain = by_transformers(tiny.FAMILIES["llama"].model(), prompts)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", target_modules="all-linear", r=2, init_lora_weights=False, **settings
    )
    torch.manual_seed(0)
    model = peft.get_peft_model(tiny.FAMILIES["llama"].model(), config)
    with model.disable_adapter():
        assert tokens_of(generate(model, tokenizer, prompts, max_new_tokens=NUM_NEW, **SMALL)) == plain
    expected = by_transformers(model.eval(), prompts)
    model.train()
    before = state(model)
    assert tokens_of(generate(model, tokenizer, prompts, max_new_tokens=NUM_NEW, **SMALL)) == expected != plain
    assert state(model) == before


def test_prompts_that_are_learned_are_refused(tokenizer):
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(tiny.FAMILIES["llama"].model(), config)
    with pytest.raises(ValueError, match=r"^PeftModelForCausalLM: learned prompts are not supported, only adapters"):
        generate(model, tokenizer, [[5]], **SMALL)
