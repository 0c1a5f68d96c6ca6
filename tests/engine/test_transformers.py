"""Models by transformers' own modules against transformers, and what they must be refused for."""

import random
from logging import Logger
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.models.gemma2.modeling_gemma2 import Gemma2MLP
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

from batchllm import LLM, SamplingParams
from batchllm.device.int8 import segments_of
from batchllm.models.backend import describe_model
from batchllm.models.layer_spec import widest_window
from tests.engine import tiny
from tests.engine.architectures import NUM_LAYERS, TESTED, TESTED_IN_FULL, WINDOW, of_architecture, tiny_config
from tests.engine.gguf_models import write_gguf
from tests.engine.put_in_8_bits import put_in_8_bits
from tests.engine.quantized_models import gptq, save_quantized
from tests.engine.teacher import (
    assert_greedy_agrees,
    assert_logits_agree,
    our_logits,
    plan_for_short_outputs,
    transformers_logits,
)

pytestmark = pytest.mark.usefixtures("one_thread")

TOLERANCE = 1e-4
NUM_OUTPUT = WINDOW + 2
ARCHITECTURES = [*TESTED, *(pytest.param(name, marks=pytest.mark.full) for name in TESTED_IN_FULL)]
OPTIONS = {"dtype": "float32", "page_size": 2, "max_batch_tokens": 48, "kv_cache_tokens": 1024}


def ids(generator: random.Random, count: int) -> list[int]:
    return [generator.randrange(tiny.NUM_SPECIAL, tiny.VOCAB_SIZE) for _ in range(count)]


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """Under a prefix of 2.5 windows two of 1.5 more, each with questions below and above a window; and loners."""
    generator = random.Random(0)
    root = ids(generator, 5 * WINDOW // 2)
    branches = [root + ids(generator, 3 * WINDOW // 2) for _ in range(2)]
    prompts = [branch + ids(generator, length) for branch in branches for length in (1, WINDOW - 1, WINDOW + 1)]
    prompts += [ids(generator, length) for length in (3, 4 * WINDOW)]
    generator.shuffle(prompts)
    return prompts


@pytest.fixture(scope="module")
def continuations(prompts) -> list[list[int]]:
    generator = random.Random(1)
    return [ids(generator, NUM_OUTPUT) for _ in prompts]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request):
    return of_architecture(request.param)


@pytest.fixture(scope="module")
def directory(model, tmp_path_factory) -> Path:
    return tiny.save(model, tmp_path_factory.mktemp(model.config.model_type) / "model")


@pytest.fixture(scope="module")
def theirs(model, prompts, continuations) -> list[torch.Tensor]:
    return transformers_logits(model, prompts, continuations)


@pytest.mark.parametrize("levels", [None, 0], ids=["shared", "unshared"])
def test_logits_equal_transformers(directory, prompts, continuations, theirs, levels):
    llm = LLM(directory, backend="transformers", levels=levels, **OPTIONS)
    assert llm.backend == "transformers"
    assert_logits_agree(our_logits(llm, prompts, continuations), theirs, TOLERANCE)


def test_preempted_requests_get_the_same_logits(directory, prompts, continuations, theirs, monkeypatch):
    planners = plan_for_short_outputs(monkeypatch)
    slides = widest_window(describe_model(directory, "transformers").attention_kinds) >= 0
    pool = {"kv_cache_tokens": 2 * (max(map(len, prompts)) + NUM_OUTPUT)}
    if slides:  # what it drops takes no room
        pool = {"kv_cache_tokens": 6 * WINDOW, "max_batch_tokens": 2 * WINDOW}
    llm = LLM(directory, backend="transformers", **OPTIONS | pool)
    ours = our_logits(llm, prompts, continuations)
    assert planners[-1].stats["preemptions"] > 0
    assert_logits_agree(ours, theirs, TOLERANCE)


def test_greedy_tokens_equal_transformers(tmp_path, prompts):
    model = of_architecture("gemma2")
    llm = LLM(tiny.save(model, tmp_path / "model"), **OPTIONS)
    params = SamplingParams(temperature=0, max_tokens=NUM_OUTPUT, ignore_eos=True)
    outputs = [output.outputs[0].token_ids for output in llm.generate(prompts, params, use_tqdm=False)]
    theirs = transformers_logits(model, prompts, outputs)
    assert assert_greedy_agrees(outputs, theirs, TOLERANCE) > 0.9 * len(prompts) * NUM_OUTPUT
    stats = llm.stats
    assert stats["computed_prompt_tokens"] < stats["prompt_tokens"]


def test_bfloat16_is_within_twice_the_error_of_transformers(tmp_path, prompts, continuations):
    model = of_architecture("gemma2")
    exact = torch.cat(transformers_logits(model, prompts, continuations))
    llm = LLM(tiny.save(model, tmp_path / "model"), **OPTIONS | {"dtype": "bfloat16"})
    ours = torch.cat(our_logits(llm, prompts, continuations))
    theirs = torch.cat(transformers_logits(model.bfloat16(), prompts, continuations))
    assert (ours - exact).square().mean() <= 4 * (theirs - exact).square().mean()


@pytest.mark.parametrize("family", ["llama", "qwen3-window", "smollm3-tied"])
def test_both_backends_give_the_same(tiny_model, prompts, continuations, family):
    directory = tiny_model(family)
    native, theirs = (
        our_logits(LLM(directory, backend=backend, **OPTIONS), prompts, continuations)
        for backend in ("native", "transformers")
    )
    assert_logits_agree(theirs, native, TOLERANCE)


def test_auto_takes_the_native_decoder_where_there_is_one(tiny_model, tmp_path):
    native = tiny_model("llama")
    other = tiny.copy_with(native, tmp_path / "gelu", hidden_act="gelu")
    assert [describe_model(directory).backend for directory in (native, other)] == ["native", "transformers"]
    assert LLM(other, dtype="float32").generate([[5, 6]], use_tqdm=False)
    with pytest.raises(ValueError, match="hidden_act: expected silu, got gelu"):
        LLM(other, backend="native")


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 3.0, 4.0, 5.0],
}
ROTATIONS = {
    "partial": ("gpt_neox", {"partial_rotary_factor": 0.5}),
    "yarn": ("olmo2", {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}),
    "dynamic": ("olmo2", {"rope_type": "dynamic", "factor": 4.0}),
    "longrope": ("phi3", LONGROPE),
}


