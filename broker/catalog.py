"""What can be asked for: models, versions, tasks, and how each variant runs on each group.

A *candidate* is a (variant, group) pair with a profile that is ready. A *target* is what a query names, a task, a
model, a version or a variant, resolved to its candidates.

Records come one at a time, and each touches only what it concerns: the candidates of one variant, and the targets
that these are in. A candidate is in four of them at most: its task's (while its version is the one that its model
is served with), its version's, its variant's, and no other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Final, NamedTuple

from broker.prices import PriceRange, widest
from broker.profiles import LatencyTable
from broker.ranking import SIZES, Ranking, between
from broker.usual import QUIET_MS, Usual, UsualOfGroup, company
from broker.versions import Loaded, name_of, served, standing
from modelless.accuracy import accuracy_of
from modelless.messages import (
    BatchTime,
    Correction,
    Demanded,
    Labels,
    LengthTimes,
    ModelVersion,
    Profile,
    Query,
    split_variant,
)
from modelless.padding import Layout, layout_of
from modelless.tensors import Tensor, TensorSpec

SCALE_STEP: Final = 0.03
"""By how much what is observed has to differ from what a candidate is ranked by."""
ROWS_STEP: Final = 0.25
"""The same for the rows of its group's batches."""
OWN_SCALE: Final = 1.5
"""A variant is slower, or quicker, than what runs beside it, when it is so by more than this factor; less is noise, and
would make queries wander between variants that are nearly as good, in small batches."""
STRETCHES_MAX: Final = 4_096
"""Shapes of queries of which a target remembers how much quicker they are than the longest."""
RANKED_MAX: Final = 256
"""Candidates that are ranked anew in one turn; the others in the next ones."""
TARGETS_MAX: Final = 1_000
"""Of versions and variants that were asked for by name, before the oldest is forgotten; tasks are kept."""


Signature = tuple[int, tuple[tuple[int, ...], ...]]
"""What may share a batch: the length that rows are padded to (0: they are not), and each input's shape of a row."""


class Matched(NamedTuple):
    """A query's inputs for one candidate."""

    inputs: tuple[Tensor, ...]
    """In the order of the specification, with what is made, not yet padded."""
    signature: Signature


