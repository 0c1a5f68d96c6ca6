"""Checks that the required packages are installed and new enough."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec


@cache
def check_dependencies() -> None:
    """Raises ImportError that names a missing or outdated package and the command that installs it.

    The lower bounds come from the installed distribution; a checkout that is only on the path has none. Versions newer
    than pip would accept are let through.
    """
    if find_spec("batchllm_ext") is None:
        raise ImportError("batchllm needs its native module batchllm_ext: `pip install .` in the checkout builds it")
    try:
        required = requires("batchllm-ext") or []
    except PackageNotFoundError:
        return
    try:
        from packaging.requirements import Requirement
    except ModuleNotFoundError:
        raise ImportError("batchllm needs packaging: pip install packaging") from None
    for requirement in map(Requirement, required):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        remedy = f"pip install '{requirement}'"
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            raise ImportError(f"batchllm needs {requirement.name}: {remedy}") from None
        lowest = [bound for bound in requirement.specifier if bound.operator == ">="]
        if not all(bound.contains(found, prereleases=True) for bound in lowest):
            raise ImportError(f"batchllm needs {requirement}, found {requirement.name} {found}: {remedy}")
