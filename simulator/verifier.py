"""Judges a simulation from outside: its log, and the files that went in. It shares no code with what it judges.

::

    python -m simulator.verifier LOG.csv --profiles P.csv --fleet F.csv --arrivals A.csv --json OUT.json --policy ours

It computes every figure again, and checks that

* every query has one outcome, and, given the arrivals, is the one that was asked;
* what was answered ran, on a worker of the fleet, by a variant of its task that is profiled there, after it arrived;
  what was not answered did not run; in time is whose reply is out by the deadline, and nobody else;
* the rows of a batch end together, are as many as they say, and no more than profiled;
* no batch is faster than its profile's median at the next larger size; no worker runs two at once;
* a load takes its time, one at a time on a worker; nothing runs before its load ended, nor while it is loaded anew;
* what must have been in a worker's memory at one time fits into it: a variant is there from the begin of its load to
  the end of its last batch before its next load, at least;
* nothing runs or loads on a worker that is lost;
* where the fleet scales, nothing runs or loads on a worker before it is ready or after it ended, it takes its time to
  be ready, and no group has more workers at once than it may, or at time 0 others than the file says.

Exit status 1 if anything of it is broken or a figure differs. Only the standard library.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import inf, isclose, isnan
from pathlib import Path
from typing import NamedTuple

SLACK_MS = 1e-6
"""Sums of floating point numbers differ in their last digits."""
SLACK_MB = 1e-6
RELATIVE = 1e-9
SHOWN_MAX = 5
"""Violations of one kind that are told; the others are counted."""
OUTCOMES = ("in_time", "late", "refused", "expired")
ANSWERED = ("in_time", "late")
UNCHECKED = frozenset({"decide_us", "tasks"})
"""In the JSON; wall-clock time is in no log."""
_FAULT = re.compile(r"(lost|back|slow|price):(.+?)(?:[*=]([0-9.eE+-]+))?@([0-9.eE+-]+)")


class Row(NamedTuple):
    """One query of the log."""

    query: int
    task: str
    arrival_ms: float
    deadline_ms: float
    worker: str
    variant: str
    start_ms: float
    end_ms: float
    batch: int
    outcome: str
    topic: str = ""


class Span(NamedTuple):
    """A load, or a batch, on a worker."""

    variant: str
    start_ms: float
    end_ms: float


@dataclass
class Profile:
    """A variant on a group."""

    task: str = ""
    accuracy: float = 0.0
    load_ms: float = 0.0
    memory_mb: float = 0.0
    p50_ms: dict[int, float] = field(default_factory=dict)
    """By batch size."""


@dataclass
class Worker:
    group: str
    memory_mb: float
    placed: set[str] = field(default_factory=set)
    """Loaded at time 0."""
    gone: list[tuple[float, float]] = field(default_factory=list)
    """From when to when it is lost, or not rented and ready."""
    struck_ms: list[float] = field(default_factory=list)
    """When it is lost, in a group that scales: whoever has it then is rid of it."""
    loads: list[Span] = field(default_factory=list)
    batches: list[Span] = field(default_factory=list)


class Rental(NamedTuple):
    """A worker of a group that scales, for as long as it costs."""

    worker: str
    group: str
    start_ms: float
    ready_ms: float
    end_ms: float


@dataclass
class Scaling:
    """Of a group."""

    workers: int
    """At time 0."""
    workers_max: int
    start_ms: float
    bill_ms_min: float


@dataclass
class Inputs:
    """What went into the simulation."""

    profiles: dict[tuple[str, str], Profile]
    """By (variant, group)."""
    workers: dict[str, Worker]
    prices: dict[str, list[tuple[float, float]]]
    """By group: from when, and how much."""
    scaling: dict[str, Scaling] = field(default_factory=dict)
    """By group, of those that scale."""
    asked: list[tuple[float, str, float]] | None = None
    """Arrival, task and deadline of every query, by arrival."""
    intake_ms: float = 0.0
    reply_ms: float = 0.0


@dataclass
class Verdict:
    """``figures`` as in the JSON; ``violations`` by kind."""

    figures: dict[str, object]
    violations: dict[str, list[str]]

    @property
    def ok(self) -> bool:
        return not self.violations

    def lines(self) -> list[str]:
        """What is broken, some of each kind."""
        told = []
        for kind, found in self.violations.items():
            told += [f"{kind}: {each}" for each in found[:SHOWN_MAX]]
            if len(found) > SHOWN_MAX:
                told.append(f"{kind}: and {len(found) - SHOWN_MAX} others")
        return told


class Violations:
    def __init__(self) -> None:
        self.found: dict[str, list[str]] = defaultdict(list)

    def tell(self, kind: str, what: str) -> None:
        self.found[kind].append(what)

    def check(self, holds: bool, kind: str, what: str) -> bool:
        if not holds:
            self.tell(kind, what)
        return holds


# --- what went in -------------------------------------------------------------------------------------------------


def read_inputs(
    profiles: Path,
    fleet: Path,
    *,
    arrivals: Path | None = None,
    placement: Path | None = None,
    faults: Sequence[str] = (),
    intake_ms: float = 0.0,
    reply_ms: float = 0.0,
) -> Inputs:
    """From the files and options that the simulation was given."""
    inputs = Inputs(_profiles(profiles), {}, {}, intake_ms=intake_ms, reply_ms=reply_ms)
    for row in {row["group"]: row for row in _rows(fleet)}.values():
        group = row["group"]
        inputs.prices[group] = [(0.0, float(row["price_per_hour"]))]
        workers = possible = int(float(row["workers"]))
        if row.get("workers_max"):
            possible = int(float(row["workers_max"]))
            start_ms, bill_s_min = float(row.get("start_ms") or 0), float(row.get("bill_s_min") or 0)
            inputs.scaling[group] = Scaling(workers, possible, start_ms, 1000 * bill_s_min)
        for number in range(possible):
            inputs.workers[f"{group}-{number}"] = Worker(group, float(row["memory_mb"]))
    if placement is not None:
        for row in _rows(placement):
            inputs.workers[row["worker"]].placed.add(row["variant"])
    if arrivals is not None:
        inputs.asked = sorted(_asked(arrivals), key=lambda asked: asked[0])
    _strike(inputs, faults)
    return inputs


def _profiles(path: Path) -> dict[tuple[str, str], Profile]:
    profiles: dict[tuple[str, str], Profile] = defaultdict(Profile)
    for row in _rows(path):
        profile = profiles[row["variant"], row["group"]]
        profile.task, profile.accuracy = row["task"], float(row["accuracy"])
        profile.load_ms, profile.memory_mb = float(row["load_ms"]), float(row["memory_mb"])
        profile.p50_ms[int(float(row["batch_size"]))] = float(row["p50_ms"])
    return dict(profiles)


def _asked(path: Path) -> Iterator[tuple[float, str, float]]:
    for row in _rows(path):
        arrival_ms = float(row["arrival_ms"])
        yield arrival_ms, row["task"], arrival_ms + float(row.get("latency_ms_max") or inf)


def _strike(inputs: Inputs, faults: Sequence[str]) -> None:
    """Prices that change, and times in which workers are lost; who is slow is not faster than its profile either."""
    parsed = []
    for text in faults:
        match = _FAULT.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"--fault {text!r} is not a fault")
        kind, name, value, at = match.groups()
        parsed.append((float(at), kind, name, float(value or 1.0)))
    for at_ms, kind, name, value in sorted(parsed, key=lambda fault: fault[0]):
        if kind == "price":
            inputs.prices[name].append((at_ms, value))
        elif kind == "lost" and inputs.workers[name].group in inputs.scaling:
            inputs.workers[name].struck_ms.append(at_ms)
        elif kind == "lost":
            gone = inputs.workers[name].gone
            if not gone or gone[-1][1] < inf:
                gone.append((at_ms, inf))
        elif kind == "back":
            gone = inputs.workers[name].gone
            if gone and gone[-1][1] == inf:
                gone[-1] = gone[-1][0], at_ms


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        header = [name.strip() for name in next(reader)]
        for row in reader:
            if row:
                yield dict(zip(header, map(str.strip, row), strict=True))


# --- what came out ------------------------------------------------------------------------------------------------


def verify(inputs: Inputs, log: Path, loads: Path, workers: Path | None = None) -> Verdict:
    """``workers`` is needed where the fleet scales.

    Raises:
        ValueError, KeyError: the log is not one.
    """
    broken = Violations()
    rows = [_row(row) for row in _rows(log)]
    rentals = [_rental(row) for row in _rows(workers)] if inputs.scaling and workers is not None else []
    _check_rentals(rentals, inputs, broken)
    _check_queries(rows, inputs, broken)
    batches = _check_batches([row for row in rows if row.batch], inputs, broken)
    for (name, variant, start_ms), together in batches.items():
        if name in inputs.workers:
            inputs.workers[name].batches.append(Span(variant, start_ms, together[0].end_ms))
    for load in _rows(loads):
        _check_load(load, inputs, broken)
    for name, worker in inputs.workers.items():
        worker.loads.sort(key=lambda span: span.start_ms)
        worker.batches.sort(key=lambda span: span.start_ms)
        _check_worker(name, worker, inputs, broken)
        _check_memory(name, worker, inputs, broken)
    return Verdict(figures(rows, batches, inputs, rentals), dict(broken.found))


def _row(row: dict[str, str]) -> Row:
    return Row(
        int(row["query"]),
        row["task"],
        float(row["arrival_ms"]),
        float(row["deadline_ms"] or inf),
        row["worker"],
        row["variant"],
        float(row["start_ms"] or -1),
        float(row["end_ms"] or -1),
        int(row["batch"] or 0),
        row["outcome"],
        row.get("topic", ""),
    )


def _rental(row: dict[str, str]) -> Rental:
    return Rental(
        row["worker"], row["group"], float(row["start_ms"]), float(row["ready_ms"]), float(row["end_ms"] or inf)
    )


def _check_rentals(rentals: Sequence[Rental], inputs: Inputs, broken: Violations) -> None:
    """And note when each worker is there; what runs there then is checked with the rest."""
    known = []
    for rental in rentals:
        what = f"{rental.worker} of {rental.group} at {rental.start_ms} ms"
        worker, scaling = inputs.workers.get(rental.worker), inputs.scaling.get(rental.group)
        is_known = worker is not None and scaling is not None and worker.group == rental.group
        if not broken.check(is_known, "fleet", f"{what}: the fleet can have no such worker"):
            continue
        assert scaling is not None
        known.append(rental)
        took_ms = rental.ready_ms - rental.start_ms
        is_first = rental.start_ms == 0.0 and int(rental.worker.rpartition("-")[2]) < scaling.workers
        is_slow_enough = is_first or (rental.start_ms >= 0.0 and took_ms >= scaling.start_ms - SLACK_MS)
        broken.check(is_slow_enough, "start", f"{what} was ready after {took_ms} ms of {scaling.start_ms} ms")
        broken.check(rental.end_ms >= rental.start_ms, "rent", f"{what} ended before, at {rental.end_ms} ms")
    for group, scaling in inputs.scaling.items():
        own = [rental for rental in known if rental.group == group]
        first = sum(rental.start_ms == 0.0 == rental.ready_ms for rental in own)
        is_first = first >= scaling.workers
        broken.check(is_first, "rent", f"{group} begins with {first} workers instead of {scaling.workers}")
        changes = sorted((at_ms, step) for r in own for at_ms, step in ((r.start_ms, 1), (r.end_ms, -1)) if at_ms < inf)
        number = 0
        for at_ms, step in changes:  # at one instant those that end are first
            number += step
            fits = number <= scaling.workers_max
            broken.check(fits, "too many", f"{group} has {number} workers at {at_ms} ms, {scaling.workers_max} at most")
    lives: dict[str, list[Rental]] = defaultdict(list)
    for rental in sorted(known, key=lambda rental: rental.start_ms):
        lives[rental.worker].append(rental)
    for name, worker in inputs.workers.items():
        if worker.group not in inputs.scaling:
            continue
        free_ms = 0.0
        for rental in lives[name]:
            at = f"{name} at {rental.start_ms} ms"
            broken.check(rental.start_ms >= free_ms, "rent", f"{at} is rented until {free_ms} ms already")
            if rental.ready_ms > free_ms or free_ms > 0.0:
                worker.gone.append((free_ms, rental.ready_ms))
            for struck_ms in worker.struck_ms:
                is_there = rental.start_ms < struck_ms < rental.end_ms
                broken.check(not is_there, "lost", f"{at} is lost at {struck_ms} ms and rented on")
            free_ms = rental.end_ms
        worker.gone.append((free_ms, inf))


def _check_queries(rows: Sequence[Row], inputs: Inputs, broken: Violations) -> None:
    times = Counter(row.query for row in rows)
    for query, number in times.items():
        if number != 1:
            broken.tell("one outcome", f"query {query} has {number} rows")
    expected = len(rows) if inputs.asked is None else len(inputs.asked)
    missing = [str(query) for query in range(expected) if query not in times]
    broken.check(not missing, "one outcome", f"{len(missing)} queries have no row: {', '.join(missing[:5])}")
    before_ms = -inf
    for row in sorted(rows, key=lambda row: row.query):
        if row.arrival_ms < before_ms:
            broken.tell("order", f"query {row.query} arrived before the one before it")
        before_ms = row.arrival_ms
        if row.outcome not in OUTCOMES:
            broken.tell("outcome", f"query {row.query}: {row.outcome!r}")
        if inputs.asked is not None:
            is_asked = row.query < expected and inputs.asked[row.query] == (row.arrival_ms, row.task, row.deadline_ms)
            if not is_asked:
                broken.tell("asked", f"query {row.query} is not the one of the arrivals file")
        if row.outcome in ANSWERED:
            _check_answer(row, inputs, broken)
        elif row.worker or row.variant or row.batch or row.start_ms >= 0 or row.end_ms >= 0:
            broken.tell("ran", f"query {row.query} is {row.outcome} and ran")


def _check_answer(row: Row, inputs: Inputs, broken: Violations) -> None:
    who = row.query
    if not (row.worker and row.variant and row.batch >= 1 and row.start_ms >= 0):
        broken.tell("ran", f"query {who} is {row.outcome} and did not run")
        return
    worker = inputs.workers.get(row.worker)
    if worker is None:
        broken.tell("fleet", f"query {who} ran on {row.worker}, which is not in the fleet")
    else:
        profile = inputs.profiles.get((row.variant, worker.group))
        if profile is None:
            broken.tell("profile", f"query {who}: {row.variant} has no profile on {row.worker}")
        elif profile.task != row.task:
            broken.tell("task", f"query {who} of {row.task} ran on {row.variant} of {profile.task}")
    if row.start_ms < row.arrival_ms + inputs.intake_ms - SLACK_MS:
        broken.tell("arrival", f"query {who} ran before it arrived")
    out_ms = row.end_ms + inputs.reply_ms
    if (out_ms <= row.deadline_ms) != (row.outcome == "in_time"):
        broken.tell("in time", f"query {who} is {row.outcome}: out at {out_ms} ms, deadline {row.deadline_ms} ms")


def _check_batches(rows: Sequence[Row], inputs: Inputs, broken: Violations) -> dict[tuple[str, str, float], list[Row]]:
    """Rows by (worker, variant, start)."""
    batches: dict[tuple[str, str, float], list[Row]] = defaultdict(list)
    for row in rows:
        batches[row.worker, row.variant, row.start_ms].append(row)
    for (name, variant, start_ms), together in batches.items():
        what = f"{variant} on {name} at {start_ms} ms"
        ends = {row.end_ms for row in together}
        broken.check(len(ends) == 1, "batch", f"{what} ends at {sorted(ends)}")
        said = {row.batch for row in together}
        broken.check(said == {len(together)}, "batch", f"{what} has {len(together)} rows and says {sorted(said)}")
        profile = inputs.profiles.get((variant, inputs.workers[name].group)) if name in inputs.workers else None
        if profile is None:
            continue  # told above
        sizes = sorted(profile.p50_ms)
        larger = bisect_left(sizes, len(together))
        if broken.check(larger < len(sizes), "size", f"{what} has {len(together)} rows, profiled are {sizes[-1]}"):
            least_ms, took_ms = profile.p50_ms[sizes[larger]], min(ends) - start_ms
            is_slow_enough = took_ms >= least_ms - SLACK_MS
            broken.check(is_slow_enough, "faster", f"{what} took {took_ms} ms, its profile says {least_ms} ms")
    return batches


def _check_load(row: dict[str, str], inputs: Inputs, broken: Violations) -> None:
    load = Span(row["variant"], float(row["start_ms"]), float(row["end_ms"]))
    what = f"load of {load.variant} on {row['worker']} at {load.start_ms} ms"
    worker = inputs.workers.get(row["worker"])
    if not broken.check(worker is not None, "fleet", f"{what}: there is no such worker"):
        return
    assert worker is not None
    profile = inputs.profiles.get((load.variant, worker.group))
    if not broken.check(profile is not None, "profile", f"{what}: it has no profile there"):
        return
    assert profile is not None
    took_ms = load.end_ms - load.start_ms
    is_slow_enough = load.start_ms >= 0.0 and took_ms >= profile.load_ms - SLACK_MS
    broken.check(is_slow_enough, "load", f"{what} took {took_ms} ms of {profile.load_ms} ms")
    worker.loads.append(load)


def _check_worker(name: str, worker: Worker, inputs: Inputs, broken: Violations) -> None:
    for kind, spans in (("two at once", worker.batches), ("two loads at once", worker.loads)):
        until_ms = -inf
        for span in spans:
            free = span.start_ms >= until_ms - SLACK_MS
            broken.check(free, kind, f"{name} at {span.start_ms} ms: {span.variant} begins before {until_ms} ms")
            until_ms = max(until_ms, span.end_ms)
    for span in (*worker.batches, *worker.loads):
        for lost_ms, back_ms in worker.gone:
            apart = span.end_ms <= lost_ms + SLACK_MS or span.start_ms >= back_ms - SLACK_MS
            broken.check(
                apart, "lost", f"{name} is lost from {lost_ms} ms on and has {span.variant} at {span.start_ms}"
            )
    loads = _by_variant(worker.loads)
    for batch in worker.batches:
        what = f"{batch.variant} on {name} at {batch.start_ms} ms"
        own = loads.get(batch.variant, [])
        lost_ms = max((at_ms for at_ms, _ in worker.gone if at_ms <= batch.start_ms), default=-1.0)
        last = bisect_right(own, batch.start_ms + SLACK_MS, key=lambda load: load.end_ms) - 1
        is_placed = batch.variant in worker.placed and lost_ms < 0
        is_there = is_placed or (last >= 0 and own[last].start_ms >= lost_ms - SLACK_MS)
        broken.check(is_there, "not loaded", what)
        again = bisect_left(own, batch.end_ms - SLACK_MS, key=lambda load: load.start_ms) - 1
        apart = again < 0 or own[again].end_ms <= batch.start_ms + SLACK_MS
        broken.check(apart, "loaded anew", f"{what} runs while it is being loaded")


def _check_memory(name: str, worker: Worker, inputs: Inputs, broken: Violations) -> None:
    """A variant is held from a load's start, or from 0, to its last batch before its next load."""
    loads, batches = _by_variant(worker.loads), _by_variant(worker.batches)
    changes: list[tuple[float, int, float]] = []
    for variant in {*loads, *worker.placed}:
        profile = inputs.profiles.get((variant, worker.group))
        if not broken.check(profile is not None, "profile", f"{variant} is placed on {name} and has no profile there"):
            continue
        assert profile is not None
        lives = [Span(variant, 0.0, 0.0)] if variant in worker.placed else []
        lives += loads.get(variant, [])
        own = batches.get(variant, [])
        starts = [batch.start_ms for batch in own]
        for life, following in zip(lives, [*lives[1:], None], strict=True):
            last = bisect_left(starts, inf if following is None else following.start_ms - SLACK_MS)
            end_ms = max(life.end_ms, own[last - 1].end_ms if last else 0.0)
            if end_ms > life.start_ms:  # what is freed at an instant makes room for what begins then
                changes += [(life.start_ms + SLACK_MS, 1, profile.memory_mb), (end_ms, 0, -profile.memory_mb)]
    placed_mb = sum(p.memory_mb for v in worker.placed if (p := inputs.profiles.get((v, worker.group))) is not None)
    broken.check(placed_mb <= worker.memory_mb + SLACK_MB, "memory", f"{name} begins with {placed_mb} MB")
    held_mb = 0.0
    for at_ms, _, change_mb in sorted(changes):
        held_mb += change_mb
        fits = change_mb < 0 or held_mb <= worker.memory_mb + SLACK_MB
        broken.check(fits, "memory", f"{name} holds {held_mb:g} MB of {worker.memory_mb:g} MB at {at_ms} ms")


