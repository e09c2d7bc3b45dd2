"""What ``benchmarks.policies`` plays: variants, fleets, arrivals, cells, one play measured, a load searched. Pure.

Words: a *cell* is arrivals, load, tasks, class of queries and what is lost; a *column* is what cells have in common
beside arrivals and load. Load is the mean rate as a multiple of the *base*: the highest rate of Poisson arrivals of
which the best static placement (``static-hindsight``) answers 99 % in time.

**Variants** are synthetic: of each task four, each twice as costly as the one before and more accurate by less and
less, as families of image models are. On a GPU ``lat(b) = a + c b``, on a CPU ``c b``: batching gains nothing there.
Costs and accuracies of each task are varied by a seed. Tails are lognormal, 99th percentile 1.15 times the median on
GPUs, 1.3 on CPUs.

**Queries.** ``scaled``: degrade, prefer accuracy. ``floors``: a floor each, reject, prefer cost.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from math import sqrt
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from modelless.messages import MS_PER_HOUR
from simulator.arrivals import MS_PER_S, PROCESSES, Times, counts, read_counts, read_trace, zipf
from simulator.bound import bound
from simulator.facts import (
    GroupSpec,
    Placement,
    Portfolio,
    SimulatedQuery,
    VariantProfile,
    group_of,
    sorted_queries,
)
from simulator.ours import Ours
from simulator.rivals import RIVALS
from simulator.scenario import Played, Scenario, play
from simulator.world import Fault, Policy

IN_TIME = 0.99
STEP = sqrt(2.0)
"""Between the first loads that are tried."""
OURS, STATIC, BOUND = "ours", "static-hindsight", "bound"
FLEET = (
    GroupSpec("cpu", 2, 16_000.0, 0.34),
    GroupSpec("gpu-small", 2, 6_000.0, 1.006),
    GroupSpec("gpu-large", 1, 8_000.0, 1.86),
)
LOST_EVERY = 5
"""Every fifth worker is lost, from :data:`LOST_FIRST` on; of this fleet, one of the small GPUs."""
LOST_FIRST = 2
ZIPF = 1.0
"""Of several tasks the k-th is asked for in proportion to 1/k."""
MORE: Mapping[str, Mapping[str, float]] = {"bursts": {"burst_s": 0.5, "calm_s": 4.5}}
"""Arguments of the processes that are not their defaults: some bursts in every play, however short."""
TWEET_INTERVAL_S = 1.0
"""A count of a series stands for so long."""

COSTS = (1.0, 2.0, 4.0, 8.0)
ACCURACIES = (0.70, 0.77, 0.82, 0.85)
ROW_MS = {"cpu": 120.0, "gpu-small": 20.0, "gpu-large": 10.0}
FIXED_MS = {"cpu": 0.0, "gpu-small": 24.0, "gpu-large": 20.0}
SIZES = {"cpu": (1, 2, 4), "gpu-small": (1, 2, 4, 8, 16, 32), "gpu-large": (1, 2, 4, 8, 16, 32)}
TAILS = {"cpu": 1.3, "gpu-small": 1.15, "gpu-large": 1.15}


@dataclass(frozen=True, eq=False)
class Family:
    """Variants of several tasks, and what is asked of them."""

    name: str
    portfolio: Portfolio
    """Of tasks ``t0``, ``t1``, ..."""
    latencies_ms: tuple[float, ...]
    """Equally likely."""
    floors: tuple[float, ...]
    """Quantiles between a task's least and most accurate variant, equally likely."""

    def of(self, tasks: int) -> Portfolio:
        names = {f"t{number}" for number in range(tasks)}
        return Portfolio(tuple(p for p in self.portfolio.profiles if p.task in names))


class Column(NamedTuple):
    tasks: int
    kind: str
    """``scaled`` or ``floors``."""
    lost: bool = False
    family: str = "synthetic"

    @property
    def label(self) -> str:
        told = f"{self.tasks} task{'s' * (self.tasks > 1)}, {self.kind}{', a fifth lost' * self.lost}"
        return told if self.family == "synthetic" else f"{self.family}, {told}"


