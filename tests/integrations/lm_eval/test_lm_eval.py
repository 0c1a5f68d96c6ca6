"""The harness gets from our engine what its own `hf` model gives it, for less."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import lm_eval
import pytest
import transformers
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model, model_registry
from lm_eval.tasks import TaskManager

from batchllm import LLM, SamplingParams
from batchllm.integrations.lm_eval import BatchLLM
from batchllm.integrations.transformers import lend
from tests.engine import tiny
from tests.integrations.lm_eval.tasks import NUM_QUESTIONS, TASKS, write_tasks
from tests.test_examples import MAX_LINES

SMALL = {"dtype": "float32", "kv_cache_tokens": 8192, "page_size": 4}


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    """A model that takes 512 tokens, fewer than the longest texts have."""
    directory = tmp_path_factory.mktemp("model")
    tiny.save(tiny.FAMILIES["llama"].model(), directory)
    tiny.save_tokenizer(directory)
    return directory


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"))


def evaluate(model, args: dict | None, tasks: Path, names: list[str], **settings) -> dict:
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    return lm_eval.simple_evaluate(
        model, model_args=args, tasks=names, task_manager=manager, bootstrap_iters=0, log_samples=True, **settings
    )


def answers(results: dict) -> dict[str, list]:
    """By task what the model said to each request of each document."""
    return {
        task: [sample["filtered_resps"] for sample in sorted(samples, key=lambda sample: sample["doc_id"])]
        for task, samples in results["samples"].items()
    }


def assert_same(ours: dict, theirs: dict) -> None:
    for task, of_task in answers(theirs).items():
        for mine, their in zip(answers(ours)[task], of_task, strict=True):
            for one, other in zip(mine, their, strict=True):
                if isinstance(other, (tuple, list)):
                    assert one[0] == pytest.approx(other[0], abs=2e-4)
                    assert one[1:] == other[1:]
                else:
                    assert one == (pytest.approx(other, abs=2e-3) if isinstance(other, float) else other)
        for metric, value in theirs["results"][task].items():
            expected = pytest.approx(value, rel=1e-4) if isinstance(value, float) else value
            assert ours["results"][task][metric] == expected


@pytest.fixture(scope="module")
def by_hf(directory, tasks) -> dict:
    args = {"pretrained": str(directory), "dtype": "float32"}
    return evaluate("hf", args, tasks, list(TASKS), batch_size=1, device="cpu")


def test_scores_and_texts_are_those_of_hf(directory, tasks, by_hf):
    ours = evaluate("batchllm", {"pretrained": str(directory), **SMALL}, tasks, list(TASKS), batch_size="auto")
    assert_same(ours, by_hf)
    assert {len(of_task) for of_task in answers(ours).values()} == {NUM_QUESTIONS}
    assert len({text for (text,) in answers(ours)["generation"]}) > NUM_QUESTIONS // 2


def test_a_text_longer_than_the_model_takes_is_cut_as_hf_cuts_it(directory, by_hf, tasks):
    lengths = [len(json.loads(line)["text"]) for line in (tasks / "test.jsonl").read_text().splitlines()]
    assert min(lengths) < 200 < tiny.MAX_MODEL_LEN < max(lengths)
    for length in (256, 100):
        args = {"pretrained": str(directory), "max_length": length}
        theirs = evaluate("hf", args | {"dtype": "float32"}, tasks, ["rolling", "choice"], device="cpu", batch_size=1)
        assert_same(evaluate("batchllm", args | SMALL, tasks, ["rolling", "choice"]), theirs)


def instances(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [Instance(kind, {}, args, number) for number, args in enumerate(arguments)]


@pytest.fixture(scope="module")
def both(directory):
    return BatchLLM(directory, **SMALL), get_model("hf")(pretrained=str(directory), dtype="float32", device="cpu")


def test_what_is_greedy_is_what_would_be_decoded(both):
    ours, theirs = both
    contexts = tiny.shared_prompts(12)
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    greedy = [output.outputs[0].token_ids for output in ours.llm.generate(contexts, params, use_tqdm=False)]
    requests = [
        (("", ""), context, continuation)
        for context, tokens in zip(contexts, greedy, strict=True)
        for continuation in (tokens, tokens[:1], [*tokens[:3], 5], [5, *tokens[1:]])
    ]
    scores = ours._loglikelihood_tokens(requests, disable_tqdm=True)
    for mine, other in zip(scores, theirs._loglikelihood_tokens(requests, disable_tqdm=True), strict=True):
        assert mine == (pytest.approx(other[0], abs=2e-4), other[1])
    assert [is_greedy for _, is_greedy in scores] == [True, True, False, False] * len(contexts)


def test_a_text_without_a_context_stands_after_the_first_special_token(both):
    pairs = [("", "snow"), ("", " a wolf"), ("snow ", "and salt"), ("<bos>snow", " and"), ("<bos>", "x")]
    requests = instances("loglikelihood", pairs)
    ours, theirs = (model.loglikelihood(requests, disable_tqdm=True) for model in both)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine == (pytest.approx(other[0], abs=2e-4), other[1])


def test_a_call_is_one_job_that_computes_what_is_shared_once(directory, tasks):
    model = BatchLLM(directory, **SMALL)
    evaluate(model, None, tasks, ["letters"])
    stats = model.llm.stats
    assert stats["num_requests"] == NUM_QUESTIONS  # four letters each
    assert stats["computed_prompt_tokens"] < 0.4 * stats["prompt_tokens"]


@pytest.mark.parametrize("multiturn", [False, True])
def test_chats_are_those_of_hf(directory, tasks, multiturn):
    settings = {"apply_chat_template": True, "fewshot_as_multiturn": multiturn, "system_instruction": "Be brief."}
    args = {"pretrained": str(directory), "dtype": "float32"}
    theirs = evaluate("hf", args, tasks, ["choice", "generation"], device="cpu", batch_size=1, **settings)
    ours = evaluate("batchllm", args | SMALL, tasks, ["choice", "generation"], **settings)
    assert_same(ours, theirs)
    (prompt, _), *_ = ours["samples"]["generation"][0]["arguments"]
    assert prompt.startswith("<bos>system: Be brief.<end>")
    assert ours["config"]["model"] == "batchllm"


def test_a_model_in_memory_is_evaluated(directory, tasks, by_hf):
    model = transformers.AutoModelForCausalLM.from_pretrained(directory)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    names = ["choice", "rolling"]
    with lend(model, tokenizer, kv_cache_tokens=8192) as llm:
        ours = evaluate(BatchLLM(llm), None, tasks, names)
        with pytest.raises(ValueError, match=r"^dtype: pretrained is an LLM, which already has its options$"):
            BatchLLM(llm, dtype="float32")
    assert_same(ours, {part: {name: by_hf[part][name] for name in names} for part in ("samples", "results")})


def test_answers_are_kept_in_the_cache_of_the_harness(directory, tasks, tmp_path, monkeypatch):
    names = ["choice", "generation", "rolling"]
    model = BatchLLM(directory, **SMALL)
    first = evaluate(model, None, tasks, names, use_cache=str(tmp_path / "cache"))
    for name in ("score", "generate"):
        monkeypatch.setattr(LLM, name, lambda *_, **__: pytest.fail("the model was asked again"))
    assert_same(evaluate(model, None, tasks, names, use_cache=str(tmp_path / "cache")), first)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 3}, "^generation_kwargs: no setting of BatchLLM: num_beams$"),
        ({"max_gen_tok": 3}, "^generation_kwargs: no setting of BatchLLM: max_gen_tok$"),
        ({"max_gen_toks": 512}, "^max_gen_toks: 512, and the model takes 512 tokens$"),
        ({"temperature": -1, "do_sample": True}, "^temperature: expected a number >= 0"),
    ],
    ids=["beams", "unknown", "too long", "invalid"],
)
def test_settings_that_are_not_there_are_refused(both, settings, message):
    with pytest.raises(ValueError, match=message):
        both[0].generate_until(instances("generate_until", [("snow", {"until": ["x"]} | settings)]))


def test_settings_are_those_of_the_sampler(both):
    settings = {"until": ["x", ""], "do_sample": True, "temperature": 0.7, "top_p": 0.9, "seed": 1, "num_beams": 1}
    requests = instances("generate_until", [("snow", settings | {"max_gen_toks": 9})] * 2)
    one, other = both[0].generate_until(requests, disable_tqdm=True)
    assert one == other
    assert one not in both[0].generate_until(
        instances("generate_until", [("snow", {"until": [], "max_gen_toks": 9})]), disable_tqdm=True
    )


def test_lengths_that_cannot_be_are_refused(both, directory):
    with pytest.raises(ValueError, match=r"^max_length: expected 1 to 512, got 513$"):
        BatchLLM(directory, max_length=513, **SMALL)
    with pytest.raises(ValueError, match=r"^a continuation has 600 tokens, and the model takes 512$"):
        both[0].loglikelihood(instances("loglikelihood", [("snow", "x" * 600)]), disable_tqdm=True)


def test_the_other_models_of_the_harness_are_still_known():
    assert {"batchllm", "hf", "vllm", "dummy"} <= set(model_registry)
    assert get_model("batchllm") is BatchLLM


def test_the_command_line_is_the_harness_s(directory, tasks, tmp_path, by_hf):
    command = [sys.executable, "-m", "batchllm.integrations.lm_eval", "run", "--model", "batchllm"]
    args = [f"pretrained={directory}", *(f"{name}={value}" for name, value in SMALL.items())]
    command += ["--model_args", ",".join(args), "--tasks", "choice", "--include_path", str(tasks)]
    run = subprocess.run([*command, "--output_path", str(tmp_path)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    (file,) = tmp_path.rglob("results_*.json")
    results = json.loads(file.read_text())
    assert results["config"]["model"] == "batchllm"
    assert results["results"]["choice"]["acc,none"] == by_hf["results"]["choice"]["acc,none"]


def test_scores_of_a_real_model_are_those_of_hf(smollm2, tasks):
    args = {"pretrained": str(smollm2), "dtype": "float32"}
    theirs = evaluate("hf", args, tasks, ["choice"], device="cpu", batch_size=4, num_fewshot=0)
    ours = evaluate("batchllm", args | {"kv_cache_tokens": 16384}, tasks, ["choice"], num_fewshot=0)
    assert_same(ours, theirs)


def test_the_example_runs(directory, monkeypatch, capsys):
    example = Path(__file__).resolve().parents[3] / "examples" / "evaluate.py"
    monkeypatch.setattr(sys, "argv", [str(example), str(directory)])
    runpy.run_path(str(example), run_name="__main__")
    assert "'acc,none'" in capsys.readouterr().out
    assert len(example.read_text().splitlines()) <= MAX_LINES