@pytest.mark.parametrize(("model_type", "rotation"), ROTATIONS.values(), ids=ROTATIONS)
def test_rotations_equal_transformers_to_the_longest_context(tmp_path, model_type, rotation):
    """Also next to rows at later positions."""
    rope = {"rope_type": "default", "rope_theta": 10000.0} | rotation
    lengths = {"original_max_position_embeddings": 32, "max_position_embeddings": 64}
    model = of_architecture(model_type, rope_parameters=rope, **lengths)
    llm = LLM(tiny.save(model, tmp_path / "model"), **OPTIONS)
    assert llm.max_model_len == (32 if rotation is LONGROPE else 64)
    generator = random.Random(2)
    root = ids(generator, 20)
    prompts = [root + ids(generator, length) for length in (1, 9, llm.max_model_len - 24)]
    continuations = [ids(generator, 4) for _ in prompts]
    theirs = transformers_logits(model, prompts, continuations)
    assert_logits_agree(our_logits(llm, prompts, continuations), theirs, TOLERANCE)
    with pytest.raises(ValueError, match=str(llm.max_model_len)):
        llm.generate([[5] * (llm.max_model_len + 1)], use_tqdm=False)


# By model_type, with its settings and why it does not run.
REFUSED = {
    "falcon": (
        {"new_decoder_architecture": True},
        "FalconForCausalLM.*does not call transformers' attention interface",
    ),
    "bloom": ({}, "BloomForCausalLM.*0 of its 4 layers call transformers' attention interface"),
    "mpt": (
        {"d_model": 32, "n_heads": 4, "n_layers": 2},
        "MptForCausalLM.*does not call transformers' attention interf",
    ),
    "lfm2": ({"layer_types": ["conv", "full_attention"] * 2}, "Lfm2ForCausalLM.*has layers of type conv"),
    "qwen3_next": ({}, "Qwen3NextForCausalLM.*has layers of type linear_attention"),
    "granitemoehybrid": (
        {"layer_types": ["attention", "mamba"] * 2, "mamba_n_heads": 8, "mamba_d_head": 8},
        "GraniteMoeHybridForCausalLM.*has layers of type linear_attention",
    ),
    "llama4_text": (
        {"layer_types": ["chunked_attention"] * 3 + ["full_attention"]},
        "Llama4ForCausalLM.*has layers of type chunked_attention",
    ),
    "deepseek_v3": (
        {"kv_lora_rank": 8, "q_lora_rank": None, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6}
        | {"num_key_value_heads": 4, "head_dim": 4, "n_routed_experts": 4, "n_group": 1, "topk_group": 1},
        "DeepseekV3ForCausalLM.*the heads of its queries, keys and values differ in size",
    ),
    "phimoe": ({}, "PhimoeForCausalLM.*its attention is not told its window of 8 positions"),
    "qwen2_moe": (
        {"use_sliding_window": True, "max_window_layers": 2},
        "Qwen2MoeForCausalLM.*its attention is not told its window of 8 positions",
    ),
    "mamba": ({}, "MambaForCausalLM.*does not run by the modules of transformers"),
}