class Cell(NamedTuple):
    column: Column
    arrivals: str
    load: float


class Times_s(NamedTuple):  # noqa: N801 (the unit is last)
    """Of a play, virtual: queries of the warm-up do not count, since all but one policy begin with nothing loaded."""

    warm: float
    counted: float


@dataclass(frozen=True)
class Setting:
    """What is the same for all jobs."""

    family_by_name: Mapping[str, Family]
    traces: Mapping[str, str]
    """Recorded arrivals: files by name."""
    seconds: Times_s


def synthetic(tasks: int = 3, seed: int = 1) -> Family:
    """See the module. Task 0 has the plain numbers, the others vary by 25 %."""
    draw = np.random.default_rng(seed)
    profiles = []
    for task in range(tasks):
        slower = 1.0 if task == 0 else float(draw.uniform(0.75, 1.25))
        worse = 0.0 if task == 0 else float(draw.uniform(-0.05, 0.05))
        for number, (cost, accuracy) in enumerate(zip(COSTS, ACCURACIES, strict=True)):
            for group, sizes in SIZES.items():
                p50_ms = tuple(FIXED_MS[group] + ROW_MS[group] * slower * cost * size for size in sizes)
                profiles.append(
                    VariantProfile(
                        f"t{task}",
                        f"t{task}m{number}",
                        f"t{task}v{number}",
                        group,
                        round(accuracy + worse, 4),
                        300.0 + 150.0 * cost,
                        400.0 + 250.0 * cost,
                        sizes,
                        p50_ms,
                        tuple(TAILS[group] * ms for ms in p50_ms),
                    )
                )
    return Family("synthetic", Portfolio(tuple(profiles)), (400.0, 800.0, 2000.0), (0.0, 0.4, 0.75))


# --- what is played -----------------------------------------------------------------------------------------------


def arrival_times(name: str, traces: Mapping[str, str], rate: float, seconds: float, seed: int) -> Times:
    """Drawn from the seed; a recorded trace is stretched to the rate, from a point on that is drawn, around its end."""
    random = np.random.default_rng([seed, 7])
    if name in PROCESSES:
        return PROCESSES[name](random, rate=rate, seconds=seconds, **MORE.get(name, {}))
    path = Path(traces[name])
    with path.open() as file:
        is_series = "value" in file.readline().strip().split(",")
    if is_series:
        series, _ = _series(path)
        return counts(random, np.roll(series, -random.integers(len(series))).tolist(), rate=rate,
                      interval_s=TWEET_INTERVAL_S, seconds=seconds)  # fmt: skip
    recorded_ms = _recorded(path)
    gaps = np.diff(recorded_ms)
    gaps = np.roll(gaps * (MS_PER_S / rate / gaps.mean()), -random.integers(len(gaps)))
    rounds = int(np.ceil(seconds * MS_PER_S / gaps.sum())) + 1
    times: Times = np.cumsum(np.tile(gaps, rounds))
    return times[times < seconds * MS_PER_S]


@cache
def _recorded(path: Path) -> Times:
    return read_trace(path)


@cache
def _series(path: Path) -> tuple[list[float], float]:
    return read_counts(path)


def scenario(setting: Setting, cell: Cell, rate: float, seed: int) -> Scenario:
    """``rate`` per second on average."""
    column = cell.column
    family = setting.family_by_name[column.family]
    portfolio, seconds = family.of(column.tasks), sum(setting.seconds)
    times = arrival_times(cell.arrivals, setting.traces, rate, seconds, seed)
    random = np.random.default_rng([seed, 11])
    of_task = zipf(random, len(times), column.tasks, ZIPF).tolist()
    latencies = random.choice(family.latencies_ms, len(times)).tolist()
    shares = random.choice(family.floors, len(times)).tolist()
    floors = {}
    for task, profiles in portfolio.by_task.items():
        least, most = min(p.accuracy for p in profiles), max(p.accuracy for p in profiles)
        floors[task] = {share: round(least + share * (most - least), 4) for share in family.floors}
    queries = []
    for time_ms, number, latency_ms, share in zip(times.tolist(), of_task, latencies, shares, strict=True):
        task = f"t{number}"
        if column.kind == "scaled":
            queries.append(SimulatedQuery(0, task, time_ms, latency_ms, None, "degrade", "accuracy"))
        else:
            queries.append(SimulatedQuery(0, task, time_ms, latency_ms, floors[task][share], "reject", "cost"))
    faults = [Fault(lost_ms(setting.seconds), "lost", worker) for worker in lost_workers()] if column.lost else []
    return Scenario(FLEET, portfolio, sorted_queries(queries), seed, faults)


