"""What each room may know: the arrows of includes and imports. None points up, so there is no cycle."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Of each folder of csrc/ the others that it may include.
INCLUDES = {
    "base": set(),
    "cpu": set(),
    "cuda": {"base"},
    "planner": {"base"},
    "simulate": {"planner"},
    "attention": {"base", "cpu"},
    "attention/plan": {"base"},
    "attention/cpu": {"base", "cpu", "attention", "attention/plan"},
    "attention/cuda": {"base", "cuda", "attention", "attention/plan"},
    "rows": {"base", "cpu"},
    "rows/cuda": {"base", "cuda", "rows"},
    "bindings": None,  # everything
}

# Of each room of batchllm/ (a folder, or a file beside them) those that it may import, lowest first.
IMPORTS = {
    "dependencies": set(),
    "text": set(),
    "sampling_params": set(),
    "outputs": set(),
    "sharing": set(),
    "options": {"sampling_params"},
    "continuations": {"sampling_params"},
    "requests": {"continuations", "sampling_params"},
    "request_table": {"outputs", "sampling_params"},
    "bounded_process": set(),
    "cpp_package": set(),
    "garbage": set(),
    "chat_template": {"bounded_process", "text"},
    "reasoning": set(),
    "device": set(),
    "models": {"device", "sampling_params", "text"},
    "sampling": {"bounded_process", "device", "outputs", "request_table", "sampling_params", "text"},
    "tokenizer": {"chat_template", "models", "reasoning", "sampling", "sampling_params", "text"},
    "engine": {"device", "models", "options", "outputs", "request_table", "sampling", "sampling_params", "sharing"},
    "loading": {
        "device",
        "engine",
        "models",
        "options",
        "requests",
        "sampling",
        "sampling_params",
        "text",
        "tokenizer",
    },
    "scoring": {"continuations", "engine", "outputs"},
    "answers": {"engine", "outputs", "reasoning", "sampling", "sampling_params", "tokenizer"},
    "driver": {"engine", "garbage", "outputs"},
    "llm": {
        *("answers", "engine", "loading", "models", "options", "outputs", "requests", "sampling", "sampling_params"),
        *("continuations", "driver", "scoring", "tokenizer"),
    },
    "async_llm": {
        *("answers", "engine", "loading", "options", "outputs", "requests", "sampling", "sampling_params"),
    },
    "estimate": {"device", "models", "options", "sharing"},
    "jobs": {
        *("engine", "estimate", "llm", "models", "options", "outputs", "requests", "sampling", "sampling_params"),
        *("bounded_process", "chat_template", "continuations", "garbage", "sharing", "text", "tokenizer"),
    },
    "integrations": {
        *("device", "engine", "estimate", "jobs", "llm", "loading", "models", "options", "outputs", "requests"),
        *("sampling_params", "tokenizer"),
    },
    "reports": {"engine", "estimate", "jobs", "outputs", "text"},
    "cli": {
        *("dependencies", "estimate", "integrations", "jobs", "models", "options", "reports", "requests", "text"),
    },
    "__main__": {"cli"},
}


def includes() -> dict[str, dict[str, str]]:
    """By folder the others that it includes, each with a file that does."""
    found: dict[str, dict[str, str]] = {}
    for path in sorted((ROOT / "csrc").rglob("*")):
        if not path.is_file():
            continue
        room = path.parent.relative_to(ROOT / "csrc").as_posix()
        arrows = found.setdefault(room, {})
        for name in re.findall(r'^#include "([^"]+)"', path.read_text(), re.MULTILINE):
            target = Path(name).parent.as_posix()
            if target not in (room, "simt"):  # the emulator takes the place of the device's intrinsics
                arrows[target] = f"{path.name}: {name}"
    return found


def imports() -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for path in sorted((ROOT / "batchllm").rglob("*.py")):
        parts = path.relative_to(ROOT / "batchllm").parts
        if parts == ("__init__.py",):
            continue
        room = parts[0].removesuffix(".py")
        arrows = found.setdefault(room, {})
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for name in names:
                package, _, rest = name.partition(".")
                target = rest.split(".")[0]
                if package == "batchllm" and target not in ("", room):
                    arrows[target] = f"{path.name}: {name}"
    return found


@pytest.mark.parametrize(("law", "found"), [(INCLUDES, includes()), (IMPORTS, imports())], ids=["csrc", "batchllm"])
def test_no_room_knows_one_that_it_must_not(law, found):
    assert set(found) == set(law), "every room has its law"
    wrong = [
        f"{room} -> {target} ({where})"
        for room, arrows in found.items()
        for target, where in arrows.items()
        if law[room] is not None and target not in law[room]
    ]
    assert wrong == []


@pytest.mark.parametrize(("law", "found"), [(INCLUDES, includes()), (IMPORTS, imports())], ids=["csrc", "batchllm"])
def test_the_law_allows_no_more_than_is_used(law, found):
    unused = [f"{room} -> {target}" for room in law for target in (law[room] or set()) - found[room].keys()]
    assert unused == []


def test_no_arrow_runs_up():
    rooms = list(IMPORTS)
    assert [(room, low) for place, room in enumerate(rooms) for low in IMPORTS[room] if low in rooms[place:]] == []


def test_the_extension_is_the_only_native_name_that_python_knows():
    for path in (ROOT / "batchllm").rglob("*.py"):
        assert not re.search(r"^\s*(import|from) ctypes", path.read_text(), re.MULTILINE), path


OF_OTHERS = {"_loglikelihood_tokens"}  # what another project calls by this name


def private_names(path: Path) -> set[str]:
    """What a file defines with an underscore: functions, classes, attributes of self, names of the module."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return {name for name in names if name.startswith("_") and not name.endswith("__")} - OF_OTHERS


def reaches(path: Path, private: set[str]) -> Iterator[str]:
    """Uses of these names by attribute, by import or as what monkeypatch replaces."""
    for node in ast.walk(ast.parse(path.read_text())):
        found = set()
        if isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id == "self"):
            found = {node.attr}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("batchllm"):
            found = {alias.name for alias in node.names}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "setattr":
            given = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
            found = {text.rpartition(".")[2] for text in given if isinstance(text, str)}
        yield from (f"{path.relative_to(ROOT)}:{node.lineno}: {name}" for name in sorted(found & private))


def test_no_test_and_no_benchmark_reaches_into_a_room_s_private_parts():
    private = set().union(*(private_names(path) for path in (ROOT / "batchllm").rglob("*.py")))
    assert len(private) > 200
    wrong = [
        reach
        for folder in ("tests", "benchmarks", "examples")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for reach in reaches(path, private - private_names(path))
    ]
    assert wrong == []
