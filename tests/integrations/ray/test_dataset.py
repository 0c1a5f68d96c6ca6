"""A Dataset of prompts becomes one with their answers, every row once."""

import runpy
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from batchllm import LLM, SamplingParams
from batchllm.integrations.ray_data import answer_dataset, dataset
from batchllm.integrations.ray_data.cluster import Replicas
from batchllm.integrations.ray_data.replica import Answer
from batchllm.jobs.line import BatchRequest
from batchllm.jobs.reading import TokenizedLine
from tests.engine import tiny
from tests.integrations.ray.conftest import ENGINE, ROOT
from tests.integrations.ray.here import Died, HereReplicas

GREEDY = SamplingParams(temperature=0, max_tokens=6)
EXAMPLE = ROOT / "examples" / "ray_documents.py"


class CarefulReplica(dataset.DatasetReplica):
    """Does what a prompt says once the prompts before it are answered."""

    def answers(
        self, lines: list[TokenizedLine], on_step: Callable[[], None] = lambda: None
    ) -> Iterator[tuple[BatchRequest, Answer]]:
        for line in lines:
            text = self.llm.get_tokenizer().decode(line.token_ids[0], skip_special_tokens=True)
            if text == "dies":
                raise Died
            if text == "raises":
                raise RuntimeError("logits are not finite")
            yield from super().answers([line], on_step)


@pytest.mark.usefixtures("cluster")
def test_every_row_keeps_its_columns_and_gets_an_answer_or_an_error(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Replicas, "of", lambda number, *of_a_node: HereReplicas(number, 1, 0))
    document = "a document that all share, " * 4
    prompts: list[Any] = [f"{document}{number}" for number in range(20)]
    rows = [{"name": f"row {at}", "prompt": prompt} for at, prompt in enumerate([*prompts, None, "x" * 600])]
    answered = answer_dataset(ray.data.from_items(rows), model, GREEDY, replicas=2, **ENGINE).take_all()
    by_name = {row["name"]: row for row in answered}
    assert len(by_name) == len(answered) == len(rows)
    assert all(by_name[row["name"]]["prompt"] == row["prompt"] for row in rows)
    expected = LLM(model, **ENGINE).generate(prompts, GREEDY, use_tqdm=False)
    for at, output in enumerate(expected):
        row = by_name[f"row {at}"]
        assert (row["answer"], row["finish_reason"]) == (output.outputs[0].text, output.outputs[0].finish_reason)
        assert (row["completions"], row["error"]) == ([output.outputs[0].text], None)
        assert row["prompt_tokens"] == len(output.prompt_token_ids)
        assert row["completion_tokens"] == len(output.outputs[0].token_ids)
    assert sum(by_name[f"row {at}"]["cached_tokens"] for at in range(20)) >= 4 * len(document)
    assert by_name["row 20"]["error"] == "prompt: expected text, token ids or messages, got NoneType"
    assert by_name["row 21"]["error"].startswith("prompt: the prompt has 601 tokens, and the model takes 512")
    assert by_name["row 21"]["answer"] is None


@pytest.mark.usefixtures("cluster")
def test_rows_that_do_not_come_back_are_tried_alone_and_are_errors_then(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "DatasetReplica", CarefulReplica)
    monkeypatch.setattr(Replicas, "of", lambda number, *of_a_node: HereReplicas(number, 1, 0))
    texts = ["a", "b", "dies", "c", "raises", "d"]
    chats = [[{"role": "user", "content": text}] for text in ("hello", "there")]
    rows = ray.data.from_items([{"at": at, "text": text} for at, text in enumerate(texts)])
    answered = {row["at"]: row for row in answer_dataset(rows, model, GREEDY, replicas=1, column="text").take_all()}
    assert sorted(answered) == list(range(6))
    errors = {texts[at]: row["error"] for at, row in answered.items() if row["error"]}
    assert errors == {
        "dies": "the process that was to answer it ended 3 times",
        "raises": "RuntimeError: logits are not finite",
    }
    assert all(row["answer"] is not None for row in answered.values() if not row["error"])
    drawn = answer_dataset(
        ray.data.from_items([{"prompt": chat} for chat in chats]), model, SamplingParams(n=2, max_tokens=5), replicas=1
    )
    assert [len(row["completions"]) for row in drawn.iter_rows()] == [2, 2]


@pytest.mark.usefixtures("cluster")
def test_a_replica_that_does_not_start_says_why(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = tmp_path / "model"
    shutil.copytree(model, copied, ignore=shutil.ignore_patterns("*.safetensors"))
    monkeypatch.setattr(Replicas, "of", lambda number, *of_a_node: HereReplicas(number, 1, 0))
    with pytest.raises(ValueError, match=r"a replica did not start: .*safetensors"):
        answer_dataset(ray.data.from_items([{"prompt": "a"}]), copied, replicas=1)


@pytest.mark.usefixtures("cluster")
def test_what_is_wrong_is_said_before_anything_runs(model: Path) -> None:
    rows = ray.data.from_items([{"text": "a", "error": "b"}])
    with pytest.raises(ValueError, match="column: expected one of text, error, got 'prompt'"):
        answer_dataset(rows, model, replicas=2)
    with pytest.raises(ValueError, match="dataset: has a column 'error' already"):
        answer_dataset(rows, model, replicas=2, column="text")
    with pytest.raises(ValueError, match="replicas: the cluster has a CPU for 4 of them, got 5"):
        answer_dataset(rows.drop_columns(["error"]), model, replicas=5, column="text")
    with pytest.raises(ValueError, match="replicas: the cluster has 2 CPUs for 2 of them, got 3"):
        answer_dataset(rows.drop_columns(["error"]), model, replicas=3, column="text", num_threads=2)
    with pytest.raises(ValueError, match="replicas: the cluster has a CPU and a GPU for 0 of them, got 1"):
        answer_dataset(rows.drop_columns(["error"]), model, replicas=1, column="text", device="cuda")


@pytest.mark.usefixtures("cluster")
def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.save(tiny.Family("Llama", {"max_position_embeddings": 8192}).model(), tmp_path)
    tiny.save_tokenizer(tmp_path)
    monkeypatch.setattr(sys, "argv", [EXAMPLE.name, str(tmp_path)])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert "were computed" in capsys.readouterr().out
    assert len(EXAMPLE.read_text().splitlines()) <= 40
