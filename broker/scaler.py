"""How many workers each scaling group has now: what the sizing says, with patience. Pure.

**Up, at once.** What is asked for now, and what waits, is compared with all workers that are there or on their way:
whoever was ordered counts from then on, so that nothing is ordered twice. Only where they do not serve it are there
more, the cheapest that do beside them. It is looked at every few seconds, and at once when a task's demand rises, when
work waits that should not (its age, and its device time, beside the shortest latency asked for), or when workers,
prices or profiles change.

**Down, slowly.** What may go is what the most that was asked for in the last ``scale_down_ms`` does not need. Where
another mixture of groups would cost clearly less, its workers are started first, and the others go when these are
there. Who goes is chosen so that what remains is packed: who alone has the fewest variants, then the newest, then
whoever has the least loaded. It is planned for without them first; each is told to go only when others have what it
alone has and somebody uses, or what serves its tasks instead.

**To zero, and back.** What was asked for in the last ``idle_ms`` is still planned for, at hardly any rate, so that
somebody can serve it; what nobody has asked for since then needs nobody. A group of which something registered is
not measured yet needs one worker that measures it.

**What cannot be had.** A group whose workers do not come, for much longer than they usually take, or that cannot be
started, counts as many times dearer for a while, so that others are taken where there are others.

**Bursts** are over before a worker that was ordered for them has started; capacity for them has to be there.
:mod:`broker.bursts` tells what rises and is gone again within ``scale_down_ms`` from what stays; it is sized for what
stays with the usual bursts, or for what is asked for now if that is more than usual. **Head-room** is for so much of
the bursts, and of what happens to come together, that hardly anything is lost (:mod:`broker.headroom`): what waits at
a usual peak beyond it waits as is planned, and orders nobody. It is looked at with less than there should be whether
those who are there serve, and sized with all of it where they do not, so that noise orders nobody.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from math import exp, inf, sqrt
from typing import NamedTuple

from broker import headroom, sizing
from broker.bursts import Bursts, Usual
from broker.demand import Key as Class
from broker.demand import class_key
from broker.placement_model import Choice, Demand
from broker.sizing import Limits, Sizing
from modelless.messages import GroupTarget

SIZE_INTERVAL_MS = 5_000.0
BURST, BURST_ROWS_MIN = 1.2, 3.0
"""It is sized at once when a task's rows a second exceed so many times what it was sized for, plus so many."""
NOISE = 0.6
"""Of the head-room: with so much it is looked whether there are enough workers."""
WAIT_SHARE = 0.5
"""Of the shortest latency asked for: where work waits longer, and takes all workers longer, there are too few."""
WAIT_MS_MAX = 2_000.0
"""Likewise, where nobody is in a hurry."""
DRAIN_MS = 2_000.0
"""What waits should be done in so long."""
STRESS_MAX = 3.0
TRICKLE_ROWS = 0.01
"""A second: what was asked for lately, and is not now."""
MIX_GAIN_MIN = 0.1
"""Another mixture of groups must cost less by this share."""
MIX_INTERVAL_MS = 30_000.0
START_PATIENCE = 3.0
"""Workers that take so many times as long as is usual, and 10 s, do not come."""
BARRED_MS = 120_000.0
BARRED_PRICE = 10.0
"""Times what it costs: a group whose workers do not come."""


@dataclass(frozen=True, slots=True)
class Scaling:
    """What a group may have, and how it does; all of one moment."""

    workers_min: int
    workers_max: int
    memory_mb: float
    """Of each worker, for variants."""
    price_per_hour: float
    """USD, of each worker."""
    start_ms: float = 10_000.0
    """From a worker's start until it runs something: the usual of those that started lately, and of loads."""
    backlog_ms: float = 0.0
    """Predicted device time of what waits and has a deadline."""
    oldest_ms: float = 0.0
    """For how long the most urgent of it has waited."""
    failing: str = ""
    """Why no worker can be started, in words; empty: they can."""


class ScaledWorker(NamedTuple):
    name: str
    ready: frozenset[str] = frozenset()
    """Variants."""
    draining: bool = False
    measures: bool = False


