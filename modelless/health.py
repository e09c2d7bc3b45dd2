"""What is worth saying of a system: how its variants live, what is to be done, what is wrong, in words. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from modelless.messages import (
    ASKED,
    SHED,
    WITHHELD_MS,
    WITHHELD_MS_MAX,
    Assignment,
    Condition,
    Correction,
    Member,
    ModelVersion,
    Plan,
    Profile,
    split_variant,
)

SHED_SHARE_MIN = 0.01
"""What is less is no overload worth an alarm."""
SHED_WORDS = {
    "load": "would have been late",
    "share": "would have been late, since it is ahead of its fair share",
    "expired": "expired while they waited",
}


@dataclass(frozen=True, slots=True)
class VariantView:
    """How one variant lives on one group."""

    profile: Profile
    state: str
    """``failed``, or one of :class:`modelless.messages.Condition`."""
    p50_ms: float | None = None
    """For one row, living."""
    p99_ms: float | None = None
    rows_per_second: float = 0.0
    workers: tuple[str, ...] = ()
    """Who has it loaded."""
    why_not: str | None = None
    """The plan's reason why it is not loaded."""


@dataclass(frozen=True, slots=True)
class ScalingView:
    """A group whose number of workers is planned, and what there is of it."""

    name: str
    wanted: int
    """Without those that are to leave."""
    ready: int
    starting: int
    draining: int
    """Those that are to leave, whether they drain already or not."""
    reason: str


def scaling_views(members: Sequence[Member], plan: Plan | None) -> tuple[ScalingView, ...]:
    """Of every group that the plan speaks of. Pure."""
    views = []
    for name, target in sorted(plan.fleet.items() if plan is not None else ()):
        own = [member for member in members if member.kind == "worker" and member.group == name]
        leaving = [member for member in own if member.state == "draining" or member.name in target.leaving]
        states = [member.state for member in own if member not in leaving]
        numbers = states.count("ready"), states.count("starting"), len(leaving)
        views.append(ScalingView(name, target.workers, *numbers, target.reason))
    return tuple(views)


def may_idle(members: Sequence[Member], groups: Sequence[ScalingView]) -> bool:
    """Whether it is meant that there is no worker now: one is started when it is wanted."""
    return bool(groups) and not any(g.wanted for g in groups) and any(m.kind == "provisioner" for m in members)


def warnings(
    members: Sequence[Member],
    models: Sequence[ModelVersion],
    profiles: Sequence[Profile],
    lag: Mapping[str, int],
    plan: Plan | None = None,
) -> tuple[str, ...]:
    """What is wrong, in words, with what to do. Pure."""
    found: list[str] = []
    brokers = [member for member in members if member.kind == "broker"]
    workers = [member for member in members if member.kind == "worker"]
    waiting = sum(lag.values())
    if not brokers:
        found.append(f"no broker is alive, {waiting} queries wait: start `modelless up` or `modelless broker`")
    if not workers and not may_idle(members, scaling_views(members, plan)):
        found.append("no worker is alive, so nothing can be run: start `modelless up` or `modelless worker --group G`")
    if not models:
        found.append("no model is registered: `modelless register model.toml`")
    for (builder, group, reason), variants in failures(profiles).items():
        if len(variants) == 1:
            found.append(f"{variants[0]} failed on group {group}: {reason}")
        else:
            keys = ", ".join(split_variant(variant)[0] for variant in variants)
            found.append(f"{builder} failed on group {group} for {keys}: {reason}")
    loaded = {variant.partition("/")[0] for worker in workers for variant in worker.variants}
    for model in models:
        own = [profile for profile in profiles if profile.variant.startswith(f"{model.key}/")]
        if workers and model.key not in loaded and all(profile.status == "failed" for profile in own):
            found.append(f"{model.key} is not served: it {'failed everywhere' if own else 'was not measured yet'}")
    found += withheld(brokers)
    found += [f"{names}: {subject}: {words}" for subject, words, names in _complaints(members, refusals=False)]
    return tuple(found)


def withheld(brokers: Iterable[Member]) -> list[str]:
    """Where offline queries are too long to begin beside others, in words with what to do. Pure."""
    longest: dict[str, tuple[float, float]] = {}
    for each in brokers:
        for name, takes_ms in each.statistics.items():
            if name.startswith(WITHHELD_MS):
                group = name.removeprefix(WITHHELD_MS)
                may_ms = each.statistics.get(f"{WITHHELD_MS_MAX}{group}", 0.0)
                longest[group] = max(longest.get(group, (0.0, 0.0)), (takes_ms, may_ms))
    return [
        f"offline queries of {takes_ms:,.0f} ms run on {group} only now and then, since others there can wait for no "
        f"more than {may_ms:,.0f} ms: ask for fewer rows together (`--rows-per-query`), or for a quicker variant"
        for group, (takes_ms, may_ms) in sorted(longest.items())
    ]


def notes(members: Sequence[Member]) -> tuple[str, ...]:
    """What builders refuse and why, each once. Pure."""
    complaints = _complaints(members, refusals=True)
    return tuple(f"{subject} makes no variants on {names}: {words}" for subject, words, names in complaints)