@pytest.mark.parametrize(("model_type", "why"), REFUSED.items(), ids=REFUSED)
def test_what_the_modules_cannot_run_is_refused_by_name(tmp_path, model_type, why):
    settings, message = why
    config = tiny_config(model_type, **settings)
    config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]]
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"^{tmp_path}/config.json: architecture {message}") as error:
        LLM(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["NoSuchForCausalLM"], "model_type": "no_such"},
            "NoSuchForCausalLM .*: it is no causal lang",
        ),
        ({"architectures": ["\x1b[2J"]}, r"\\x1b\[2J .*: of llama models the package has LlamaForCausalLM"),
        ({"architectures": ["LlamaForSequenceClassification"]}, ".* of llama models the package has LlamaForCausalLM"),
        ({"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "hidden_size": "wide"}, ".*hidden_size"),
        ({"architectures": ["BartForCausalLM"], "model_type": "bart"}, "BartForCausalLM does not run"),
        ({"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3"}, ".*no decoder of text alone"),
    ],
    ids=str,
)
def test_what_is_no_model_of_transformers_is_refused_by_name(tiny_model, tmp_path, changes, message):
    directory = tiny.copy_with(tiny_model("llama"), tmp_path / "model", **changes)
    with pytest.raises(ValueError, match=f"^{directory}/config.json: architecture {message}"):
        LLM(directory, backend="transformers")


def test_a_module_that_looks_at_the_row_before_is_refused(tmp_path, monkeypatch):
    """Which no look at the configuration, and no count of calls, would tell."""
    directory = tiny.save(of_architecture("gemma2"), tmp_path / "model")
    forward = Gemma2MLP.forward
    monkeypatch.setattr(Gemma2MLP, "forward", lambda mlp, x: forward(mlp, x + 0.5 * x.roll(1, dims=1)))
    with pytest.raises(
        ValueError, match="Gemma2ForCausalLM: sequences that are packed get other logits than each alone"
    ):
        LLM(directory, **OPTIONS)


def test_a_module_that_reads_the_elements_of_a_weight_is_refused(tmp_path, monkeypatch):
    """The weights of ours have another layout."""
    directory = tiny.save(of_architecture("gemma2"), tmp_path / "model")
    forward = Gemma2MLP.forward
    monkeypatch.setattr(Gemma2MLP, "forward", lambda mlp, x: forward(mlp, x) * mlp.up_proj.weight[0, 0])
    with pytest.raises(ValueError, match=f"^{directory}: architecture Gemma2ForCausalLM: .*meta"):
        LLM(directory, **OPTIONS)


@pytest.mark.parametrize("name", ["auto_map", "attn_implementation", "_attn_implementation", "experts_implementation"])
def test_code_that_a_config_names_is_neither_fetched_nor_run(tmp_path, monkeypatch, name):
    directory = tiny.save(of_architecture("gemma2"), tmp_path / "model")
    (directory / "modeling_evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    classes = {"AutoConfig": "modeling_evil.Evil", "AutoModelForCausalLM": "modeling_evil.Evil"}
    evil = tiny.copy_with(directory, tmp_path / "evil", **{name: classes if name == "auto_map" else "some/kernel"})
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("something was fetched"))
    assert LLM(evil, **OPTIONS).generate([[5, 6]], SamplingParams(max_tokens=1), use_tqdm=False)
    assert not (tmp_path / "ran").exists()


def test_a_run_warns_of_nothing_that_a_user_could_not_change(tmp_path, monkeypatch):
    warnings: list[str] = []
    for name in ("warning", "warning_once"):
        monkeypatch.setattr(Logger, name, lambda logger, message, *_, **__: warnings.append(message), raising=False)
    for model_type in ("gemma2", "qwen3_moe", "gpt2"):
        llm = LLM(tiny.save(of_architecture(model_type), tmp_path / model_type), **OPTIONS)
        llm.generate([[5, 6]], SamplingParams(max_tokens=2), use_tqdm=False)
    assert not warnings


