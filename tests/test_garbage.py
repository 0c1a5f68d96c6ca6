"""What Python does not look at for cycles, and that it does again."""

import gc

import pytest

from batchllm.garbage import set_aside


@pytest.fixture(autouse=True)
def thawed():
    yield
    gc.unfreeze()


def test_what_is_set_aside_is_looked_at_again_after_an_error_too():
    def fail():
        with set_aside():
            assert gc.get_freeze_count() > 0
            made = []
            assert any(made is tracked for tracked in gc.get_objects())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert gc.get_freeze_count() == 0


def test_what_others_froze_stays_frozen():
    gc.freeze()
    num_frozen = gc.get_freeze_count()
    with set_aside():
        assert gc.get_freeze_count() == num_frozen
    assert gc.get_freeze_count() == num_frozen
