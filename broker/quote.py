"""What a demand would cost: workers by group, who serves what, and why something cannot be served. Pure.

It asks what the leader asks, :func:`broker.sizing.size`, about a demand that need not exist. A share that is served is
one of the demand with head-room for bursts, as the leader plans.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from broker.measured import choice_of
from broker.placement_model import INF, Choice, Demand, Key, row_ms
from broker.sizing import DEFAULT, MISSING, Limits, Options, Sizing, size
from broker.worth import answering, item
from modelless.messages import Correction, Labels, ModelVersion, OnMiss, Prefer, Profile, split_variant


@dataclass(frozen=True, slots=True)
class Asked:
    """One line of a demand."""

    task: str
    rows_per_s: float
    latency_ms: float = INF
    accuracy_min: float | None = None
    """None: the task's default, its best variant's accuracy minus ``broker.accuracy_slack``."""
    prefer: Prefer = "cost"
    on_miss: OnMiss = "reject"
    burst: float = 1.0
    """As in :class:`broker.placement_model.Demand`."""


@dataclass(frozen=True, slots=True)
class ClassQuote:
    """What becomes of one line."""

    asked: Asked
    accuracy_min: float
    """As it is planned for."""
    served: float
    """The share of its rows that can be served."""
    shares: Mapping[Key, float]
    """By variant and group, of its rows."""
    why_not: str | None
    """When it is less than everything."""


@dataclass(frozen=True, slots=True)
class GroupQuote:
    name: str
    workers: int
    workers_max: int
    usd_per_hour: float
    rows_per_s: float
    """That it would serve."""

    @property
    def usd_per_1000_rows(self) -> float | None:
        """Idle time included; None where it serves nothing."""
        return per_1000_rows(self.usd_per_hour, self.rows_per_s)


@dataclass(frozen=True, slots=True)
class Quote:
    """In USD; what has no price costs nothing."""

    classes: tuple[ClassQuote, ...]
    groups: tuple[GroupQuote, ...]
    usd_per_hour: float
    bound_usd_per_hour: float
    """No fleet that serves as much costs less."""
    headroom: float
    """The share of the demand that is added for bursts."""

    @property
    def rows_per_s(self) -> float:
        """That would be served."""
        return sum(each.served * each.asked.rows_per_s for each in self.classes)

    @property
    def usd_per_1000_rows(self) -> float | None:
        return per_1000_rows(self.usd_per_hour, self.rows_per_s)

    @property
    def is_served(self) -> bool:
        return all(each.why_not is None for each in self.classes)


def per_1000_rows(usd_per_hour: float, rows_per_s: float) -> float | None:
    return usd_per_hour / (rows_per_s * 3.6) if rows_per_s > 0 else None


def quote(
    asked: Sequence[Asked],
    choices: Sequence[Choice],
    groups: Sequence[Limits],
    accuracy_slack: float = 0.02,
    options: Options = DEFAULT,
) -> Quote:
    """The cheapest fleet that is found for a demand, within the groups' limits."""
    best: dict[str, float] = defaultdict(float)
    for choice in choices:
        best[choice.task] = max(best[choice.task], choice.accuracy)
    floors = [max(0.0, best[a.task] - accuracy_slack) if a.accuracy_min is None else a.accuracy_min for a in asked]
    demands = [
        Demand(a.task, a.latency_ms, floor, a.rows_per_s, a.prefer, a.on_miss == "degrade", burst=a.burst)
        for a, floor in zip(asked, floors, strict=True)
    ]
    found = size(demands, choices, groups, options)
    classes = []
    for line, demand in zip(asked, demands, strict=True):
        shares = _shares(found, demand) if demand.rows_per_s > 0 else {}
        served = min(1.0, sum(shares.values())) if demand.rows_per_s > 0 else 1.0
        why_not = None if served >= 1 - MISSING else why(demand, served, choices, groups, options)
        classes.append(ClassQuote(line, demand.accuracy_min, served, shares, why_not))
    rows: dict[str, float] = defaultdict(float)
    for each in classes:
        for (_, group), share in each.shares.items():
            rows[group] += share * each.asked.rows_per_s
    return Quote(
        tuple(classes),
        tuple(
            GroupQuote(g.name, n := found.workers[g.name], g.workers_max, n * g.price_per_hour, rows[g.name])
            for g in groups
        ),
        found.usd_per_hour,
        found.bound_usd_per_hour,
        found.headroom,
    )


