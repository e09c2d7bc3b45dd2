"""What is known of each variant on each group, put together for people: by the commands, the demo and the plots. Pure.

Profile, condition and correction of one variant make one :class:`Variant`. Of those that answer for a task, the ones on
the frontier are marked: nothing beats them in accuracy (its lower bound, as where variants are chosen), latency of a
single row, and cost at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from modelless.accuracy import Accuracy, Interval, accuracy_of
from modelless.frontier import Point, frontier
from modelless.messages import Condition, Correction, Labels, ModelVersion, Profile, split_variant


class Known(Protocol):
    """What is asked of a :class:`modelless.catalog.Catalog`."""

    def models(self) -> list[ModelVersion]: ...
    def profiles(self, model: ModelVersion) -> list[Profile]: ...
    def condition(self, profile: Profile) -> Condition | None: ...
    def correction(self, model: ModelVersion, variant: str) -> Correction | None: ...
    def labels(self, name: str) -> Labels | None: ...


class Best(NamedTuple):
    """The measured batch size with the highest throughput."""

    batch_size: int
    p50_ms: float
    rows_per_second: float
    cost: float
    """USD per 1,000 rows."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One variant on one group, ready or failed."""

    model: ModelVersion
    profile: Profile
    condition: Condition | None = None
    correction: Correction | None = None
    is_loaded: bool = False
    """By a worker that is alive."""
    on_frontier: bool = False

    @property
    def name(self) -> str:
        return self.profile.variant

    @property
    def builder(self) -> str:
        """With the exit, where the model has several: ``onnx-int8.exit1``."""
        return split_variant(self.profile.variant)[1]

    @property
    def best(self) -> Best | None:
        return best_batch(self.profile)

    @property
    def measured(self) -> Interval | None:
        """What it was measured with."""
        return replace(self, correction=None).interval

    @property
    def accuracy(self) -> float | None:
        """As labels correct it, else as measured."""
        return self._known and self._known.said

    @property
    def interval(self) -> Interval | None:
        """Of :attr:`accuracy`; its lower end is chosen by."""
        return self._known and self._known.interval

    @property
    def _known(self) -> Accuracy | None:
        if self.profile.accuracy is None and self.correction is None:
            return None
        return accuracy_of(self.model, self.profile, self.correction)

    @property
    def state(self) -> str:
        """As the leader last wrote it; without that, whether a worker has it."""
        if self.profile.status == "failed":
            return "failed"
        if self.condition is not None:
            return self.condition.state
        return "active" if self.is_loaded else "inactive"

    @property
    def point(self) -> Point | None:
        """For the frontier; None when something was not measured."""
        best, interval = self.best, self.interval
        if self.profile.status != "ready" or best is None or interval is None:
            return None
        return Point(interval.low, self.profile.batches[0].p50_ms, best.cost)


def best_batch(profile: Profile) -> Best | None:
    """None when nothing was measured."""
    if not profile.batches:
        return None
    best = min(profile.batches, key=lambda batch: batch.p50_ms / batch.batch_size)
    row_ms = best.p50_ms / best.batch_size
    return Best(
        best.batch_size,
        best.p50_ms,
        1000 / row_ms if row_ms > 0 else float("inf"),
        profile.price_per_ms * row_ms * 1000,
    )


def variants(known: Known, models: Iterable[ModelVersion], loaded: Collection[str] = ()) -> list[Variant]:
    """Of all ``models``, in their order, the most accurate first of each; failed ones last.

    Args:
        loaded: names of variants that a living worker has loaded.
    """
    found = [
        Variant(
            model,
            profile,
            known.condition(profile),
            known.correction(model, profile.variant),
            profile.variant in loaded,
        )
        for model in models
        for profile in known.profiles(model)
    ]
    order: dict[str, int] = {}
    for variant in found:
        order.setdefault(variant.model.key, len(order))
    found.sort(key=lambda v: (order[v.model.key], v.state == "failed", -(v.accuracy or 0.0), v.name, v.profile.group))
    return mark_frontier(found, answering(known, [variant for variant in found if variant.point is not None]))


def answering(known: Known, ready: Iterable[Variant]) -> set[str]:
    """The versions (``name:version``) that answer for their model: the stable ones, else the newest that is ready."""
    newest: dict[str, ModelVersion] = {}
    for variant in ready:
        model, labels = variant.model, known.labels(variant.model.name)
        stable = None if labels is None else labels.stable
        seen = newest.get(model.name)
        if model.version == stable or seen is None or (seen.version != stable and seen.version < model.version):
            newest[model.name] = model
    return {model.key for model in newest.values()}


def mark_frontier(found: Sequence[Variant], models: Collection[str]) -> list[Variant]:
    """Those of ``models`` (``name:version``) on their task's frontier are marked, in the same order."""
    by_task: defaultdict[str, list[tuple[int, Point]]] = defaultdict(list)
    for index, variant in enumerate(found):
        if variant.point is not None and variant.model.key in models:
            by_task[variant.model.task].append((index, variant.point))
    marked = {
        members[chosen][0] for members in by_task.values() for chosen in frontier([point for _, point in members])
    }
    return [replace(variant, on_frontier=index in marked) for index, variant in enumerate(found)]
