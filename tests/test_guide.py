"""README and guide are true: their Python runs, their options exist, their links lead somewhere, and the messages that
they explain are those of the code."""

import json
import re
import shlex
from pathlib import Path

import click
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer.main

from batchllm import LLM, run_job
from batchllm.cli import app
from tests.engine import tiny

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
GUIDE = [page for page in PAGES if page.parent.name in ("guide", ROOT.name)]

OTHER_TOOLS = {"--prompt-cache"}  # options of programs that the text compares with


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def without_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub names them."""
    headings = re.findall(r"^#+ (.*)", without_blocks(page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def options_of(command: click.Command) -> set[str]:
    return {option for param in command.params for option in (*param.opts, *param.secondary_opts)}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", without_blocks(page.read_text(encoding="utf-8"))):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", [page for page in GUIDE if blocks(page, "python")], ids=name)
def test_python_of_a_page_runs_from_its_first_line_to_its_last(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a tiny model, and small files in place of those that the pages name."""
    model = tmp_path / "models" / "smollm2-135m-instruct"
    tiny.save(tiny.Family("Llama", {"max_position_embeddings": 8192}).model(), model)
    tiny.save_tokenizer(model)
    (tmp_path / "MODEL").symlink_to(model)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "reviews.csv").write_text("text\nsplendid\n")
    (tmp_path / "questions.jsonl").write_text(json.dumps({"prompt": "2 + 2 =", "continuations": [" 4", " five"]}))
    pq.write_table(pa.table({"text": ["Once upon a time"]}), tmp_path / "texts.parquet")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"prompts": ["Is water wet?"], "texts": ["Once upon a time"]}
    if page.name == "scoring.md":
        names |= {"llm": LLM("MODEL"), "run_job": run_job}
    for number, block in enumerate(blocks(page, "python")):
        exec(compile(block, f"{name(page)}, block {number}", "exec"), names)


@pytest.mark.parametrize("page", [page for page in GUIDE if blocks(page, "sh")], ids=name)
def test_commands_and_their_options_are_there(page: Path) -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for line in "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines():
        words = shlex.split(line.split("||")[0], comments=True)
        if words[:1] != ["batchllm"]:
            continue
        asked = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        assert asked <= options_of(commands[words[1]]), line


@pytest.mark.parametrize("page", GUIDE, ids=name)
def test_options_in_the_text_are_some_commands(page: Path) -> None:
    known = {option for command in typer.main.get_command(app).commands.values() for option in options_of(command)}
    asked = re.findall(r"`(--[a-z-]+)", without_blocks(page.read_text(encoding="utf-8")))
    assert set(asked) - OTHER_TOOLS <= known


def test_every_script_of_the_benchmarks_is_told_of() -> None:
    page = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    scripts = {path.name for path in (ROOT / "benchmarks").glob("*.py")} - {"__init__.py", "compare_report.py"}
    assert {name for name in scripts if f"`{name}`" not in page} == set()


def test_messages_that_are_explained_are_those_of_the_code() -> None:
    page = (ROOT / "docs" / "guide" / "troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"^\| `(.*?)` \|", page, re.MULTILINE)
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "batchllm").rglob("*.py")]
    code = re.sub(r'"\n\s*f?"', "", "\n".join(sources))  # literals that stand beside each other are one
    assert len(messages) > 10
    for message in messages:
        for part in message.split("..."):
            assert part.strip(" :") in code, message
