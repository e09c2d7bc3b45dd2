"""What of a load stays, and what comes in bursts that are soon over. Pure.

Who starts a worker for a burst has it when the burst is over, and pays for it. So what rises and falls again within a
window is told from what lasts, by the opening of mathematical morphology (Serra: "Image Analysis and Mathematical
Morphology", 1982; what it leaves over is the top-hat transform): the level at an instant is the most that the load did
not fall below for a whole window around it. A step or a slow rise becomes level once it has lasted for a window; a
shorter peak never does.

How the load of the last minutes rose and fell about its mean is the **excess** that there has to be some room for
(:mod:`broker.headroom`). A load that is hardly higher than what came and went :data:`TIMES` times before is
**ordinary**, until it lasts clearly longer than those did.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

SAMPLE_MS = 1000.0
MEMORY_MS = 600_000.0
SAMPLES_MAX = int(MEMORY_MS / SAMPLE_MS)
TIMES = 2
"""Once is no habit."""
NEW = 1.2
"""Times what came and went before is new."""


@dataclass(frozen=True, slots=True, eq=False)
class Usual:
    """Of late, in the load's unit."""

    mean: float
    """Of what lasted for a window."""
    excess: NDArray[np.float64]
    """By second, above the mean of what lasted then; 0 in the mean."""
    ordinary: float
    """A load that is no higher is nothing new."""


class Bursts:
    """Args: window_ms: what is over within it is a burst."""

    def __init__(self, window_ms: float) -> None:
        self._window_ms = window_ms
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
            above = float((loads - level).mean())
            mean = float(level[-length:].max()) + above
            self._usual = Usual(mean, loads - level - above, NEW * self._ordinary(loads, mean))
        return self._usual

    def _ordinary(self, loads: NDArray[np.float64], mean: float) -> float:
        """The highest load that was risen above and fallen below so often; the mean, if it has never lasted so long."""
        falls = np.flatnonzero((loads[:-1] > mean) & (loads[1:] <= mean))
        *over, last = np.split(loads, falls + 1)
        if len(over) < TIMES:
            return mean
        peaks, lasted = [float(part.max()) for part in over], [int((part > mean).sum()) for part in over]
        is_long = int((last > mean).sum()) > NEW * sorted(lasted)[-TIMES]
        return mean if is_long else sorted(peaks)[-TIMES]
