"""How many queries a second the simulator plays on one core, and what of that time is the policies' own.

    python -m benchmarks.simulated [--plays NAME ...] [--rounds 3] [--json FILE]

Plays, each of arrivals drawn from a seed:

* ``no-batching``, ``nexus``: rivals whose rule is simple, 6,000 queries a second for one variant on four GPUs;
* ``one``: ours, the same;
* ``dozen``: ours, 2,500 a second, twelve variants on eight devices of two groups, queries that give up accuracy;
* ``dozen 4``: the same by four brokers;
* ``mixed``: ours, a cell of ``benchmarks.policies``: three tasks on its mixed fleet, 75 queries a second;
* ``scaling``: ours, a minute of ``benchmarks.day``: 1,000 variants, planned for twice a second of virtual time.

They are played in turn, round by round; the table has medians. Queries a second are by the thread's processor time, so
that whoever shares the machine counts as little as possible, and by the clock; ``decide`` is the policy's part of a
query, by the clock. A round must come to the same outcomes as the one before: exit status 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from time import thread_time
from typing import Any, NamedTuple

import broker.core
from benchmarks.day import BEFORE_S, Window
from benchmarks.day_world import Day, fleet, portfolio
from benchmarks.policy_grid import Cell, Column, Setting, Times_s, scenario, synthetic
from simulator.arrivals import generate
from simulator.facts import GroupSpec, Portfolio, VariantProfile, sorted_queries
from simulator.ours import Ours
from simulator.rivals import RIVALS
from simulator.scenario import Played, Scenario, play
from simulator.world import Policy

SIZES = (1, 2, 4, 8, 16, 32, 64)
ROW_MS = {"gpu": 0.25, "cpu": 1.0}
FIXED_MS = {"gpu": 2.0, "cpu": 8.0}
MIXED_RATE = 75.0
MINUTES = 1
"""Of the day."""
SEED = 1


def variants(number: int, groups: Iterable[str]) -> Portfolio:
    """Of one task, each slower and more accurate than the one before."""
    profiles = []
    for each in range(number):
        accuracy = round(0.95 - 0.25 / (1 + each / 3), 4)
        for group in groups:
            p50_ms = tuple(FIXED_MS[group] + ROW_MS[group] * (1 + each) * size for size in SIZES)
            tail_ms = tuple(1.15 * ms for ms in p50_ms)
            profiles.append(
                VariantProfile("t", f"m{each}", f"v{each}", group, accuracy, 500, 300, SIZES, p50_ms, tail_ms)
            )
    return Portfolio(tuple(profiles))


def drawn(arguments: str) -> Any:
    return sorted_queries(generate([f"poisson:task=t,latency_ms_max=50|100|200,{arguments}"], SEED))


def one() -> Scenario:
    return Scenario((GroupSpec("gpu", 4, 8000, 1.0),), variants(1, ["gpu"]), drawn("rate=6000,seconds=20"), SEED)


def dozen() -> Scenario:
    groups = (GroupSpec("gpu", 4, 8000, 1.0), GroupSpec("cpu", 4, 8000, 0.2))
    asked = drawn("rate=2500,seconds=20,on_miss=degrade,prefer=accuracy")
    return Scenario(groups, variants(12, ["gpu", "cpu"]), asked, SEED)


def mixed() -> Scenario:
    setting = Setting({"synthetic": synthetic()}, {}, Times_s(20.0, 60.0))
    return scenario(setting, Cell(Column(3, "scaled"), "poisson", 1.0), MIXED_RATE, SEED)


def scaling() -> Scenario:
    begin_h = 7.0
    day = Day(hours=(begin_h - BEFORE_S / 3600, begin_h + MINUTES / 60), seed=SEED)
    window = Window(day, portfolio(seed=SEED), warm_s=0.0)
    return window.scenario(fleet(window.begin()))


PLAYS: dict[str, tuple[Callable[[], Scenario], Callable[[], Policy]]] = {
    "no-batching": (one, RIVALS["no-batching"]),
    "nexus": (one, RIVALS["nexus"]),
    "one": (one, Ours),
    "dozen": (dozen, Ours),
    "dozen 4": (dozen, lambda: Ours(brokers=4)),
    "mixed": (mixed, Ours),
    "scaling": (scaling, Ours),
}


class Figures(NamedTuple):
    """Of one play."""

    queries: int
    cpu_s: float
    wall_s: float
    decide_us: float
    outcomes: int


def played(name: str, of: Scenario) -> Figures:
    began_s = thread_time()
    done: Played = play(of, PLAYS[name][1]())
    cpu_s = thread_time() - began_s
    outcomes = hash(tuple((query.worker, query.start_ms, query.end_ms, query.outcome) for query in done.queries))
    return Figures(len(done.queries), cpu_s, done.wall_s, done.decide_us, outcomes)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plays", nargs="+", choices=PLAYS, default=list(PLAYS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/simulated.json"))
    asked = parser.parse_args()
    scenarios = {make: make() for make in dict.fromkeys(PLAYS[name][0] for name in asked.plays)}
    found: dict[str, list[Figures]] = {name: [] for name in asked.plays}
    for _ in range(asked.rounds):
        for name, figures in found.items():
            figures.append(played(name, scenarios[PLAYS[name][0]]))
    kind = "from source" if broker.core.__file__.endswith(".py") else "compiled"
    print(f"{kind}; medians of {asked.rounds} rounds\n")
    print(f"{'play':16}{'queries':>9}{'a cpu-second':>14}{'a second':>10}{'us each':>9}{'decide us':>11}")
    results = {}
    for name, figures in found.items():
        number, cpu_s, wall_s, decide_us, _ = (median(each) for each in zip(*figures, strict=True))
        rates = (number / cpu_s, number / wall_s, 1e6 * cpu_s / number, decide_us)
        results[name] = dict(zip(("per_cpu_s", "per_s", "cpu_us", "decide_us"), rates, strict=True))
        print(f"{name:16}{number:9,.0f}{rates[0]:14,.0f}{rates[1]:10,.0f}{rates[2]:9.1f}{rates[3]:11.1f}")
    asked.json.parent.mkdir(parents=True, exist_ok=True)
    asked.json.write_text(json.dumps({"kind": kind, "rounds": asked.rounds, "plays": results}, indent=1) + "\n")
    differing = [name for name, figures in found.items() if len({each.outcomes for each in figures}) > 1]
    for name in differing:
        print(f"{name}: rounds differ")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