@dataclass(frozen=True, slots=True)
class ScaledGroup:
    """A group's part of the situation."""

    name: str
    scaling: Scaling
    workers: Sequence[ScaledWorker] = ()
    unmeasured: str = ""
    """A variant or model that one worker of the group has to measure."""
    is_fixed: bool = False
    """Its number of workers is somebody else's business."""


@dataclass(slots=True)
class _Order:
    """What was decided of a group."""

    workers: int
    """That are to stay, or to be started."""
    reason: str = ""
    departing: dict[str, float] = field(default_factory=dict)
    """Who is to go once it can be spared, and since when."""
    leaving: set[str] = field(default_factory=set)
    """Who was told to go."""
    is_inherited: bool = False
    """It was there before us, so that we do not know who asked for it."""
    here: int = 0
    """Workers that are there, and not told to go."""
    since_ms: dict[str, float] = field(default_factory=dict)
    """By worker, when it was first seen."""
    raised_ms: float = -inf
    """When there were to be more than before."""
    awaited_ms: float | None = None
    """Since when somebody is on the way, and nobody came."""
    barred_until_ms: float = -inf
    why_barred: str = ""

    def staying(self, group: ScaledGroup) -> list[ScaledWorker]:
        return [w for w in group.workers if not w.draining and w.name not in self.leaving]


