"""Where Python does not look for cycles: it would pass what a job keeps again and again, the more of it there is the
longer."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def set_aside() -> Iterator[None]:
    """What is there already is not looked at meanwhile; what is made is. Nothing changes where others have frozen
    something: it would thaw with ours."""
    is_ours = gc.get_freeze_count() == 0
    if is_ours:
        gc.freeze()
    try:
        yield
    finally:
        if is_ours:
            gc.unfreeze()


@contextmanager
def never_collected() -> Iterator[None]:
    """What is made here stays: it is not looked at until gc.unfreeze."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
