"""What is said where a package is missing, or not the one that was tried."""

from importlib.metadata import version

import pytest

from batchllm.integrations.requirement import require


def test_a_known_version_passes():
    require("pytest", f"=={version('pytest')}")


def test_a_missing_package_is_told_with_the_command():
    with pytest.raises(ImportError) as error:
        require("no-such-engine", ">=1,<2")
    assert str(error.value) == "this integration needs no-such-engine: pip install 'no-such-engine>=1,<2'"


def test_an_extra_of_ours_takes_its_place_in_the_command():
    with pytest.raises(ImportError, match=r"pip install 'batchllm-ext\[ray\]'$"):
        require("no-such-engine", ">=1,<2", install="batchllm-ext[ray]")


def test_a_version_that_nobody_tried_is_refused():
    with pytest.raises(ImportError) as error:
        require("pytest", "<2")
    found = version("pytest")
    assert str(error.value) == f"this integration knows pytest <2, found {found}: pip install 'pytest<2'"
