"""Jobs on a model in memory: what `model.generate` gives, from the same weights, and the model as it was afterwards."""

import gc
import importlib

import pytest
import torch
import transformers
from torch import nn

from batchllm import SamplingParams
from batchllm.integrations import transformers as integration
from batchllm.integrations.transformers import generate, lend
from tests.engine import tiny
from tests.engine.architectures import of_architecture, tiny_config

NUM_NEW = 8
SMALL = {"kv_cache_tokens": 4096, "page_size": 4, "max_batch_tokens": 64}
CONVERSATION = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> transformers.PreTrainedTokenizerFast:
    directory = tmp_path_factory.mktemp("tokenizer")
    tiny.save_tokenizer(directory)
    return transformers.PreTrainedTokenizerFast.from_pretrained(directory)


@pytest.fixture
def model() -> transformers.PreTrainedModel:
    return tiny.FAMILIES["llama-tied"].model()


def by_transformers(model, prompts, **settings) -> list[list[int]]:
    """Of each prompt the tokens that `model.generate` adds."""
    settings = {"max_new_tokens": NUM_NEW, "do_sample": False, "pad_token_id": 0} | settings
    answers = [model.generate(torch.tensor([prompt]), **settings)[0].tolist() for prompt in prompts]
    return [answer[len(prompt) :] for prompt, answer in zip(prompts, answers, strict=True)]


def tokens_of(outputs) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in outputs]


@pytest.mark.parametrize(
    "model_type", ["llama", "qwen3", "gemma2", "gpt2", "gpt_oss", "mixtral", "cohere2", "phi3", "opt", "olmo2"]
)
def test_greedy_tokens_are_those_of_model_generate(model_type, tokenizer):
    model = of_architecture(model_type)
    prompts = tiny.shared_prompts(16)
    with lend(model, tokenizer, **SMALL) as llm:
        params = SamplingParams(temperature=0, max_tokens=NUM_NEW)
        ours = tokens_of(llm.generate(prompts, params, use_tqdm=False))
        stats = llm.stats
    assert ours == tokens_of(generate(model, tokenizer, prompts, max_new_tokens=NUM_NEW, **SMALL))
    assert ours == by_transformers(model, prompts)
    assert stats["computed_prompt_tokens"] < 0.5 * stats["prompt_tokens"]


def test_text_tokens_and_conversations_are_prompts(model, tokenizer):
    forms = ["hello", [5, 6, 7], {"prompt": "hi"}, {"prompt_token_ids": [8, 9]}, CONVERSATION]
    chat = tokenizer.apply_chat_template(CONVERSATION, add_generation_prompt=True)["input_ids"]
    ids = [tokenizer("hello")["input_ids"], [5, 6, 7], tokenizer("hi")["input_ids"], [8, 9], chat]
    outputs = generate(model, tokenizer, forms, max_new_tokens=NUM_NEW, **SMALL)
    assert [output.prompt_token_ids for output in outputs] == ids
    assert [output.prompt for output in outputs] == ["hello", None, "hi", None, None]
    assert tokens_of(outputs) == by_transformers(model, ids)
    assert [output.outputs[0].text for output in outputs] == tokenizer.batch_decode(
        tokens_of(outputs), skip_special_tokens=True
    )
    for one, place in (("hello", 0), ([5, 6, 7], 1), (CONVERSATION, 4)):
        (output,) = generate(model, tokenizer, one, max_new_tokens=NUM_NEW, **SMALL)
        assert output.prompt_token_ids == ids[place]


@pytest.mark.parametrize(
    "settings",
    [
        {"eos_token_id": [187, 20, 58]},
        {"eos_token_id": None},
        {"repetition_penalty": 1.7},
        {"max_new_tokens": None, "max_length": 60},
        {"max_new_tokens": None},
        {"min_new_tokens": 5, "eos_token_id": list(range(4, 200))},
        {"max_new_tokens": 6, "min_length": 3, "eos_token_id": 187},
    ],
    ids=", ".join,
)
def test_settings_mean_what_they_mean_to_model_generate(model, tokenizer, settings):
    prompts = [prompt for prompt in tiny.shared_prompts(16) if len(prompt) < 60]
    ours = tokens_of(generate(model, tokenizer, prompts, **{"max_new_tokens": NUM_NEW} | SMALL | settings))
    assert ours == by_transformers(model, prompts, **settings)
    config = transformers.GenerationConfig(**{"max_new_tokens": NUM_NEW} | settings)
    if settings.get("eos_token_id", 0) is not None:  # which is what the model's own configuration fills in
        assert ours == tokens_of(generate(model, tokenizer, prompts, config, **SMALL))


