"""The plan: what is loaded on which worker. The planner's pure part.

Of what is measured and ready, the most valuable that fits into each worker's memory (:mod:`broker.worth` says what
that is), in rounds: what is in use by those who name models stays where it is; what serves the tasks' demand best, by
the placement (:mod:`broker.placement`), and until that is ready the last that is (:mod:`broker.keeping`); more copies,
where one more helps most (:mod:`broker.copies`), so that who is in a hurry finds somebody who is free; what else is in
use stays; what is used or wanted goes everywhere; what is worth anything goes somewhere; then everywhere; and what is
loaded for no reason stays while there is room for it. Without demand by task what is in use is never evicted.

Who measures what is told by :mod:`broker.measuring`, how many workers there are by :mod:`broker.scaler`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import replace
from math import inf
from statistics import median
from typing import Any

from broker import placement
from broker.copies import Offer, spread
from broker.keeping import Keeping
from broker.levels import Levels
from broker.measured import Builders, Measured
from broker.measuring import Measuring, to_measure
from broker.scaler import ScaledGroup, ScaledWorker, Scaler, Scaling
from broker.situation import PlannedGroup, PlannedWorker, Situation
from broker.worth import Item, Valued, Worth, answering, beaten_by, standings, valued
from modelless.labels import shadow_of
from modelless.messages import Assignment, Demanded, GroupTarget, Plan, split_variant

ABSENCE_MS_MAX = 60_000.0
"""A worker that is gone for less keeps its assignment: it is expected back under the same name."""
IN_USE_MS = 60_000.0
"""What ran no longer ago is in use, and is not unloaded."""
SETTLING_MS = 20_000.0
"""Nor is what was put into the plan no longer ago."""
WANTED_MS = 30_000.0
"""A wish holds for so long."""
ALLOCATE_INTERVAL_MS = 5_000.0
"""So often it is decided anew what serves the demand best."""
OFFLINE_WEIGHT = 0.01
"""Of a row without a deadline, beside others': it takes what they leave; how many there are starts nobody."""
BURST, BURST_ROWS_MIN = 1.5, 5.0
"""And at once when a task's rows a second exceed so many times what was decided for, plus so many."""
CANDIDATES_MAX = 64
"""Variants of one task on one group, where the sizing may have chosen any."""
REASONS_MAX = 200


