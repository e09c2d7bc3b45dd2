"""The plan: what is loaded on which worker, and who measures what. The planner's pure part.

For now the plan is "everything that fits": on each worker of a group, every variant that is measured and ready,
newest versions of all models first, as long as the profiles' memory adds up to what the worker has. A variant that
a group's workers can build and that has no valid profile there is measured by the group's first worker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from modelless.messages import Assignment, ModelVersion, Plan, Profile

ABSENCE_MS_MAX = 60_000.0
"""A worker that is gone for less keeps its assignment: it is expected back under the same name."""


@dataclass(frozen=True, slots=True)
class PlannedWorker:
    """What the planner knows of a worker."""

    name: str
    group: str
    memory_bytes_max: int
    builders: tuple[tuple[str, str], ...]
    """(model format, builder) pairs."""


class Planner:
    """Remembers when each worker was last seen; decides from scratch every time otherwise."""

    def __init__(self) -> None:
        self._seen_ms: dict[str, float] = {}

    def plan(
        self,
        previous: Plan | None,
        models: Mapping[str, ModelVersion],
        profiles: Mapping[str, Profile],
        workers: Sequence[PlannedWorker],
        leader: str,
        now_ms: float,
    ) -> Plan | None:
        """The next plan, or None while the previous one still says the same."""
        assignments = self._absent(previous, workers, now_ms)
        reasons: list[str] = []
        order = sorted(models.values(), key=lambda m: (-m.registered_ms, m.name))
        newest = {model.name: max(m.version for m in order if m.name == model.name) for model in order}
        order.sort(key=lambda m: newest[m.name] - m.version)
        measuring: set[str] = set()
        for worker in sorted(workers, key=lambda w: w.name):
            load, measure = _assign(worker, order, profiles, measuring, reasons)
            assignments[worker.name] = Assignment(tuple(load), tuple(measure))
        if previous is not None and previous.workers == assignments and previous.leader == leader:
            return None
        epoch = previous.epoch + 1 if previous is not None else 1
        return Plan(epoch, leader, now_ms, assignments, tuple(reasons))

    def _absent(self, previous: Plan | None, workers: Sequence[PlannedWorker], now_ms: float) -> dict[str, Assignment]:
        """Assignments of workers that left a moment ago."""
        for worker in workers:
            self._seen_ms[worker.name] = now_ms
        kept = {}
        for name, assignment in (previous.workers if previous is not None else {}).items():
            if now_ms - self._seen_ms.setdefault(name, now_ms) < ABSENCE_MS_MAX:
                kept[name] = Assignment(assignment.load)
        return kept


def _assign(
    worker: PlannedWorker,
    models: Sequence[ModelVersion],
    profiles: Mapping[str, Profile],
    measuring: set[str],
    reasons: list[str],
) -> tuple[list[str], list[str]]:
    """(to load, to measure) for one worker; ``measuring`` and ``reasons`` are added to."""
    load: list[str] = []
    measure: list[str] = []
    free_bytes = worker.memory_bytes_max
    for model in models:
        for variant in variants(model, worker.builders):
            key = f"{variant}@{worker.group}"
            profile = profiles.get(key)
            if profile is None or profile.digest != model.digest:
                if key not in measuring:
                    measuring.add(key)
                    measure.append(variant)
            elif profile.status == "ready" and profile.memory_bytes <= free_bytes:
                free_bytes -= profile.memory_bytes
                load.append(variant)
            elif profile.status == "ready":
                reasons.append(f"{variant} does not fit on {worker.name}: it needs {profile.memory_bytes >> 20} MiB")
    return load, measure


def variants(model: ModelVersion, builders: Sequence[tuple[str, str]]) -> list[str]:
    """The variants of a model that these builders can make."""
    names = [builder for format_name, builder in builders if format_name == model.format]
    exits = ["", *(f".exit{number}" for number in range(1, model.exits))]
    return [f"{model.key}/{name}{exit}" for name in names for exit in exits]
