"""The last tests of the folder: a node of the cluster goes."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from batchllm.integrations.ray_data.parts import part_paths
from tests.integrations.ray.conftest import NUM_LINES
from tests.integrations.ray.jobs import answers, records, run


@pytest.mark.usefixtures("cluster")
def test_a_node_that_goes_is_not_waited_for(source: Path, model: Path, cluster: Cluster, tmp_path: Path) -> None:
    """A replica takes a node whole, so there is no room for the one that has died."""
    gone: list[Any] = []

    def remove_node() -> None:
        while sum(path.read_bytes().count(b"\n") for path in part_paths(tmp_path / "out")) < 60:
            time.sleep(0.01)
        [node] = cluster.worker_nodes
        gone.append(node)
        cluster.remove_node(node, allow_graceful=False)

    threading.Thread(target=remove_node, daemon=True).start()
    summary = run(source, tmp_path / "out", model, num_threads=2)
    assert len(gone) == 1
    assert (summary.num_answered, summary.num_failed) == (NUM_LINES, 0)
    assert len(answers(records(tmp_path / "out"))) == NUM_LINES