class Planner:
    """Remembers since when things are as they are; decides from scratch every time otherwise.

    Args:
        accuracy_slack: ``broker.accuracy_slack``.
        profile_age_ms_max: a profile that is older is measured again; 0: none is.
        solve_s_max: of each solution of a MILP; what was found by then counts.
        scaler: decides how many workers there are.
        place: :func:`broker.placement.place`, or what does the same elsewhere.
    """

    def __init__(
        self,
        accuracy_slack: float = 0.02,
        profile_age_ms_max: float = 0.0,
        solve_s_max: float = 0.5,
        scaler: Scaler | None = None,
        place: Callable[..., placement.Allocation] = placement.place,
    ) -> None:
        self._scaler, self._solve = scaler or Scaler(), place
        self._measured = Measured({}, {}, {})
        self._standings: dict[str, tuple[object, Mapping[str, tuple[Worth, float]]]] = {}
        """By group, :func:`broker.worth.standings`, and what they follow from."""
        self._builders: dict[str, set[Builders]] = {}
        """By scaling group, what its workers can make, whether there are any now or not."""
        self._accuracy_slack = accuracy_slack
        self._measuring, self._keeping = Measuring(profile_age_ms_max), Keeping()
        self._seen_ms: dict[str, float] = {}
        self._stays_until_ms: dict[str, float] = {}
        self._wants: dict[str, tuple[float, float]] = {}
        self._options = placement.Options(time_limit_s=solve_s_max, load_gain_min=0.005)
        self._allocation: Mapping[str, Sequence[str]] = {}
        self._allocated_by: object = None
        self._allocated_for: Mapping[str, float] = {}
        self._allocate_ms = 0.0
        self._levels = Levels()

    def remember(self, situation: Situation, past: Iterable[tuple[float, Sequence[Demanded]]]) -> None:
        """What was asked for before anything is planned, and when; see :meth:`broker.scaler.Scaler.remember`.

        Args:
            situation: of now.
        """
        measured = self._look(situation)
        default, _ = answering(situation.models.values(), measured.ready, situation.labels, situation.served)
        choices = _choices(situation, measured, default)
        prices = {name: of.price_per_hour for name, of in situation.scaling.items()}
        for at_ms, demand in past:
            self._levels.hear(demand, at_ms)
            self._scaler.remember(_lasting(_demands(demand)), choices, prices, at_ms)

    def plan(self, previous: Plan | None, situation: Situation, leader: str, now_ms: float) -> Plan | None:
        """The next plan, or None while the previous one still says the same."""
        before = previous.workers if previous is not None else {}
        self._remember(before, situation, now_ms)
        self._levels.hear(situation.demand, now_ms)
        measured = self._look(situation)
        shadows = [s[1] for labels in situation.labels.values() if (s := shadow_of(labels)) is not None and s[1]]
        default, besides = answering(situation.models.values(), measured.ready, situation.labels, situation.served)
        named = _named(situation)
        choices = _choices(situation, measured, default, named.keys()) if situation.scaling else []
        scaled = self._scaled(previous, situation, choices) if situation.scaling else []
        lasting = _lasting([*_demands(situation.demand), *named.values()])
        going = self._scaler.decide(lasting, choices, scaled, now_ms) if scaled else ()
        groups: dict[str, list[PlannedWorker]] = defaultdict(list)
        for worker in sorted([*situation.workers, *self._coming(situation)], key=lambda worker: worker.name):
            if worker.name not in going and not worker.draining:  # who goes keeps what it has
                groups[worker.group].append(worker)
        assignments = self._absent(before, situation.workers, now_ms)
        known = [PlannedGroup(name, workers, situation, before, measured) for name, workers in sorted(groups.items())]
        allocated = self._allocated(known, default, situation, now_ms)
        used = {key for key, until_ms in self._stays_until_ms.items() if until_ms - now_ms > 0}
        values = {group.name: self._valued(group, default, besides, used, shadows, situation) for group in known}
        loads = {group.name: group.loading(values[group.name]) for group in known}
        asked = {each.task for each in situation.demand}
        keeping = self._keeping.decide(known, default, situation.demand, allocated, now_ms)
        for load in loads.values():
            load.begin(used, asked, allocated, keeping)
        offers = [
            Offer(of, load.copies[of.variant], load.before[of.variant])
            for group in known
            for load in (loads[group.name],)
            for of in group.items
            if of.model.key in default
        ]
        spread(offers, situation.demand, lambda of: loads[of.key.rpartition("@")[2]].add(of))
        loaded: dict[str, dict[str, list[str]]] = {}
        for group in known:
            loaded[group.name] = loads[group.name].fill(used)
            measure = to_measure(group, default)
            outdated = self._measuring.again(group, measure, now_ms)
            quickest = [] if asked else _quickest(group, default)
            for number, worker in enumerate(group.workers):
                turn = number % max(1, len(quickest))  # so that each task is soon served by somebody
                needed = [*loads[group.name].needed[worker.name], *quickest[turn:], *quickest[:turn]]
                assignments[worker.name] = Assignment(
                    _in_order(loaded[group.name][worker.name], needed, before.get(worker.name)),
                    tuple(measure[worker.name]),
                    outdated.get(worker.name, {}),
                )
        fleet = self._fleet(previous, situation, scaled, allocated) if scaled else {}
        same = previous is not None and previous.workers == assignments and previous.fleet == fleet
        if same and previous is not None and previous.leader == leader:
            return None
        self._settle(before, assignments, situation, now_ms)
        served = default | besides
        reasons = [why for of in known for why in _reasons(of, values[of.name], loaded[of.name], served)]
        if len(reasons) > REASONS_MAX:
            reasons[REASONS_MAX - 1 :] = [f"and {len(reasons) - REASONS_MAX + 1} more"]
        epoch = previous.epoch + 1 if previous is not None else 1
        return Plan(epoch, leader, now_ms, assignments, tuple(reasons), fleet)

    def _coming(self, situation: Situation) -> list[PlannedWorker]:
        """Those that are being started, taken to be as the others of their groups are, or were."""
        there = {worker.name for worker in situation.workers}
        return [
            PlannedWorker(name, group, int(situation.scaling[group].memory_mb * 2**20), max(known))
            for name, group in situation.coming.items()
            if name not in there and group in situation.scaling and (known := self._builders.get(group))
        ]

    def _look(self, situation: Situation) -> Measured:
        of = situation.models, situation.profiles, situation.corrections
        if not self._measured.holds(*of):
            self._measured = Measured(*of)
        return self._measured

    def _valued(
        self,
        group: PlannedGroup,
        default: Set[str],
        besides: Set[str],
        used: Set[str],
        shadows: Iterable[str],
        situation: Situation,
    ) -> list[Valued]:
        wants = {f"{variant}@{group.name}": 0.0 for variant in shadows}
        wants.update({key: rate for key, (rate, _) in self._wants.items()})
        ran = used & situation.rates.keys()
        by, standing = self._standings.get(group.name, (None, {}))
        if by != (group.items, default, besides):
            standing = standings(group.items, default, besides, self._accuracy_slack)
            self._standings[group.name] = (group.items, default, besides), standing
        return valued(group.items, standing, ran, wants, group.loaded)

    def _scaled(
        self, previous: Plan | None, situation: Situation, choices: Sequence[placement.Choice]
    ) -> list[ScaledGroup]:
        """All groups as the scaler sees them."""
        if previous is not None:
            self._scaler.resume(previous.fleet)
        before = previous.workers if previous is not None else {}
        workers: dict[str, list[PlannedWorker]] = {name: [] for name in situation.scaling}
        for worker in situation.workers:
            workers.setdefault(worker.group, []).append(worker)
        found = []
        for name, own in sorted(workers.items()):
            memory_mb = min([worker.memory_bytes_max for worker in own], default=0) / 2**20
            price = situation.prices_per_hour.get(name)
            scaling = situation.scaling.get(name)
            is_fixed = scaling is None
            scaling = scaling or Scaling(0, len(own), memory_mb, price or 0.0)
            loads_ms = [choice.load_ms for choice in choices if choice.group == name]
            scaling = replace(scaling, start_ms=scaling.start_ms + (median(loads_ms) if loads_ms else 0.0))
            if own:
                price = scaling.price_per_hour if price is None else price
                scaling = replace(scaling, memory_mb=memory_mb, price_per_hour=price)
                self._builders.setdefault(name, set()).update(worker.builders for worker in own)
            known = [
                ScaledWorker(w.name, w.ready, w.draining, bool(before.get(w.name, Assignment()).measure)) for w in own
            ]
            found.append(ScaledGroup(name, scaling, known, self._unmeasured(name, situation), is_fixed))
        return found

    def _unmeasured(self, group: str, situation: Situation) -> str:
        """Something that is registered and has no valid profile on a group; empty: nothing."""
        known = self._builders.get(group)
        if known is None:  # nobody has been there yet: what is measured at all is taken to be all that can be
            return min(situation.models.keys() - self._measured.models_on(group), default="")
        for builders in known:
            for variant in self._measured.made(builders):
                if f"{variant}@{group}" not in self._measured.current:
                    return variant
        return ""

    def _fleet(
        self,
        previous: Plan | None,
        situation: Situation,
        scaled: Sequence[ScaledGroup],
        allocated: Mapping[str, Sequence[str]],
    ) -> dict[str, GroupTarget]:
        """How many workers the groups are to have; why is told anew only with another number."""
        of_task = self._measured.of_task
        by_task = {variant for task in {each.task for each in situation.demand} for variant in of_task.get(task, ())}
        fleet = self._scaler.targets(scaled, situation.rates.keys(), allocated, by_task)
        before = previous.fleet if previous is not None else {}
        return {
            name: old
            if (old := before.get(name)) is not None and (old.workers, old.leaving) == (target.workers, target.leaving)
            else target
            for name, target in fleet.items()
        }

    def _allocated(
        self, groups: Sequence[PlannedGroup], default: Set[str], situation: Situation, now_ms: float
    ) -> Mapping[str, Sequence[str]]:
        """By worker, what serves the demand best; decided anew every so often, and when something changes."""
        fleet = tuple((worker.name, worker.group) for group in groups for worker in group.workers)
        known = (fleet, frozenset(item.key for group in groups for item in group.items))
        volume: dict[str, float] = {}
        for each in situation.demand:
            volume[each.task] = volume.get(each.task, 0.0) + each.rows_per_second
        is_burst = any(
            rate > BURST * self._allocated_for.get(task, 0.0) + BURST_ROWS_MIN for task, rate in volume.items()
        )
        if known == self._allocated_by and not is_burst and now_ms < self._allocate_ms:
            return self._allocation
        self._allocated_by, self._allocated_for, self._allocate_ms = known, volume, now_ms + ALLOCATE_INTERVAL_MS
        if not situation.demand:
            self._allocation = {}
            return self._allocation
        choices = [
            self._measured.choice(item.key) for group in groups for item in group.items if item.model.key in default
        ]
        fleet_groups = [
            placement.Group(
                group.name,
                min(worker.memory_bytes_max for worker in group.workers) / 2**20,
                situation.prices_per_hour.get(group.name, 0.0),
                {worker.name: frozenset(group.before(worker).load) for worker in group.workers},
            )
            for group in groups
        ]
        demands = [
            replace(each, level=number, share=level.share)
            for number, level in enumerate(self._levels.of(situation.demand))
            for each in _demands(level.demand)
        ]
        arguments: tuple[Any, ...] = (demands, choices, fleet_groups, self._options)
        if situation.scaling:  # what the fleet was sized for is to be placed, too, the dear queries with the others
            use = max(self._options.utilisation_max, self._scaler.utilisation_max)
            options = replace(self._options, utilisation_max=use, candidates_max=CANDIDATES_MAX, runs_alone=1.0)
            arguments = (*arguments[:-1], options, self._scaler.placed)
        found = self._solve(*arguments)
        used = {key for shares in found.shares for key in shares}
        self._allocation = {
            worker.name: [variant for variant in found.load[worker.name] if (variant, group.name) in used]
            for group in groups
            for worker in group.workers
        }
        return self._allocation

    def _remember(self, before: Mapping[str, Assignment], situation: Situation, now_ms: float) -> None:
        """What is used and wanted now, for a while; a plan of somebody else's is taken to be in use."""
        group_of = {worker.name: worker.group for worker in situation.workers}
        for name, assignment in before.items():
            for variant in assignment.load if name in group_of else ():
                self._stays_until_ms.setdefault(f"{variant}@{group_of[name]}", now_ms + IN_USE_MS)
        self._measuring.remember(before, group_of, now_ms)
        self._stays_until_ms.update(dict.fromkeys(situation.rates, now_ms + IN_USE_MS))
        self._wants.update({key: (rate, now_ms + WANTED_MS) for key, rate in situation.wants.items()})
        self._wants = {key: (rate, until_ms) for key, (rate, until_ms) in self._wants.items() if until_ms > now_ms}

    def _settle(
        self,
        before: Mapping[str, Assignment],
        after: Mapping[str, Assignment],
        situation: Situation,
        now_ms: float,
    ) -> None:
        """What was put into the plan just now gets time to be of use; what is gone is forgotten."""
        planned = set()
        for worker in situation.workers:
            known = before.get(worker.name, Assignment()).load
            for variant in after.get(worker.name, Assignment()).load:
                key = f"{variant}@{worker.group}"
                planned.add(key)
                if variant not in known:
                    until_ms = max(now_ms + SETTLING_MS, self._stays_until_ms.get(key, 0.0))
                    self._stays_until_ms[key] = until_ms
        self._stays_until_ms = {
            key: until_ms for key, until_ms in self._stays_until_ms.items() if key in planned or until_ms > now_ms
        }
        self._measuring.forget(situation.profiles)

    def _absent(
        self, before: Mapping[str, Assignment], workers: Sequence[PlannedWorker], now_ms: float
    ) -> dict[str, Assignment]:
        """Assignments of workers that left a moment ago."""
        for worker in workers:
            self._seen_ms[worker.name] = now_ms
        kept = {}
        for name, assignment in before.items():
            if now_ms - self._seen_ms.setdefault(name, now_ms) < ABSENCE_MS_MAX:
                kept[name] = Assignment(assignment.load)
        self._seen_ms = {name: ms for name, ms in self._seen_ms.items() if now_ms - ms < ABSENCE_MS_MAX}
        return kept


