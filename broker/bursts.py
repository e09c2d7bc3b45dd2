"""What of a load stays, and what comes in bursts that are soon over. Pure.

Who starts a worker for a burst has it when the burst is over, and pays for it. So what rises and falls again within a
window is told from what lasts, by the opening of mathematical morphology (Serra: "Image Analysis and Mathematical
Morphology", 1982; what it leaves over is the top-hat transform): the level at an instant is the most that the load did
not fall below for a whole window around it. A step or a slow rise becomes level once it has lasted for a window; a
shorter peak never does.

Of the last minutes, that which the load exceeded the level by in all but a small share of the time is the **swing**
that there has to be room for. A load that is hardly higher than what came and went :data:`TIMES` times before is
**ordinary**.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from math import erf, sqrt

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

SAMPLE_MS = 1000.0
MEMORY_MS = 600_000.0
SAMPLES_MAX = int(MEMORY_MS / SAMPLE_MS)
TIMES = 2
"""Once is no habit."""
NEW = 1.2
"""Times what came and went before is new."""


@dataclass(frozen=True, slots=True)
class Usual:
    """Of late, in the load's unit."""

    mean: float
    """Of what lasted for a window."""
    swing: float
    """There has to be room for so much more."""
    ordinary: float
    """A load that is no higher is nothing new."""


class Bursts:
    """Args:
    window_ms: what is over within it is a burst.
    deviations: there is to be room for as much as so many standard deviations are of what is normally distributed.
    """

    def __init__(self, window_ms: float, deviations: float) -> None:
        self._window_ms = window_ms
        self._share = (1 + erf(deviations / sqrt(2))) / 2
        self._samples: deque[float] = deque(maxlen=SAMPLES_MAX)
        self._sample_ms: float | None = None
        self._usual: Usual | None = None

    def hear(self, load: float, now_ms: float) -> None:
        if self._sample_ms is None:
            self._sample_ms = now_ms
        while now_ms >= self._sample_ms:  # what was not looked at meanwhile was as it is now
            self._samples.append(load)
            self._sample_ms = max(self._sample_ms + SAMPLE_MS, now_ms - MEMORY_MS)
            self._usual = None

    def usual(self) -> Usual | None:
        """None: not enough is known yet."""
        length = max(2, round(self._window_ms / SAMPLE_MS))
        if len(self._samples) <= length:
            return None
        if self._usual is None:
            loads = np.array(self._samples)
            lasting = sliding_window_view(loads, length).min(axis=1)
            # At both ends a window may be cut short, or what lasts there would be nobody's.
            edge = np.full(length - 1, -np.inf)
            level = sliding_window_view(np.concatenate([edge, lasting, edge]), length).max(axis=1)
            now = float(level[-length:].max())
            mean = now + float((loads - level).mean())
            swing = max(0.0, now + float(np.quantile(loads - level, self._share)) - mean)
            self._usual = Usual(mean, swing, NEW * self._ordinary(loads, mean))
        return self._usual

    def _ordinary(self, loads: np.ndarray, mean: float) -> float:
        """The highest load that was risen above and fallen below so often."""
        falls = np.flatnonzero((loads[:-1] > mean) & (loads[1:] <= mean))
        peaks = [float(part.max()) for part in np.split(loads, falls + 1)[:-1]]  # of what is over
        return sorted(peaks)[-TIMES] if len(peaks) >= TIMES else mean