class Scaler:
    """Remembers what was asked for and ordered.

    Args:
        scale_down_ms: less must be needed for so long before anybody goes.
        idle_ms: what nobody has asked for in so long needs no worker.
        options: of the sizing.
        size: :func:`broker.sizing.size`, or what does the same elsewhere.
    """

    def __init__(
        self,
        scale_down_ms: float = 60_000.0,
        idle_ms: float = 300_000.0,
        options: sizing.Options = sizing.DEFAULT,
        size: Callable[..., Sizing] = sizing.size,
    ) -> None:
        self._scale_down_ms, self._idle_ms = scale_down_ms, idle_ms
        self._options, self._size = options, size
        self._orders: dict[str, _Order] = {}
        self._demand = _History(scale_down_ms, idle_ms, options.missed_max)
        self._solved_by: object = None
        self._solved_for: dict[str, float] = {}
        self._solve_ms = -inf
        self._mix_ms = -inf
        self._prices: Mapping[str, float] = {}
        self._began_ms = inf
        """Since when it is known what is asked for."""
        self._stress = 1.0
        self._stressed_ms = 0.0
        self.sizing: Sizing | None = None
        """What the demand of the moment takes, as it was sized last."""

    @property
    def utilisation_max(self) -> float:
        """Share of a worker's time that is planned, beside the head-room."""
        return self._options.utilisation_max

    @property
    def placed(self) -> Mapping[str, Sequence[Set[str]]]:
        """By group, the variants of its workers by which it was sized."""
        return self.sizing.placed if self.sizing is not None else {}

    def resume(self, fleet: Mapping[str, GroupTarget]) -> None:
        """Go on where another leader ended; what is decided already stays."""
        for name, target in fleet.items():
            if name not in self._orders:
                order = _Order(target.workers, target.reason, leaving=set(target.leaving))
                order.is_inherited = target.workers > 0
                self._orders[name] = order

    def remember(
        self, demands: Sequence[Demand], choices: Sequence[Choice], prices: Mapping[str, float], now_ms: float
    ) -> None:
        """What was asked for before anybody decided; in order of time, and nothing after the first :meth:`decide`."""
        self._began_ms = min(self._began_ms, now_ms)
        self._demand.hear(demands, choices, prices, now_ms)

    def decide(
        self, demands: Sequence[Demand], choices: Sequence[Choice], groups: Sequence[ScaledGroup], now_ms: float
    ) -> Set[str]:
        """Who is to go: loads are to be planned for the others. Then ask for :meth:`targets`.

        Args:
            demands: what is asked for now.
            choices: what can serve it, on all groups, whether they have workers or not.
            groups: fixed ones too, since what they serve needs nobody else.
        """
        self._began_ms = min(self._began_ms, now_ms)
        for group in groups:
            self._follow(group, now_ms)
        prices = {group.name: group.scaling.price_per_hour for group in groups}
        self._demand.hear(demands, choices, prices, now_ms)
        if any(not group.is_fixed for group in groups) and self._is_due(demands, choices, groups, now_ms):
            self._solve_ms = now_ms + SIZE_INTERVAL_MS
            self._solved_for = _rates(demands)
            self._decide(choices, groups, now_ms)
        for group in groups:
            if not group.is_fixed:
                self._choose(group, now_ms)
        return {name for order in self._orders.values() for name in (*order.departing, *order.leaving)}

    def targets(
        self,
        groups: Sequence[ScaledGroup],
        used: Set[str] | None = None,
        needed: Mapping[str, Iterable[str]] | None = None,
        by_task: Set[str] = frozenset(),
    ) -> dict[str, GroupTarget]:
        """How many workers each scaling group is to have. Whoever can be spared now is told to go.

        Args:
            used: ``variant@group`` of what somebody uses; None: everybody who is to go can be spared.
            needed: by staying worker, what it is to have so that the demand is served.
            by_task: variants of tasks that are asked for by their name, which another variant may serve.
        """
        found = {}
        for group in groups:
            if group.is_fixed:
                continue
            order = self._orders[group.name]
            staying = [worker for worker in order.staying(group) if worker.name not in order.departing]
            have = {variant for worker in staying for variant in worker.ready}
            is_served = all(
                set((needed or {}).get(worker.name, ())) <= worker.ready
                for other in groups
                for worker in other.workers
                if worker.name in (needed or {})
            )
            reason = order.reason
            for worker in group.workers:
                if worker.name not in order.departing:
                    continue
                alone = {
                    variant
                    for variant in worker.ready - have
                    if used is not None and f"{variant}@{group.name}" in used and not (variant in by_task and is_served)
                }
                if alone:
                    reason += f"; {worker.name} waits to go: it alone has {sorted(alone)[0]}"
                else:
                    del order.departing[worker.name]
                    order.leaving.add(worker.name)
            number = order.workers + len(order.departing)
            found[group.name] = GroupTarget(number, tuple(sorted(order.leaving)), reason)
        return found

    # --- what there is ------------------------------------------------------------------------------------------------

    def _follow(self, group: ScaledGroup, now_ms: float) -> None:
        """Workers came and went."""
        scaling = group.scaling
        order = self._orders.get(group.name)
        if order is None:
            here = sum(not worker.draining for worker in group.workers)
            order = self._orders[group.name] = _Order(min(max(here, scaling.workers_min), scaling.workers_max))
            order.is_inherited = here > 0
        if order.raised_ms == -inf:  # seen for the first time: what it is good for we have to learn
            order.raised_ms = now_ms
        names = {worker.name for worker in group.workers}
        came = names - order.since_ms.keys()
        order.since_ms = {name: order.since_ms.get(name, now_ms) for name in names}
        order.leaving &= names
        order.departing = {name: ms for name, ms in order.departing.items() if name in names - order.leaving}
        order.here = len(order.staying(group))
        if group.is_fixed:
            order.workers = order.here
            return
        order.workers = min(max(order.workers, scaling.workers_min), scaling.workers_max)
        is_awaited = order.workers > order.here
        if not is_awaited or came or order.awaited_ms is None:
            order.awaited_ms = now_ms if is_awaited else None
        overdue_ms = (1.0 if scaling.failing else START_PATIENCE) * scaling.start_ms + 10_000.0
        is_late = order.awaited_ms is not None and now_ms - order.awaited_ms > overdue_ms
        if is_late and now_ms >= order.barred_until_ms:
            order.barred_until_ms, order.awaited_ms = now_ms + BARRED_MS, now_ms
            order.why_barred = scaling.failing or f"workers do not come within {overdue_ms / 1000:.0f} s"

    def _is_due(
        self, demands: Sequence[Demand], choices: Sequence[Choice], groups: Sequence[ScaledGroup], now_ms: float
    ) -> bool:
        known = (
            tuple((choice.key, choice.p50_ms) for choice in choices),
            tuple(
                (g.name, replace(g.scaling, backlog_ms=0.0, oldest_ms=0.0, start_ms=0.0), bool(g.unmeasured),
                 self._orders[g.name].here, now_ms < self._orders[g.name].barred_until_ms)
                for g in groups
            ),
        )  # fmt: skip
        changed, self._solved_by = known != self._solved_by, known
        prices = {group.name: self._limits(group, now_ms).price_per_hour for group in groups}
        if prices != self._prices:
            self._prices, self._mix_ms = prices, -inf
        is_burst = any(
            rate > BURST * self._solved_for.get(task, 0.0) + BURST_ROWS_MIN or task not in self._solved_for
            for task, rate in _rates(demands).items()
        )
        waits = self._press(demands, groups, now_ms)
        return changed or is_burst or waits or now_ms >= self._solve_ms

    def _press(self, demands: Sequence[Demand], groups: Sequence[ScaledGroup], now_ms: float) -> bool:
        """More work waits than should, and nobody is on the way who would do it: plan for more than is asked for."""
        self._stress = 1 + (self._stress - 1) * exp((self._stressed_ms - now_ms) / (2 * self._scale_down_ms + 1.0))
        self._stressed_ms = now_ms
        latency_ms = min([WAIT_MS_MAX, *(WAIT_SHARE * demand.latency_ms for demand in demands)])
        before, orders = self._stress, self._orders
        if any(orders[g.name].awaited_ms is not None for g in groups if now_ms >= orders[g.name].barred_until_ms):
            return False
        if self._demand.is_peak:
            return False
        workers = sum(orders[group.name].here for group in groups)
        for group in groups:
            here, scaling = orders[group.name].here, group.scaling
            if here and scaling.backlog_ms > here * latency_ms and scaling.oldest_ms > latency_ms:
                self._stress = max(self._stress, 1 + scaling.backlog_ms / (DRAIN_MS * max(1, workers)))
        self._stress = min(self._stress, STRESS_MAX)
        return self._stress > before + 0.05

    # --- how many -----------------------------------------------------------------------------------------------------

    def _decide(self, choices: Sequence[Choice], groups: Sequence[ScaledGroup], now_ms: float) -> None:
        asked = self._demand.now(self._stress)
        scaled = [group for group in groups if not group.is_fixed]
        few = replace(self._options, headroom=NOISE * self._options.headroom)
        there = [group for group in groups if not group.is_fixed or self._orders[group.name].workers]
        limits = [self._limits(group, now_ms) for group in there]
        floors = [replace(of, workers_min=self._floor(of, now_ms)) for of in limits]
        enough = self._size(asked, choices, [replace(of, workers_max=of.workers_min) for of in floors], few)
        if not enough.serves:
            found = self._size(asked, choices, floors, self._options)
            if not found.serves:  # there may be no more than this
                found = self._size(asked, choices, floors, few)
            self.sizing = found
            self._order(found.workers, found, scaled, now_ms)
            return
        self.sizing = enough
        self._order({of.name: of.workers_min for of in floors}, enough, scaled, now_ms)
        if all(self._is_settled(self._orders[group.name], now_ms) for group in scaled):
            self._lower(choices, limits, scaled, now_ms)

    def _floor(self, of: Limits, now_ms: float) -> int:
        """Those that are there or on the way, but for what does not come."""
        order = self._orders[of.name]
        ordered = order.workers if now_ms >= order.barred_until_ms else min(order.workers, order.here)
        return min(of.workers_max, max(of.workers_min, ordered))

    def _is_settled(self, order: _Order, now_ms: float) -> bool:
        is_awaited = order.awaited_ms is not None and now_ms >= order.barred_until_ms
        return not is_awaited and now_ms - order.raised_ms >= self._scale_down_ms

    def _lower(
        self, choices: Sequence[Choice], limits: Sequence[Limits], groups: Sequence[ScaledGroup], now_ms: float
    ) -> None:
        """What the most of late needs, of those that are there; or fewer of others, once they are there."""
        held = self._demand.held(self._stress)
        ordered = {of.name: self._orders[of.name].workers for of in limits}
        here = {group.name: self._orders[group.name].here for group in groups}
        most = [replace(of, workers_max=max(of.workers_min, min(ordered[of.name], here.get(of.name, ordered[of.name]))))
                for of in limits]  # fmt: skip
        trimmed = self._size(held, choices, most, self._options)
        cost = {of.name: of.price_per_hour for of in limits}
        now_usd = sum(cost[name] * number for name, number in ordered.items())
        if trimmed.serves:
            lower = {name: min(number, trimmed.workers[name]) for name, number in ordered.items()}
            if lower != ordered and self._still_serves(choices, limits, lower, now_ms):
                self._order(lower, trimmed, groups, now_ms)
                now_usd = sum(cost[name] * number for name, number in lower.items())
        if now_ms >= self._mix_ms:
            self._mix_ms = now_ms + MIX_INTERVAL_MS
            ideal = self._size(held, choices, limits, self._options)
            ideal_usd = sum(cost[name] * number for name, number in ideal.workers.items())
            if ideal.serves and ideal_usd < (1 - MIX_GAIN_MIN) * now_usd:
                more = {name: max(self._orders[name].workers, number) for name, number in ideal.workers.items()}
                self._order(more, ideal, groups, now_ms)

    def _still_serves(
        self, choices: Sequence[Choice], limits: Sequence[Limits], workers: Mapping[str, int], now_ms: float
    ) -> bool:
        """What is asked for at the moment, too."""
        asked = self._demand.now(self._stress)
        alone = [replace(of, workers_min=workers[of.name], workers_max=workers[of.name]) for of in limits]
        return self._size(asked, choices, alone, replace(self._options, headroom=NOISE * self._options.headroom)).serves

    def _limits(self, group: ScaledGroup, now_ms: float) -> Limits:
        scaling, order = group.scaling, self._orders[group.name]
        if group.is_fixed:
            return Limits(group.name, scaling.memory_mb, 0.0, order.workers, order.workers)
        times = BARRED_PRICE if now_ms < order.barred_until_ms else 1.0
        is_unknown = order.is_inherited and now_ms - self._began_ms < self._idle_ms
        least = max(scaling.workers_min, 1 if group.unmeasured or is_unknown else 0)
        price = times * scaling.price_per_hour
        return Limits(group.name, scaling.memory_mb, price, min(least, scaling.workers_max), scaling.workers_max)

    def _order(self, workers: Mapping[str, int], by: Sizing, groups: Sequence[ScaledGroup], now_ms: float) -> None:
        for group in groups:
            order, number = self._orders[group.name], workers[group.name]
            if number > order.workers:
                order.raised_ms = now_ms
            order.workers = number
            order.reason = self._reason(group, number, by, now_ms)

    def _reason(self, group: ScaledGroup, number: int, by: Sizing, now_ms: float) -> str:
        scaling, order = group.scaling, self._orders[group.name]
        tasks = by.tasks.get(group.name, frozenset())
        said = []
        if number == 0:
            said.append("nobody needs it")
        elif tasks:
            what = min(tasks) if len(tasks) == 1 else f"{len(tasks)} tasks"
            more = f"with {by.headroom:.0%} more for bursts" if self._demand.is_asked else "asked for not long ago"
            said.append(f"{number} for {what}, {more}")
        elif group.unmeasured:
            said.append(f"{number} to measure {group.unmeasured}")
        elif number == scaling.workers_min:
            said.append(f"{number} is the least that was allowed")
        else:
            said.append(f"{number}, until nobody needed them for a while")
        if self._stress > 1.05:
            said.append(f"{self._stress - 1:.0%} more than is asked for, since queries wait")
        if by.unserved and number == scaling.workers_max:
            said.append(f"no more may be had, and {by.unserved[0]} needs more")
        if now_ms < order.barred_until_ms:
            said.append(order.why_barred)
        return "; ".join(said)

    # --- who ----------------------------------------------------------------------------------------------------------

    def _choose(self, group: ScaledGroup, now_ms: float) -> None:
        """Who is to go, if there are more than are needed."""
        order = self._orders[group.name]
        staying = order.staying(group)
        excess = len(staying) - order.workers
        if len(order.departing) > max(0, excess):  # they are needed after all
            keep = sorted(order.departing, key=order.departing.__getitem__)[: max(0, excess)]
            order.departing = {name: order.departing[name] for name in keep}
        while len(order.departing) < excess:
            rest = [worker for worker in staying if worker.name not in order.departing]

            def preference(worker: ScaledWorker, rest: Sequence[ScaledWorker] = rest) -> tuple[object, ...]:
                others = {variant for other in rest if other is not worker for variant in other.ready}
                alone = len(worker.ready - others)
                return worker.measures, alone, -order.since_ms[worker.name], len(worker.ready), worker.name

            order.departing[min(rest, key=preference).name] = now_ms


