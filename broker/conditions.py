"""How profiled variants live on each group: one state for each, from latencies, workers and rates. Pure.

* **inactive**: profiled, loaded nowhere.
* **loading**: some worker loads it, none has it ready.
* **active**: ready somewhere.
* **overloaded**: what runs is at the profiled peak of the workers that have it ready.
* **interfered**: latency is above the profile although that peak is far; so it is not our own load that makes it slow
  but a neighbour, a throttled processor, whatever. Its living median is then above the profile, which makes it look
  slow and dear to whoever chooses, until it recovers.

(Names and idea: Romero et al., "INFaaS: Automated Model-less Inference Serving", USENIX ATC 2021, section 4.)

Both of the last two are told apart by one number, the **busy share by profile** of a worker: the time that the profile
says its batches should have taken, over the time that passed. A device that is full of slow batches is busy all the
time, but not by profile. Every state is left at another value than it is entered at.

**Drift** is a living median that stays far from the profile at low load: the profile is to be measured again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import exp
from typing import Literal, NamedTuple

from broker.catalog import Candidate
from broker.devices import Worker
from broker.groups import Group
from modelless.messages import Condition, Profile

State = Literal["inactive", "loading", "active", "overloaded", "interfered"]
STATES: tuple[State, ...] = ("inactive", "loading", "active", "overloaded", "interfered")
Find = Callable[[str, str], Candidate | None]
"""The candidate of a variant on a group, as the catalog has it now."""

OVERLOADED, OVERLOADED_ENDS = 0.9, 0.75
"""Busy share by profile."""
INTERFERED, INTERFERED_ENDS = 1.5, 1.2
"""Living median over the profile's."""
LOW = 0.7
"""Busy share by profile below which a worker's own load is no excuse for being slow."""
DRIFTED = 1.5
"""Living median over the profile's, either way."""
DRIFTED_MS = 60_000.0
RATE_MS = 5_000.0
"""Time constant of all rates here."""
ROWS_PER_SECOND_MIN = 0.01
CHANGE_INTERVAL_MS = 1_000.0
"""A changed state of one variant is written no more often."""
SNAPSHOT_INTERVAL_MS = 10_000.0
"""Likewise a factor that moved by more than a share of ``SNAPSHOT_SHARE``, when the state did not change."""
SNAPSHOT_SHARE = 0.15
WRITTEN_AT_ONCE_MAX = 100
JUDGED_AT_ONCE_MAX = 64


class Facts(NamedTuple):
    """What the state of one variant on one group follows from."""

    ready: bool
    loading: bool
    scale: float
    """Living median over the profile's."""
    busy: float
    """Busy share by profile of the workers that have it ready."""
    used: bool
    """It ran lately."""


def next_state(before: State, facts: Facts) -> State:
    """The state that follows from ``facts``; ``before`` decides between the two values of each bound."""
    if not facts.ready:
        return "loading" if facts.loading else "inactive"
    if facts.used and facts.busy >= (OVERLOADED_ENDS if before == "overloaded" else OVERLOADED):
        return "overloaded"
    if before == "interfered":
        return "interfered" if facts.scale >= INTERFERED_ENDS else "active"
    return "interfered" if facts.used and facts.busy < LOW and facts.scale >= INTERFERED else "active"


@dataclass(slots=True)
class Rate:
    """Something per second; what is older counts less, by a factor of e every ``RATE_MS``."""

    _per_second: float = 0.0
    _at_ms: float = 0.0

    def add(self, amount: float, now_ms: float) -> None:
        self._per_second = self.at(now_ms) + amount * 1000 / RATE_MS
        self._at_ms = max(now_ms, self._at_ms)

    def at(self, now_ms: float) -> float:
        return self._per_second * exp(min(self._at_ms - now_ms, 0.0) / RATE_MS)


