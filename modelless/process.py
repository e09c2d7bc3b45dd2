"""What every long-running process of ours sets once it is up."""

from __future__ import annotations

import gc
import os
import time
from pathlib import Path

ASKED_S = "MODELLESS_ASKED_S"
"""When this process was asked for, in Unix seconds, where somebody far away starts it and that takes time too."""
GC_THRESHOLDS = (50_000, 20, 100)
_READ_S = time.monotonic()


def settle() -> None:
    """Call when start-up is over: what lives now lives long, and what a query makes dies by reference counting.

    So the cyclic collector need not walk imports, tables and models again, nor run for every few hundred objects.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def start_ms() -> float:
    """How long this process took until now, from when it was asked for."""
    asked_s = os.environ.get(ASKED_S)
    return _age_ms() if asked_s is None else max(_age_ms(), (time.time() - float(asked_s)) * 1000)


def _age_ms() -> float:
    """Since it was started, before all imports; where that cannot be told, since it had imported us."""
    try:
        started_ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return (time.monotonic() - _READ_S) * 1000
    return (time.clock_gettime(time.CLOCK_BOOTTIME) - started_ticks / os.sysconf("SC_CLK_TCK")) * 1000
