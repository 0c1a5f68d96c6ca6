"""batchllm_ext.pyi says what the module has: every name, parameter, kind and default."""

import ast
import subprocess
import sys
from pathlib import Path

import batchllm_ext

ROOT = Path(__file__).resolve().parent.parent


def api(source: str) -> dict[str, list[str]]:
    """Name -> parameters with kinds and defaults, or "property", for every public function, method and property."""
    found: dict[str, list[str]] = {}

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef):
                found[prefix + node.name] = ["class"]
                visit(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.FunctionDef) and node.name != "__str__":
                is_property = any(isinstance(item, ast.Name) and item.id == "property" for item in node.decorator_list)
                says = "property" if is_property else parameters(node.args)
                found.setdefault(prefix + node.name, []).append(says)  # several where it is overloaded

    def parameters(args: ast.arguments) -> str:
        for arg in [*args.args, *args.kwonlyargs, args.kwarg]:
            if arg is not None:
                arg.annotation = None
        return ast.unparse(args)

    visit(ast.parse(source).body, "")
    return found


def test_stub_matches_the_module(tmp_path):
    directory = Path(batchllm_ext.__file__).parent
    command = [sys.executable, "-m", "pybind11_stubgen", "batchllm_ext", "-o", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, cwd=directory)
    generated = api((tmp_path / "batchllm_ext.pyi").read_text())
    assert api((ROOT / "batchllm_ext.pyi").read_text()) == generated


def test_stub_is_installed_where_type_checkers_look():
    installed = Path(batchllm_ext.__file__).parent / "batchllm_ext-stubs" / "__init__.pyi"
    assert installed.read_text() == (ROOT / "batchllm_ext.pyi").read_text()