def _complaints(members: Sequence[Member], *, refusals: bool) -> list[tuple[str, str, str]]:
    """(subject, what is wrong, who says so), each once. A refusal's subject is a builder, with no slash in it."""
    who: dict[tuple[str, str], list[str]] = {}
    for member in members:
        for subject, words in member.errors.items():
            if refusals == (member.kind == "worker" and "/" not in subject):
                who.setdefault((subject, words), []).append(member.name)
    return [(subject, words, ", ".join(names)) for (subject, words), names in who.items()]


def failures(profiles: Iterable[Profile]) -> dict[tuple[str, str, str], list[str]]:
    """Variants that could not be built or measured, by (builder, group, reason). Pure."""
    failed: dict[tuple[str, str, str], list[str]] = {}
    for profile in profiles:
        if profile.status == "failed":
            key = split_variant(profile.variant)[1], profile.group, profile.reason or "it did not say why"
            failed.setdefault(key, []).append(profile.variant)
    return failed


def variant_views(
    members: Sequence[Member], profiles: Sequence[Profile], conditions: Iterable[Condition], plan: Plan | None
) -> tuple[VariantView, ...]:
    """Every variant on every group where it was measured. Workers say what is loaded, conditions how it fares. Pure."""
    known = {f"{condition.variant}@{condition.group}": condition for condition in conditions}
    workers = [member for member in members if member.kind == "worker"]
    planned = {f"{variant}@{worker.group}" for worker in workers for variant in _assignment(plan, worker).load}
    reasons = {words.partition(" ")[0]: words for words in (plan.reasons if plan is not None else ())}
    views = []
    for profile in profiles:
        loaded = tuple(w.name for w in workers if w.group == profile.group and profile.variant in w.variants)
        if profile.status == "failed":
            views.append(VariantView(profile, "failed", why_not=profile.reason))
        elif loaded:
            views.append(_living(profile, loaded, known.get(profile.key)))
        else:
            state = "loading" if profile.key in planned else "inactive"
            reason = reasons.get(profile.variant)
            on_group = reason is not None and f" on {profile.group}: " in reason
            views.append(VariantView(profile, state, why_not=reason if on_group else None))
    return tuple(views)


def _living(profile: Profile, loaded: tuple[str, ...], condition: Condition | None) -> VariantView:
    if condition is None or condition.state in ("inactive", "loading"):  # the leader did not write yet
        return VariantView(profile, "active", workers=loaded)
    one_row = profile.batches[0]
    return VariantView(
        profile,
        condition.state,
        one_row.p50_ms * condition.p50_scale,
        one_row.p99_ms * condition.p99_scale,
        condition.rows_per_second,
        loaded,
    )


def _assignment(plan: Plan | None, worker: Member) -> Assignment:
    return plan.workers.get(worker.name, Assignment()) if plan is not None else Assignment()


def to_measure(members: Sequence[Member], profiles: Sequence[Profile], plan: Plan | None) -> dict[str, tuple[str, ...]]:
    """What the plan assigned to each living worker and no profile shows as done. Pure."""
    measured_ms = {profile.key: profile.measured_ms for profile in profiles}
    found = {}
    for member in members:
        assignment = _assignment(plan, member)
        new = [v for v in assignment.measure if f"{v}@{member.group}" not in measured_ms]
        again = [v for v, ms in assignment.outdated.items() if measured_ms.get(f"{v}@{member.group}", ms) <= ms]
        if new or again:
            found[member.name] = (*new, *(f"{variant} (again)" for variant in again))
    return found


def overloads(before: Mapping[str, float], now: Mapping[str, float]) -> tuple[str, ...]:
    """Which tasks are overloaded, how much of them is shed, whose and why; in words with what to do. Pure.

    Args:
        before, now: statistics of one look and of a later one, summed over the same brokers.
    """
    grown = {name: number - before.get(name, 0.0) for name, number in now.items()}
    asked = {name.removeprefix(ASKED): number for name, number in grown.items() if name.startswith(ASKED)}
    shed: dict[str, list[tuple[float, str]]] = {}
    quotas: dict[str, float] = {}
    for name, number in grown.items():
        if name.startswith(SHED) and number > 0:
            reason, topic, task = name.removeprefix(SHED).split(" ", 2)
            if reason == "quota":
                quotas[topic] = quotas.get(topic, 0.0) + number
                continue
            shed.setdefault(task, []).append((number, f"of {topic} {SHED_WORDS[reason]}"))
    found = []
    for task, parts in sorted(shed.items()):
        total = max(asked.get(task, 0.0), sum(number for number, _ in parts))
        share = sum(number for number, _ in parts) / total
        if share >= SHED_SHARE_MIN:
            why = "; ".join(f"{number / total:.0%} {words}" for number, words in sorted(parts, reverse=True))
            found.append(
                f"{task} is overloaded, {share:.0%} of its queries are shed ({why}): "
                "add workers, or allow more latency or less accuracy (`on_miss`)"
            )
    found += [
        f"{tenant} has used up its quota, {number:,.0f} of its queries were refused: raise it in broker.quotas, or wait"
        for tenant, number in sorted(quotas.items())
    ]
    return tuple(found)


def drifts(corrections: Iterable[Correction]) -> tuple[str, ...]:
    """Which variants labels show to be less accurate than measured, in words with what to do. Pure."""
    return tuple(
        f"{variant} has drifted: {right / rows:.1%} of {rows:,.0f} labelled rows were right, less than when it was "
        "measured: register a version that is trained on newer data"
        for variant, right, rows in sorted({(c.variant, c.right, c.rows) for c in corrections if c.drifted})
    )
