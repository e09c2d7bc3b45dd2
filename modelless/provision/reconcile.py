"""What a provisioner does next, so that there are as many workers as there are to be. Pure: time is an argument.

Whoever carries it out (:mod:`modelless.provision.service`) calls :meth:`Reconciler.decide` whenever something changed
and at ``wake_at_ms``, does what comes back, and says of what could not be done why. Nothing is remembered but what
cannot be seen: since when somebody was asked to leave, and who failed how often. So a provisioner that starts anew
finds its way from what runs and from the plan: it adopts what is wanted and ends the rest.

Words: an **instance** is a worker that the provisioner started, by name; it **stays** unless it was asked to leave, or
the plan has it among the leaving. A **stranger** is a worker of a scaling group that somebody else started: it counts,
and its name is taken. As the dead are announced for a while longer, nobody is taken for one before ``STRANGER_MS``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import NamedTuple

from modelless.messages import GroupTarget, Member
from modelless.restarts import RestartPolicy

KILL_AFTER_MS = 5_000.0
"""More than a worker's own drain takes: then it is killed."""
STRANGER_MS = 6_000.0
"""Longer than the fleet takes the dead for alive."""


class Group(NamedTuple):
    """A group's bounds; both are the same where its number of workers is fixed."""

    name: str
    workers_min: int
    workers_max: int


@dataclass(frozen=True, slots=True)
class Instance:
    """A worker that was started, as its provisioner sees it."""

    name: str
    group: str
    ended: str | None = None
    """How it ended, in words; it is listed so once."""
    was_killed: bool = False
    """It ended by somebody else's doing."""
    is_leaving: bool = False
    """It was asked to, perhaps by a provisioner before this one."""
    trouble: str | None = None
    """Why it does not come up, where that can be seen from outside."""


