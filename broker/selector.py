"""Which variant, on which group, answers a query; or why none can.

Two questions, in this order. *Could it be met at all?* is answered by the profiles alone: accuracy, lat(b) at the
query's own rows, cost at the batches of late. *Would it be met now?* adds the predicted finish time behind what is
queued ahead of its deadline. Among what answers yes to both, the query's ``prefer`` decides. What happens otherwise is
the contract's table of ``on_miss``; ``cost_max`` is never given up.

While queries have to wait, device time has a price (:mod:`broker.prices`), and every query with a deadline pays it.
What prefers accuracy gets what has the most of it left after the price; what prefers cost the cheapest of what takes
hardly more of the devices' worth than need be. An answer is worth its accuracy: a query that degrades
goes below its floor when no answer above it would be worth its time.

What nobody has loaded is no choice yet. Where the best of it would be better than what is chosen, or where nothing
else could answer, the choice names it as *wanted*, which the brokers tell the leader.

Candidates that pad rows are ranked by lat(b) of the longest. Where a query's are shorter, all times that it has and
waits are stretched instead (:meth:`broker.catalog.Target.stretch`), and a millisecond is worth so much less, which
leaves every comparison as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, Literal, NamedTuple

from broker.catalog import Candidate, Target
from broker.ledger import Entry
from broker.prices import Level, Prices
from broker.ranking import Ranking, Teams
from broker.view import NEVER, Bounds
from modelless.messages import Prefer

THRIFT: Final = 0.05
"""Of an answer's worth: device time that is given up for a lower cost."""

Waits = Callable[[Sequence[Teams], Entry, float], Sequence[float]]
"""Predicted ms until the first worker of each team could start an entry, at an instant (ms)."""

Limits = tuple[Bounds, float, float]
"""Where to look and how soon to have answered there; the least accuracy; the highest cost."""


class Chosen(NamedTuple):
    candidate: Candidate
    missed: tuple[str, ...] = ()
    wanted: Candidate | None = None
    by: Literal["prefer", "price"] = "prefer"
    """What decided: the query's preference, or besides that the price of device time."""


class Refused(NamedTuple):
    status: str
    message: str
    retry_after_ms: float | None = None
    wanted: Candidate | None = None


class Parked(NamedTuple):
    """Feasible, but nobody is there that could run it."""

    wanted: Candidate | None = None


Choice = Chosen | Refused | Parked


class Selector:
    """Remembers nothing of queries; what they would have to wait it tells the prices."""

    def __init__(self, accuracy_slack: float, prices: Prices) -> None:
        self._accuracy_slack, self._prices = accuracy_slack, prices

    def choose(
        self,
        entry: Entry,
        target: Target,
        now_ms: float,
        waits: Waits,
        floor: float | None = None,
        *,
        wanting: bool = True,
    ) -> Choice:
        """Decide for one query; the whole table of ``on_miss``. The target has candidates.

        Args:
            floor: the accuracy floor where it is not the target's: a canary stands in for what was named.
            wanting: whether to look for what would be better than what is chosen; it is done anyway where nothing is.
        """
        query, ranking = entry.query, target.ranking
        if floor is None:
            floor = self.accuracy_floor(entry, target)
        cost_max = query.cost_max
        if cost_max is None:
            cost_max = NEVER
        slack_ms, arrival_ms = NEVER, entry.source.arrival_ms
        if entry.latency_deadline_ms is not None:  # nothing is seen before its log time, whatever our clock says
            slack_ms = entry.latency_deadline_ms - (now_ms if now_ms > arrival_ms else arrival_ms)
        teams = ranking.teams
        waits_ms = waits(teams, entry, now_ms)
        stretch = target.stretch(query.inputs, entry.rows)
        if stretch != 1.0:
            slack_ms *= stretch
            waits_ms = [wait_ms * stretch for wait_ms in waits_ms]
        levels: Sequence[Level] = ()
        if 0 < slack_ms < NEVER:
            levels = self._prices.see(teams, waits_ms, slack_ms, now_ms, entry.account)
        limits: Limits = ("loaded", waits_ms, slack_ms, NEVER), floor, cost_max
        found = _best(entry, ranking, limits, levels, stretch)
        wanting = wanting and ranking.unloaded > 0
        if found is not None and not wanting:
            return found
        asked = Asked(entry, ranking, limits, stretch)
        if found is not None:
            return Chosen(found.candidate, found.missed, asked.better(found), found.by)
        missed = asked.missed()
        return missed if wanting or not isinstance(missed, Chosen) else missed._replace(wanted=None)

    def accuracy_floor(self, entry: Entry, target: Target) -> float:
        """What was asked for, or the best of what was named minus the slack."""
        wanted = entry.query.accuracy_min
        return wanted if wanted is not None else target.ranking.accuracy_best - self._accuracy_slack