@dataclass(slots=True, eq=False)
class Candidate:
    """One variant on one class of hardware.

    Its latency and cost, as they are chosen by, follow what is observed in steps (:meth:`is_outdated`), since each of
    them ranks it anew wherever it is ranked.
    """

    variant: str
    group: str
    model: ModelVersion
    accuracy: float
    """What a reply says."""
    accuracy_low: float
    """What is chosen by: the lower bound of what was measured, or of what labels say since."""
    table: LatencyTable
    """Where rows are padded, that of the longest."""
    price_per_ms: float
    team: frozenset[str] = frozenset()
    """Workers of its group (incarnations) that have it ready."""
    usual: Usual | None = None
    """On its group, or with the company that it would have, as it is chosen by; None: while nothing runs."""
    tables: Mapping[int, LatencyTable] = field(default_factory=dict)
    """By the length that rows are padded to, of all but the longest."""
    layout: Layout | None = field(init=False)
    """How inputs are padded, if they are."""
    cost_per_1000_usual: float = field(init=False)
    """Predicted USD per 1,000 rows in batches as large as is usual; the largest, while nothing runs."""
    lat_sampled_ms: tuple[float, ...] = field(init=False)
    """lat(b) at :data:`broker.ranking.SIZES`."""
    row_ms: float = field(init=False)
    """Device time of a row in the largest useful batches."""
    batch_ms: float = field(init=False)
    """lat(b) of these."""
    _scale: float = field(init=False)
    _kinds: list[tuple[str, str, tuple[int, ...]]] = field(init=False)
    """Name, datatype and shape of a row of each input, as most queries have them."""
    _signature: Signature = field(init=False)
    """Of a query that does."""

    def __post_init__(self) -> None:
        self.layout = layout_of(self.model.inputs, self.model.outputs)
        self._kinds = [(spec.name, spec.datatype, spec.shape[1:]) for spec in self.model.inputs]
        self._signature = (0, tuple([shape for _, _, shape in self._kinds]))
        self.sample(self.usual)

    @property
    def key(self) -> str:
        return f"{self.variant}@{self.group}"

    @property
    def times(self) -> tuple[tuple[BatchTime, ...], tuple[LengthTimes, ...]]:
        """As the profile has them."""
        return self.table.batches, tuple(LengthTimes(length, table.batches) for length, table in self.tables.items())

    @property
    def workers(self) -> int:
        """How many of its group have it ready."""
        return len(self.team)

    def is_outdated(self, usual: Usual | None, now_ms: float) -> bool:
        """Whether what it is chosen by has moved by so much that it has to be ranked anew."""
        scale = self._living_scale(usual, now_ms)
        if abs(scale - self._scale) > SCALE_STEP * self._scale:
            return True
        if usual is None or self.usual is None:
            return usual is not self.usual
        return abs(usual.rows - self.usual.rows) > ROWS_STEP * self.usual.rows

    def _living_scale(self, usual: Usual | None, now_ms: float) -> float:
        """Its group's, which keeps the profiles' order; its own where it ran lately and that is something else."""
        own = self.table.scale
        if usual is None:
            return own
        differs = max(own / usual.slowness, usual.slowness / own) > OWN_SCALE
        return own if differs and now_ms - self.table.observed_ms <= QUIET_MS else usual.slowness

    def lat_ms(self, rows: int) -> float:
        """lat(rows) as it is chosen by."""
        index, share = between(rows)
        low_ms = self.lat_sampled_ms[index]
        if index == len(SIZES) - 1:
            return low_ms * share
        return low_ms * (1.0 - share) + self.lat_sampled_ms[index + 1] * share

    def table_of(self, length: int) -> LatencyTable:
        """Of rows that are padded to that length; 0: that are not padded."""
        return self.tables.get(length, self.table)

    def stretch(self, tensors: tuple[Tensor, ...], rows: int) -> float:
        """By what factor it is quicker with these rows than with the longest; 1 where they do not fit."""
        length = 0 if self.layout is None else self.layout.length_of(tensors)
        return max(1.0, self.table.p50_ms(rows) / self.table_of(length).p50_ms(rows))

    def match(self, tensors: tuple[Tensor, ...]) -> Matched | str:
        """A query's inputs as they would be run, or a sentence that says what is wrong with them."""
        layout = self.layout
        if layout is None and [(name, datatype, shape[1:]) for name, datatype, shape, _ in tensors] == self._kinds:
            return Matched(tensors, self._signature)
        inputs = match_inputs(tensors, self.model.inputs, layout)
        if isinstance(inputs, str):
            return inputs
        if layout is None:
            return Matched(inputs, (0, tuple([tensor.shape[1:] for tensor in inputs])))
        length = layout.padded_length(layout.own_length(inputs))
        return Matched(inputs, (length, layout.shapes(inputs, length)))

    def cost_per_1000(self, rows: int) -> float:
        """Predicted USD per 1,000 rows in batches of ``rows``."""
        return self.lat_ms(rows) / rows * self.price_per_ms * 1000

    def sample(self, usual: Usual | None = None, now_ms: float = 0.0) -> None:
        """Be chosen by what is known now; wherever it is ranked it has to be ranked anew."""
        self.usual, table = usual, self.table
        self._scale = self._living_scale(usual, now_ms)
        factor = self._scale / table.scale
        self.lat_sampled_ms = tuple([table.p50_ms(size) * factor for size in SIZES])
        rows = table.rows_max if usual is None else min(table.rows_max, max(1, round(usual.rows)))
        self.cost_per_1000_usual = self.cost_per_1000(rows)
        self.batch_ms = self.lat_ms(table.rows_useful)
        self.row_ms = self.batch_ms / table.rows_useful


class Target:
    """What a query asks for. It has no candidates while nothing of it has been measured."""

    def __init__(self, name: str, candidates: Iterable[Candidate] = ()) -> None:
        self.name = name
        self.ranking = Ranking()
        self._padded = 0
        """Candidates that pad rows."""
        self._stretches: dict[tuple[int, tuple[tuple[int, ...], ...]], float] = {}
        for candidate in candidates:
            self.replace(None, candidate)

    def replace(self, before: Candidate | None, after: Candidate | None) -> None:
        """``after`` comes, ``before`` goes."""
        if before is not None:
            self.ranking.remove(before)
            self._padded -= before.layout is not None
        if after is not None:
            self.ranking.add(after)
            self._padded += after.layout is not None
        self._stretches.clear()

    def stretch(self, tensors: tuple[Tensor, ...], rows: int) -> float:
        """By what factor all candidates are quicker, at least, than with the longest rows, which they are ranked by.

        To choose by, the time that a query has counts as if it were longer by this factor.
        """
        if not self._padded or self._padded < len(self.ranking):
            return 1.0
        key = rows, tuple([tensor.shape for tensor in tensors])
        found = self._stretches.get(key)
        if found is None:
            if len(self._stretches) >= STRETCHES_MAX:
                self._stretches.clear()
            found = min([each.stretch(tensors, rows) for each in self.ranking.candidates])
            self._stretches[key] = found
        return found