def test_stop_strings_end_a_text_and_stay_in_it(model, tokenizer):
    prompts = [prompt for prompt in tiny.shared_prompts(16)]
    text = generate(model, tokenizer, prompts[:1], max_new_tokens=NUM_NEW, **SMALL)[0].outputs[0].text
    stop = [next(letter for letter in text[1:] if letter.isascii())]
    outputs = generate(model, tokenizer, prompts, max_new_tokens=NUM_NEW, stop_strings=stop, **SMALL)
    assert outputs[0].outputs[0].text == text[: text.index(stop[0]) + 1]
    assert tokens_of(outputs) == by_transformers(model, prompts, stop_strings=stop, tokenizer=tokenizer)


def test_samples_are_torch_s_seed_s(model, tokenizer):
    def samples(**settings):
        (output,) = generate(
            model, tokenizer, [[5, 6, 7]], do_sample=True, num_return_sequences=4, max_new_tokens=6, **SMALL | settings
        )
        return [sample.token_ids for sample in output.outputs]

    torch.manual_seed(0)
    first, second = samples(), samples()
    torch.manual_seed(0)
    assert first == samples() != second
    assert samples(seed=3) == samples(seed=3)
    (greedy,) = by_transformers(model, [[5, 6, 7]], max_new_tokens=6, eos_token_id=None)
    assert samples(top_k=1, eos_token_id=None) == samples(top_p=1e-6, eos_token_id=None) == [greedy] * 4


def storages() -> dict[int, int]:
    """Bytes, by address, of what tensors there are."""
    gc.collect()
    kinds = (torch.Tensor, torch.nn.Parameter)  # and no other, such as tensors of torch.compile, which have no storage
    tensors = [item for item in gc.get_objects() if type(item) in kinds and item.device.type == "cpu"]
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}


def test_the_weights_are_in_memory_once(tokenizer):
    config = tiny.SIZES | {"hidden_size": 256, "intermediate_size": 512}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config)).eval()
    weights = sum(parameter.nbytes for parameter in model.parameters())
    before = storages()
    places = {name: tensor.data_ptr() for name, tensor in model.state_dict(keep_vars=True).items()}
    with lend(model, tokenizer, **SMALL) as llm:
        llm.generate(tiny.shared_prompts(8), SamplingParams(max_tokens=2), use_tqdm=False)
        assert {name: tensor.data_ptr() for name, tensor in model.state_dict(keep_vars=True).items()} == places
        pool = llm.engine.kv_cache.k_pages[0].untyped_storage().data_ptr()
        new = {place: size for place, size in storages().items() if place not in before and place != pool}
    assert sum(new.values()) < 0.02 * weights


def state(model: nn.Module) -> list[tuple]:
    """All that could have become different."""
    return [
        (
            name,
            id(module),
            type(module),
            module.training,
            getattr(getattr(module, "config", None), "_attn_implementation", None),
            sorted(vars(module)),
            [id(hook) for hooks in (module._forward_hooks, module._forward_pre_hooks) for hook in hooks.values()],
            [(name, id(tensor), tensor._version) for name, tensor in module.named_buffers(recurse=False)],
            [(name, id(tensor), tensor._version) for name, tensor in module.named_parameters(recurse=False)],
        )
        for name, module in model.named_modules()
    ]


