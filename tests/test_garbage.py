"""What Python does not look at for cycles, and that it does again."""

import gc

import pytest

from batchllm.garbage import set_aside


@pytest.fixture(autouse=True)
def thawed():
    yield
    gc.unfreeze()


def is_looked_at(thing: object) -> bool:
    return any(thing is tracked for tracked in gc.get_objects())


def test_what_is_set_aside_is_looked_at_again_after_an_error_too():
    def fail():
        with set_aside():
            assert gc.get_freeze_count() > 0
            made = []
            assert is_looked_at(made)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert gc.get_freeze_count() == 0


def test_what_others_froze_stays_frozen():
    theirs = []
    gc.freeze()
    ours = []
    with set_aside():
        assert (is_looked_at(theirs), is_looked_at(ours)) == (False, True)
    assert (is_looked_at(theirs), is_looked_at(ours)) == (False, True)