def _by_variant(spans: Iterable[Span]) -> dict[str, list[Span]]:
    found: dict[str, list[Span]] = defaultdict(list)
    for span in spans:
        found[span.variant].append(span)
    return found


# --- figures ------------------------------------------------------------------------------------------------------


def figures(
    rows: Sequence[Row],
    batches: dict[tuple[str, str, float], list[Row]],
    inputs: Inputs,
    rentals: Sequence[Rental] = (),
) -> dict[str, object]:
    """All that is in the JSON but ``decide_us``."""
    by_task: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_task[row.task].append(row)
    costs: dict[str, float] = defaultdict(float)
    ran: Counter[str] = Counter()
    for (name, _, start_ms), together in batches.items():
        task, worker = together[0].task, inputs.workers.get(name)
        ran[task] += 1
        if worker is not None:
            costs[task] += _cost(inputs.prices[worker.group], start_ms, together[0].end_ms)
    span_ms = max((max(row.arrival_ms, row.end_ms) for row in rows), default=0.0)
    fleet_usd = sum(
        _cost(inputs.prices[worker.group], from_ms, min(to_ms, span_ms))
        for worker in inputs.workers.values()
        if worker.group not in inputs.scaling
        for from_ms, to_ms in _there(worker)
    )
    for rental in rentals:
        if rental.start_ms < span_ms and rental.group in inputs.scaling:
            paid_ms = rental.start_ms + inputs.scaling[rental.group].bill_ms_min
            end_ms = max(paid_ms, min(rental.end_ms, span_ms))
            fleet_usd += _cost(inputs.prices[rental.group], rental.start_ms, end_ms)
    spent_usd = sum(costs.values())
    tasks = {}
    for task, own in sorted(by_task.items()):
        part = costs[task] / spent_usd if spent_usd else len(own) / len(rows)
        figure = _figures(own, inputs, costs[task], fleet_usd * part, ran[task])
        tasks[task] = figure | {"worst_task_goodness": figure["goodness"]}
    total = _figures(rows, inputs, spent_usd, fleet_usd, len(batches))
    worst = min((figure["goodness"] or 0.0 for figure in tasks.values()), default=0.0)
    found: dict[str, object] = total | {"worst_task_goodness": worst, "tasks": tasks}
    topics = sorted({row.topic for row in rows})
    if topics != [""]:
        found["topics"] = {topic: _topic([row for row in rows if row.topic == topic], inputs) for topic in topics}
    return found