class _History:
    """What was asked for: now, of late at the most, and before it was forgotten.

    Args:
        missed_max: of the sizing.
    """

    def __init__(self, scale_down_ms: float, idle_ms: float, missed_max: float) -> None:
        self._window_ms, self._idle_ms, self._missed_max = scale_down_ms, idle_ms, missed_max
        self._asked: dict[Class, tuple[Demand, float]] = {}
        """By class, as it was asked last, and when."""
        self._now: dict[Class, float] = {}
        """Rows a second; so is the next one."""
        self._slow: dict[Class, float] = {}
        """Over about half of the window."""
        self._loads: deque[tuple[float, float]] = deque()
        """(time, USD a second at the least) of what was asked for, the most of it first."""
        self._bursts = Bursts(scale_down_ms)
        self._roomy: tuple[Usual | None, float] = None, 0.0
        self._costs = _Costs()
        self._heard_ms: float | None = None

    @property
    def is_asked(self) -> bool:
        """Anything, now."""
        return any(self._now.values())

    def hear(
        self, demands: Sequence[Demand], choices: Sequence[Choice], prices: Mapping[str, float], now_ms: float
    ) -> None:
        """Args: choices, prices: what serves it, and what workers cost."""
        passed_ms = now_ms - self._heard_ms if self._heard_ms is not None else 0.0
        self._heard_ms = now_ms
        self._costs.update(choices, prices)
        self._now = {}
        for demand in demands:
            key = class_key(demand.task, demand.latency_ms, demand.accuracy_min, demand.prefer, demand.degrades)
            self._now[key] = self._now.get(key, 0.0) + demand.rows_per_s
            self._asked[key] = demand, now_ms
        self._asked = {key: (of, ms) for key, (of, ms) in self._asked.items() if now_ms - ms < self._idle_ms}
        kept = exp(-2 * passed_ms / max(1.0, self._window_ms))
        self._slow = {
            key: kept * self._slow.get(key, self._now.get(key, 0.0)) + (1 - kept) * self._now.get(key, 0.0)
            for key in self._asked
        }
        load = self._load(self._now)
        while self._loads and (self._loads[-1][1] <= load):
            self._loads.pop()
        self._loads.append((now_ms, load))
        while self._loads[0][0] < now_ms - self._window_ms:
            self._loads.popleft()
        self._bursts.hear(load, now_ms)

    def now(self, times: float) -> list[Demand]:
        """What is asked for, or what stays of it with the usual bursts; and a trickle of what was."""
        usual = self._bursts.usual()
        load = self._load(self._now)
        if usual is None or load > usual.ordinary:
            return self._demands(self._now, times)
        return self._steady(usual, times)

    def held(self, times: float) -> list[Demand]:
        """As much work as was asked for at the most in the window, or now."""
        usual = self._bursts.usual()
        most = self._loads[0][1]
        if usual is None or most > usual.ordinary:
            shape = {key: max(rate, self._now.get(key, 0.0)) for key, rate in self._slow.items()}
            load = self._load(shape)
            return self._demands(shape, times * (most / load if load > 0 else 1.0))
        return self._steady(usual, times)

    @property
    def is_peak(self) -> bool:
        """More is asked for than there has to be room for, as is usual now and then: of course something waits."""
        usual, load = self._bursts.usual(), self._load(self._now)
        return usual is not None and (1 + self._room(usual)) * usual.mean < load <= usual.ordinary

    def _steady(self, usual: Usual, times: float) -> list[Demand]:
        """So much work, divided as it was on the whole, with bursts as if they were chance that needs as much room."""
        chance = self._chance(usual)
        as_chance = headroom.deviation(self._room(usual), self._missed_max) if chance > 0 else 0.0
        burst = max(1.0, (as_chance / chance) ** 2) if chance > 0 else 1.0
        return self._demands(self._slow, times * self._scale(usual), burst)

    def _room(self, usual: Usual) -> float:
        """A share of the mean."""
        if self._roomy[0] is not usual:
            excess = usual.excess / usual.mean if usual.mean > 0 else 0.0 * usual.excess
            self._roomy = usual, headroom.room(self._chance(usual), self._missed_max, excess)
        return self._roomy[1]

    def _chance(self, usual: Usual) -> float:
        """Deviation of the work that comes in a latency's time, were it Poisson; a share of the mean."""
        scale = self._scale(usual)
        variance = sum(
            scale * rate * self._costs.usd(of) ** 2 / (of.latency_ms / 1000)
            for key, rate in self._slow.items()
            if (of := self._asked[key][0]).latency_ms <= sizing.LATENCY_MS_MAX
        )
        return sqrt(variance) / usual.mean if usual.mean > 0 else 0.0

    def _scale(self, usual: Usual) -> float:
        load = self._load(self._slow)
        return usual.mean / load if load > 0 else 1.0

    def _load(self, rates: Mapping[Class, float]) -> float:
        return sum(rate * self._costs.usd(self._asked[key][0]) for key, rate in rates.items())

    def _demands(self, rates: Mapping[Class, float], times: float, burst: float = 1.0) -> list[Demand]:
        return [
            replace(of, rows_per_s=max(times * rates.get(key, 0.0), TRICKLE_ROWS), burst=burst)
            for key, (of, _) in self._asked.items()
        ]


