"""What can be asked for: models, versions, tasks, and how each variant runs on each group.

A *candidate* is a (variant, group) pair with a profile that is ready. A *target* is what a query names, a task, a
model, a version or a variant, resolved to its candidates.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from broker.profiles import LatencyTable
from modelless.messages import ModelVersion, Profile, Query, split_variant
from modelless.tensors import Tensor, TensorSpec

MS_PER_HOUR = 3_600_000.0


@dataclass(slots=True, eq=False)
class Candidate:
    """One variant on one class of hardware."""

    variant: str
    group: str
    model: ModelVersion
    accuracy: float
    table: LatencyTable
    price_per_ms: float
    _cost_profiled: float = field(init=False)

    def __post_init__(self) -> None:
        self._cost_profiled = self.cost_per_1000(self.table.rows_max) / self.table.scale

    def cost_per_1000(self, rows: int) -> float:
        """Predicted USD per 1,000 rows in batches of ``rows``."""
        return self.table.p50_ms(rows) / rows * self.price_per_ms * 1000

    @property
    def cost_per_1000_least(self) -> float:
        """In the largest batches."""
        return self._cost_profiled * self.table.scale


@dataclass(slots=True, eq=False)
class Target:
    """What a query asks for. ``candidates`` is empty while nothing of it has been measured."""

    name: str
    candidates: list[Candidate]
    models: list[ModelVersion]
    accuracy_best: float = field(init=False)

    def __post_init__(self) -> None:
        self.accuracy_best = max((c.accuracy for c in self.candidates), default=0.0)


class Catalog:
    """Models and profiles as the compacted topics tell them; targets are resolved once and kept until a change."""

    def __init__(self) -> None:
        self._models: dict[str, ModelVersion] = {}
        self._profiles: dict[str, Profile] = {}
        self._candidates: dict[str, Candidate] = {}
        self._targets: dict[tuple[str, str], Target] = {}
        self._stale = False

    @property
    def models(self) -> dict[str, ModelVersion]:
        """By ``name:version``."""
        return self._models

    @property
    def profiles(self) -> dict[str, Profile]:
        """By ``variant@group``."""
        return self._profiles

    def put_model(self, key: str, model: ModelVersion | None) -> None:
        """A model version appeared, changed, or (None) was removed."""
        if model is None:
            self._models.pop(key, None)
        else:
            self._models[key] = model
        self._stale = True

    def put_profile(self, key: str, profile: Profile | None) -> None:
        if profile is None:
            self._profiles.pop(key, None)
        else:
            self._profiles[key] = profile
        self._stale = True

    def candidate(self, variant: str, group: str) -> Candidate | None:
        return self._current().get(f"{variant}@{group}")

    def candidates(self) -> list[Candidate]:
        return list(self._current().values())

    def tasks(self) -> list[str]:
        return sorted({model.task for model in self._models.values()})

    def resolve(self, query: Query) -> Target | None:
        """The target that a query names; None when there is no such thing."""
        self._current()
        if query.task is not None:
            key = ("task", query.task)
        elif query.model is not None:
            key = ("model", query.model)
        else:
            key = ("variant", query.variant or "")
        target = self._targets.get(key)
        if target is None:
            target = self._resolve(*key)
            if target is not None:  # names that do not exist are unbounded
                self._targets[key] = target
        return target

    def _resolve(self, kind: str, name: str) -> Target | None:
        if kind == "task":
            models = [self._default(model) for model in self._names(task=name)]
        elif kind == "model" and ":" in name:
            models = [self._models[name]] if name in self._models else []
        elif kind == "model":
            models = [self._default(name)] if name in self._names() else []
        else:
            models = [self._models[m]] if (m := split_variant(name)[0]) in self._models else []
        if not models:
            return None
        keys = {model.key for model in models}
        candidates = [c for c in self._candidates.values() if c.model.key in keys]
        if kind == "variant":
            candidates = [c for c in candidates if c.variant == name]
            if not candidates and not any(p.variant == name for p in self._profiles.values()):
                return None
        return Target(name, candidates, models)

    def _names(self, task: str | None = None) -> list[str]:
        return sorted({m.name for m in self._models.values() if task is None or m.task == task})

    def _default(self, name: str) -> ModelVersion:
        """The newest version that something can run; the newest of all when none can."""
        versions = sorted((m for m in self._models.values() if m.name == name), key=lambda m: -m.version)
        runnable = {c.model.key for c in self._candidates.values()}
        return next((m for m in versions if m.key in runnable), versions[0])

    def _current(self) -> dict[str, Candidate]:
        """Candidates of the present models and profiles; one that is unchanged keeps what it has learned."""
        if not self._stale:
            return self._candidates
        self._stale = False
        before = self._candidates
        self._candidates = {}
        self._targets.clear()
        for key, profile in self._profiles.items():
            model = self._models.get(split_variant(profile.variant)[0])
            if model is None or profile.status != "ready" or profile.digest != model.digest or not profile.batches:
                continue
            self._candidates[key] = _candidate(model, profile, before.get(key))
        return self._candidates


def _candidate(model: ModelVersion, profile: Profile, before: Candidate | None) -> Candidate:
    """The same one while nothing changed; what its table has learned stays as long as the batch times do."""
    accuracy = profile.accuracy if profile.accuracy is not None else (model.evaluation.accuracy or 0.0)
    price_per_ms = profile.price_per_hour / MS_PER_HOUR
    table = LatencyTable(profile.batches)
    if before is not None and before.table.batches == profile.batches:
        if (before.model, before.accuracy, before.price_per_ms) == (model, accuracy, price_per_ms):
            return before
        table = before.table
    return Candidate(profile.variant, profile.group, model, accuracy, table, price_per_ms)


def match_inputs(tensors: tuple[Tensor, ...], specs: tuple[TensorSpec, ...]) -> tuple[Tensor, ...] | str:
    """The tensors in the order of the specification, or a sentence that says what is wrong."""
    by_name = {tensor.name: tensor for tensor in tensors}
    ordered = []
    for spec in specs:
        name, shape = spec.name, spec.shape
        tensor = by_name.pop(name, None)
        if tensor is None:
            return f"input {name!r} is missing; expected {_describe(specs)}"
        if tensor.datatype != spec.datatype:
            return f"input {name!r} has datatype {tensor.datatype}; expected {_describe(specs)}"
        if tensor.shape[1:] != shape[1:] and not _fits(tensor.shape, shape):
            return f"input {name!r} has shape {list(tensor.shape)}; expected {_describe(specs)}"
        ordered.append(tensor)
    if by_name:
        return f"input {next(iter(by_name))!r} is unknown; expected {_describe(specs)}"
    return tuple(ordered)


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(shape) == len(wanted) and all(want in (-1, got) for got, want in zip(shape, wanted, strict=True))


def _describe(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(f"{spec.name}: {spec.datatype} {list(spec.shape)}" for spec in specs)