@dataclass(slots=True, eq=False)
class _Name:
    """A model of any version."""

    versions: dict[int, ModelVersion] = field(default_factory=dict)
    served: ModelVersion | None = None
    """The version that answers who names none."""


class Catalog:
    """Models, profiles and corrections as the compacted topics tell them, and what follows from them."""

    def __init__(self) -> None:
        self._models: dict[str, ModelVersion] = {}
        self._profiles: dict[str, Profile] = {}
        self._corrections: dict[str, Correction] = {}
        self._candidates: dict[str, Candidate] = {}
        self._names: dict[str, _Name] = {}
        self._versions_of_task: dict[str, set[str]] = defaultdict(set)
        self._profiles_of_model: dict[str, dict[str, Profile]] = defaultdict(dict)
        self._candidates_of_model: dict[str, dict[str, Candidate]] = defaultdict(dict)
        self._ready: dict[str, frozenset[str]] = {}
        self._observed: dict[Candidate, None] = {}
        """In the order in which they were; a set's would be another one in every process."""
        self._usual: dict[str, UsualOfGroup] = defaultdict(UsualOfGroup)
        self._company: dict[Candidate, int] = {}
        """Of what is loaded, rows of the batches that it would run if all came to it that could."""
        self._ranked_by: dict[str, Usual | None] = {}
        self._tasks: dict[str, Target] = {}
        self._targets: dict[str, Target] = {}
        self._workers: dict[str, Loaded] = {}
        self.labels: dict[str, Labels] = {}
        """By model name."""

    @property
    def models(self) -> dict[str, ModelVersion]:
        """By ``name:version``."""
        return self._models

    @property
    def profiles(self) -> dict[str, Profile]:
        """By ``variant@group``."""
        return self._profiles

    @property
    def corrections(self) -> dict[str, Correction]:
        """By variant."""
        return self._corrections

    # --- what the topics say --------------------------------------------------------------------------------------

    def put_model(self, key: str, model: ModelVersion | None) -> None:
        """A model version appeared, changed, or (None) was removed. ``key`` is ``name:version``."""
        before = self._models.get(key)
        if before == model:
            return
        if before is not None:
            del self._models[key]
            del self._names[before.name].versions[before.version]
            self._versions_of_task[before.task].discard(key)
        if model is not None:
            self._models[key] = model
            self._names.setdefault(model.name, _Name()).versions[model.version] = model
            self._versions_of_task[model.task].add(key)
            self._tasks.setdefault(model.task, Target(model.task))
        of = model or before
        assert of is not None
        for profile in self._profiles_of(key):
            self._renew(profile.key, profile)
            if model is None:
                self._targets.pop(profile.variant, None)
        self._serve(of.name)
        if model is None:
            self._targets.pop(key, None)
            self._candidates_of_model.pop(key, None)
            if not self._names[of.name].versions:
                del self._names[of.name]
        if before is not None and not self._versions_of_task[before.task]:
            del self._versions_of_task[before.task], self._tasks[before.task]

    def put_profile(self, key: str, profile: Profile | None) -> None:
        """A profile appeared, changed, or (None) was removed. ``key`` is ``variant@group``."""
        before = self._profiles.pop(key, None)
        if before is not None:
            del self._profiles_of_model[split_variant(before.variant)[0]][key]
        if profile is not None:
            self._profiles[key] = profile
            self._profiles_of_model[split_variant(profile.variant)[0]][key] = profile
        elif before is not None:
            self._targets.pop(before.variant, None)
        self._renew(key, profile)

    def put_correction(self, variant: str, correction: Correction | None) -> None:
        """Labels of answered queries say how accurate a variant is, or (None) nothing any more."""
        if correction is None:
            self._corrections.pop(variant, None)
        else:
            self._corrections[variant] = correction
        for profile in self._profiles_of(split_variant(variant)[0]):
            if profile.variant == variant:
                self._renew(profile.key, profile)

    def put_labels(self, name: str, labels: Labels | None) -> None:
        """An operator, or the leader, says which versions of a model answer."""
        if labels is None:
            self.labels.pop(name, None)
        else:
            self.labels[name] = labels
        if name in self._names:
            self._serve(name)

    def put_worker(self, incarnation: str, loaded: Loaded | None) -> None:
        """What a worker has loaded, or should, changed; None: its link is gone."""
        before = self._workers.pop(incarnation, None)
        if loaded is not None:
            self._workers[incarnation] = loaded
        for name in {name_of(variant) for variant, _ in _variants(before) ^ _variants(loaded)}:
            if name in self._names:
                self._serve(name)

    # --- what workers say -----------------------------------------------------------------------------------------

    def set_ready(self, variant: str, group: str, team: frozenset[str]) -> None:
        """These workers of the group (incarnations) have the variant ready now."""
        key = f"{variant}@{group}"
        if team:
            self._ready[key] = team
        else:
            self._ready.pop(key, None)
        candidate = self._candidates.get(key)
        if candidate is not None and candidate.team != team:
            candidate.team = team
            for target in self._targets_of(candidate):
                target.ranking.reclass(candidate)

    def observed(self, candidate: Candidate) -> None:
        """Its table learned something, and may forget it later."""
        self._observed[candidate] = None

    def ran(self, candidate: Candidate, rows: int, now_ms: float) -> None:
        """A batch of so many rows ran; the candidate's table knows of it already."""
        self._observed[candidate] = None
        self._usual[candidate.group].ran(rows, candidate.table.scale, now_ms)

    def usual(self, now_ms: float) -> dict[str, Usual]:
        """By group, where something ran of late."""
        found = {group: usual.at(now_ms) for group, usual in self._usual.items()}
        return {group: usual for group, usual in found.items() if usual is not None}

    def assume(self, usual: Mapping[str, Usual]) -> None:
        """Rank all by what others say is usual on the groups."""
        for group, of in usual.items():
            self._usual[group].ran(max(1, round(of.rows)), of.slowness, 0.0)
        self.rank_observed(0.0)

    def expect(self, demand: Iterable[Demanded]) -> None:
        """This is asked for: groups are compared by the batches that they would run if all of it came to them.

        That is what prefers the cheapest; of what a group has loaded it would get the one that takes the least time of
        those that are accurate and quick enough.
        """
        before, self._company = self._company, {}
        loaded: dict[str, dict[str, list[Candidate]]] = defaultdict(lambda: defaultdict(list))
        ready = [candidate for key in self._ready if (candidate := self._candidates.get(key)) is not None]
        for candidate in sorted(ready, key=_row_ms):
            loaded[candidate.model.task][candidate.group].append(candidate)
        coming: dict[Candidate, list[Demanded]] = defaultdict(list)
        for each in demand:
            for there in loaded[each.task].values() if each.prefer == "cost" else ():
                for candidate in there:
                    if _could_serve(candidate, each):
                        coming[candidate].append(each)
                        break
        for candidate, own in coming.items():
            rows_per_ms = sum([each.rows_per_second for each in own]) / 1000 / candidate.workers
            block_ms = min([each.latency_ms or inf for each in own]) / 2  # who comes while one runs waits for it
            self._company[candidate] = company(rows_per_ms, candidate.lat_ms, candidate.table.rows_useful, block_ms)
        self._observed |= dict.fromkeys((*before, *self._company))

    def _usual_of(self, candidate: Candidate, usual: Usual | None) -> Usual | None:
        """What is usual on its group, and the company that it would have."""
        if usual is None:
            return None
        rows = self._company.get(candidate, 1)
        return Usual(rows, usual.slowness) if rows > usual.rows else usual

    def rank_observed(self, now_ms: float) -> None:
        """Rank those anew that would be chosen by something else now; called a few times a second."""
        usual = self.usual(now_ms)
        for group in self._usual:
            if _differ(usual.get(group), self._ranked_by.get(group)):
                self._ranked_by[group] = usual.get(group)
                self._observed |= dict.fromkeys([each for each in self._candidates.values() if each.group == group])
        ranked = 0
        for candidate in list(self._observed):
            if self._candidates.get(candidate.key) is not candidate:
                self._observed.pop(candidate, None)
            elif not candidate.is_outdated(self._usual_of(candidate, usual.get(candidate.group)), now_ms):
                if candidate.table.scale == 1.0:
                    self._observed.pop(candidate, None)
            elif ranked < RANKED_MAX:
                ranked += 1
                targets = self._targets_of(candidate)
                for target in targets:
                    target.ranking.remove(candidate)
                candidate.sample(self._usual_of(candidate, usual.get(candidate.group)), now_ms)
                for target in targets:
                    target.ranking.add(candidate)

    # --- what follows ---------------------------------------------------------------------------------------------

    def candidate(self, variant: str, group: str) -> Candidate | None:
        return self._candidates.get(f"{variant}@{group}")

    def candidates(self) -> list[Candidate]:
        return list(self._candidates.values())

    def price_ranges(self) -> dict[str, PriceRange]:
        """By group, what its device time may be worth to any task."""
        ranges: dict[str, list[PriceRange]] = defaultdict(list)
        for target in self._tasks.values():
            for group in {each.group for each in target.ranking.classes}:
                ranges[group].append(target.ranking.price_range(group))
        return {group: widest(own) for group, own in ranges.items()}

    def tasks(self) -> list[str]:
        return sorted(self._tasks)

    def resolve(self, query: Query) -> Target | None:
        """The target that a query names; None when there is no such thing."""
        if query.task is not None:
            return self._tasks.get(query.task)
        if query.model is not None:
            version = self._version(query.model)
            return self.of_version(version) if version is not None else None
        return self._of_variant(query.variant or "")

    def served(self, name: str) -> ModelVersion | None:
        """The version of a model that answers who names none."""
        of = self._names.get(name)
        return of.served if of is not None else None

    def _version(self, model: str) -> str | None:
        """``name``, ``name:version`` or ``name:label`` as ``name:version``; None when nothing has the label."""
        name, colon, which = model.partition(":")
        if not colon or which == "stable":
            of = self.served(name)
            return of.key if of is not None else None
        if which == "canary":
            labels = self.labels.get(name)
            return f"{name}:{labels.canary}" if labels is not None and labels.canary is not None else None
        return model

    def comparable(self, candidate: Candidate, version: str, rows: int) -> Candidate | None:
        """Of another version on the same group: by the same builder, or else the fastest."""
        same = self.candidate(f"{version}/{split_variant(candidate.variant)[1]}", candidate.group)
        if same is not None:
            return same
        there = [each for each in self.candidates_of(version) if each.group == candidate.group]
        return min(there, key=lambda each: each.table.p50_ms(rows), default=None)

    def of_version(self, key: str) -> Target | None:
        """What one version, ``name:version``, can be run with."""
        target = self._targets.get(key)
        if target is None and key in self._models:
            target = self._keep(key, Target(key, self.candidates_of(key)))
        return target

    def _of_variant(self, variant: str) -> Target | None:
        target = self._targets.get(variant)
        version = split_variant(variant)[0]
        if target is None and version in self._models and any(p.variant == variant for p in self._profiles_of(version)):
            own = [candidate for candidate in self.candidates_of(version) if candidate.variant == variant]
            target = self._keep(variant, Target(variant, own))
        return target

    def _profiles_of(self, key: str) -> list[Profile]:
        return list(self._profiles_of_model.get(key, {}).values())

    def candidates_of(self, key: str) -> list[Candidate]:
        """Of one version, ``name:version``, on every group."""
        return list(self._candidates_of_model.get(key, {}).values())

    def _keep(self, name: str, target: Target) -> Target:
        if len(self._targets) >= TARGETS_MAX:
            del self._targets[next(iter(self._targets))]
        self._targets[name] = target
        return target

    def _renew(self, key: str, profile: Profile | None) -> None:
        """Make one candidate anew from what is known now, and tell whom it concerns."""
        before = self._candidates.pop(key, None)
        after = self._candidate(profile, before) if profile is not None else None
        if after is not None:
            self._candidates[key] = after
        if after is before:
            return
        of = after or before
        assert of is not None
        siblings = self._candidates_of_model[of.model.key]
        siblings.pop(key, None)
        if after is not None:
            siblings[key] = after
            if before in self._observed:
                self._observed[after] = None
        for target in self._targets_of(of):
            target.replace(before, after)
        self._serve(of.model.name)

    def _targets_of(self, candidate: Candidate) -> list[Target]:
        """Those that exist."""
        model = candidate.model
        targets = [self._targets.get(model.key), self._targets.get(candidate.variant)]
        served = self._names[model.name].served
        if served is not None and served.key == model.key:
            targets.append(self._tasks[served.task])
        return [target for target in targets if target is not None]

    def _candidate(self, profile: Profile, before: Candidate | None) -> Candidate | None:
        """The same one while nothing changed; what its table has learned stays as long as the batch times do."""
        model = self._models.get(split_variant(profile.variant)[0])
        if model is None or profile.digest != model.digest or not profile.is_usable:
            return None
        price_per_ms = profile.price_per_ms
        accuracy, (low, _) = accuracy_of(model, profile, self._corrections.get(profile.variant))
        table = LatencyTable(profile.batches)
        tables = {each.length: LatencyTable(each.batches, table) for each in profile.lengths if each.batches}
        if before is not None and before.times == (profile.batches, profile.lengths):
            known = (before.model, before.accuracy, before.accuracy_low, before.price_per_ms)
            if known == (model, accuracy, low, price_per_ms):
                return before
            table, tables = before.table, dict(before.tables)
        team, usual = self._ready.get(profile.key, frozenset()), self._ranked_by.get(profile.group)
        return Candidate(profile.variant, profile.group, model, accuracy, low, table, price_per_ms, team, usual, tables)

    def _serve(self, name: str) -> None:
        """Who answers for a model may have changed."""
        of = self._names[name]
        before, of.served = of.served, self._default(of)
        if before is of.served:
            return
        if before is not None:
            for candidate in self.candidates_of(before.key):
                self._tasks[before.task].replace(candidate, None)
        if of.served is not None:
            for candidate in self.candidates_of(of.served.key):
                self._tasks[of.served.task].replace(None, candidate)

    def _default(self, of: _Name) -> ModelVersion | None:
        """Who answers now; see :mod:`broker.versions`."""
        if len(of.versions) < 2:
            return next(iter(of.versions.values()), None)
        models = sorted(of.versions.values(), key=lambda model: model.version)
        labels = self.labels.get(models[0].name)
        workers = self._workers.values()
        standings = [standing(model, self._profiles_of(model.key), workers) for model in models]
        stable = labels.stable if labels is not None else None
        version = served(standings, stable, of.served.version if of.served is not None else None)
        return of.versions[version] if version is not None else None