def _quickest(group: PlannedGroup, default: Set[str]) -> list[str]:
    """Of each task, what takes the least device time."""
    found: dict[str, str] = {}
    for each in sorted(group.items, key=lambda each: (each.point.cost, each.point.latency_ms, each.variant)):
        if each.model.key in default:
            found.setdefault(each.model.task, each.variant)
    return sorted(found.values())


def _demands(demand: Iterable[Demanded]) -> list[placement.Demand]:
    return [
        placement.Demand(
            each.task,
            inf if each.latency_ms is None else each.latency_ms,
            each.accuracy_min,
            each.rows_per_second,
            each.prefer,
            each.degrades,
            1.0 if each.latency_ms is not None else OFFLINE_WEIGHT,
        )
        for each in demand
    ]


def _lasting(demands: Iterable[placement.Demand]) -> list[placement.Demand]:
    """As they count for the number of workers: what has no deadline starts nobody."""
    return [demand if demand.weight == 1 else replace(demand, rows_per_s=0.0) for demand in demands]


def _named(situation: Situation) -> dict[str, placement.Demand]:
    """By ``name:version``, what is asked of models by their names, as far as what ran or is wanted tells.

    Of models whose task is not asked for: otherwise nobody could say who asked. Nor is it known how soon.
    """
    tasks = {each.task for each in situation.demand}
    rates: dict[str, float] = defaultdict(float)
    for key in situation.rates.keys() | situation.wants.keys():
        model = situation.models.get(split_variant(key)[0])
        if model is not None and model.task not in tasks:
            rates[model.key] += situation.rates.get(key, 0.0) + situation.wants.get(key, 0.0)
    return {key: placement.Demand(_by_name(key), inf, 0.0, rate) for key, rate in rates.items() if rate > 0}


