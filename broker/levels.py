"""What is asked for at quiet and at busy times of the last minute: two levels of demand to place variants for. Pure.

What suits the mean of a load that comes in bursts suits neither the bursts nor the calm between them, and what suits
the present moment is loaded when it is over. So a placement is chosen for both at once, as in stochastic programming
with recourse (Birge, Louveaux: "Introduction to Stochastic Programming", 2011): what is loaded is the same at both
levels, who answers is not. The levels are the two clusters of the seconds of late that differ the least within (k-means
in one dimension, which is exact: Fisher, "On grouping for maximum homogeneity", 1958), recent seconds counting more;
each has the mean of what was asked for in it, and the share of time that it took. A load that is hardly uneven has one
level, the present one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from itertools import compress
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from broker.demand import Key, key_of
from modelless.messages import Demanded

SAMPLE_MS = 1000.0
MEMORY_MS = 30_000.0
"""Time constant of forgetting."""
SAMPLES_MS_MAX = 3 * MEMORY_MS
"""What is older does not count at all."""
UNEVEN = 2.0
"""So many times the quiet level's rows a second are another level."""


class Level(NamedTuple):
    demand: tuple[Demanded, ...]
    share: float
    """Of the time; those of all levels sum to 1."""


class _Sample(NamedTuple):
    at_ms: float
    demand: dict[Key, Demanded]
    rows_per_s: float


class Levels:
    """Hears what is asked for, tells its levels."""

    def __init__(self) -> None:
        self._samples: deque[_Sample] = deque()

    def hear(self, demand: Sequence[Demanded], now_ms: float) -> None:
        """As often as one likes; no time without any demand counts."""
        if not demand or (self._samples and now_ms < self._samples[-1].at_ms + SAMPLE_MS):
            return
        by_class = {key_of(each): each for each in demand}
        self._samples.append(_Sample(now_ms, by_class, sum(each.rows_per_second for each in demand)))
        while self._samples[0].at_ms < now_ms - SAMPLES_MS_MAX:
            self._samples.popleft()

    def of(self, present: Sequence[Demanded]) -> tuple[Level, ...]:
        """The quiet and the busy level, or only what is asked for at present."""
        samples = self._samples
        rates = np.array([sample.rows_per_s for sample in samples])
        if not samples or rates.max() < UNEVEN * rates.min():
            return (Level(tuple(present), 1.0),)
        weights = np.exp((np.array([sample.at_ms for sample in samples]) - samples[-1].at_ms) / MEMORY_MS)
        is_busy = rates > _border(rates, weights)
        quiet, busy = (float(np.average(rates[of], weights=weights[of])) for of in (~is_busy, is_busy))
        if busy < UNEVEN * quiet:
            return (Level(tuple(present), 1.0),)
        return tuple(
            Level(_mean(list(compress(samples, of)), weights[of]), float(weights[of].sum() / weights.sum()))
            for of in (~is_busy, is_busy)
        )


def _border(rates: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    """The highest rate of the lower of two clusters, neither of which is empty."""
    order = np.argsort(rates, kind="stable")
    rates, weights = rates[order], weights[order]
    weight, total = np.cumsum(weights), np.cumsum(weights * rates)
    # The variance within is least where that between is largest; only sums of the part below are needed.
    below, above = weight[:-1], weight[-1] - weight[:-1]
    between = total[:-1] ** 2 / below + (total[-1] - total[:-1]) ** 2 / above
    return float(rates[int(np.argmax(between))])


def _mean(samples: Sequence[_Sample], weights: NDArray[np.float64]) -> tuple[Demanded, ...]:
    """Class by class; bounds are the last ones."""
    last: dict[Key, Demanded] = {}
    rows: dict[Key, float] = {}
    for sample, weight in zip(samples, (weights / weights.sum()).tolist(), strict=True):
        for key, each in sample.demand.items():
            last[key] = each
            rows[key] = rows.get(key, 0.0) + weight * each.rows_per_second
    return tuple(replace(each, rows_per_second=rows[key]) for key, each in last.items())
