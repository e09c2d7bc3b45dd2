"""How much more than the mean there has to be, so that hardly anything is lost. Pure.

Work *x* that comes in a latency's time beside a capacity *c*: what is beyond it is late, ``E max(0, x - c)``. If x is
normal with mean m and deviation s, that is ``s L((c - m) / s)`` with the normal loss function ``L(z) = phi(z) - z (1 -
Phi(z))`` (as for lost sales in inventory theory: Hadley, Whitin: "Analysis of Inventory Systems", 1963, chapter 4). So
capacity follows from the share of the work that may be lost, and not from how often there is too little: a load that
is large or even needs few deviations, a small or uneven one many. Where the mean itself moves, in bursts, what is lost
is the mean over where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import pi, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

HALVINGS = 30
DEVIATIONS_MAX = 8.0


def room(deviation: float, missed: float, excess: NDArray[np.float64] | Sequence[float] = (0.0,)) -> float:
    """Of capacity beyond the mean, at least 0.

    Args:
        deviation: of what comes by chance in a latency's time. This and all others are shares of the mean.
        missed: so much may be lost.
        excess: by how much the load was above its mean, at times that are as likely as each other.
    """
    means = np.asarray(excess, float)
    low, high = 0.0, max(0.0, float(means.max())) + DEVIATIONS_MAX * deviation
    if _lost(deviation, low - means) <= missed:
        return low
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if _lost(deviation, middle - means) <= missed else (middle, high)
    return high


def deviation(room_: float, missed: float) -> float:
    """Of a load that needs so much room by chance alone: the inverse of :func:`room`."""
    low, high = 0.0, 1.0
    while room(high, missed) < room_:
        low, high = high, 2 * high
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if _lost(middle, np.array([room_])) >= missed else (middle, high)
    return high


def _lost(deviation_: float, spare: NDArray[np.float64]) -> float:
    """The mean over several means that have so much to spare."""
    if deviation_ <= 0:
        return float(np.maximum(0.0, -spare).mean())
    z = spare / deviation_
    return float((deviation_ * (np.exp(-z * z / 2) / sqrt(2 * pi) - z * ndtr(-z))).mean())
