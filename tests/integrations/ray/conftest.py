"""A small Ray on this machine, and a job for it like W3 of benchmarks/workloads.py."""

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)}

import ray  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from tests.engine import tiny  # noqa: E402
from tests.jobs.batch_lines import completion_line, write_lines  # noqa: E402

NUM_LINES, QUESTIONS = 500, 8
NODE = {"num_cpus": 2, "object_store_memory": 150_000_000}
ENGINE = {"dtype": "float32", "num_threads": 1, "kv_cache_tokens": 16384, "max_batch_tokens": 128}


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Two nodes on this machine, of two CPUs each, whatever it has."""
    nodes = Cluster(initialize_head=True, head_node_args=NODE | {"include_dashboard": False})
    nodes.add_node(**NODE)
    ray.init(nodes.address, log_to_driver=False)
    yield nodes
    ray.shutdown()
    nodes.shutdown()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    tiny.save(tiny.FAMILIES["llama"].model(), directory)
    tiny.save_tokenizer(directory)
    return directory


def shuffled_questions(document_length: int, most_tokens: int) -> list[dict[str, Any]]:
    """Lines on documents of so many tokens under one system prompt; each answer has 1 to `most_tokens`."""
    rng = random.Random(0)

    def text(length: int) -> str:
        return "".join(rng.choices("abcdefgh ", k=length))

    system, made = text(64), []
    for number in range(NUM_LINES):
        if number % QUESTIONS == 0:
            document = text(document_length)
        body = {"max_tokens": rng.randint(1, most_tokens), "temperature": 0, "ignore_eos": True}
        made.append(completion_line(f"line {number}", system + document + text(rng.randrange(6, 18)), **body))
    rng.shuffle(made)
    return made


@pytest.fixture(scope="session")
def lines() -> list[dict[str, Any]]:
    return shuffled_questions(128, 39)


@pytest.fixture(scope="session")
def source(lines: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lines(tmp_path_factory.mktemp("source") / "in.jsonl", lines)
