"""What every long-running process of ours sets once it is up."""

from __future__ import annotations

import gc

GC_THRESHOLDS = (50_000, 20, 100)


def settle() -> None:
    """Call when start-up is over: what lives now lives long, and what a query makes dies by reference counting.

    So the cyclic collector need not walk imports, tables and models again, nor run for every few hundred objects.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