def _could_serve(candidate: Candidate, asked: Demanded) -> bool:
    """Whether it is accurate and, alone, quick enough."""
    return candidate.accuracy_low >= asked.accuracy_min and candidate.lat_ms(1) <= (asked.latency_ms or inf)


def _row_ms(candidate: Candidate) -> float:
    return candidate.row_ms


def _differ(one: Usual | None, other: Usual | None) -> bool:
    """By enough to look at all candidates of a group."""
    if one is None or other is None:
        return one is not other
    return (
        abs(one.rows - other.rows) > ROWS_STEP * other.rows
        or abs(one.slowness - other.slowness) > SCALE_STEP * other.slowness
    )


def _variants(loaded: Loaded | None) -> set[tuple[str, bool]]:
    """What is loaded, and what should be."""
    if loaded is None:
        return set()
    return {(variant, True) for variant in loaded.ready} | {(variant, False) for variant in loaded.wanted or ()}


def match_inputs(
    tensors: tuple[Tensor, ...], specs: tuple[TensorSpec, ...], layout: Layout | None = None
) -> tuple[Tensor, ...] | str:
    """The tensors in the order of the specification, or a sentence that says what is wrong."""
    by_name = {tensor.name: tensor for tensor in tensors}
    ordered: list[Tensor | None] = []
    made = () if layout is None else layout.made
    for spec in specs:
        name, shape = spec.name, spec.shape
        tensor = by_name.pop(name, None)
        if tensor is None and spec in made:
            ordered.append(None)
            continue
        if tensor is None:
            return f"input {name!r} is missing; expected {_describe(specs)}"
        if tensor.datatype != spec.datatype:
            return f"input {name!r} has datatype {tensor.datatype}; expected {_describe(specs)}"
        if tensor.shape[1:] != shape[1:] and not _fits(tensor.shape, shape):
            return f"input {name!r} has shape {list(tensor.shape)}; expected {_describe(specs)}"
        ordered.append(tensor)
    if by_name:
        return f"input {next(iter(by_name))!r} is unknown; expected {_describe(specs)}"
    return tuple(ordered) if layout is None else layout.complete(ordered)  # type: ignore[arg-type]


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(shape) == len(wanted) and all(want in (-1, got) for got, want in zip(shape, wanted, strict=True))


def _describe(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(f"{spec.name}: {spec.datatype} {list(spec.shape)}" for spec in specs)