class Broken(RuntimeError):
    pass


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("ends", ["well", "by an exception", "by Ctrl-C", "by a refusal"])
def test_the_model_comes_back_as_it_was(tokenizer, ends, attention):
    model = of_architecture("gemma3_text", attn_implementation=attention)
    model.set_attn_implementation(attention)
    model.train()
    model.model.layers[0].eval()
    passes = []
    hook = model.model.layers[1].register_forward_hook(lambda *_: passes.append(1))
    before = state(model)
    prompts = tiny.shared_prompts(8)
    if ends == "well":
        generate(model, tokenizer, prompts, max_new_tokens=2, **SMALL)
        assert passes
    elif ends == "by an exception":

        def fail(*_):
            if len(passes) > 12:  # in the midst of the job
                raise Broken

        failing = model.model.layers[2].register_forward_pre_hook(fail)
        with pytest.raises(Broken):
            generate(model, tokenizer, prompts, max_new_tokens=NUM_NEW, **SMALL)
        failing.remove()
    elif ends == "by Ctrl-C":

        class Bar:
            def update(self, _):
                raise KeyboardInterrupt

            def set_postfix_str(self, _): ...
            def close(self): ...

        with pytest.raises(KeyboardInterrupt):
            generate(model, tokenizer, prompts, max_new_tokens=2, use_tqdm=lambda **_: Bar(), **SMALL)
    else:
        with pytest.raises(ValueError, match=r"prompt 1: .* kv_cache_tokens=4 "):
            generate(model, tokenizer, prompts, max_new_tokens=2, **SMALL | {"kv_cache_tokens": 4})
    assert state(model) == before
    hook.remove()
    model(input_ids=torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]])).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_model_in_bfloat16_scores_as_it_does_itself(tokenizer):
    model = of_architecture("gemma2").bfloat16()
    prompts, continuation = tiny.shared_prompts(6), [20, 58, 187]
    with lend(model, tokenizer, **SMALL) as llm:
        assert llm.dtype == torch.bfloat16
        ours = [score.logprobs for (score,) in llm.score(prompts, [continuation])]
    for prompt, logprobs in zip(prompts, ours, strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + continuation])).logits[0, len(prompt) - 1 : -1]
        theirs = torch.log_softmax(logits.float(), dim=-1).gather(1, torch.tensor(continuation)[:, None])[:, 0]
        assert logprobs == pytest.approx(theirs.tolist(), abs=0.3)


def test_a_model_in_training_answers_without_dropout(tokenizer):
    model = of_architecture("gpt2", resid_pdrop=0.5, attn_pdrop=0.5, embd_pdrop=0.5)
    prompts = tiny.shared_prompts(6)
    expected = by_transformers(model, prompts)
    assert tokens_of(generate(model.train(), tokenizer, prompts, max_new_tokens=NUM_NEW, **SMALL)) == expected


def test_what_is_lent_is_used_in_its_block_alone(model, tokenizer):
    with lend(model, tokenizer, **SMALL) as llm:
        (scores,) = llm.score(["hello"], [" you", " there"])
        assert len(scores) == 2
        with pytest.raises(ValueError, match="LlamaForCausalLM: its attention is already 'batchllm'"):
            generate(model, tokenizer, [[5]], **SMALL)
    with pytest.raises(RuntimeError, match="the model has been given back"):
        llm.generate([[5, 6]], use_tqdm=False)


class Int8Linear(nn.Linear):
    """As packages of few bits write them: another weight, and its own forward."""

    @classmethod
    def of(cls, linear: nn.Linear) -> "Int8Linear":
        own = cls(linear.in_features, linear.out_features, linear.bias is not None)
        own.bias = linear.bias
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        own.weight = nn.Parameter((linear.weight.detach() / scale).round().to(torch.int8), requires_grad=False)
        own.register_buffer("scale", scale)
        return own

    def forward(self, x):
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


