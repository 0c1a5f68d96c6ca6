"""The caller's mistakes: each is refused by field, index and numbers, before anything runs."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import batchllm_ext
from batchllm import LLM, SamplingParams
from batchllm.device import choice
from batchllm.models.config import ModelConfig
from tests.engine import tiny

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parents[2]
ONE_TOKEN = SamplingParams(max_tokens=1)


@pytest.fixture
def idle_llm(tiny_llm, monkeypatch) -> LLM:
    """The tiny model; the test fails if it runs a single batch."""

    def must_not_run(*_):
        raise AssertionError("a batch ran")

    monkeypatch.setattr(type(tiny_llm.engine.model), "forward", must_not_run)
    return tiny_llm


def refused(llm: LLM, prompts, message: str, params=ONE_TOKEN) -> None:
    """generate raises a ValueError that matches, and leaves the stats of the last job."""
    stats = llm.stats
    with pytest.raises(ValueError, match=message):
        llm.generate(prompts, params, use_tqdm=False)
    assert llm.stats is stats


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float16"}, "dtype: expected 'auto', 'float32', 'bfloat16', got 'float16'"),
        ({"quantize": "int4"}, "quantize: expected None or 'int8', got 'int4'"),
        ({"quantize": "int8", "device": "cuda"}, "quantize: 'int8' is for a CPU, and device is 'cuda'"),
        ({"device": "gpu"}, "device: expected 'auto', 'cpu' or 'cuda', got 'gpu'"),
        ({"backend": "vllm"}, "backend: expected 'auto', 'native', 'transformers', got 'vllm'"),
        ({"levels": 2}, "levels: expected None, 0 or 1, got 2"),
        ({"levels": -1}, "levels: expected None, 0 or 1, got -1"),
        ({"page_size": 0}, "page_size: expected an integer from 1 to 2147483647, got 0"),
        ({"page_size": 16.0}, "page_size: expected an integer from 1 to 2147483647, got 16.0"),
        ({"page_size": True}, "page_size: expected an integer from 1 to 2147483647, got True"),
        ({"page_size": None}, "page_size: expected an integer from 1 to 2147483647, got None"),
        ({"kv_cache_tokens": 0}, "kv_cache_tokens: expected an integer from 1 to 2147483647, got 0"),
        ({"kv_cache_tokens": 15}, r"kv_cache_tokens: expected at least one page \(16 tokens\), got 15"),
        ({"max_batch_tokens": -4}, "max_batch_tokens: expected an integer from 1 to 2147483647, got -4"),
        ({"num_threads": 0}, "num_threads: expected an integer from 1 to 2147483647, got 0"),
        ({"generation_config": "none"}, "generation_config: expected 'auto' or 'vllm', got 'none'"),
        ({"num_threads": "2"}, "num_threads: expected an integer from 1 to 2147483647, got '2'"),
    ],
    ids=str,
)
def test_an_option_of_llm_is_refused_by_name(tiny_dir, options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        LLM(tiny_dir, **options)


def test_a_gpu_that_is_not_there_is_refused(tiny_dir, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        ValueError, match=f"^device: 'cuda' needs a GPU, and torch {re.escape(torch.__version__)} finds"
    ):
        LLM(tiny_dir, device="cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(batchllm_ext, "has_cuda", lambda: False)
    with pytest.raises(ValueError, match=r"^device: 'cuda' needs batchllm_ext built with BATCHLLM_CUDA=ON$"):
        LLM(tiny_dir, device="cuda")
    monkeypatch.setattr(batchllm_ext, "has_cuda", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    with pytest.raises(ValueError, match=r"^device: 'cuda' needs a GPU of compute .* or later, got \(7, 5\)$"):
        LLM(tiny_dir, device="cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    with pytest.raises(ValueError, match=r"^dtype: expected 'auto' or 'bfloat16' on a GPU, got 'float32'$"):
        LLM(tiny_dir, device="cuda", dtype="float32")
    with pytest.raises(ValueError, match=f"^{tiny_dir}: head_dim is 8, and attention on a GPU is compiled for 64, 96,"):
        LLM(tiny_dir, device="cuda")


def test_int8_without_onednn_is_refused(tiny_dir, monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"^quantize: 'int8' needs oneDNN, which torch .* is without here$"):
        LLM(tiny_dir, quantize="int8")


def test_auto_says_which_device_it_takes_and_why(tiny_dir, monkeypatch):
    def taken(**options) -> str:
        return LLM(tiny_dir, **options).device_choice

    assert taken(device="cpu") == "cpu: asked for"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert taken() == f"cpu: 'cuda' needs a GPU, and torch {torch.__version__} finds none"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(batchllm_ext, "has_cuda", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert taken() == "cpu: 'cuda' needs a GPU of compute capability 8.0 or later, got (7, 5)"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(choice, "TESTED_ON_GPU", False)
    assert taken() == "cpu: there is a GPU, but the tests have not run on one yet; device='cuda' takes it"
    monkeypatch.setattr(choice, "TESTED_ON_GPU", True)
    assert taken(quantize="int8") == "cpu: quantize is 'int8', which is for one"
    assert taken(dtype="float32") == "cpu: there is a GPU, but it takes bfloat16 only, and dtype is 'float32'"
    assert taken().startswith("cpu: head_dim is 8, and attention on a GPU is compiled for 64, 96,")
    assert taken(backend="transformers") == "cpu: LlamaForCausalLM runs by backend 'transformers', on a CPU alone"
    assert str(choice.choose_device("auto", "auto")) == "cuda:0: there is a GPU, and the tests have run on one"
    assert str(choice.choose_device("cuda", "auto")) == "cuda:0: asked for"


def test_auto_takes_a_gpu_where_the_results_of_one_are_in_the_tree():
    assert (ROOT / "docs" / "results" / "gpu.md").exists() == choice.TESTED_ON_GPU


def test_a_missing_model_is_named():
    with pytest.raises(FileNotFoundError, match="model '/nowhere/model': no such directory"):
        LLM("/nowhere/model")


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([[5], []], "^prompt 1: the prompt is empty$"),
        ([[]], "^prompt 0: the prompt is empty$"),
        ([[5], [6, -1]], r"^prompt 1: prompt_token_ids\[1\] is -1, but the vocabulary has 260 tokens$"),
        ([[5], [6, 7, 260, 261]], r"^prompt 1: prompt_token_ids\[2\] is 260, but the vocabulary has 260 tokens$"),
        ([[5], [2**40]], r"^prompt 1: prompt_token_ids\[0\] is 1099511627776, but"),
        ([[5], [2**70]], "^prompt 1: prompt_token_ids: expected a list of integers"),
        ([[5], [6.0]], "^prompt 1: prompt_token_ids: expected a list of integers, got float64"),
        ([[5], ["a"]], "^prompt 1: prompt_token_ids: expected a list of integers"),
        ([[5], [None]], "^prompt 1: prompt_token_ids: expected a list of integers, got object"),
        ([[5], [True]], "^prompt 1: prompt_token_ids: expected a list of integers, got bool"),
        ([[5], [[6]]], r"^prompt 1: prompt_token_ids: expected a list of integers, got int64 of shape \(1, 1\)"),
        ([[5], [6, [7]]], "^prompt 1: "),
        ([[5], None], "^prompt 1: expected text, token ids or a dict with one of them, got NoneType$"),
        (["a", 5], "^prompt 1: expected text, token ids or a dict with one of them, got int$"),
        ([[5], {}], r"^prompt 1: expected a dict with either 'prompt' or 'prompt_token_ids', got keys \[\]$"),
        ([{"text": "a"}], r"^prompt 0: expected a dict with .*, got keys \['text'\]$"),
        ([{"prompt": "a", "prompt_token_ids": [5]}], r"got keys \['prompt', 'prompt_token_ids'\]$"),
        ([{"prompt": 5}], "^prompt 0: prompt: got int$"),
        ([{"prompt": [5]}], "^prompt 0: prompt: got list$"),
        ([{"prompt_token_ids": "a"}], "^prompt 0: prompt_token_ids: got str$"),
        (["a", "b\ud800"], "^prompt 1: not valid Unicode: "),
        (5, "^prompts: expected a prompt or a list of them, got int$"),
        (
            [[5], [6] * tiny.MAX_MODEL_LEN],
            "^prompt 1: the prompt has 512 tokens, and the model takes 512 with the output$",
        ),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_bad_prompt_is_refused_by_its_index(idle_llm, prompts, message):
    refused(idle_llm, prompts, message)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ([ONE_TOKEN], "^sampling_params: expected one for each of 2 prompts, got 1$"),
        ([ONE_TOKEN] * 3, "^sampling_params: expected one for each of 2 prompts, got 3$"),
        ([], "^sampling_params: expected one for each of 2 prompts, got 0$"),
        (
            [ONE_TOKEN, SamplingParams(stop_token_ids=[3, 260])],
            "^prompt 1: stop_token_ids: 260, but the vocabulary has 260 tokens$",
        ),
        ([ONE_TOKEN, {"max_tokens": 1}], "sampling_params.* got dict"),
        ([ONE_TOKEN, None], "sampling_params.* got NoneType"),
    ],
)
def test_bad_sampling_params_are_refused(idle_llm, params, message):
    refused(idle_llm, [[5], [6]], message, params)


def test_as_completed_refuses_before_its_first_output_is_asked_for(idle_llm):
    with pytest.raises(ValueError, match=r"^prompt 1: the prompt is empty$"):
        idle_llm.generate_as_completed([[5], []], [ONE_TOKEN] * 2)
    with pytest.raises(ValueError, match="shorter"):
        idle_llm.generate_as_completed([[5], [6]], [ONE_TOKEN])


@pytest.mark.parametrize("as_arrays", [False, True])
@pytest.mark.parametrize(
    "bad", [[], [5, -1], [9999], [5] * 9999, [0.5], [True], [[5]], [2**70]], ids=lambda bad: repr(bad)[:12]
)
def test_a_prompt_of_many_is_refused_as_it_is_alone(idle_llm, bad, as_arrays):
    made = np.array if as_arrays else list
    prompts = [np.array([5, 6], np.int32) if as_arrays else [5, 6] for _ in range(5)]
    with pytest.raises(ValueError, match="prompt") as alone:
        idle_llm.check_request(made(bad), ONE_TOKEN)
    with pytest.raises(ValueError, match="^" + re.escape(f"prompt 3: {alone.value}")):
        idle_llm.generate_as_completed([*prompts[:3], made(bad), *prompts[3:]], [ONE_TOKEN] * 6)


def test_parameters_of_one_prompt_among_many_are_checked(idle_llm):
    bad = SamplingParams(logit_bias={9999: 1})
    with pytest.raises(ValueError, match=r"^prompt 1: logit_bias: 9999, but the vocabulary has"):
        idle_llm.generate_as_completed([[5, 6], [5], [6]], [ONE_TOKEN, bad, ONE_TOKEN])


def test_a_request_that_never_fits_the_pool_is_refused_with_the_numbers(tiny_dir):
    llm = LLM(tiny_dir, dtype="float32", page_size=8, kv_cache_tokens=47)  # 5 pages
    fits = SamplingParams(temperature=0, max_tokens=11, ignore_eos=True)  # 30 + 11 - 1 = 40 tokens stored
    outputs = llm.generate([[9] * 30], fits, use_tqdm=False)
    assert len(outputs[0].outputs[0].token_ids) == 11
    message = (
        "prompt 1: the request needs 6 KV pages of 8 tokens (30 of prompt and up to 11 of output), "
        "but kv_cache_tokens=47 is 5 pages"
    )
    too_long = SamplingParams(temperature=0, max_tokens=12)
    refused(llm, [[9] * 30] * 2, f"^{re.escape(message)}$", [fits, too_long])


@pytest.mark.parametrize("levels", [None, 1, 0])
@pytest.mark.parametrize("prompt_len", [17, 20, 25, 32, 33])
def test_what_fits_the_pool_alone_fits_it_with_others(tiny_dir, prompt_len, levels):
    """Sharing may cost a request one more, partly filled page: never its place."""
    params = SamplingParams(temperature=0, max_tokens=41 - prompt_len, ignore_eos=True)
    llm = LLM(tiny_dir, dtype="float32", page_size=8, kv_cache_tokens=40, levels=levels)
    prompts = [[9] * (prompt_len - 1) + [last] for last in range(10, 16)]
    alone = [llm.generate([prompt], params, use_tqdm=False)[0].outputs[0].token_ids for prompt in prompts]
    together = llm.generate(prompts, params, use_tqdm=False)
    assert [output.outputs[0].token_ids for output in together] == alone


def test_a_request_that_memory_cannot_hold_is_refused_by_its_index(tiny_dir, monkeypatch):
    prompts, params = [[5], [9] * 100], [SamplingParams(n=3, max_tokens=1), SamplingParams(max_tokens=5)]
    kv_bytes_per_token = ModelConfig.from_directory(tiny_dir).kv_elements_per_token * 4
    for available_bytes in (64 * kv_bytes_per_token, 0):
        monkeypatch.setattr("batchllm.device.kv_cache.available_memory_bytes", lambda size=available_bytes: size)
        llm = LLM(tiny_dir, dtype="float32", page_size=8)
        refused(llm, prompts, "^prompt 1: .*13 KV pages of 8 tokens", params)


@pytest.fixture(scope="module")
def bare_dir(tiny_model, tmp_path_factory) -> Path:
    """A model directory without a tokenizer."""
    return Path(shutil.copytree(tiny_model("mistral"), tmp_path_factory.mktemp("bare") / "model"))


@pytest.mark.parametrize("params", [ONE_TOKEN, SamplingParams(stop="a")], ids=["plain", "stop"])
def test_text_without_a_tokenizer_is_refused(bare_dir, params):
    llm = LLM(bare_dir, dtype="float32")
    refused(llm, ["a"], f"^{bare_dir}: cannot load a tokenizer: ", params)


def test_stop_strings_without_a_tokenizer_are_refused(bare_dir):
    llm = LLM(bare_dir, dtype="float32")
    refused(llm, [[5]], f"^{bare_dir}: cannot load a tokenizer: ", SamplingParams(stop="a"))


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("hello", r"messages\[0\]: expected a dict with a role"),
        ({"content": "hi"}, r"messages\[0\]: expected a dict with a role"),
        ({"role": "user", "content": None}, r"messages\[0\].content: expected text or text parts, got None"),
        ({"role": "user", "content": [{"type": "image_url"}]}, r"messages\[0\].content: expected text or text parts"),
    ],
)
def test_a_bad_message_is_refused_by_its_place(tiny_llm, message, reason):
    good = [{"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "text", "text": "you"}]}]
    assert tiny_llm.apply_chat_template(good) == tiny_llm.apply_chat_template([{"role": "user", "content": "hi\nyou"}])
    with pytest.raises(ValueError, match=f"^conversation 1: {reason}"):
        tiny_llm.chat([good, [message]], use_tqdm=False)


def test_chat_without_a_template_is_refused(tiny_dir, tmp_path):
    directory = Path(shutil.copytree(tiny_dir, tmp_path / "model"))
    (directory / "chat_template.jinja").unlink()
    llm = LLM(directory, dtype="float32")
    with pytest.raises(
        ValueError, match=f"^conversation 0: {directory}: the tokenizer has no chat template; use prompts instead"
    ):
        llm.chat([{"role": "user", "content": "hi"}], use_tqdm=False)
