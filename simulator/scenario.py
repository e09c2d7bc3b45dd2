"""One scenario, played by any number of policies: the same arrivals, fleet, faults and random numbers for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Final

from simulator.collector import paused, spared
from simulator.facts import GroupSpec, Placement, Portfolio, SimulatedQuery
from simulator.world import Device, Fault, Load, Policy, Rental, Running, World

_TOLD_EVERY: Final = 256
"""Queries between two reports of progress."""


@dataclass(frozen=True, eq=False)
class Scenario:
    """What is the same for all policies; see :class:`~simulator.world.World`.

    ``queries`` are sorted and numbered by arrival; a play leaves them as they are.
    """

    fleet: Sequence[GroupSpec]
    portfolio: Portfolio
    queries: Sequence[SimulatedQuery]
    seed: int = 0
    faults: Sequence[Fault] = ()
    truth: dict[tuple[str, str], float] = field(default_factory=dict)
    intake_ms: float | Sequence[float] = 0.0
    reply_ms: float = 0.0
    timer_late_ms: float = 0.0


@dataclass(frozen=True, eq=False)
class Played:
    """What became of a scenario under one policy."""

    name: str
    scenario: Scenario
    queries: Sequence[SimulatedQuery]
    """Copies of the scenario's, with their outcomes."""
    loads: Sequence[Load]
    decide_us: float
    """Mean wall-clock time per query that the policy itself took: in its methods and in the events that it asked for,
    and with what the world does at its word (beginning a batch or a load). Without its ``start``."""
    wall_s: float
    """The whole play, the world's own work included."""
    rentals: Sequence[Rental] = ()
    """Of groups that scale."""

    @property
    def span_ms(self) -> float:
        """From 0 to the last arrival or to the end of the last batch, whichever is later."""
        last_ms = max((query.end_ms for query in self.queries), default=0.0)
        return max(last_ms, self.queries[-1].arrival_ms if self.queries else 0.0)


def play(
    scenario: Scenario,
    policy: Policy,
    *,
    name: str | None = None,
    placement: Placement | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Played:
    """Play it from 0 until every query has an outcome.

    Args:
        name: default: the policy's own.
        placement: what is loaded at time 0.
        on_progress: told now and then how many queries have arrived.

    Raises:
        PolicyError: the policy did what no device can do.
    """
    with paused():
        queries = [query.again() for query in scenario.queries]
    timed = _Timed(policy, on_progress)
    world = _TimedWorld(
        scenario.fleet,
        scenario.portfolio,
        queries,
        seed=scenario.seed,
        placement=placement,
        faults=scenario.faults,
        truth=scenario.truth,
        intake_ms=scenario.intake_ms,
        reply_ms=scenario.reply_ms,
        timer_late_ms=scenario.timer_late_ms,
    )
    world.timed = timed
    with spared():
        began_s = perf_counter()
        world.play(timed)
        wall_s = perf_counter() - began_s
    decide_us = 1e6 * timed.spent_s / max(1, len(queries))
    return Played(name or policy.name, scenario, queries, world.loads, decide_us, wall_s, world.rentals)


class _TimedWorld(World):
    """Its events are the policy's time too."""

    timed: _Timed

    def at(self, at_ms: float, event: Callable[[], None]) -> None:
        super().at(at_ms, _TimedEvent(self.timed, event))


class _TimedEvent:
    def __init__(self, timed: _Timed, event: Callable[[], None]) -> None:
        self._timed, self._event = timed, event

    def __call__(self) -> None:
        began_s = perf_counter()
        self._event()
        self._timed.spent_s += perf_counter() - began_s


class _Timed:
    """A policy, and the seconds that it took."""

    def __init__(self, policy: Policy, on_progress: Callable[[int], None] | None) -> None:
        self.name = policy.name
        self.spent_s = 0.0
        self._policy, self._on_progress = policy, on_progress
        self._arrived, self._ran = policy.arrived, policy.ran

    def start(self, world: World) -> None:
        self._policy.start(world)

    def arrived(self, query: SimulatedQuery) -> None:
        began_s = perf_counter()
        self._arrived(query)
        self.spent_s += perf_counter() - began_s
        if not query.index % _TOLD_EVERY and self._on_progress is not None:
            self._on_progress(query.index + 1)

    def ran(self, device: Device, batch: Running) -> None:
        began_s = perf_counter()
        self._ran(device, batch)
        self.spent_s += perf_counter() - began_s

    def loaded(self, device: Device, variant: str) -> None:
        began_s = perf_counter()
        self._policy.loaded(device, variant)
        self.spent_s += perf_counter() - began_s

    def lost(self, device: Device, queries: Sequence[SimulatedQuery]) -> None:
        began_s = perf_counter()
        self._policy.lost(device, queries)
        self.spent_s += perf_counter() - began_s

    def back(self, device: Device) -> None:
        began_s = perf_counter()
        self._policy.back(device)
        self.spent_s += perf_counter() - began_s