def _shares(found: Sizing, demand: Demand) -> Mapping[Key, float]:
    """Of the class that it was merged into: the one most alike of those that ask for no less."""
    suits = [
        (of.latency_ms, -of.accuracy_min, number)
        for number, of in enumerate(found.classes)
        if of.task == demand.task and of.latency_ms <= demand.latency_ms
        if of.degrades or of.accuracy_min >= demand.accuracy_min
        if demand.degrades or not of.degrades
    ]
    return found.shares[max(suits)[2]] if suits else {}


def why(
    demand: Demand, served: float, choices: Sequence[Choice], groups: Sequence[Limits], options: Options = DEFAULT
) -> str:
    """What keeps a class from being served, in words with what to change."""
    of_task = [choice for choice in choices if choice.task == demand.task]
    if not of_task:
        known = ", ".join(sorted({choice.task for choice in choices})) or "none"
        return f"no variant of task {demand.task!r} is measured; there are variants of: {known}"
    limits = {group.name: group for group in groups}
    there = [c for c in of_task if c.group in limits and limits[c.group].workers_max > 0]
    fits = [choice for choice in there if choice.memory_mb <= limits[choice.group].memory_mb]
    if not there:
        return f"it is measured on {', '.join(sorted({c.group for c in of_task}))} alone, which may have no workers"
    if not fits:
        needs_mb = min(choice.memory_mb for choice in there)
        return f"memory: its smallest variant needs {needs_mb:,.0f} MB, more than a worker may have loaded"
    accurate = [choice for choice in fits if demand.degrades or choice.accuracy >= demand.accuracy_min]
    if not accurate:
        best = max(fits, key=lambda choice: choice.accuracy)
        return f"accuracy: {best.variant} on {best.group} is the most accurate and has {best.accuracy:.4g}"
    runs = options.runs_per_latency
    if all(row_ms(choice, demand.latency_ms, demand.rows_per_s, runs) == INF for choice in accurate):
        quickest = min(accurate, key=lambda choice: choice.p99_ms[0])
        return (
            f"latency: {quickest.variant} on {quickest.group} is the quickest that is accurate enough and takes "
            f"{quickest.p99_ms[0]:,.4g} ms for one row (p99)"
        )
    able = sorted({c.group for c in accurate if row_ms(c, demand.latency_ms, demand.rows_per_s, runs) < INF})
    names = ", ".join(f"{name} (at most {limits[name].workers_max})" for name in able)
    return (
        f"{1 - served:.1%} of it finds no worker: raise workers_max of {names}, or allow more latency or less accuracy"
    )


def choices_of(
    models: Mapping[str, ModelVersion],
    profiles: Iterable[Profile],
    labels: Mapping[str, Labels],
    corrections: Mapping[str, Correction],
) -> list[Choice]:
    """What queries that name a task could be answered by, as the planner sees it.

    Args:
        models: by ``name:version``.
        labels: by the model's name.
        corrections: by variant.
    """
    usable = [
        (profile, models[key])
        for profile in profiles
        if (key := split_variant(profile.variant)[0]) in models
        if profile.digest == models[key].digest and profile.is_usable
    ]
    default, _ = answering(models.values(), {model.key for _, model in usable}, labels, {})
    return [
        choice_of(item(profile, model, corrections.get(profile.variant)), profile)
        for profile, model in usable
        if model.key in default
    ]
