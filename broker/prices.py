"""What device time is worth while work waits for it: a price per group, in accuracy per device-millisecond.

A query is not given whatever is still in time for itself alone: the slowest variant would fill the queue up to
everybody's deadline, and most of what comes next would be late. Each option costs the price of the device time of its
row; of those that prefer accuracy, the one with the most of it left is taken, of those that prefer cost one whose time
is worth little.

All tasks pay the same price for the same devices, whatever their variants are like, so that none takes what another one
would make more of. It lies between what brings the least and the most there, L and U::

    price(level) = U * (q ** level - 1) / (q - 1),  q = U * e / L

where L is the least that another accurate variant of any task gains per further millisecond, and U the most that any
gains from nothing. With the share of a query's slack that the work ahead of it takes for the level, this is but for the
ones the threshold of the online knapsack problem, L / e * q ** level (Zhou, Chakrabarty, Lukose: "Budget constrained
bidding in keyword auctions and online knapsack problems", WINE 2008); they make it 0 where nothing waits, since nobody
needs to give up accuracy there. The queue would have to be long for the price to be high. So most of the
level is learned: it rises while queries have to wait for more than a target share of their slack, and falls while they
wait for less, which is dual ascent on the devices' capacity; what the queue says now comes on top (as in Huang, Neely:
"Delay reduction via Lagrange multipliers in stochastic network optimization", 2011, where the learned part stands for a
queue that nobody has to wait in).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import pairwise
from math import e, exp, inf, log
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from broker.ranking import Teams

TARGET: Final = 0.2
"""Of their slack that queries should wait for devices in demand."""
LEARN_MS: Final = 2000.0
"""The level rises by 1 in little more than that if queries have to wait for all of their slack, and falls by 1 in so
long if they do not wait at all; in between by less, in proportion, and when it falls by its square."""
LEVEL_MAX: Final = 10.0
"""Of more nobody has to know how much; it only has to be a number."""
TEAMS_MAX: Final = 1024
"""Whose levels are remembered."""


class PriceRange(NamedTuple):
    """Of one group."""

    scale: float
    """U / (q - 1)."""
    log_ratio: float
    """ln q."""

    def at(self, level: float) -> float:
        return self.scale * (exp(self.log_ratio * (level if level < LEVEL_MAX else LEVEL_MAX)) - 1.0)

    @classmethod
    def between(cls, least: float, most: float) -> PriceRange:
        ratio = most * e / least
        return cls(most / (ratio - 1.0), log(ratio))

    @property
    def most(self) -> float:
        return self.at(1.0)

    @property
    def least(self) -> float:
        return self.most * e / exp(self.log_ratio)


FREE = PriceRange(0.0, 0.0)


class Level:
    """Of one team of workers, for one query topic."""

    __slots__ = ("learned", "now", "of", "range", "seen_ms")

    def __init__(self, of: tuple[str, frozenset[str], Hashable]) -> None:
        """``of``: group, team and payer."""
        self.of, self.range = of, FREE
        self.learned = self.now = 0.0
        self.seen_ms = -inf
        """When a query was last; not before one that had to wait."""

    @property
    def price(self) -> float:
        return self.range.at(self.now) if self.now else 0.0

    def learn(self, share: float, now_ms: float) -> None:
        """A query would have to wait for so much of its slack."""
        passed_ms = now_ms - self.seen_ms
        self.seen_ms = now_ms
        if passed_ms > 0.0:  # a clock may be set back
            gap = (share if share < 1.0 else 1.0) - TARGET
            if gap < 0.0:
                gap = -gap * gap / TARGET**2
            learned = self.learned + gap * (passed_ms if passed_ms < LEARN_MS else LEARN_MS) / LEARN_MS
            self.learned = 0.0 if learned < 0.0 else learned if learned < 1.0 else 1.0


class Prices:
    """Of all teams: workers of a group that have the same loaded.

    A topic that is ahead of its share waits longer than others (:mod:`broker.fairness`): what it learns is its own.
    """

    def __init__(self, ranges: Mapping[str, PriceRange] | None = None) -> None:
        self._ranges = ranges or {}
        """By group."""
        self._levels: dict[tuple[str, frozenset[str], Hashable], Level] = {}
        """Of whom somebody has had to wait for."""
        self._levels_of: dict[tuple[Sequence[Teams], Hashable], list[Level]] = {}
        """Of all teams that were asked for together, in their order, until a level comes or goes."""

    def put_ranges(self, ranges: Mapping[str, PriceRange]) -> None:
        """What device time may be worth, by group."""
        self._ranges = ranges
        for (group, _, _), level in self._levels.items():
            level.range = ranges.get(group, FREE)

    def see(
        self,
        teams: Sequence[Teams],
        waits_ms: Sequence[float],
        slack_ms: float,
        now_ms: float,
        payer: Hashable = None,
    ) -> Sequence[Level]:
        """The levels for a query with so much slack that would have to wait for each of these teams for so long.

        Of none while none of them has a price.

        Args:
            payer: its topic's account, if there are several.
        """
        levels = self._levels_of.get((teams, payer))
        if levels is None:
            if len(self._levels_of) >= TEAMS_MAX:
                self._levels_of.clear()
            keys = [(of.group, team, payer) for of in teams for team in of.teams]
            levels = self._levels_of[teams, payer] = [self._levels.get(key) or Level(key) for key in keys]
        is_free = True
        for level, wait_ms in zip(levels, waits_ms, strict=True):
            if level.seen_ms != now_ms:
                if level.seen_ms > -inf:
                    level.learn(wait_ms / slack_ms, now_ms)
                elif wait_ms:
                    self._begin(level, now_ms)
            level.now = level.learned + wait_ms / slack_ms
            if is_free and level.now and level.range.scale:
                is_free = False
        return () if is_free else levels

    def _begin(self, level: Level, now_ms: float) -> None:
        """Somebody has to wait for a team for the first time."""
        if len(self._levels) >= TEAMS_MAX:
            levels = self._levels
            del levels[min(levels, key=lambda each: levels[each].seen_ms)]
        self._levels_of.clear()
        self._levels[level.of] = level
        level.seen_ms, level.range = now_ms, self._ranges.get(level.of[0], FREE)

    def of(self, group: str, team: frozenset[str], payer: Hashable = None) -> float:
        """The price as it was for the last query."""
        level = self._levels.get((group, team, payer))
        return 0.0 if level is None else level.price

    def scarcity(self, group: str, team: frozenset[str], payer: Hashable = None) -> float:
        """What is learned of the price, without what the queue said: from 0 to 1, of the most that it may be."""
        level = self._levels.get((group, team, payer))
        if level is None or not level.learned or not level.range.scale:
            return 0.0
        return level.range.at(level.learned) / level.range.most


def price_range(options: Iterable[tuple[float, float]]) -> PriceRange:
    """From (accuracy, device ms of a row) of what one task has loaded on a group."""
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
    return PriceRange.between(slopes[-1], slopes[0])


def widest(ranges: Iterable[PriceRange]) -> PriceRange:
    """From the least to the most of all tasks."""
    known = [each for each in ranges if each.scale]
    if not known:
        return FREE
    return PriceRange.between(min([each.least for each in known]), max([each.most for each in known]))


def _slope(low: tuple[float, float], high: tuple[float, float]) -> float:
    return (high[1] - low[1]) / (high[0] - low[0])
