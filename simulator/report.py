"""What a play comes to: figures, in all and for each task, the log of every query and of every load.

Only what is in the log, in the three files and in the faults goes into a figure (``decide_us`` apart), so that
``simulator/verifier.py`` can compute all of them again:

* shares are of all queries; in time is whose reply is out by the deadline;
* ``goodness`` is the accuracy of the variants that answered in time, summed, divided by all queries;
* ``attributed_cost_usd`` is the price of each worker for the time in which it ran batches; batches that were lost with
  their worker are in no log and cost nothing here;
* ``fleet_cost_usd`` is the rent of all workers that were there, from 0 to the last arrival or the end of the last
  batch, whichever is later; in groups that scale, of every rental from when it was asked for, its start-up with it, and
  at least the group's ``bill_s_min``, also beyond that end; a task's part of it is its part of the attributed cost (of
  the queries, if nothing ran);
* ``p50_ms`` and ``p99_ms`` are from arrival until the reply is out, of all that were answered, late ones too;
* where there are several topics each has figures of its own; its part of a batch's cost is that of its rows;
* ``decide_us`` is the whole policy's, for each task too: what it does is not told apart by task.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np

from modelless.messages import MS_PER_HOUR
from simulator.collector import paused
from simulator.facts import GroupSpec, Outcome, SimulatedQuery, group_of
from simulator.files import write_table
from simulator.scenario import Played
from simulator.world import Fault, Load, Rental

LOG = (
    "query", "task", "arrival_ms", "deadline_ms", "worker", "variant", "start_ms", "end_ms", "batch", "outcome", "topic"
)  # fmt: skip
LOADS = ("worker", "variant", "start_ms", "end_ms")
WORKERS = ("worker", "group", "start_ms", "ready_ms", "end_ms")
SERIES_BINS = 60
MS_PER_S = 1000.0
INF = float("inf")


class Figures(NamedTuple):
    """Of all queries, or of a task's."""

    queries: int
    in_time: float
    late: float
    refused: float
    expired: float
    goodness: float
    worst_task_goodness: float
    attributed_cost_usd: float
    fleet_cost_usd: float
    p50_ms: float | None
    """None: nothing was answered; likewise the next two."""
    p99_ms: float | None
    mean_batch_size: float | None
    decide_us: float


class TopicFigures(NamedTuple):
    """Of a topic's queries."""

    queries: int
    in_time: float
    late: float
    refused: float
    expired: float
    goodness: float
    attributed_cost_usd: float


class Series(NamedTuple):
    """By interval of arrival, for a picture; the last element of ``begins_ms`` is where the last interval ends."""

    begins_ms: Sequence[float]
    queries: Sequence[int]
    in_time: Sequence[float]
    """Shares of the interval's queries; NaN where there are none."""
    goodness: Sequence[float]


class Crew(NamedTuple):
    """Workers that were paid for, of a fleet that scales; not in the JSON."""

    mean: float
    most: int
    rents: int


@dataclass(frozen=True)
class Report:
    """Of one policy."""

    name: str
    total: Figures
    tasks: Mapping[str, Figures]
    topics: Mapping[str, TopicFigures]
    """Empty if there are no topics."""
    series: Series
    wall_s: float
    crew: Crew | None = None

    def plain(self) -> dict[str, Any]:
        """As in the JSON."""
        plain = {**self.total._asdict(), "tasks": {task: figures._asdict() for task, figures in self.tasks.items()}}
        if self.topics:
            plain["topics"] = {topic: figures._asdict() for topic, figures in self.topics.items()}
        return plain