def _rates(demands: Sequence[Demand]) -> dict[str, float]:
    rates: dict[str, float] = {}
    for each in demands:
        rates[each.task] = rates.get(each.task, 0.0) + each.rows_per_s
    return rates


class _Costs:
    """What a row of a class costs at the least, in large batches: USD, or device time where nothing has a price."""

    def __init__(self) -> None:
        self._choices: Sequence[Choice] = ()
        self._prices: Mapping[str, float] = {}
        self._of_task: dict[str, list[tuple[float, Choice]]] = {}
        self._known: dict[tuple[str, float, float], float] = {}

    def update(self, choices: Sequence[Choice], prices: Mapping[str, float]) -> None:
        if choices == self._choices and prices == self._prices:
            return
        self._choices, self._prices = choices, prices
        self._known, self._of_task = {}, {}
        priced = any(price > 0 for price in prices.values())
        for choice in choices:
            ms = min(p50_ms / size for size, p50_ms in zip(choice.sizes, choice.p50_ms, strict=True))
            usd = ms * (prices.get(choice.group, 0.0) if priced else 1.0)
            self._of_task.setdefault(choice.task, []).append((usd, choice))

    def usd(self, of: Demand) -> float:
        """Of what can answer it in time; of anything, if nothing can; 0: nobody knows."""
        floor = 0.0 if of.degrades else of.accuracy_min
        key = of.task, of.latency_ms, floor
        if key not in self._known:
            own = self._of_task.get(of.task, ())
            able = [usd for usd, choice in own if choice.accuracy >= floor and choice.p99_ms[0] <= of.latency_ms]
            self._known[key] = min(able or [usd for usd, _ in own], default=0.0)
        return self._known[key]
