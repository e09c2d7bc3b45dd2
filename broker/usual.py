"""What is usual on a group, as of late: how large a batch a query joins there, and how slow whatever runs is.

**Rows.** A device costs nearly as much for a batch of two rows as for one of eight: what a query costs depends on its
company. Batches form by backpressure, and whoever is chosen, the load of the group decides how large they get. The mean
is one over queries, not over batches: half of the queries in batches of 1 and half in batches of 9 is 5, although there
are nine times as many of the former. While nothing runs, the best is assumed, so that a limit on cost that is met by
large batches alone does not keep them from ever forming.

**Company.** What is chosen less makes smaller batches, looks dearer for it, and is chosen even less: of two groups
whichever happened to have the larger batches first would stay the cheaper, for good. So a query's company counts as no
smaller than it would be if all came to the group that ask for the cheapest and could be answered there
(:func:`company`): that is the same for all groups, whatever happened before. A broker counts what it is asked for
itself; of what other brokers would send it knows only what they do.

**Slowness.** A neighbour on the processor slows whatever runs there. A variant that has not run lately would not know,
would look quicker than those that have, be chosen, learn, and give way to the next one that does not know: the queries
would wander over all variants, in small batches. So what has not run is taken to be as slow as what has.
"""

from __future__ import annotations

from collections.abc import Callable
from math import exp, inf, log
from typing import NamedTuple

_WEIGHT = 0.01
"""Of one row, in a moving mean; the first ones count as their plain mean."""
QUIET_MS = 30_000.0
"""Without a batch for so long, it is forgotten."""


class Usual(NamedTuple):
    rows: float
    """Of the batch that a query joins."""
    slowness: float
    """Living median over the profile's, of what runs."""


class UsualOfGroup:
    """Moving means of one group."""

    def __init__(self) -> None:
        self._rows = self._log_slowness = 0.0
        self._seen = 0
        self._ran_ms = -inf

    def ran(self, rows: int, slowness: float, now_ms: float) -> None:
        """A batch of so many rows ran, of a variant that is so slow."""
        if now_ms - self._ran_ms > QUIET_MS:
            self._rows, self._log_slowness, self._seen = 0.0, 0.0, 0
        self._ran_ms = max(self._ran_ms, now_ms)
        self._seen += rows
        share = max(rows / self._seen, 1 - (1 - _WEIGHT) ** rows)
        self._rows += share * (rows - self._rows)
        self._log_slowness += share * (log(slowness) - self._log_slowness)

    def at(self, now_ms: float) -> Usual | None:
        """None while nothing has run for a while."""
        return None if now_ms - self._ran_ms > QUIET_MS else Usual(self._rows, exp(self._log_slowness))


def company(rows_per_ms: float, lat_ms: Callable[[int], float], rows_max: int, block_ms: float) -> int:
    """Rows of a batch on a device that has nothing else to do: as many as come while one runs.

    Grown from a lone row, so that it is the least such batch; at most ``rows_max``, and as many as take ``block_ms``.

    Args:
        rows_per_ms: that come to the device.
        lat_ms: how long a batch of so many rows takes.
    """
    rows = 1
    while rows < rows_max:
        coming = min(rows_max, round(rows_per_ms * lat_ms(rows)))
        while coming > rows and lat_ms(coming) > block_ms:
            coming -= 1
        if coming <= rows:
            break
        rows = coming
    return rows