class Rents:
    """What each worker costs at which time: prices change, and who is lost costs nothing until it is back.

    ``rentals`` are those of groups that scale.
    """

    def __init__(
        self, fleet: Sequence[GroupSpec], faults: Sequence[Fault] = (), rentals: Sequence[Rental] = ()
    ) -> None:
        self._workers = [worker for spec in fleet if not spec.scales for worker in spec.worker_names]
        self._rentals, self._billed_s_min = rentals, {spec.name: spec.bill_s_min for spec in fleet}
        self._prices = {spec.name: [(0.0, spec.price_per_hour)] for spec in fleet}
        self._there = {worker: [(0.0, 1.0)] for worker in self._workers}
        for fault in sorted(faults, key=lambda fault: fault.at_ms):
            if fault.kind == "price":
                self._prices[fault.worker].append((fault.at_ms, fault.value))
            elif fault.kind in {"lost", "back"} and fault.worker in self._there:
                self._there[fault.worker].append((fault.at_ms, float(fault.kind == "back")))

    def price_usd(self, worker: str, start_ms: float, end_ms: float) -> float:
        """Of its time from ``start_ms`` to ``end_ms``."""
        prices = self._prices[group_of(worker)]
        if len(prices) == 1:
            return prices[0][1] * (end_ms - start_ms) / MS_PER_HOUR
        return _integral(prices, start_ms, end_ms) / MS_PER_HOUR

    def rent_usd(self, span_ms: float) -> float:
        """Of the whole fleet, from 0."""
        spent = 0.0
        for worker in self._workers:
            there = self._there[worker]
            ends = [at_ms for at_ms, _ in there[1:]] + [INF]
            for (begin_ms, is_there), end_ms in zip(there, ends, strict=True):
                if is_there and begin_ms < span_ms:
                    spent += self.price_usd(worker, begin_ms, min(end_ms, span_ms))
        for rental in self._rentals:
            if rental.start_ms < span_ms:
                spent += self.rental_usd(rental, span_ms)
        return spent

    def rental_usd(self, rental: Rental, span_ms: float) -> float:
        """Of one that began before ``span_ms``."""
        least_ms = rental.start_ms + MS_PER_S * self._billed_s_min[rental.group]
        return self.price_usd(rental.worker, rental.start_ms, max(min(rental.end_ms, span_ms), least_ms))


def _integral(steps: Sequence[tuple[float, float]], start_ms: float, end_ms: float) -> float:
    """Of a function that has each value from its time on."""
    ends = [at_ms for at_ms, _ in steps[1:]] + [INF]
    return sum(
        value * max(0.0, min(to_ms, end_ms) - max(at_ms, start_ms))
        for (at_ms, value), to_ms in zip(steps, ends, strict=True)
    )


# --- figures ------------------------------------------------------------------------------------------------------


def report(played: Played) -> Report:
    """What one play comes to."""
    with paused():
        return _report(played)


def _report(played: Played) -> Report:
    scenario, span_ms = played.scenario, played.span_ms
    rents = Rents(scenario.fleet, scenario.faults, played.rentals)
    by_task: dict[str, list[SimulatedQuery]] = defaultdict(list)
    batches: dict[tuple[str, float], SimulatedQuery] = {}
    for query in played.queries:
        by_task[query.task].append(query)
        if query.batch:
            batches[query.worker, query.start_ms] = query
    costs: dict[str, float] = dict.fromkeys(by_task, 0.0)
    ran: dict[str, int] = dict.fromkeys(by_task, 0)
    for (worker, start_ms), query in batches.items():
        costs[query.task] += rents.price_usd(worker, start_ms, query.end_ms)
        ran[query.task] += 1
    fleet_usd, spent_usd = rents.rent_usd(span_ms), sum(costs.values())
    tasks = {}
    for task in sorted(by_task):
        own = by_task[task]
        part = costs[task] / spent_usd if spent_usd else len(own) / len(played.queries)
        figures = _figures(own, scenario.reply_ms, costs[task], fleet_usd * part, ran[task], played.decide_us)
        tasks[task] = figures._replace(worst_task_goodness=figures.goodness)
    worst = min((figures.goodness for figures in tasks.values()), default=0.0)
    total = _figures(played.queries, scenario.reply_ms, spent_usd, fleet_usd, len(batches), played.decide_us)
    series, topics = _series(played.queries), _topics(played.queries, rents)
    total = total._replace(worst_task_goodness=worst)
    return Report(played.name, total, tasks, topics, series, played.wall_s, _crew(played, span_ms))


def _crew(played: Played, span_ms: float) -> Crew | None:
    fleet = played.scenario.fleet
    if not any(spec.scales for spec in fleet):
        return None
    fixed = sum(spec.workers for spec in fleet if not spec.scales)
    steps = [(each.start_ms, 1) for each in played.rentals] + [(each.end_ms, -1) for each in played.rentals]
    number = most = before_ms = paid_ms = 0.0
    for at_ms, step in sorted(steps):
        paid_ms += number * max(0.0, min(at_ms, span_ms) - before_ms)
        before_ms, number = min(at_ms, span_ms), number + step
        most = max(most, number)
    return Crew(fixed + paid_ms / max(span_ms, 1e-9), fixed + int(most), len(played.rentals))


