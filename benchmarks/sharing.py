"""How much hardware tasks need that share a fleet, beside a fleet for each: utilisation with and without sharing.

    python -m benchmarks.sharing [--tasks 6] [--rate 15] [--seeds 3] [--json FILE]

Played in the simulator, which runs the broker's and the planner's own modules in virtual time: each task is a family of
four variants on one class of GPU (``benchmarks/policy_grid.py``), asked for in bursts of its own at the same mean rate,
with latencies and accuracy floors drawn from the family's. **Apart**, each task has workers of its own; **together**,
all tasks have the same workers, and the planner says which variants are loaded where. Either way it is the smallest
fleet that answers at least 99 % of each task's queries in time, found by trying one worker more or fewer. The first
ten seconds, in which variants are loaded, do not count.

*Utilisation* is the share of the workers' time in which they run a batch. The figures are medians over seeds.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.policy_grid import FLEET, IN_TIME, Family, synthetic
from simulator.arrivals import MS_PER_S, bursts
from simulator.facts import Portfolio, SimulatedQuery, sorted_queries
from simulator.ours import Ours
from simulator.scenario import Scenario, play

GROUP = next(spec for spec in FLEET if spec.name == "gpu-small")
WARM_S = 10.0
WORKERS_MAX = 64


@dataclass(frozen=True)
class Fleet:
    workers: int
    utilisation: float
    in_time: float
    """Of the task that has it worst."""


def queries_of(family: Family, task: str, rate: float, seconds: float, seed: int) -> list[SimulatedQuery]:
    random = np.random.default_rng([seed, int(task[1:])])
    times = bursts(random, rate=rate, seconds=seconds).tolist()
    accuracies = [profile.accuracy for profile in family.portfolio.by_task[task]]
    least, most = min(accuracies), max(accuracies)
    latencies, floors = random.choice(family.latencies_ms, len(times)), random.choice(family.floors, len(times))
    return [
        SimulatedQuery(0, task, at_ms, latency_ms, round(least + floor * (most - least), 4), "reject", "cost")
        for at_ms, latency_ms, floor in zip(times, latencies.tolist(), floors.tolist(), strict=True)
    ]


def played(portfolio: Portfolio, queries: Sequence[SimulatedQuery], workers: int, seed: int) -> Fleet:
    asked = sorted_queries([query.again() for query in queries])
    done = play(Scenario((replace(GROUP, workers=workers),), portfolio, asked, seed), Ours())
    counted: dict[str, list[bool]] = {}
    busy_ms = 0.0
    for query in done.queries:
        busy_ms += (query.end_ms - query.start_ms) / query.batch if query.batch else 0.0
        if query.arrival_ms >= WARM_S * MS_PER_S:
            counted.setdefault(query.task, []).append(query.outcome == "in_time")
    return Fleet(workers, busy_ms / workers / done.span_ms, min(sum(each) / len(each) for each in counted.values()))


def smallest(portfolio: Portfolio, queries: Sequence[SimulatedQuery], seed: int, first: int) -> Fleet:
    """That answers enough in time; ``first`` is tried first."""
    fleet = played(portfolio, queries, first, seed)
    if fleet.in_time >= IN_TIME:
        while fleet.workers > 1 and (less := played(portfolio, queries, fleet.workers - 1, seed)).in_time >= IN_TIME:
            fleet = less
        return fleet
    while fleet.in_time < IN_TIME:
        if fleet.workers == WORKERS_MAX:
            raise RuntimeError(f"even {WORKERS_MAX} workers answer only {fleet.in_time:.1%} in time")
        fleet = played(portfolio, queries, fleet.workers + 1, seed)
    return fleet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=6)
    parser.add_argument("--rate", type=float, default=15.0, help="queries a second of each task")
    parser.add_argument("--seconds", type=float, default=90.0, help="virtual")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/sharing.json"))
    arguments = parser.parse_args()
    family = synthetic(arguments.tasks)
    whole = Portfolio(tuple(each for each in family.portfolio.profiles if each.group == GROUP.name))
    rows = []
    for seed in range(arguments.seeds):
        asked = {
            task: queries_of(family, task, arguments.rate, arguments.seconds, seed) for task in sorted(whole.by_task)
        }
        apart = []
        for task, queries in asked.items():
            own = Portfolio(tuple(whole.by_task[task]))
            apart.append(smallest(own, queries, seed, apart[-1].workers if apart else 4))
            print(f"seed {seed}  {task} alone: {apart[-1].workers} workers", flush=True)
        workers = sum(fleet.workers for fleet in apart)
        everything = [query for queries in asked.values() for query in queries]
        together = smallest(whole, everything, seed, workers // 2)
        print(f"seed {seed}  apart: {workers} workers, together: {together.workers}", flush=True)
        busy = sum(fleet.utilisation * fleet.workers for fleet in apart) / workers
        row = {"apart": asdict(Fleet(workers, busy, min(fleet.in_time for fleet in apart)))}
        rows.append(row | {"together": asdict(together)})
    print(f"\n{'':10}{'workers':>9}{'utilisation':>13}{'in time (worst task)':>22}")
    for name in ("apart", "together"):
        of = {key: statistics.median(row[name][key] for row in rows) for key in rows[0][name]}
        print(f"{name:10}{of['workers']:>9.0f}{of['utilisation']:>13.1%}{of['in_time']:>22.2%}")
    saved = statistics.median(1 - row["together"]["workers"] / row["apart"]["workers"] for row in rows)
    print(f"sharing saves {saved:.0%} of the workers")
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    machine = {"platform": platform.platform(), "python": platform.python_version()}
    arguments.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