def _topic(rows: Sequence[Row], inputs: Inputs) -> dict[str, float | None]:
    """A part of what a batch cost is that of each of its rows."""
    spent_usd = 0.0
    for row in rows:
        worker = inputs.workers.get(row.worker)
        if row.batch and worker is not None:
            spent_usd += _cost(inputs.prices[worker.group], row.start_ms, row.end_ms) / row.batch
    figure = _figures(rows, inputs, spent_usd, 0.0, 1)
    return {name: figure[name] for name in ("queries", *OUTCOMES, "goodness", "attributed_cost_usd")}


def _figures(
    rows: Sequence[Row], inputs: Inputs, attributed_usd: float, fleet_usd: float, batches: int
) -> dict[str, float | None]:
    number = max(1, len(rows))
    answered = [row for row in rows if row.batch]
    waited = sorted(row.end_ms + inputs.reply_ms - row.arrival_ms for row in answered)
    shares = Counter(row.outcome for row in rows)
    good = 0.0
    for row in answered:
        worker = inputs.workers.get(row.worker)
        profile = inputs.profiles.get((row.variant, worker.group)) if worker is not None else None
        if row.outcome == "in_time" and profile is not None:
            good += profile.accuracy
    return {
        "queries": len(rows),
        **{outcome: shares[outcome] / number for outcome in OUTCOMES},
        "goodness": good / number,
        "attributed_cost_usd": attributed_usd,
        "fleet_cost_usd": fleet_usd,
        "p50_ms": _quantile(waited, 0.5),
        "p99_ms": _quantile(waited, 0.99),
        "mean_batch_size": len(answered) / batches if batches else None,
    }


