"""What the command says of --ray before Ray is asked."""

import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from typer.testing import CliRunner

from batchllm.cli import app
from batchllm.integrations import requirement

COMMAND = ["run", "in.jsonl", "-o", "out", "--model", "model"]


def test_a_missing_extra_is_told_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(distribution: str) -> str:
        raise PackageNotFoundError(distribution)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(requirement, "version", missing)
    for name in [name for name in sys.modules if name.startswith("batchllm.integrations.ray_data")]:
        monkeypatch.delitem(sys.modules, name)
    result = CliRunner().invoke(app, [*COMMAND, "--ray", "local", "--replicas", "2"])
    assert result.exit_code == 1
    message = "--ray: this integration needs ray: pip install 'batchllm-ext[ray]'"
    assert message in result.output.replace("\n", " ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ray", "local"], "--ray ADDRESS and --replicas N go together"),
        (["--replicas", "2"], "--ray ADDRESS and --replicas N go together"),
        (["--ray", "local", "--replicas", "2", "--ordered"], "batchllm merge IN.jsonl OUT -o ANSWERS.jsonl"),
        (
            ["--ray", "local", "--replicas", "2", "--errors", "e.jsonl"],
            "--errors does not go with --ray: they are in OUT/errors.jsonl",
        ),
    ],
)
def test_options_that_do_not_go_together_are_wrong_usage(options: list[str], message: str) -> None:
    result = CliRunner().invoke(app, [*COMMAND, *options], terminal_width=200)
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())