def _by_name(model: str) -> str:
    """A model that is asked for by its name, as if it were a task: no task is called so."""
    return f"the model {model}"


def _choices(
    situation: Situation, measured: Measured, default: Set[str], named: Set[str] = frozenset()
) -> list[placement.Choice]:
    """What can serve tasks and models, on all groups that there are or could be, at the speed that it has of late.

    Args:
        default: versions that answer for their tasks.
        named: versions that are asked for by their names.
    """
    groups = situation.scaling.keys() | {worker.group for worker in situation.workers}
    slowness = {group: round(max(1.0, situation.slowness.get(group, 1.0)), 1) for group in groups}
    found = []
    for key, group, model in measured.usable:
        if group in groups and (model in default or model in named):
            choice = measured.choice(key, slowness[group])
            found += [choice] if model in default else []
            found += [replace(choice, task=_by_name(model))] if model in named else []
    return found


def _reasons(
    group: PlannedGroup, values: Sequence[Valued], load: Mapping[str, Sequence[str]], served: Set[str]
) -> Iterable[str]:
    """Why what could be loaded is not, in words for an operator."""
    loaded = {variant for known in load.values() for variant in known}
    siblings: dict[str, list[Item]] = defaultdict(list)
    for value in values:
        if value.worth is not Worth.NOTHING:
            siblings[value.item.model.key].append(value.item)
    for value in values:
        of = value.item
        if of.variant in loaded:
            continue
        if value.worth is not Worth.NOTHING:
            wish = "is wanted and" if value.worth is Worth.WANTED else ""
            need = f"it needs {of.memory_bytes >> 20} MiB beside what is more valuable or in use"
            yield f"{of.variant} {wish} does not fit on {group.name}: {need}".replace("  ", " ")
        elif of.model.key not in served:
            yield f"{of.variant} is not loaded on {group.name}: another version of {of.model.name} answers"
        else:
            yield f"{of.variant} is not loaded on {group.name}: {beaten_by(of, siblings[of.model.key])}"


def _in_order(load: Sequence[str], first: Sequence[str], before: Assignment | None) -> tuple[str, ...]:
    """What the demand needs first, then the most valuable. Otherwise the order of loading is no reason for a plan."""
    known = before.load if before is not None else ()
    places = {variant: place for place, variant in enumerate(dict.fromkeys((*known, *first, *load)))}
    return tuple(sorted(load, key=lambda variant: (variant not in first, places[variant])))