def _quantile(ascending: Sequence[float], share: float) -> float | None:
    """Linear between the two nearest."""
    if not ascending:
        return None
    place = share * (len(ascending) - 1)
    below = int(place)
    above = min(below + 1, len(ascending) - 1)
    return ascending[below] + (place - below) * (ascending[above] - ascending[below])


def _cost(prices: Sequence[tuple[float, float]], from_ms: float, to_ms: float) -> float:
    """USD of one worker of a group whose price per hour changes."""
    spent = 0.0
    while from_ms < to_ms:
        index = bisect_right(prices, from_ms, key=lambda step: step[0])
        until_ms = min(to_ms, prices[index][0] if index < len(prices) else inf)
        spent += prices[index - 1][1] * (until_ms - from_ms) / 3_600_000
        from_ms = until_ms
    return spent


def _there(worker: Worker) -> Iterator[tuple[float, float]]:
    """From when to when it is not lost."""
    begin_ms = 0.0
    for lost_ms, back_ms in worker.gone:
        yield begin_ms, lost_ms
        begin_ms = back_ms
    yield begin_ms, inf


def differences(computed: dict[str, object], claimed: dict[str, object], where: str = "") -> list[str]:
    """Figures that are claimed to be other than they are, and those that are not claimed at all."""
    told = []
    for name, value in computed.items():
        said = claimed.get(name, "nothing")
        if name in ("tasks", "topics"):
            assert isinstance(value, dict)
            own = said if isinstance(said, dict) else {}
            if own.keys() != value.keys():
                told.append(f"{name}: claimed {sorted(own)}, computed {sorted(value)}")
            for task in value.keys() & own.keys():
                told += differences(value[task], own[task], f"{task}: ")
        elif not _equal(value, said):
            told.append(f"{where}{name}: claimed {said}, computed {value}")
    return told + [f"{where}{name}: what is that?" for name in claimed.keys() - computed.keys() - UNCHECKED]