class _AtWork(NamedTuple):
    """A group's workers at one moment."""

    ready: Mapping[frozenset[str], tuple[float, int]]
    """(sum of busy shares by profile, number of workers) by what they have ready, which is the same for most."""
    loading: frozenset[str]


_NOBODY = _AtWork({}, frozenset())


@dataclass(slots=True)
class _Life:
    variant: str
    group: str
    digest: str
    state: State = "inactive"
    rows: Rate = field(default_factory=Rate)
    far_since_ms: float | None = None
    """Since when the living median is far from the profile at low load."""


class Conditions:
    """The states of all variants that live or lived, by ``variant@group``, as one broker sees them.

    Every broker derives them from what all workers tell it; the leader writes down what changed.
    """

    def __init__(self) -> None:
        self._lives: dict[str, _Life] = {}
        self._busy: dict[str, Rate] = {}
        """Profiled ms of work, by a worker's incarnation."""
        self._turn: list[tuple[str, str]] = []
        """Who is to be judged before anybody is judged again."""
        self._written: dict[str, Condition] = {}
        """The last snapshots, by ``variant@group``, as the topic has them."""

    # --- events -------------------------------------------------------------------------------------------------------

    def ran(self, worker: Worker, candidate: Candidate, rows: int, execute_ms: float, now_ms: float) -> None:
        """Batches of so many rows ran on a worker; the candidate's table knows of them already."""
        self._busy.setdefault(worker.incarnation, Rate()).add(execute_ms / candidate.table.scale, now_ms)
        self._life(candidate).rows.add(rows, now_ms)

    def heard(self, key: str, condition: Condition | None) -> None:
        """The topic has a snapshot for ``variant@group``, or (None) has none any more."""
        if condition is None:
            self._written.pop(key, None)
        else:
            self._written[key] = condition

    def restore(self, find: Find, profiles: Mapping[str, Profile]) -> None:
        """Begin with the snapshots; those of another version, or from before a profile, are of no use."""
        for key, written in self._written.items():
            candidate = find(written.variant, written.group)
            if candidate is None or candidate.model.digest != written.digest:
                continue
            if profiles[key].measured_ms <= written.changed_ms:
                candidate.table.restore(written.p50_scale, written.p99_scale, written.changed_ms)
                self._life(candidate).state = written.state

    # --- judging ------------------------------------------------------------------------------------------------------

    def judge(self, find: Find, groups: Mapping[str, Group], now_ms: float) -> None:
        """Let time pass: tables forget, states follow, ``JUDGED_AT_ONCE_MAX`` at a time in turn."""
        self._busy = {
            worker.incarnation: self._busy.get(worker.incarnation) or Rate()
            for group in groups.values()
            for worker in group.workers.values()
        }
        at_work = {name: self._at_work(group, now_ms) for name, group in groups.items()}
        if not self._turn:
            everybody = {(life.variant, life.group): None for life in self._lives.values()}
            for name, work in at_work.items():
                everybody.update({(v, name): None for v in work.loading.union(*work.ready)})
            self._turn = list(everybody)
        for variant, group in self._turn[:JUDGED_AT_ONCE_MAX]:
            self._judge(variant, group, find(variant, group), at_work.get(group, _NOBODY), now_ms)
        del self._turn[:JUDGED_AT_ONCE_MAX]

    def _judge(self, variant: str, group: str, candidate: Candidate | None, work: _AtWork, now_ms: float) -> None:
        key = f"{variant}@{group}"
        if candidate is None:
            self._lives.pop(key, None)
            return
        life = self._life(candidate)
        candidate.table.relax(now_ms)
        self._follow(life, candidate, work, now_ms)
        forgotten = candidate.table.scale == 1.0 and life.rows.at(now_ms) < ROWS_PER_SECOND_MIN
        if life.state == "inactive" and forgotten and not self._is_news(key, life, candidate):
            del self._lives[key]

    def _at_work(self, group: Group, now_ms: float) -> _AtWork:
        ready: dict[frozenset[str], tuple[float, int]] = {}
        loading: set[str] = set()
        for worker in group.workers.values():
            busy, number = ready.get(worker.ready, (0.0, 0))
            ready[worker.ready] = busy + self._busy[worker.incarnation].at(now_ms) / 1000, number + 1
            loading |= worker.loading
        return _AtWork(ready, frozenset(loading))

    def _follow(self, life: _Life, candidate: Candidate, work: _AtWork, now_ms: float) -> None:
        classes = [of for ready, of in work.ready.items() if life.variant in ready]
        workers = sum(number for _, number in classes)
        busy = sum(busy for busy, _ in classes) / workers if workers else 0.0
        scale = candidate.table.scale
        used = life.rows.at(now_ms) > ROWS_PER_SECOND_MIN
        life.state = next_state(life.state, Facts(bool(workers), life.variant in work.loading, scale, busy, used))
        far = bool(workers) and busy < LOW and not 1 / DRIFTED < scale < DRIFTED
        if not far:
            life.far_since_ms = None
        elif life.far_since_ms is None:
            life.far_since_ms = now_ms

    def _life(self, candidate: Candidate) -> _Life:
        key = f"{candidate.variant}@{candidate.group}"
        life = self._lives.get(key)
        if life is None or life.digest != candidate.model.digest:
            life = self._lives[key] = _Life(candidate.variant, candidate.group, candidate.model.digest)
        return life

    # --- what others ask ----------------------------------------------------------------------------------------------

    def states(self) -> dict[str, State]:
        """Of everything that lives, by ``variant@group``; the rest is inactive."""
        return {key: life.state for key, life in self._lives.items()}

    def rows_per_second(self, now_ms: float) -> dict[str, float]:
        """Of what ran lately, by ``variant@group``."""
        rates = {key: life.rows.at(now_ms) for key, life in self._lives.items()}
        return {key: rate for key, rate in rates.items() if rate > ROWS_PER_SECOND_MIN}

    def drifted(self, now_ms: float) -> frozenset[str]:
        """Whose living median has been far from the profile for ``DRIFTED_MS`` at low load, as ``variant@group``."""
        return frozenset(
            key
            for key, life in self._lives.items()
            if life.far_since_ms is not None and now_ms - life.far_since_ms >= DRIFTED_MS
        )

    def unwritten(self, find: Find, now_ms: float) -> dict[str, Condition | None]:
        """What the topic should be told now, by ``variant@group``; None: to be removed. Bounded, and not too often."""
        due: dict[str, Condition | None] = {}
        for key, life in self._lives.items():
            candidate = find(life.variant, life.group)
            if candidate is None or not self._is_news(key, life, candidate):
                continue
            before, table = self._written.get(key), candidate.table
            patience_ms = SNAPSHOT_INTERVAL_MS if before and before.state == life.state else CHANGE_INTERVAL_MS
            if before is None or now_ms - before.changed_ms >= patience_ms:
                rate = life.rows.at(now_ms)
                due[key] = Condition(
                    life.variant, life.group, life.digest, life.state, table.scale, table.tail, rate, now_ms
                )
            if len(due) == WRITTEN_AT_ONCE_MAX:
                return due
        for key, written in self._written.items():
            if (
                len(due) < WRITTEN_AT_ONCE_MAX
                and key not in self._lives
                and find(written.variant, written.group) is None
            ):
                due[key] = None
        return due

    def _is_news(self, key: str, life: _Life, candidate: Candidate) -> bool:
        written, table = self._written.get(key), candidate.table
        if written is None:
            return life.state != "inactive"
        if (written.state, written.digest) != (life.state, life.digest):
            return True
        return _moved(written.p50_scale, table.scale) or _moved(written.p99_scale, table.tail)


def _moved(before: float, after: float) -> bool:
    return abs(after - before) > SNAPSHOT_SHARE * before
