"""Sampling settings of generation_config.json are defaults; those that do not exist here are said."""

import json
import shutil
import warnings

import pytest

from batchllm import LLM, SamplingParams
from tests.engine import tiny

pytestmark = pytest.mark.usefixtures("one_thread")

DEFAULTS = {
    **{"temperature": 1e-6, "top_p": 0.9, "top_k": 3, "min_p": 0.05, "repetition_penalty": 1.3},
    "max_new_tokens": 5,
}


@pytest.fixture
def model_with(tiny_dir, tmp_path):
    def make(**settings):
        directory = shutil.copytree(tiny_dir, tmp_path / "model", dirs_exist_ok=True)
        (directory / "generation_config.json").write_text(json.dumps(settings))
        return directory

    return make


@pytest.mark.filterwarnings("error")
def test_its_settings_are_the_defaults_of_generate_and_chat(model_with):
    llm = LLM(model_with(**DEFAULTS), dtype="float32")
    expected = SamplingParams(temperature=1e-6, top_p=0.9, top_k=3, min_p=0.05, repetition_penalty=1.3, max_tokens=5)
    assert llm.get_default_sampling_params() == expected
    (output,) = llm.generate([[5]], use_tqdm=False)
    (again,) = llm.generate([[5]], expected, use_tqdm=False)
    assert output.outputs[0].token_ids == again.outputs[0].token_ids
    (chat,) = llm.chat([{"role": "user", "content": "hi"}], use_tqdm=False)
    assert len(chat.outputs[0].token_ids) <= 5


@pytest.mark.filterwarnings("error")
def test_params_that_are_given_stay_as_they_are(model_with):
    llm = LLM(model_with(**DEFAULTS), dtype="float32")
    (output,) = llm.generate([[5]], SamplingParams(ignore_eos=True), use_tqdm=False)
    assert len(output.outputs[0].token_ids) == 16


@pytest.mark.filterwarnings("error")
def test_it_can_be_left_unread(model_with):
    llm = LLM(model_with(**DEFAULTS, typical_p=0.3), dtype="float32", generation_config="vllm")
    assert llm.get_default_sampling_params() == SamplingParams()
    assert tiny.EOS in llm.config.eos_token_ids


def test_settings_that_do_not_exist_here_are_named_once(model_with):
    directory = model_with(no_repeat_ngram_size=3, num_beams=1, typical_p=0.3, suppress_tokens=["\x1b"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        LLM(directory, dtype="float32")
    (message,) = [str(warning.message) for warning in caught if "generation_config" in str(warning.message)]
    assert message == (
        f"{directory}/generation_config.json: not supported, and not applied: "
        r"typical_p=0.3, no_repeat_ngram_size=3, suppress_tokens=['\x1b']"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": "hot"}, "temperature: expected a finite number, got 'hot'"),
        ({"top_p": 1.5}, r"top_p: expected a number in \(0, 1\], got 1.5"),
        ({"top_k": [50]}, r"top_k: expected an integer >= -1, got \[50\]"),
        ({"min_p": 2}, "min_p: expected a number from 0 to 1, got 2"),
        ({"repetition_penalty": 0}, "repetition_penalty: expected a number from .*, got 0"),
        ({"max_new_tokens": 0}, "max_tokens: expected an integer >= 1, got 0"),
    ],
)
def test_a_bad_setting_is_refused_by_file_and_field(model_with, settings, message):
    directory = model_with(**settings)
    with pytest.raises(ValueError, match=f"^{directory}/generation_config.json: {message}$"):
        LLM(directory, dtype="float32")