class LoraLinear(nn.Module):
    """A layer wrapped as adapters wrap it."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer
        generator = torch.Generator().manual_seed(0)
        self.a = nn.Parameter(torch.randn(2, base_layer.in_features, generator=generator))
        self.b = nn.Parameter(0.1 * torch.randn(base_layer.out_features, 2, generator=generator))

    def forward(self, x):
        return self.base_layer(x) + x @ self.a.T @ self.b.T


@pytest.mark.parametrize("wrap", [Int8Linear.of, LoraLinear], ids=["int8", "lora"])
def test_linear_modules_of_others_run_by_their_own_forward(model, tokenizer, wrap):
    prompts = tiny.shared_prompts(10)
    plain = by_transformers(model, prompts)
    for module in list(model.model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                setattr(module, name, wrap(child))
    expected = by_transformers(model, prompts)
    assert tokens_of(generate(model, tokenizer, prompts, max_new_tokens=NUM_NEW, **SMALL)) == expected != plain


def test_a_module_that_looks_at_the_row_before_is_refused(model, tokenizer):
    class Shifted(nn.Linear):
        def forward(self, x):
            return super().forward(x + 0.5 * x.roll(1, dims=1))

    own = model.model.layers[0].mlp.down_proj
    own.__class__ = Shifted
    before = state(model)
    with pytest.raises(ValueError, match="LlamaForCausalLM: sequences that are packed get other logits than each alo"):
        generate(model, tokenizer, [[5]], **SMALL)
    assert state(model) == before


def test_a_module_that_fails_is_refused_with_what_it_said(model, tokenizer):
    class Failing(nn.Linear):
        def forward(self, x):
            raise NotImplementedError("needs a GPU")

    model.model.layers[0].mlp.down_proj.__class__ = Failing
    with pytest.raises(ValueError, match=r"^architecture LlamaForCausalLM: NotImplementedError: needs a GPU$"):
        generate(model, tokenizer, [[5]], **SMALL)


def refused_models():
    llama = tiny.FAMILIES["llama"]
    falcon = transformers.AutoModelForCausalLM.from_config(tiny_config("falcon", new_decoder_architecture=True))
    with torch.device("meta"):
        on_meta = transformers.LlamaForCausalLM(transformers.LlamaConfig(**tiny.SIZES))
    own = type("OwnForCausalLM", (transformers.LlamaPreTrainedModel,), {})
    other = own(transformers.LlamaConfig(**tiny.SIZES))
    other.unused = nn.Linear(2, 2)
    return {
        "own attention": (falcon, "FalconForCausalLM|falcon .*does not run by the modules of transformers"),
        "float16": (llama.model().half(), "LlamaForCausalLM: dtype: expected float32 or bfloat16, got float16"),
        "no weights": (on_meta, "LlamaForCausalLM runs on a CPU alone, and its weights are on meta"),
        "own class": (other, "OwnForCausalLM does not run: transformers .* makes a LlamaForCausalLM of its config"),
    }


@pytest.mark.parametrize(("refused", "message"), refused_models().values(), ids=refused_models())
def test_a_model_that_does_not_run_is_refused_by_name(tokenizer, refused, message):
    before = state(refused)
    with pytest.raises(ValueError, match=message):
        generate(refused, tokenizer, [[5]], **SMALL)
    assert state(refused) == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 4}, "^num_beams: no setting of BatchLLM, got 4$"),
        ({"no_repeat_ngram_size": 2}, "^no_repeat_ngram_size: no setting"),
        ({"output_scores": True}, "^output_scores: no setting"),
        ({"logits_processor": []}, r"^logits_processor: no setting of BatchLLM, got \[\]$"),
        ({"max_length": 3}, "^prompt 1: max_length: 3, and the prompt has 4 tokens$"),
        ({"temperature": -1.0, "do_sample": True}, "^prompt 0: temperature: expected a number >= 0"),
    ],
    ids=lambda item: next(iter(item)) if isinstance(item, dict) else "",
)
def test_settings_that_cannot_be_kept_are_refused(model, tokenizer, settings, message):
    with pytest.raises(ValueError, match=message):
        generate(model, tokenizer, [[5, 6], [5, 6, 7, 8]], **SMALL | settings)


def test_what_is_no_model_or_tokenizer_or_option_is_told(model, tokenizer):
    with (
        pytest.raises(TypeError, match=r"^model: expected a PreTrainedModel of transformers, got Linear$"),
        lend(nn.Linear(2, 2), tokenizer),
    ):
        pass
    with pytest.raises(TypeError, match=r"^tokenizer: expected one of transformers, got str$"), lend(model, "smollm"):
        pass
    with (
        pytest.raises(ValueError, match=r"^dtype: expected an option among levels, "),
        lend(model, tokenizer, dtype="float32"),
    ):
        pass
    with pytest.raises(ValueError, match=r"^prompt 1: messages"):
        generate(model, tokenizer, ["a", [{"role": "user", "content": 3}]], **SMALL)


def test_a_version_of_transformers_that_nobody_tried_is_refused(monkeypatch):
    monkeypatch.setattr("batchllm.integrations.requirement.version", lambda _: "6.1.0")
    with pytest.raises(ImportError, match=r"knows transformers >=5.20.2,<5.25, found 6.1.0: pip install 'transformers"):
        importlib.reload(integration)
