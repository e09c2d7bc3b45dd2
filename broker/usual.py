"""How large a batch a query of a group joins, as of late: what its predicted cost is worked out for.

A device costs nearly as much for a batch of two rows as for one of eight: what a query costs depends on its company.
Batches form by backpressure, and whoever is chosen for, the load of the group decides how large they get. The mean is
one over queries, not over batches: half of the queries in batches of 1 and half in batches of 9 is 5, although there
are nine times as many of the former. While nothing runs, the best is assumed, so that a limit on cost that is met by
large batches alone does not keep them from ever forming.
"""

from __future__ import annotations

from math import inf

_WEIGHT = 0.01
"""Of one row, in a moving mean; the first ones count as their plain mean."""
QUIET_MS = 30_000.0
"""Without a batch for so long, it is forgotten."""


class UsualRows:
    """Of one group."""

    def __init__(self) -> None:
        self._mean = 0.0
        self._seen = 0
        self._ran_ms = -inf

    def ran(self, rows: int, now_ms: float) -> None:
        """A batch of so many rows ran."""
        if now_ms - self._ran_ms > QUIET_MS:
            self._mean, self._seen = 0.0, 0
        self._ran_ms = max(self._ran_ms, now_ms)
        self._seen += rows
        share = max(rows / self._seen, 1 - (1 - _WEIGHT) ** rows)
        self._mean += share * (rows - self._mean)

    def rows(self, now_ms: float) -> float | None:
        """Mean rows of the batch that a query joins; None while nothing has run for a while."""
        return None if now_ms - self._ran_ms > QUIET_MS else self._mean
