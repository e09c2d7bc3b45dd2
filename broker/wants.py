"""What this broker would rather have loaded: rows a second that an unloaded candidate would serve better.

A rate is an exponentially weighted mean over the time between two looks, so that it is exact for what is constant and
forgets within some tens of seconds what is over.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import exp

MEMORY_MS = 10_000.0
"""Time constant of forgetting."""
WANTS_MAX = 64
"""That are told, the most wanted; four times as many are counted between two looks."""
_FORGOTTEN = 0.001


class Wants:
    """Counts in :meth:`add`, tells in :meth:`rates`."""

    def __init__(self) -> None:
        self._rows: dict[str, int] = {}
        self._rates: dict[str, float] = {}
        self._looked_ms: float | None = None

    def add(self, key: str, rows: int) -> None:
        """``variant@group`` would have been better for a query of so many rows."""
        if key in self._rows or len(self._rows) < 4 * WANTS_MAX:
            self._rows[key] = self._rows.get(key, 0) + rows

    def rates(self, now_ms: float) -> dict[str, float]:
        """Rows a second by ``variant@group``, the most wanted first; called about once a second."""
        if self._looked_ms is None:
            self._looked_ms = now_ms - 1000.0
        passed_ms = now_ms - self._looked_ms
        if passed_ms > 0:
            self._looked_ms = now_ms
            kept = exp(-passed_ms / MEMORY_MS)
            rates = {key: rate * kept for key, rate in self._rates.items()}
            for key, rows in self._rows.items():
                rates[key] = rates.get(key, 0.0) + (1 - kept) * rows * 1000 / passed_ms
            self._rows.clear()
            ranked = sorted(rates.items(), key=lambda item: -item[1])[:WANTS_MAX]
            self._rates = {key: rate for key, rate in ranked if rate > _FORGOTTEN}
        return self._rates


def total(wants: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Of all brokers together."""
    rates: dict[str, float] = {}
    for each in wants:
        for key, rows_per_second in each.items():
            rates[key] = rates.get(key, 0.0) + rows_per_second
    return rates