@dataclass(frozen=True, slots=True)
class Start:
    group: str
    name: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Ask it to drain and go."""

    name: str


@dataclass(frozen=True, slots=True)
class Kill:
    name: str


Action = Start | Stop | Kill


@dataclass(frozen=True, slots=True)
class _Failure:
    group: str
    why: str
    incarnation: str | None
    """Announced under that name at the time: it is not the one that works again."""


class Reconciler:
    """Of these groups, with workers that drain for ``drain_ms``."""

    def __init__(self, groups: Sequence[Group], drain_ms: float) -> None:
        self._groups = {group.name: group for group in groups}
        self._drain_ms = drain_ms
        self._targets = {group.name: GroupTarget(group.workers_min) for group in groups}
        self._asked_ms: dict[str, float] = {}
        self._policies: dict[str, RestartPolicy] = {}
        self._next_ms: dict[str, float] = {}
        self._failures: dict[str, _Failure] = {}
        self._troubles: list[_Failure] = []
        self._incarnations: dict[str, str] = {}
        self._seen_ms: dict[str, float] = {}
        """Of workers that are alive and not ours, since when, by incarnation; of ours: never."""
        self._kills = False
        self.ends = False
        """Nobody is wanted any more."""
        self.wanted: frozenset[str] = frozenset()
        """Names of the workers that are to be there, whether they are or not."""

    def plan(self, fleet: Mapping[str, GroupTarget]) -> None:
        """A newer plan. What it does not speak of stays as it was; before the first one that is ``workers_min``."""
        for name, target in fleet.items():
            group = self._groups.get(name)
            if group is not None and group.workers_min < group.workers_max:
                workers = min(max(target.workers, group.workers_min), group.workers_max)
                self._targets[name] = GroupTarget(workers, target.leaving, target.reason)

    def leave(self, *, now: bool = False) -> None:
        """From now on nobody is wanted; with ``now`` nobody drains."""
        self.ends, self._kills = True, self._kills or now

    def failed(self, name: str, group: str, why: str, now_ms: float, *, was_killed: bool = False) -> None:
        """It could not be started, or died."""
        self._next_ms[name] = now_ms + self._policy(name).died(now_ms, was_killed=was_killed)
        self._failures[name] = _Failure(group, why, self._incarnations.get(name))

    def not_asked(self, name: str) -> None:
        """It could not be asked to leave: it is asked again."""
        self._asked_ms.pop(name, None)

    def errors(self) -> dict[str, str]:
        """By group, what does not work, until it works again."""
        by_group: dict[str, list[str]] = {}
        for failure in (*self._failures.values(), *self._troubles):
            by_group.setdefault(failure.group, []).append(failure.why)
        return {
            group: whys[0] if len(whys) == 1 else f"{whys[0]}; and {len(whys) - 1} more"
            for group, whys in by_group.items()
        }

    def wake_at_ms(self) -> float | None:
        """When to decide again, if nothing happens before; None: never."""
        kills = (asked_ms + self._drain_ms + KILL_AFTER_MS for asked_ms in self._asked_ms.values())
        starts = (at_ms for name, at_ms in self._next_ms.items() if name in self.wanted)
        return min((*kills, *starts), default=None)

    def decide(self, instances: Sequence[Instance], workers: Sequence[Member], now_ms: float) -> list[Action]:
        """What to do, in this order.

        Args:
            instances: what was started and has not ended, and what has ended since the last call.
            workers: who is alive.
        """
        alive = {each.name: each for each in instances if each.ended is None}
        self._incarnations = {worker.name: worker.incarnation for worker in workers}
        self._bury(instances, now_ms)
        strangers = self._strangers(alive, workers, now_ms)
        self._asked_ms = {name: ms for name, ms in self._asked_ms.items() if name in alive}
        self._next_ms = {name: ms for name, ms in self._next_ms.items() if name not in alive}
        for each in alive.values():
            if each.is_leaving:
                self._asked_ms.setdefault(each.name, now_ms)
        if self._kills:
            self._note((), (), alive, now_ms)
            return [Kill(name) for name in alive]
        ready = {worker.name for worker in workers if worker.state == "ready"}
        actions: list[Action] = []
        wanted: set[str] = set()
        for group in () if self.ends else self._groups.values():
            target = self._targets[group.name]
            foreign = {worker.name for worker in strangers if worker.group == group.name}
            workers_max = max(0, target.workers - len(foreign - set(target.leaving)))
            own = [each.name for each in alive.values() if each.group == group.name]
            stays = self._staying(own, target.leaving, ready)[:workers_max]
            starts = _free(group.name, {*alive, *foreign, *target.leaving}, workers_max - len(stays))
            wanted |= {*stays, *starts}
            actions += [Start(group.name, name) for name in starts if self._next_ms.get(name, now_ms) <= now_ms]
        stops = [name for name in alive if name not in wanted and name not in self._asked_ms]
        kills = [name for name, ms in self._asked_ms.items() if now_ms - ms >= self._drain_ms + KILL_AFTER_MS]
        self._note(actions, stops, kills, now_ms)
        self.wanted = frozenset(wanted)
        self._forgive(workers, [each for each in alive.values() if each.name in wanted])
        return [*map(Kill, kills), *map(Stop, stops), *actions]

    def _bury(self, instances: Iterable[Instance], now_ms: float) -> None:
        for each in instances:
            if each.ended is not None and self._asked_ms.pop(each.name, None) is None and not each.is_leaving:
                self.failed(
                    each.name, each.group, f"{each.name} died: {each.ended}", now_ms, was_killed=each.was_killed
                )

    def _strangers(self, alive: Mapping[str, Instance], workers: Iterable[Member], now_ms: float) -> list[Member]:
        """Workers of scaling groups that somebody else started."""
        seen_ms = {
            worker.incarnation: float("inf") if worker.name in alive else self._seen_ms.get(worker.incarnation, now_ms)
            for worker in workers
        }
        self._seen_ms = seen_ms
        scaling = {group.name for group in self._groups.values() if group.workers_min < group.workers_max}
        return [w for w in workers if w.group in scaling and now_ms - seen_ms[w.incarnation] >= STRANGER_MS]

    def _staying(self, names: Iterable[str], leaving: Sequence[str], ready: set[str]) -> list[str]:
        """Those that can stay: first those that are ready, then the first ones."""
        able = [name for name in names if name not in self._asked_ms and name not in leaving]
        return sorted(able, key=lambda name: (name not in ready, _number(name), name))

    def _note(self, starts: Iterable[Action], stops: Iterable[str], kills: Iterable[str], now_ms: float) -> None:
        """What is decided is taken for done."""
        for action in starts:
            assert isinstance(action, Start)
            self._next_ms.pop(action.name, None)
            self._policy(action.name).started(now_ms)
        self._asked_ms.update(dict.fromkeys(stops, now_ms))
        self._asked_ms.update(dict.fromkeys(kills, now_ms - self._drain_ms))  # and again if that does not help

    def _forgive(self, workers: Iterable[Member], staying: Sequence[Instance]) -> None:
        """Forget failures of what works again, or is not wanted any more; see who has trouble now."""
        ready = {worker.name: worker.incarnation for worker in workers if worker.state == "ready"}
        self._failures = {
            name: failure
            for name, failure in self._failures.items()
            if name in self.wanted and ready.get(name) in (None, failure.incarnation)
        }
        self._troubles = [
            _Failure(each.group, f"{each.name}: {each.trouble}", None) for each in staying if each.trouble
        ]

    def _policy(self, name: str) -> RestartPolicy:
        return self._policies.setdefault(name, RestartPolicy())


def _free(group: str, taken: set[str], number: int) -> list[str]:
    """Names that nobody has, the first ones."""
    free = (name for n in count() if (name := f"{group}-{n}") not in taken)
    return list(islice(free, number))


def _number(name: str) -> int:
    tail = name.rpartition("-")[2]
    return int(tail) if tail.isdecimal() else 0
