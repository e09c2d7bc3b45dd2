"""What a group's device time is worth while work waits for it: a price, in accuracy per device-millisecond.

A query that may be answered less accurately under load (``on_miss: degrade``) is not given whatever is still in time
for itself alone: the slowest variant would fill the group's queue up to everybody's deadline, and most of what comes
next would be late. Each option costs the group's price for the device time of its row, and the one with the most
accuracy left is taken.

The price follows the queue: with z the share of a query's slack that the work ahead of it will take,

    price(z) = L / e * (U * e / L) ** z

where L is the least that another accurate variant gains per further millisecond, and U the most that any variant
gains from nothing. This is the threshold of the online knapsack problem (Zhou, Chakrabarty, Lukose: "Budget constrained
bidding in keyword auctions and online knapsack problems", WINE 2008; several options for an item: Zhou, Naroditskiy:
"Algorithm for stochastic multiple-choice knapsack problem and keywords bidding", 2008), and the queue as multiplier is
drift plus penalty (Neely: "Stochastic network optimization", 2010, chapter 4): under a steady load the queue settles
where what is chosen is just what the devices can do, whatever the arrivals are like.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from math import e, exp, log
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from broker.catalog import Candidate

Z_MAX = 10.0
"""Of more nobody has to know how much; it only has to be a number."""

RUN_SHARE = 0.5
"""Of a query's slack, or of the shortest latency asked of a group lately: no batch takes more, if it can be smaller."""
TINY = 1e-9
LEVEL_MS = 1000.0
"""Time constant of the mean."""
DEVIATION = 0.3


class PriceRange(NamedTuple):
    """Of one target on one group."""

    least: float
    """Price of an idle device: L / e."""
    log_ratio: float
    """ln(U e / L)."""

    def at(self, z: float) -> float:
        """``z``: the share of the slack that is taken by what comes before, 0 and up."""
        return self.least * exp(self.log_ratio * z)


FREE = PriceRange(0.0, 0.0)


class Level:
    """The share of their slack that queries have had to wait for a team of late, in the mean over time.

    Were the price to follow each moment, queries would be spread over many variants, in small batches. So it follows
    the mean, and a deviation from it by :data:`DEVIATION` only, or by more where the wait takes more of the slack.
    """

    def __init__(self) -> None:
        self.mean, self.at_ms = 0.0, 0.0

    def at(self, share: float, now_ms: float) -> float:
        """What the price is to go by when it is ``share`` now."""
        passed_ms = max(now_ms - self.at_ms, 0.0)  # a clock may be set back
        self.mean += (1 - exp(-passed_ms / LEVEL_MS)) * (min(share, 1.0) - self.mean)
        self.at_ms = now_ms
        return self.mean + (share - self.mean) * min(1.0, max(DEVIATION, share))


class Pricing(NamedTuple):
    """What a query pays for device time in one class of candidates."""

    of: PriceRange
    wait_ms: float
    slack_ms: float

    def price(self, run_ms: float) -> float:
        """Of a batch that takes so long."""
        return self.of.at(min(self.wait_ms / max(self.slack_ms - run_ms, TINY), Z_MAX))

    def left(self, candidate: Candidate, lat_ms: float) -> float:
        """Accuracy less the price of the device time of a row.

        What may be waited is the slack but for the batch that it joins; ``lat_ms`` is for the query alone.
        Only what the price is above that of an idle device counts: where nothing waits, nobody gives up accuracy.
        """
        price = self.price(run_ms(candidate, lat_ms, self.slack_ms))
        return candidate.accuracy_low - (price - self.of.least) * candidate.row_ms


def run_ms(candidate: Candidate, lat_ms: float, slack_ms: float) -> float:
    """Of the batch that a query joins; ``lat_ms`` is the candidate's for the query alone."""
    return max(lat_ms, min(candidate.batch_ms, RUN_SHARE * slack_ms))


def price_range(options: Iterable[tuple[float, float]]) -> PriceRange:
    """From (accuracy, device ms of a row) of what is loaded."""
    hull: list[tuple[float, float]] = [(0.0, 0.0)]
    """(ms, accuracy), the upper convex hull from doing nothing."""
    for accuracy, row_ms in sorted(options, key=lambda option: (option[1], -option[0])):
        if accuracy <= hull[-1][1] or row_ms <= hull[-1][0]:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-1], (row_ms, accuracy)):
            hull.pop()
        hull.append((row_ms, accuracy))
    if len(hull) < 2:
        return FREE
    slopes = [_slope(low, high) for low, high in pairwise(hull)]
    return PriceRange(slopes[-1] / e, log(slopes[0] * e / slopes[-1]))


def _slope(low: tuple[float, float], high: tuple[float, float]) -> float:
    return (high[1] - low[1]) / (high[0] - low[0])
