"""What ``benchmarks.day`` plays: priced machines, variants of fifty tasks, and a day of queries with bursts. Pure.

**Machines**: six classes at on-demand prices; one with an accelerator starts in 60 s, one without in 30 s, and each
rent is billed for at least 60 s.

**Variants** are synthetic, as families of image models are: of each task five models, each about twice as costly as the
one before and more accurate by less and less, each built for four of the six classes: 20 for each task. A batch of b
takes ``a + c b`` with an accelerator, ``c b`` without. Costs and accuracies are varied by a seed.

**Queries** ask for a task by Zipf's law, for a latency, the same for all of a task, for an accuracy, that of the task's
least or of its most accurate model that has the time, and for the least cost; who cannot be met is refused. Every
task's arrivals are Poisson: along a sine over the day, and of ``times`` its rate in bursts of its own.

A **window** is some minutes of it in true time: rates, bursts, latencies, starts and minimum bills are all as they are.
(A day that passes faster has load that rises faster beside starts that take as long, which no real day has.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, pi

import numpy as np
from numpy.typing import NDArray

from simulator.facts import GroupSpec, Portfolio, SimulatedQuery, VariantProfile, sorted_queries

DAY_S = 86_400.0
MS_PER_S = 1000.0
TASKS = 50
COSTS = (1.0, 2.0, 4.0, 8.0, 16.0)
ACCURACIES = (0.70, 0.77, 0.82, 0.85, 0.87)
LATENCIES_MS = (300.0, 600.0, 1500.0)
BUILDS = 4
"""Of each model, on so many of the classes."""
VARY = 0.3
SIZES_FEW, SIZES_MANY = (1, 2, 4), (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True, slots=True)
class Machine:
    """A class of them."""

    name: str
    price_per_hour: float
    memory_mb: float
    row_ms: float
    """Of a model of cost 1."""
    fixed_ms: float
    """Of a batch, whatever its size; 0: it has no accelerator."""

    @property
    def start_ms(self) -> float:
        return 60_000.0 if self.fixed_ms else 30_000.0


MACHINES = (
    Machine("c6i.xlarge", 0.17, 7_000.0, 40.0, 0.0),
    Machine("c5.2xlarge", 0.34, 14_000.0, 22.0, 0.0),
    Machine("g4dn.xlarge", 0.526, 15_000.0, 8.0, 8.0),
    Machine("g5.xlarge", 1.006, 22_000.0, 3.5, 6.0),
    Machine("p3.2xlarge", 3.06, 15_000.0, 3.0, 5.0),
    Machine("inf1.xlarge", 0.228, 7_500.0, 12.0, 4.0),
)
BILL_S_MIN = 60.0
WORKERS_MAX = 60


@dataclass(frozen=True)
class Day:
    """What is played of it."""

    rate: float = 200.0
    """Mean of the day, queries per second."""
    hours: tuple[float, float] = (0.0, 24.0)
    """What is played of it; load is lowest at 0 and highest at 12."""
    swing: float = 0.8
    times: float = 3.0
    burst_s: float = 10.0
    calm_s: float = 190.0
    seed: int = 1

    @property
    def seconds(self) -> float:
        """Played, virtual."""
        return (self.hours[1] - self.hours[0]) * 3600


def portfolio(tasks: int = TASKS, seed: int = 1) -> Portfolio:
    """20 variants of each task: those of a class can be run there alone."""
    draw = np.random.default_rng([seed, 1])
    profiles = []
    for task in range(tasks):
        worse, slower = draw.uniform(-0.05, 0.05), draw.uniform(1 - VARY, 1 + VARY)
        for number, (cost, accuracy) in enumerate(zip(COSTS, ACCURACIES, strict=True)):
            for index in sorted(draw.permutation(len(MACHINES))[:BUILDS]):
                machine = MACHINES[index]
                row_ms = machine.row_ms * cost * slower * draw.uniform(1 - VARY, 1 + VARY)
                sizes = SIZES_MANY if machine.fixed_ms else SIZES_FEW
                p50_ms = tuple(machine.fixed_ms + row_ms * size for size in sizes)
                tail = 1.15 if machine.fixed_ms else 1.3
                profiles.append(
                    VariantProfile(
                        f"t{task}",
                        f"t{task}m{number}",
                        f"t{task}m{number}.{machine.name}",
                        machine.name,
                        round(float(accuracy + worse), 4),
                        500.0 + 200.0 * cost,
                        150.0 + 60.0 * cost,
                        sizes,
                        p50_ms,
                        tuple(tail * ms for ms in p50_ms),
                    )
                )
    return Portfolio(tuple(profiles))


def fleet(workers: dict[str, int] | None = None, *, scales: bool = True) -> tuple[GroupSpec, ...]:
    """The six groups, with so many workers at time 0; without any at all only where the group scales."""
    begin = workers or {}
    found = []
    for each in MACHINES:
        number = begin.get(each.name, 0)
        scaling = (0, WORKERS_MAX, each.start_ms, BILL_S_MIN) if scales else ()
        if scales or number:
            found.append(GroupSpec(each.name, number, each.memory_mb, each.price_per_hour, *scaling))
    return tuple(found)


def queries(day: Day, known: Portfolio) -> list[SimulatedQuery]:
    """Drawn from the day's seed."""
    draw = np.random.default_rng([day.seed, 2])  # what is the same all day
    tasks = list(known.by_task)
    parts = np.array([1 / (number + 1) for number in range(len(tasks))])
    parts /= parts.sum()
    seconds = ceil(day.seconds)
    begin_s = day.hours[0] * 3600
    curve = 1.0 - day.swing * np.cos(2 * pi * (begin_s + np.arange(seconds) + 0.5) / DAY_S)
    latencies_ms = {task: float(draw.choice(LATENCIES_MS)) for task in tasks}
    draw = np.random.default_rng([day.seed, 3, round(begin_s)])
    found: list[SimulatedQuery] = []
    for task, part in zip(tasks, parts, strict=True):
        rates = day.rate * part * curve * _bursts(draw, day, seconds)
        numbers = draw.poisson(rates)
        times_ms = (np.repeat(np.arange(seconds), numbers) + draw.random(int(numbers.sum()))) * MS_PER_S
        asked = _asked(known.by_task[task], latencies_ms[task])
        kinds = draw.integers(len(asked), size=len(times_ms))
        found += [
            SimulatedQuery(0, task, time_ms, *asked[kind], "reject", "cost")
            for time_ms, kind in zip(times_ms.tolist(), kinds.tolist(), strict=True)
            if time_ms < day.seconds * MS_PER_S
        ]
    return sorted_queries(found)


def _asked(profiles: Sequence[VariantProfile], latency_ms: float) -> list[tuple[float, float]]:
    """Latency and floors: of the least and the most accurate model that somebody has the time for three times."""
    floors = sorted({p.accuracy for p in profiles if 3 * p.lat_ms(1) <= latency_ms})
    return [(latency_ms, floor) for floor in sorted({floors[0], floors[-1]})]


def _bursts(draw: np.random.Generator, day: Day, seconds: int) -> NDArray[np.float64]:
    """By second, by what the rate is multiplied: a task's own calm times and bursts; 1 in the mean."""
    factor = np.ones(seconds)
    at_s = float(draw.exponential(day.calm_s))
    while at_s < seconds:
        length_s = float(draw.exponential(day.burst_s))
        factor[int(at_s) : ceil(at_s + length_s)] = day.times
        at_s += length_s + float(draw.exponential(day.calm_s))
    mean = (day.calm_s + day.times * day.burst_s) / (day.calm_s + day.burst_s)
    return factor / mean