def lost_workers() -> list[str]:
    names = [worker for spec in FLEET for worker in spec.worker_names]
    return names[LOST_FIRST::LOST_EVERY]


def lost_ms(seconds: Times_s) -> float:
    """In the middle of what counts."""
    return MS_PER_S * (seconds.warm + seconds.counted / 2)


def policy_of(name: str) -> Policy:
    """``ours``, ``ours 8`` with so many brokers, or a rival."""
    ours, _, brokers = name.partition(" ")
    return Ours(brokers=int(brokers or 1)) if ours == OURS else RIVALS[name]()


def play_cell(setting: Setting, cell: Cell, rate: float, seed: int, name: str) -> tuple[Played, Placement | None]:
    """And what it had at time 0."""
    asked = scenario(setting, cell, rate, seed)
    policy = policy_of(name)
    work_out = getattr(policy, "placement_for", None)
    placement = work_out(asked.fleet, asked.portfolio, asked.queries, seed) if work_out is not None else None
    return play(asked, policy, name=name, placement=placement), placement


# --- what comes out -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figures:
    """Of the queries that count. Shares are of all of them."""

    queries: int
    goodness: float
    """Accuracy of in-time answers by queries; for ``floors``, where any answer above the floor is as good: in time."""
    in_time: float
    late: float = 0.0
    refused: float = 0.0
    expired: float = 0.0
    accuracy: float = 0.0
    """Mean of what was in time."""
    worst_task: float = 0.0
    """The least goodness of a task."""
    usd_per_1000: float = 0.0
    """Device time, by its price, of 1,000 in time."""
    p99_ms: float = 0.0
    wait_ms: float = 0.0
    """Mean from arrival to the start of the batch."""
    batch: float = 0.0
    loads: int = 0
    busy: Mapping[str, float] | None = None
    """Share of time by group."""
    used: Mapping[str, float] | None = None
    """Share of queries that each variant answered in time on each group."""
    decide_us: float = 0.0
    wall_s: float = 0.0

    def plain(self) -> dict[str, Any]:
        return asdict(self)


def figures(played: Played, kind: str, seconds: Times_s) -> Figures:
    warm_ms = MS_PER_S * seconds.warm
    own = [query for query in played.queries if query.arrival_ms >= warm_ms]
    number = max(1, len(own))
    outcomes = Counter(query.outcome for query in own)
    in_time = [query for query in own if query.outcome == "in_time"]
    accuracy = sum(query.accuracy for query in in_time)
    answered = [query for query in own if query.batch]
    batches = {(query.worker, query.start_ms): query for query in answered}
    prices = {spec.name: spec.price_per_hour for spec in played.scenario.fleet}
    usd = sum(prices[group_of(worker)] * (query.end_ms - start_ms) / MS_PER_HOUR
              for (worker, start_ms), query in batches.items())  # fmt: skip
    busy_ms: dict[str, float] = defaultdict(float)
    last_ms, span_ms = MS_PER_S * sum(seconds), MS_PER_S * seconds.counted
    for worker, start_ms, end_ms in {(q.worker, q.start_ms, q.end_ms) for q in played.queries if q.batch}:
        busy_ms[group_of(worker)] += max(0.0, min(end_ms, last_ms) - max(start_ms, warm_ms))
    good: dict[str, list[float]] = defaultdict(list)
    for query in own:
        worth = 0.0 if query.outcome != "in_time" else query.accuracy if kind == "scaled" else 1.0
        good[query.task].append(worth)
    waits = [query.start_ms - query.arrival_ms for query in answered]
    used = Counter(f"{query.variant}@{group_of(query.worker)}" for query in in_time)
    return Figures(
        len(own),
        (accuracy if kind == "scaled" else len(in_time)) / number,
        len(in_time) / number,
        outcomes["late"] / number,
        outcomes["refused"] / number,
        outcomes["expired"] / number,
        accuracy / max(1, len(in_time)),
        min((sum(each) / len(each) for each in good.values()), default=0.0),
        1000 * usd / max(1, len(in_time)),
        float(np.quantile([q.end_ms - q.arrival_ms for q in answered], 0.99)) if answered else 0.0,
        float(np.mean(waits)) if waits else 0.0,
        len(answered) / max(1.0, sum(1 / query.batch for query in answered)),
        len(played.loads),
        {spec.name: round(busy_ms[spec.name] / span_ms / spec.workers, 4) for spec in played.scenario.fleet},
        {name: round(times / number, 4) for name, times in sorted(used.items())},
        played.decide_us,
        played.wall_s,
    )