def _best(entry: Entry, ranking: Ranking, limits: Limits, levels: Sequence[Level], stretch: float) -> Chosen | None:
    """What is worth most, of what is in time."""
    query, rows, without = entry.query, entry.rows, entry.refused_by
    bounds, floor, cost_max = limits
    prefer = query.prefer
    if not levels or prefer == "latency":
        found = ranking.order(prefer, rows, without).best(bounds, floor, cost_max)
        return Chosen(found) if found is not None else None
    degrades = query.on_miss == "degrade"
    if prefer == "cost":
        cheapest = ranking.order("cost", rows, without).best_of_each(bounds, floor, cost_max)
        found = _thriftiest(cheapest, levels, stretch, 0.0 if degrades else -NEVER)
        if found is not None:
            return Chosen(found, (), None, "price")
    accurate = ranking.order("accuracy", rows, without).all(bounds, -NEVER if degrades else floor, cost_max)
    found = _worthiest(accurate, levels, stretch)
    if found is None:
        return None
    return Chosen(found, ("accuracy",) if found.accuracy_low < floor else (), None, "price")


def _thriftiest(
    cheapest: Iterable[tuple[int, Candidate, bool]], levels: Sequence[Level], stretch: float, left_min: float
) -> Candidate | None:
    """The cheapest of what takes hardly more of what device time is worth than need be.

    Of each class only the cheapest counts: it hardly ever takes more of its device's time than another one. None if
    no answer's accuracy is worth more than its device time and ``left_min``.
    """
    options: list[tuple[float, float, float, int, Candidate]] = []
    for own, candidate, has_equals in cheapest:
        accuracy, worth = candidate.accuracy_low, levels[own].price / stretch * candidate.row_ms
        if accuracy - worth > left_min:
            if worth <= THRIFT and not options and not has_equals:
                return candidate  # nothing can take so much less
            options.append((candidate.cost_per_1000_usual, -accuracy, worth, own, candidate))
    if not options:
        return None
    worth_max = min([option[2] for option in options]) + THRIFT
    return min([option for option in options if option[2] <= worth_max])[-1]


def _worthiest(accurate: Iterable[tuple[int, Candidate]], levels: Sequence[Level], stretch: float) -> Candidate | None:
    """What has the most accuracy left after the price of the device time of a row; the most accurate come first."""
    best, most = None, -NEVER
    for own, candidate in accurate:
        accuracy = candidate.accuracy_low
        if accuracy <= most:
            break
        left = accuracy - levels[own].price / stretch * candidate.row_ms
        if left > most:
            best, most = candidate, left
    return best


