"""Jobs of two replicas, and what they leave."""

from pathlib import Path
from typing import Any

from batchllm.integrations.ray_data import run_job_on_ray
from batchllm.jobs.parts import part_paths
from batchllm.jobs.run import JobSummary
from tests.integrations.ray.conftest import ENGINE
from tests.jobs.batch_lines import read_records


def records(directory: Path) -> list[dict[str, Any]]:
    return [record for path in part_paths(directory) for record in read_records(path)]


def answers(found: list[dict[str, Any]]) -> dict[str, Any]:
    """By custom_id, each once."""
    by_id = {record["custom_id"]: record["response"]["body"]["choices"] for record in found}
    assert len(by_id) == len(found)
    return by_id


def run(source: Path, directory: Path, model: Path, **options: Any) -> JobSummary:
    return run_job_on_ray(
        source, directory, model, **{"ray": "local", "replicas": 2, "log": lambda line: None, **ENGINE, **options}
    )
