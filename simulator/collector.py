"""The garbage collector among a million queries: it would look through all of them again and again, for nothing."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from modelless.process import GC_THRESHOLDS


@contextmanager
def paused() -> Iterator[None]:
    """While many objects are made that are all kept."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@contextmanager
def spared() -> Iterator[None]:
    """What exists now is not looked at meanwhile; what is made meanwhile is collected as it is in a broker."""
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()