def _equal(value: object, said: object) -> bool:
    if isinstance(value, int | float) and isinstance(said, int | float) and not isnan(said):
        return isclose(value, said, rel_tol=RELATIVE, abs_tol=1e-12)
    return value is None and said is None


# --- the command --------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 when everything holds, 1 when something is broken, 2 when a file cannot be read."""
    parser = argparse.ArgumentParser("python -m simulator.verifier", description="Judge a simulation by its log.")
    parser.add_argument("log", type=Path, help="what --log wrote")
    parser.add_argument("--loads", type=Path, help="default: LOG.loads.csv beside it")
    parser.add_argument("--workers", type=Path, help="of a fleet that scales; default: LOG.workers.csv beside it")
    parser.add_argument("--profiles", type=Path, required=True)
    parser.add_argument("--fleet", type=Path, required=True)
    parser.add_argument("--arrivals", type=Path, help="check also that these are the queries")
    parser.add_argument("--placement", type=Path, help="what was loaded at time 0")
    parser.add_argument("--fault", action="append", default=[], help="as the simulation was told; repeatable")
    parser.add_argument("--intake-ms", type=float, default=0.0)
    parser.add_argument("--reply-ms", type=float, default=0.0)
    parser.add_argument("--json", type=Path, help="what --json wrote: compare its figures")
    parser.add_argument("--policy", default="ours", help="whose figures of it")
    asked = parser.parse_args(arguments)
    loads = asked.loads or _beside(asked.log, "loads")
    try:
        inputs = read_inputs(
            asked.profiles,
            asked.fleet,
            arrivals=asked.arrivals,
            placement=asked.placement,
            faults=asked.fault,
            intake_ms=asked.intake_ms,
            reply_ms=asked.reply_ms,
        )
        verdict = verify(inputs, asked.log, loads, asked.workers or _beside(asked.log, "workers"))
        claimed = None if asked.json is None else json.loads(asked.json.read_text())[asked.policy]
    except (OSError, ValueError, KeyError) as error:
        sys.stderr.write(f"cannot be judged: {type(error).__name__}: {error}\n")
        return 2
    told = verdict.lines()
    if claimed is not None:
        told += [f"figure: {each}" for each in differences(verdict.figures, claimed)]
    sys.stdout.write(json.dumps(verdict.figures, indent=2) + "\n")
    sys.stdout.write("".join(f"broken: {each}\n" for each in told) or "nothing is broken\n")
    return 1 if told else 0


def _beside(log: Path, what: str) -> Path:
    return log.with_name(f"{log.stem}.{what}{log.suffix or '.csv'}")


if __name__ == "__main__":
    sys.exit(main())
