"""Rivals whose every choice is made beforehand: variant, batch size, waiting time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass

from simulator.facts import GroupSpec, Placement, Portfolio, SimulatedQuery, sorted_queries
from simulator.rivals.base import Choose, Line, Rival, Shares, cheapest, most_accurate, most_accurate_in_time
from simulator.world import Device, World


class Eager(Rival):
    """Whatever waits leaves as soon as a device is idle, up to the largest batch with ``2 * lat(b)`` in the latency.

    Batching as a server does it by itself (Triton's default: no queue delay; TensorFlow Serving with no timeout).
    Nothing is dropped; who is late is run late.
    """

    name = "eager"

    def batch(self, line: Line, device: Device) -> list[SimulatedQuery]:
        return line.take(self.rows_planned(line))


class FixedAccurate(Eager):
    """The most accurate variant on every group: what a user chooses who looks at accuracy alone.

    Clipper-HA in Proteus (ASPLOS'24).
    """

    name = "fixed-accurate"

    def __init__(self, placement: Placement | None = None, shares: Shares | None = None) -> None:
        super().__init__(placement, shares, most_accurate)


class FixedCheapest(Eager):
    """The variant with the most rows per second, so the cheapest per row, on every group.

    Clipper-HT in Proteus (ASPLOS'24), but of the variants that meet the median floor of the task's
    queries: else it would only refuse where the contract has a floor.
    """

    name = "fixed-cheapest"

    def __init__(self, placement: Placement | None = None, shares: Shares | None = None) -> None:
        super().__init__(placement, shares, cheapest)


class NoBatching(Rival):
    """One query at a time, by arrival."""

    name = "no-batching"
    by_deadline = False

    def batch(self, line: Line, device: Device) -> list[SimulatedQuery]:
        return line.take(1)


class FixedBatch(Rival):
    """A batch leaves when it has ``size`` rows or its first query has waited for ``time_ms``. Nothing is dropped.

    MLServer's adaptive batching (``max_batch_size``, ``max_batch_time``; mlserver/batching/adaptive.py) and Triton's
    dynamic batcher (``max_queue_delay_microseconds``; ``preferred_batch_size``: with these, the largest preferred
    size that the queue can fill leaves at once, and after the delay whatever there is).

    Args:
        size: rows; no more than are profiled.
        preferred: Triton's preferred sizes; none as in MLServer.
    """

    name = "fixed-batch"
    by_deadline = False

    def __init__(
        self,
        size: int = 8,
        time_ms: float = 5.0,
        preferred: Sequence[int] = (),
        placement: Placement | None = None,
        shares: Shares | None = None,
        choose: Choose = most_accurate_in_time,
    ) -> None:
        super().__init__(placement, shares, choose)
        self.size, self.time_ms, self.preferred = size, time_ms, tuple(sorted(preferred))

    def leave_ms(self, line: Line, device: Device) -> float:
        if self._filled(line):
            return 0.0
        return line.head.arrival_ms + self.time_ms

    def batch(self, line: Line, device: Device) -> list[SimulatedQuery]:
        return line.take(self._filled(line) or self._size(line))

    def _size(self, line: Line) -> int:
        return min(self.size, line.profile.rows_max)

    def _filled(self, line: Line) -> int:
        """The largest size that need not wait; 0: none yet."""
        if len(line) >= self._size(line):
            return self._size(line)
        return max((size for size in self.preferred if size <= len(line)), default=0)


@dataclass(frozen=True, slots=True)
class Tuned:
    """What a search found."""

    size: int
    time_ms: float
    goodness: float
    """Accuracy summed over answers in time, divided by all queries of the search."""


def tune(
    make: Callable[[int, float], Rival],
    fleet: Sequence[GroupSpec],
    portfolio: Portfolio,
    queries: Iterable[SimulatedQuery],
    *,
    sizes: Sequence[int] | None = None,
    times_ms: Sequence[float] = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0),
    placement: Placement | None = None,
    seed: int = 0,
    queries_max: int = 20_000,
) -> Tuned:
    """The size, then the time, with the highest goodness on the first ``queries_max`` of these very arrivals.

    Alternates between both until neither improves. ``sizes``: all profiled ones. Faults are not part of the search.
    """
    asked = [copy(query) for query in queries][:queries_max]
    sizes = sizes or sorted({size for profile in portfolio.profiles for size in profile.sizes})
    seen: dict[tuple[int, float], float] = {}

    def goodness(size: int, time_ms: float) -> float:
        if (size, time_ms) not in seen:
            fresh = sorted_queries(query.again() for query in asked)
            World(fleet, portfolio, fresh, seed=seed, placement=placement).play(make(size, time_ms))
            in_time = sum(query.accuracy for query in fresh if query.outcome == "in_time")
            seen[size, time_ms] = in_time / max(1, len(fresh))
        return seen[size, time_ms]

    size, time_ms, found = sizes[0], times_ms[0], -1.0
    while goodness(size, time_ms) > found:
        found = goodness(size, time_ms)
        size = max(sizes, key=lambda each: goodness(each, time_ms))
        time_ms = max(times_ms, key=lambda each: goodness(size, each))
    return Tuned(size, time_ms, goodness(size, time_ms))


class BestTuned(FixedBatch):
    """:class:`FixedBatch` with the size and time that are best in hindsight: the search sees the arrivals.

    Nobody can tune a server better with two numbers for all of its models.
    """

    name = "best-tuned"

    def __init__(
        self,
        placement: Placement | None = None,
        shares: Shares | None = None,
        choose: Choose = most_accurate_in_time,
        queries_max: int = 20_000,
    ) -> None:
        super().__init__(placement=placement, shares=shares, choose=choose)
        self.queries_max = queries_max

    def start(self, world: World) -> None:
        loaded = {name: sorted(device.loaded) for name, device in world.devices.items() if device.loaded}
        self.tuned = tune(
            lambda size, time_ms: FixedBatch(
                size, time_ms, placement=self.placement, shares=self.shares, choose=self.choose
            ),
            world.fleet,
            world.portfolio,
            world.queries,
            placement=loaded or None,
            queries_max=self.queries_max,
        )
        self.size, self.time_ms = self.tuned.size, self.tuned.time_ms
        super().start(world)
