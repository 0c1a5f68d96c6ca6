"""Keeps Python's cycle collector away from a job's objects, which it would scan again and again, at growing cost."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def set_aside() -> Iterator[None]:
    """Existing objects are not scanned meanwhile; new ones are. Does nothing if others have frozen objects, which would
    thaw with ours."""
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
    """Objects made here are meant to stay: they are not scanned until gc.unfreeze."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
