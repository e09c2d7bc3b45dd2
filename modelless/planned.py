"""The plan beside what there is: who has what loaded, how many workers there are and are to be, at what cost. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from modelless.health import to_measure
from modelless.messages import Assignment, GroupTarget, Member, Plan, Profile

PRICE_PER_HOUR = "price_per_hour"
"""In a worker's statistics: USD."""


@dataclass(frozen=True, slots=True)
class WorkerView:
    """One worker that is alive, or that the plan still counts on."""

    name: str
    group: str
    state: str
    """Of the member; ``absent``: the plan knows it, and it is not there."""
    leaving: bool
    loaded: tuple[str, ...]
    """As the plan wants it, in the plan's order."""
    to_load: tuple[str, ...]
    """Planned, and not there yet."""
    to_unload: tuple[str, ...]
    """There, and not planned any more."""
    to_measure: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GroupView:
    """One group: present and planned."""

    name: str
    workers: int
    """Alive."""
    ready: int
    """Of these."""
    target: int | None
    """Workers that are to be; None: their number is fixed, by whoever starts them."""
    leaving: tuple[str, ...]
    reason: str
    error: str | None
    """Why the provisioner cannot do it."""
    price_per_hour: float
    """USD of one worker."""

    @property
    def usd_per_hour(self) -> float:
        """Of all that are alive."""
        return self.workers * self.price_per_hour

    @property
    def usd_per_hour_planned(self) -> float:
        return (self.workers if self.target is None else self.target) * self.price_per_hour


def worker_views(members: Sequence[Member], profiles: Sequence[Profile], plan: Plan) -> tuple[WorkerView, ...]:
    """By group and name."""
    waiting = to_measure(members, profiles, plan)
    leaving = {name for target in plan.fleet.values() for name in target.leaving}
    alive = {member.name: member for member in members if member.kind == "worker"}
    views = []
    for name in {*alive, *plan.workers}:
        member, wanted = alive.get(name), plan.workers.get(name, Assignment()).load
        there = frozenset(member.variants if member is not None else ())
        views.append(
            WorkerView(
                name,
                (member.group or "") if member is not None else "",
                member.state if member is not None else "absent",
                name in leaving,
                tuple(variant for variant in wanted if variant in there),
                tuple(variant for variant in wanted if variant not in there),
                tuple(sorted(there.difference(wanted))),
                waiting.get(name, ()),
            )
        )
    return tuple(sorted(views, key=lambda view: (view.group, view.name)))


def group_views(members: Sequence[Member], prices_per_hour: Mapping[str, float], plan: Plan) -> tuple[GroupView, ...]:
    """Of all groups that have workers, or are to have some; by name.

    Args:
        prices_per_hour: from :func:`prices`.
    """
    alive = Counter(member.group for member in members if member.kind == "worker")
    ready = Counter(member.group for member in members if member.kind == "worker" and member.state == "ready")
    errors = {group: words for m in members if m.kind == "provisioner" for group, words in m.errors.items()}
    views = []
    for name in sorted({*filter(None, alive), *plan.fleet, *errors}):
        target = plan.fleet.get(name)
        leaving, reason = (target.leaving, target.reason) if target is not None else ((), "")
        views.append(
            GroupView(
                name,
                alive[name],
                ready[name],
                _workers(target),
                leaving,
                reason,
                errors.get(name),
                prices_per_hour.get(name, 0.0),
            )
        )
    return tuple(views)


def _workers(target: GroupTarget | None) -> int | None:
    return target.workers if target is not None else None


def prices(members: Sequence[Member], profiles: Sequence[Profile], configured: Mapping[str, float]) -> dict[str, float]:
    """USD an hour of one worker, by group: as its workers say; else as configured here; else as it was measured."""
    told = {m.group: m.statistics[PRICE_PER_HOUR] for m in members if m.group and PRICE_PER_HOUR in m.statistics}
    measured = {p.group: p.price_per_hour for p in sorted(profiles, key=lambda p: p.measured_ms)}
    return {**measured, **configured, **told}