class Asked:
    """One query before one target at one instant, when the best of what is loaded is not all there is to say."""

    def __init__(self, entry: Entry, ranking: Ranking, limits: Limits, stretch: float) -> None:
        self._entry, self._ranking, self._stretch = entry, ranking, stretch
        self._bounds, self._floor, self._cost_max = limits
        _, self._waits_ms, self._slack_ms, _ = self._bounds
        deadline_ms = entry.latency_deadline_ms
        self.latency_ms = NEVER if deadline_ms is None else (deadline_ms - entry.source.arrival_ms) * stretch
        """What it may take from its log time: by that it is feasible or not."""

    def _best(self, prefer: Prefer, bounds: Bounds, floor: float) -> Candidate | None:
        entry = self._entry
        return self._ranking.order(prefer, entry.rows, entry.refused_by).best(bounds, floor, self._cost_max)

    def _taking(self, lat_ms_max: float) -> Bounds:
        """What is loaded, behind what comes before it, if it takes at most so long itself."""
        return "loaded", self._waits_ms, NEVER, lat_ms_max

    def wanted(self, prefer: Prefer, chosen: Candidate | None, floor: float, latency_ms: float) -> Candidate | None:
        """The best of what nobody has loaded, if it meets these limits and is better than what is chosen."""
        if not self._ranking.unloaded:
            return None
        candidate = self._best(prefer, ("unloaded", (0.0,), NEVER, latency_ms), floor)
        if candidate is None or chosen is None:
            return candidate
        rows = self._entry.rows
        return candidate if _rank(prefer, candidate, rows) < _rank(prefer, chosen, rows) else None

    def better(self, chosen: Chosen) -> Candidate | None:
        """What nobody has loaded and would be better than what is chosen."""
        prefer, of, is_below = self._entry.query.prefer, chosen.candidate, "accuracy" in chosen.missed
        wanted = self.wanted(prefer, None if is_below else of, self._floor, self.latency_ms)
        if is_below and wanted is None:
            wanted = self.wanted("accuracy", of, -NEVER, self.latency_ms)
        return wanted

    def missed(self) -> Choice:
        """Nothing that meets the constraints answers in time now."""
        prefer, on_miss = self._entry.query.prefer, self._entry.query.on_miss
        fastest = self._fastest(self._floor)
        feasible = self._quick(fastest)
        wanted = self.wanted(prefer, None, self._floor, self.latency_ms) if feasible else None
        if on_miss == "late" and feasible:
            return _chosen(self._best("latency", self._taking(NEVER), self._floor), wanted)
        if on_miss == "late" and fastest is not None:
            found = self._best(prefer, self._taking(NEVER), self._floor)
            return _chosen(found, self.wanted(prefer, found, self._floor, NEVER))
        if on_miss == "degrade":
            if not feasible:
                fastest = self._fastest(-NEVER)
            if self._quick(fastest):
                return self._degraded(wanted)
        if feasible:
            return self._overloaded(wanted)
        return Refused("FAILED_PRECONDITION", self._nearest(fastest))

    def _fastest(self, floor: float) -> Candidate | None:
        """Of all, loaded or not, that is this accurate and affordable."""
        return self._ranking.fastest(self._entry.rows, floor, self._cost_max)

    def _quick(self, candidate: Candidate | None) -> bool:
        """Whether it is there and could be met if nothing came before it."""
        return candidate is not None and candidate.lat_ms(self._entry.rows) <= self.latency_ms

    def _degraded(self, wanted: Candidate | None) -> Choice:
        """The most accurate that will be in time; it is below the floor, since above it none is."""
        found = self._best("accuracy", self._bounds, -NEVER)
        wanted = wanted or self.wanted("accuracy", found, -NEVER, self.latency_ms)
        if found is not None:
            return Chosen(found, ("accuracy",), wanted)
        ranking, rows = self._ranking, self._entry.rows
        if ranking.best("accuracy", rows, self._taking(self.latency_ms), -NEVER, self._cost_max) is None:
            return Parked(wanted)
        return Refused("DEADLINE_EXCEEDED", "under the present load no variant would answer in time", None, wanted)

    def _overloaded(self, wanted: Candidate | None) -> Choice:
        """When it would have been in time, had it come so much earlier, is when to come back."""
        rows = self._entry.rows
        late_ms = NEVER
        soonest = self._best("latency", self._taking(self.latency_ms), self._floor)
        if soonest is not None:
            late_ms = self._waits_ms[self._ranking.class_of(soonest)] + soonest.lat_ms(rows) - self._slack_ms
        for refused in self._entry.refused_by:  # its turn came too late this time
            if isinstance(refused, Candidate) and refused.workers:
                late_ms = min(late_ms, refused.lat_ms(rows))
        if late_ms == NEVER or self._slack_ms == NEVER:
            return Parked(wanted)
        late_ms /= self._stretch
        return Refused("RESOURCE_EXHAUSTED", f"load would make it {late_ms:.0f} ms late; retry later", late_ms, wanted)

    def _nearest(self, fastest: Candidate | None) -> str:
        """What is feasible next to what was asked for, in words; ``fastest`` of what meets all but the latency."""
        ranking, rows = self._ranking, self._entry.rows
        floor = -NEVER if self._entry.query.on_miss == "degrade" else self._floor
        if ranking.accuracy_best < floor:
            most = ranking.most_accurate()
            assert most is not None
            return f"no variant has accuracy >= {floor:.4g}; the most accurate, {most.variant}, has {_accuracy(most)}"
        limits = [f"accuracy >= {floor:.4g}"] if floor > -NEVER else []
        if fastest is None:
            least = ranking.cheapest(floor)
            assert least is not None
            return (
                f"no variant{_with(limits)} costs at most {self._cost_max:.3g} USD per 1,000; "
                f"the cheapest, {least.variant}, costs {least.cost_per_1000_usual:.3g}"
            )
        if self._cost_max < NEVER:
            limits.append(f"cost <= {self._cost_max:.3g}")
        needs = f"needs {fastest.lat_ms(rows) / self._stretch:.3g} ms for {rows} row(s)"
        return f"the fastest variant{_with(limits)}, {fastest.variant}, {needs}"


def _chosen(found: Candidate | None, wanted: Candidate | None) -> Choice:
    return Parked(wanted) if found is None else Chosen(found, (), wanted)


def _rank(prefer: Prefer, candidate: Candidate, rows: int) -> tuple[float, float]:
    """Of an idle candidate; lower is better."""
    cost, accuracy = candidate.cost_per_1000_usual, candidate.accuracy_low
    if prefer == "latency":
        return candidate.lat_ms(rows), cost
    return (cost, -accuracy) if prefer == "cost" else (-accuracy, cost)


def _with(limits: list[str]) -> str:
    return f" with {' and '.join(limits)}" if limits else ""


def _accuracy(candidate: Candidate) -> str:
    """What it is chosen by, and what was measured where that differs."""
    low = f"{candidate.accuracy_low:.4f}"
    return (
        low if candidate.accuracy == candidate.accuracy_low else f"{low} at least ({candidate.accuracy:.4f} measured)"
    )