def test_a_checkpoint_of_the_base_model_alone_is_read(tmp_path, prompts, continuations):
    """As the first ones of GPT-2, whose names have no prefix."""
    model = of_architecture("gpt2")
    directory = tiny.save(model, tmp_path / "model")
    weights = load_file(directory / "model.safetensors")
    save_file({name.removeprefix("transformer."): t for name, t in weights.items()}, directory / "model.safetensors")
    theirs = transformers_logits(model, prompts, continuations)
    assert_logits_agree(our_logits(LLM(directory, **OPTIONS), prompts, continuations), theirs, TOLERANCE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.layers.1.mlp.experts.2.down_proj.weight": None}, "experts.2.down_proj.weight is missing"),
        (
            {"model.layers.1.mlp.experts.2.up_proj.weight": torch.zeros(16, 31)},
            r"experts.2.up_proj.weight: expected shape \[16, 32\] from config.json, got \[16, 31\]",
        ),
        (
            {"model.layers.0.mlp.experts.4.up_proj.weight": torch.zeros(16, 32)},
            "does not announce: .*experts.4.up_proj",
        ),
    ],
    ids=["missing", "shape", "unknown"],
)
def test_an_expert_that_does_not_fit_the_config_is_named(tmp_path, change, message):
    directory = tiny.save(of_architecture("qwen3_moe"), tmp_path / "model")
    weights = load_file(directory / "model.safetensors") | change
    save_file({name: t for name, t in weights.items() if t is not None}, directory / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        LLM(directory, **OPTIONS)


def test_weights_of_experts_are_counted_by_how_many_a_row_goes_to(tmp_path):
    model = of_architecture("qwen3_moe")
    config = describe_model(tiny.save(model, tmp_path / "model"))
    hidden, heads = 32, 8 * (4 + 2 + 2 + 4)
    expert = 3 * 16 * hidden
    assert config.num_linear_parameters == NUM_LAYERS * (heads * hidden + 4 * hidden + 2 * expert)
    assert config.num_stored_linear_parameters == config.num_linear_parameters + NUM_LAYERS * 2 * expert
    assert config.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert config.kv_elements_per_token == NUM_LAYERS * 2 * 2 * 8


@pytest.mark.parametrize(
    ("model_type", "windows", "fields"),
    [
        ("gemma2", [WINDOW - 1, -1, WINDOW - 1, -1], {"soft_cap": 50.0, "softmax_scale": 1 / 16}),
        ("gpt_oss", [WINDOW - 1, -1, WINDOW - 1, -1], {"has_sinks": True}),
        ("exaone4", [WINDOW - 1] * 3 + [-1], {}),
        ("gpt_neox", [-1] * 4, {"num_kv_heads": 4}),
    ],
)
def test_every_kind_of_layer_is_described(tmp_path, model_type, windows, fields):
    tiny_config(model_type, **(TESTED[model_type])).save_pretrained(tmp_path)
    config = describe_model(tmp_path)
    assert [attention.window_left for attention in config.attention_of_layers] == windows
    assert len(config.attention_kinds) == len(set(windows))
    for kind in config.attention_kinds:
        assert {name: getattr(kind, name) for name in fields} == fields


def test_quantised_checkpoints_are_read(tmp_path, prompts, continuations):
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": False, "sym": False}
    model = save_quantized(tmp_path, of_architecture("gemma2"), settings, gptq(4, 16))
    theirs = transformers_logits(model, prompts, continuations)
    assert_logits_agree(our_logits(LLM(tmp_path, **OPTIONS), prompts, continuations), theirs, TOLERANCE)


@pytest.mark.parametrize("family", ["llama", "llama-llama3-rope", "qwen2", "qwen3", "smollm3-tied"])
def test_a_gguf_file_is_run_by_either_backend(tmp_path, prompts, continuations, family):
    write_gguf(path := tmp_path / "tiny.gguf", tiny.FAMILIES[family].model())
    assert describe_model(path).backend == "native"
    native, theirs = (
        our_logits(LLM(path, backend=backend, **OPTIONS), prompts, continuations)
        for backend in ("native", "transformers")
    )
    assert_logits_agree(theirs, native, TOLERANCE)


def test_prompts_are_scored_by_either_backend_alike(tiny_model, prompts):
    directory = tiny_model("llama")
    params = SamplingParams(temperature=0, max_tokens=2, prompt_logprobs=0, ignore_eos=True)
    native, theirs = (
        [
            [next(iter(scores.values())).logprob for scores in output.prompt_logprobs[1:]]
            for output in LLM(directory, backend=backend, **OPTIONS).generate(prompts, params, use_tqdm=False)
        ]
        for backend in ("native", "transformers")
    )
    for mine, other in zip(native, theirs, strict=True):
        assert mine == pytest.approx(other, abs=1e-3)


def test_weights_that_are_not_finite_end_the_first_job(tmp_path):
    model = of_architecture("gemma2")
    model.model.norm.weight.data[3] = float("nan")
    llm = LLM(tiny.save(model, tmp_path / "model"), **OPTIONS)
    with pytest.raises(ValueError, match="the logits are not finite since step 1 of the job"):
        llm.generate([[5, 6]], use_tqdm=False)


@torch.no_grad()
@pytest.mark.parametrize(
    "model_type", ["llama", "gemma2", "phi3", "olmo2", "granite", "stablelm", "olmoe", "qwen3_moe"]
)
def test_8_bits_are_those_put_into_transformers_modules(tmp_path, prompts, continuations, model_type):
    """Float32 and float64 may round a value to neighbours, which all rows see that attend to it: some do not."""
    model = of_architecture(model_type)
    directory = tiny.save(model, tmp_path / "model")
    model = model.double()
    plain = torch.cat(transformers_logits(model, prompts, continuations))
    put_in_8_bits(model, segments_of)
    expected = torch.cat(transformers_logits(model, prompts, continuations))
    llm = LLM(directory, backend="transformers", quantize="int8", **OPTIONS)
    ours = torch.cat(our_logits(llm, prompts, continuations))
    errors, lost = ((a - expected).abs().amax(dim=-1) / expected.abs().max() for a in (ours, plain))
    assert (errors < 1e-5).sum() > 0.1 * len(errors)
    assert errors.max() < lost.max()
    assert lost.median() > 1e-2  # it is 8 bits that were put in


@pytest.mark.parametrize("model_type", ["gemma2", "gpt_oss", "gpt2", "qwen3_moe"])
def test_in_8_bits_a_row_does_not_depend_on_what_is_beside_it(tmp_path, prompts, model_type):
    llm = LLM(tiny.save(of_architecture(model_type), tmp_path / "model"), quantize="int8", **OPTIONS)
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    together = llm.generate(prompts, params, use_tqdm=False)
    assert any(name.endswith("int8") for name in llm.stats["products"])
    for prompt, output in zip(prompts[:3], together, strict=False):
        assert llm.generate([prompt], params, use_tqdm=False)[0].outputs[0].token_ids == output.outputs[0].token_ids


def test_what_multiplies_is_told(tmp_path):
    llm = LLM(tiny.save(of_architecture("gemma2"), tmp_path / "model"), **OPTIONS)
    llm.generate([[5, 6]], SamplingParams(max_tokens=1), use_tqdm=False)
    assert {"64x32 float32", "32x32 float32", "32x48 float32", "260x32 float32"} <= llm.stats["products"].keys()


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_experts_are_told_among_what_multiplies(tmp_path, monkeypatch, quantize):
    """Also if the function is another one, so that they stay transformers' own."""
    directory = tiny.save(of_architecture("mixtral"), tmp_path / "model")
    gate_up, down = ("96x32 int8", "32x48 int8") if quantize else ("96x32 float32", "32x48 float32")

    def products() -> dict[str, str]:
        llm = LLM(directory, quantize=quantize, **OPTIONS)
        llm.generate([[5, 6]], SamplingParams(max_tokens=1), use_tqdm=False)
        return llm.stats["products"]

    assert {gate_up, down} <= products().keys()
    forward = MixtralExperts.forward
    monkeypatch.setattr(MixtralExperts, "forward", lambda experts, *routed: 2 * forward(experts, *routed))
    left = products()
    assert {name: left[name] for name in ("4x96x32 float32", "4x32x48 float32")} == dict.fromkeys(
        ("4x96x32 float32", "4x32x48 float32"), "by transformers"
    )
    assert not {gate_up, down} & left.keys()
