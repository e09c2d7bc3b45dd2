"""Who measures what. Pure.

What a group's workers can make and has no valid profile there is measured by one of them; the variants of one model by
the same one, whose files it has. While nothing of a model is profiled, what is quickest made goes first. A profile that
the living latency has left for good, or that is too old, is measured again: one at a time in a group.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence, Set

from broker.situation import PlannedGroup
from modelless.messages import Assignment, ModelVersion, split_variant

REMEASURE_PERIOD_MS = 600_000.0
"""No variant is measured again more often on one group."""
REMEASURE_PATIENCE_MS = 300_000.0
"""If it was not done by then, it is the next one's turn."""
QUICK_BUILDERS = ("emulated", "onnx-fp32", "torch-fp32", "torch-bf16", "torch-fp16", "torch-int8", "onnx-int8")
"""By how quickly they make a variant; others come after them."""


class Measuring:
    """Remembers what was asked to be measured again.

    Args:
        profile_age_ms_max: a profile that is older is measured again; 0: none is.
    """

    def __init__(self, profile_age_ms_max: float) -> None:
        self._profile_age_ms_max = profile_age_ms_max
        self._asked_ms: dict[str, float] = {}

    def remember(self, before: Mapping[str, Assignment], group_of: Mapping[str, str], now_ms: float) -> None:
        """A plan of somebody else's asked for it just now. ``group_of``: workers that are there."""
        for name, assignment in before.items():
            for variant in assignment.outdated if name in group_of else ():
                self._asked_ms.setdefault(f"{variant}@{group_of[name]}", now_ms)

    def forget(self, profiles: Container[str]) -> None:
        """All but these, ``variant@group``."""
        self._asked_ms = {key: ms for key, ms in self._asked_ms.items() if key in profiles}

    def again(
        self, group: PlannedGroup, measure: Mapping[str, Sequence[str]], now_ms: float
    ) -> dict[str, dict[str, float]]:
        """At most one of the group: who measures which variant again, unless there is something new to measure."""
        if any(measure.values()):
            return {}
        for worker in group.workers:  # what was asked for, until it is done
            for variant, measured_ms in group.before(worker).outdated.items():
                key = f"{variant}@{group.name}"
                profile = group.profiles.get(key)
                is_open = profile is not None and profile.measured_ms <= measured_ms
                if is_open and now_ms - self._asked_ms.get(key, now_ms) < REMEASURE_PATIENCE_MS:
                    return {worker.name: {variant: measured_ms}}
        due = [
            profile
            for key, profile in group.current()
            if (key in group.drifted or 0 < self._profile_age_ms_max <= now_ms - profile.measured_ms)
            and now_ms - max(profile.measured_ms, self._asked_ms.get(key, -REMEASURE_PERIOD_MS)) >= REMEASURE_PERIOD_MS
        ]
        for profile in sorted(due, key=lambda p: (p.key not in group.drifted, p.measured_ms, p.variant)):
            for worker in group.workers:
                if profile.variant in group.makes[worker.name]:
                    self._asked_ms[profile.key] = now_ms
                    return {worker.name: {profile.variant: profile.measured_ms}}
        return {}


def to_measure(group: PlannedGroup, default: Set[str]) -> dict[str, list[str]]:
    """What each worker measures, in this order. What a worker was told to measure it goes on with."""
    profiled, missing = set(), []
    for variant, model in group.made.items():
        profile = group.profiles.get(f"{variant}@{group.name}")
        if profile is None or profile.digest != model.digest:
            missing.append(variant)
        elif profile.status == "ready":
            profiled.add(model.key)
    told = {variant: worker.name for worker in group.workers for variant in group.before(worker).measure}
    measure: dict[str, list[str]] = {worker.name: [] for worker in group.workers}
    helper: dict[str, str] = {}
    for variant in missing:
        if variant in group.makes.get(told.get(variant, ""), {}):
            measure[told[variant]].append(variant)
            helper[group.made[variant].key] = told[variant]
    urgency = _urgency(missing, group.made, profiled, default)
    for variant in sorted(missing, key=lambda variant: urgency[variant]):
        if variant in group.makes.get(told.get(variant, ""), {}):
            continue
        key = group.made[variant].key
        if variant not in group.makes.get(helper.get(key, ""), {}):
            able = [worker for worker in measure if variant in group.makes[worker]]
            helper[key] = min(able, key=lambda worker: (len(measure[worker]), worker))
        measure[helper[key]].append(variant)
    return {worker: sorted(known, key=lambda variant: urgency[variant]) for worker, known in measure.items()}


def _urgency(
    missing: Sequence[str], made: Mapping[str, ModelVersion], profiled: Set[str], default: Set[str]
) -> dict[str, tuple[bool, bool, float, str, int, str]]:
    """A sort key: the quickest of models of which nothing is profiled, then model by model, the newest first."""

    def quickness(variant: str) -> int:
        builder = split_variant(variant)[1].partition(".")[0]
        return QUICK_BUILDERS.index(builder) if builder in QUICK_BUILDERS else len(QUICK_BUILDERS)

    first: dict[str, str] = {}
    for variant in sorted(missing, key=lambda variant: (quickness(variant), variant)):
        first.setdefault(made[variant].key, variant)
    return {
        variant: (
            (model := made[variant]).key in profiled or first[model.key] != variant,
            model.key not in default,
            -model.registered_ms,
            model.key,
            quickness(variant),
            variant,
        )
        for variant in missing
    }