def _topics(queries: Sequence[SimulatedQuery], rents: Rents) -> dict[str, TopicFigures]:
    by_topic: dict[str, list[SimulatedQuery]] = defaultdict(list)
    for query in queries:
        by_topic[query.topic].append(query)
    if by_topic.keys() <= {""}:
        return {}
    found = {}
    for topic, own in sorted(by_topic.items()):
        ran = [query for query in own if query.batch]
        spent_usd = sum(rents.price_usd(query.worker, query.start_ms, query.end_ms) / query.batch for query in ran)
        accuracy = sum(query.accuracy for query in ran if query.outcome == "in_time")
        shares = _shares(own)
        found[topic] = TopicFigures(len(own), **shares, goodness=accuracy / len(own), attributed_cost_usd=spent_usd)
    return found


def _shares(queries: Sequence[SimulatedQuery]) -> dict[str, float]:
    """Of each outcome."""
    counted = Counter(query.outcome for query in queries)
    return {outcome: counted[outcome] / max(1, len(queries)) for outcome in get_args(Outcome)}


def _figures(
    queries: Sequence[SimulatedQuery],
    reply_ms: float,
    attributed_usd: float,
    fleet_usd: float,
    batches: int,
    decide_us: float,
) -> Figures:
    accuracy = 0.0
    waited_ms = []
    for query in queries:
        outcome = query.outcome
        assert outcome is not None, "a play ends when every query has an outcome"
        if query.batch:
            waited_ms.append(query.end_ms - query.arrival_ms)
            if outcome == "in_time":
                accuracy += query.accuracy
    total, answered = max(1, len(queries)), len(waited_ms)
    p50_ms, p99_ms = (np.quantile(waited_ms, (0.5, 0.99)) + reply_ms).tolist() if answered else (None, None)
    return Figures(
        len(queries),
        **_shares(queries),
        goodness=accuracy / total,
        worst_task_goodness=0.0,
        attributed_cost_usd=attributed_usd,
        fleet_cost_usd=fleet_usd,
        p50_ms=p50_ms,
        p99_ms=p99_ms,
        mean_batch_size=answered / batches if batches else None,
        decide_us=decide_us,
    )


def _series(queries: Sequence[SimulatedQuery]) -> Series:
    size = len(queries)
    arrivals = np.fromiter((query.arrival_ms for query in queries), np.float64, size)
    in_time = np.fromiter((query.outcome == "in_time" for query in queries), np.float64, size)
    accuracy = np.fromiter((query.accuracy for query in queries), np.float64, size) * in_time
    last_ms = float(arrivals[-1]) if size else 0.0
    edges = np.linspace(0.0, max(last_ms, 1.0), SERIES_BINS + 1)
    number, _ = np.histogram(arrivals, edges)
    with np.errstate(invalid="ignore"):
        shares = [np.histogram(arrivals, edges, weights=each)[0] / number for each in (in_time, accuracy)]
    return Series(edges.tolist(), number.tolist(), shares[0].tolist(), shares[1].tolist())


# --- files --------------------------------------------------------------------------------------------------------


def write_json(path: Path, reports: Iterable[Report]) -> None:
    """An object per policy."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({each.name: each.plain() for each in reports}, indent=2) + "\n")


def write_log(path: Path, queries: Sequence[SimulatedQuery]) -> None:
    """A row per query, with its topic if there are any; worker to batch are empty when it was never run.

    Who has no deadline has ``inf``.
    """
    columns = len(LOG) if any(query.topic for query in queries) else len(LOG) - 1
    write_table(
        path,
        LOG[:columns],
        (
            (
                q.index,
                q.task,
                q.arrival_ms,
                q.deadline_ms,
                q.worker,
                q.variant,
                q.start_ms,
                q.end_ms,
                q.batch,
                q.outcome,
                q.topic,
            )[:columns]
            if q.batch
            else (q.index, q.task, q.arrival_ms, q.deadline_ms, "", "", "", "", "", q.outcome, q.topic)[:columns]
            for q in queries
        ),
    )


def write_loads(path: Path, loads: Iterable[Load]) -> None:
    """A row per load that ended."""
    write_table(path, LOADS, ((load.worker, load.variant, load.start_ms, load.end_ms) for load in loads))


def write_rentals(path: Path, rentals: Iterable[Rental]) -> None:
    """A row per rental of a group that scales; one that had no end has ``inf``."""
    write_table(path, WORKERS, ((r.worker, r.group, r.start_ms, r.ready_ms, r.end_ms) for r in rentals))


def beside(log: Path, what: str) -> Path:
    """``OUT.loads.csv`` beside ``OUT.csv``."""
    return log.with_name(f"{log.stem}.{what}{log.suffix or '.csv'}")