def bound_figures(setting: Setting, cell: Cell, rate: float, seed: int) -> Figures:
    """Of the queries that count alone: the others only take time away. Who arrives after a loss has what is left."""
    asked = scenario(setting, cell, rate, seed)
    own = [query for query in asked.queries if query.arrival_ms >= MS_PER_S * setting.seconds.warm]
    parts = [(asked.fleet, own)]
    if cell.column.lost:
        gone = Counter(group_of(worker) for worker in lost_workers())
        left = [
            GroupSpec(s.name, s.workers - gone[s.name], s.memory_mb, s.price_per_hour)
            for s in asked.fleet
            if s.workers > gone[s.name]
        ]
        at_ms = lost_ms(setting.seconds)
        parts = [
            (asked.fleet, [q for q in own if q.arrival_ms < at_ms]),
            (left, [q for q in own if q.arrival_ms >= at_ms]),
        ]
    goodness = in_time = 0.0
    for fleet, queries in parts:
        found = bound(fleet, asked.portfolio, queries)
        goodness += found.goodness * len(queries) / max(1, len(own))
        in_time += found.in_time * len(queries) / max(1, len(own))
    return Figures(len(own), goodness if cell.column.kind == "scaled" else in_time, in_time)


# --- how much load ------------------------------------------------------------------------------------------------


def highest(holds: Callable[[float], bool], first: float, ratio: float = 1.03, rounds_max: int = 12) -> float:
    """The highest value at which it holds, to within ``ratio``: in steps of 1.4 from ``first``, then bisected.

    It comes from above where it does not hold at ``first``: a policy that misses 1 % at a low load, since it then
    takes more risk, may well hold at a higher one. 0 if it holds nowhere in ``rounds_max`` steps.
    """
    low, high, value = 0.0, 0.0, first
    for _ in range(rounds_max):
        if holds(value):
            low = value
        else:
            high = value
        if low and high:
            break
        value = value * STEP if low else value / STEP
    while low and high and high / low > ratio:
        middle = sqrt(low * high)
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def carried(setting: Setting, cell: Cell, seed: int, name: str, first: float, ratio: float = 1.03) -> float:
    """The highest rate of the cell's arrivals of which the policy answers :data:`IN_TIME` in time."""

    def holds(rate: float) -> bool:
        played, _ = play_cell(setting, cell, rate, seed, name)
        return figures(played, cell.column.kind, setting.seconds).in_time >= IN_TIME

    return highest(holds, first, ratio)


def first_guess(portfolio: Portfolio, fleet: Sequence[GroupSpec] = FLEET) -> float:
    """Queries per second that the fleet could serve with the fastest variants, if all batches were the best."""
    best: dict[str, float] = defaultdict(float)
    for profile in portfolio.profiles:
        best[profile.group] = max(best[profile.group], profile.rows_per_ms)
    return sum(best[spec.name] * spec.workers for spec in fleet) * MS_PER_S
