"""What a day costs: ours, INFaaS's autoscaler, KEDA's rule, the best fixed fleet, and what nobody underbids.

    python -m benchmarks.day [--scale 24] [--rate 200] [--hours 0 24] [--policies ours keda ...] [--json FILE]

In virtual time (``modelless simulate``): a day of 200 queries a second in the mean over 50 tasks (Zipf), 1,000
variants, six classes of machines at their on-demand prices, starts and minimum bills counted; ``benchmarks/day_world``
says what these are, and what ``--scale`` does. Played are

* ``ours``: the system's own code, the planner with its scaler included;
* ``infaas``: its selection, its variant autoscaler and its machine autoscaler (``simulator.rivals.infaas``);
* ``keda``: consumers of a fixed choice of variants, scaled by lag (``simulator.rivals.keda``), with the threshold of
  :data:`THRESHOLDS` that costs least where at most 1 % are not in time, or if none is so, that has most in time;
* ``static``: the same consumers, and the cheapest numbers of them that never change, in hindsight: for each deployment
  every number is played on all of its queries; where spare misses are left, workers are taken away while in all at
  most 1 % are not in time. It has everything loaded at time 0, and is the cheapest for that choice of variants and that
  packing, not of all;
* ``bound``: fractional workers for exactly as long as they run, perfect batches, no starts, no loads, and 1 % given up
  (``simulator.bound.least_cost``). Nobody can have that.

For ``keda`` and ``static`` the manifests use those classes of machines that cost least together, by a rough sum: each
deployment's load at twice its mean, and at least one worker; all sets of classes are looked at.

Ours and INFaaS begin with half more workers than the bound needs in the first minute, and one of each class that it
uses; KEDA with one for each deployment. Every play is judged by ``simulator.verifier``, which computes the bill again.
Exit status 1 if that finds anything.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import combinations
from math import ceil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.day_world import BILL_S_MIN, DAY_S, MACHINES, MS_PER_S, Day, fleet, portfolio, queries
from benchmarks.policy_judge import judged
from simulator.bound import LeastCost, least_cost
from simulator.facts import GroupSpec, Placement, Portfolio, SimulatedQuery, sorted_queries
from simulator.ours import Ours
from simulator.report import report
from simulator.rivals.infaas import Infaas
from simulator.rivals.keda import Deployment, Keda
from simulator.scenario import Played, Scenario, play
from simulator.world import Policy, World

MISSED = 0.01
THRESHOLDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
POLICIES = ("ours", "infaas", "keda", "static")
BOUND = "bound"
SPENT = 0.95
"""Of that, by the static plan: played together its deployments draw other tails than alone."""
MINUTE_MS = 60_000.0
RESERVE = 1.5
"""Of the workers at time 0, beside what the bound needs in the first minute."""


@dataclass(frozen=True)
class Line:
    """What became of the day with one policy."""

    name: str
    usd: float
    """A day."""
    in_time: float
    late: float = 0.0
    refused: float = 0.0
    expired: float = 0.0
    workers_mean: float = 0.0
    workers_max: int = 0
    rents: int = 0
    batch: float = 0.0
    decide_us: float = 0.0
    wall_s: float = 0.0
    told: str = ""
    workers: tuple[float, ...] = ()
    """By interval; so is the next."""
    usd_per_hour: tuple[float, ...] = ()
    broken: tuple[str, ...] = ()


class Plays:
    """One day, played by anybody.

    Args:
        bins: intervals of the picture.
    """

    def __init__(self, day: Day, known: Portfolio, asked: Sequence[SimulatedQuery], bins: int = 120) -> None:
        self.day, self.portfolio, self.queries = day, known, asked
        self.bound = least_cost(fleet(), known, asked, missed=MISSED)
        self.edges = np.linspace(0.0, day.seconds * MS_PER_S, bins + 1)

    @property
    def days(self) -> float:
        """By what a bill is multiplied to be that of a day."""
        return DAY_S / self.day.seconds

    def begin(self) -> dict[str, int]:
        """Workers at time 0."""
        needed = _needed(self.bound, self.queries, MINUTE_MS)
        return {
            machine.name: ceil(RESERVE * needed[index, 0]) if (self.bound.group == index).any() else 0
            for index, machine in enumerate(MACHINES)
        }

    def scenario(self, groups: Sequence[GroupSpec], asked: Sequence[SimulatedQuery] | None = None) -> Scenario:
        return Scenario(groups, self.portfolio, self.queries if asked is None else asked, self.day.seed)

    def bound_line(self) -> Line:
        span_ms = float(self.edges[1])
        needed = _needed(self.bound, self.queries, span_ms)[:, : len(self.edges) - 1]
        prices = np.array([machine.price_per_hour for machine in MACHINES])
        return Line(
            BOUND,
            self.bound.total_usd * self.days,
            1.0 - MISSED,
            workers_mean=float(needed.sum(axis=0).mean()),
            workers_max=ceil(float(needed.sum(axis=0).max())),
            workers=tuple(needed.sum(axis=0).round(2).tolist()),
            usd_per_hour=tuple((prices @ needed).round(4).tolist()),
        )

    def line(self, done: Played, told: str = "", placement: Placement | None = None) -> Line:
        found = report(done).total
        begun = done.rentals
        spans = [(r.group, r.start_ms, min(r.end_ms, done.span_ms)) for r in begun]
        spans += [(s.name, 0.0, done.span_ms) for s in done.scenario.fleet if not s.scales for _ in s.worker_names]
        prices = {machine.name: machine.price_per_hour for machine in MACHINES}
        width_ms = float(self.edges[1])
        workers, usd_per_hour = np.zeros(len(self.edges) - 1), np.zeros(len(self.edges) - 1)
        for group, start_ms, end_ms in spans:
            share = np.clip(np.minimum(self.edges[1:], end_ms) - np.maximum(self.edges[:-1], start_ms), 0, None)
            workers += share / width_ms
            usd_per_hour += prices[group] * share / width_ms
        with tempfile.TemporaryDirectory() as folder:
            broken = judged(done, placement, Path(folder))
        return Line(
            done.name,
            found.fleet_cost_usd * self.days,
            found.in_time,
            found.late,
            found.refused,
            found.expired,
            float(workers.mean()),
            ceil(float(workers.max())),
            len(begun),
            found.mean_batch_size or 0.0,
            found.decide_us,
            done.wall_s,
            told,
            tuple(workers.round(2).tolist()),
            tuple(usd_per_hour.round(4).tolist()),
            tuple(broken),
        )

    # --- those that take more than one play -----------------------------------------------------------------------

    @cached_property
    def manifests(self) -> tuple[list[GroupSpec], list[Deployment]]:
        """The classes that KEDA's deployments use, and these deployments, of a world in which nothing is played."""
        number = Counter((query.task, query.latency_ms_max, query.accuracy_min) for query in self.queries)
        kinds = sorted_queries(SimulatedQuery(0, task, 0.0, ms, floor) for task, ms, floor in number)
        best: tuple[float, list[GroupSpec], list[Deployment]] | None = None
        for size in range(1, len(MACHINES) + 1):
            for groups in combinations(fleet(), size):
                policy = Keda()
                policy.start(World(groups, self.portfolio, kinds))
                load: dict[int, float] = defaultdict(float)
                lines = [(query, policy.route(query)) for query in kinds]
                if any(line is None for _, line in lines):
                    continue
                for query, line in lines:
                    assert line is not None
                    rows = number[query.task, query.latency_ms_max, query.accuracy_min]
                    load[id(policy.home(line))] += rows * line.profile.lat_ms(1) / (self.day.seconds * MS_PER_S)
                prices = {spec.name: spec.price_per_hour for spec in groups}
                usd = sum(prices[each.group] * max(1, ceil(2 * load[id(each)])) for each in policy.deployments)
                if best is None or usd < best[0]:
                    best = usd, list(groups), policy.deployments
        assert best is not None, "somebody can answer each"
        return best[1:]

    def keda(self, console: Console) -> Line:
        groups, own = self.manifests
        begin = dict(Counter(each.group for each in own))
        best: Line | None = None
        for threshold in THRESHOLDS:
            used = [spec for spec in fleet(begin) if spec.name in {each.name for each in groups}]
            done = play(self.scenario(used), Keda(threshold, first=[1] * len(own)), name="keda")
            found = self.line(done, f"lagThreshold {threshold:g} of {', '.join(f'{t:g}' for t in THRESHOLDS)}")
            console.print(
                f"keda, lagThreshold {threshold:g}: {found.usd:,.0f} USD, {found.in_time:.2%} in time", highlight=False
            )
            if best is None or _better(found, best):
                best = found
        assert best is not None
        return best

    def static(self, console: Console) -> Line:
        """The numbers that never change; see the module."""
        able, own = self.manifests
        home = {line.profile.key: index for index, each in enumerate(own) for line in each.lines}
        router = Keda()
        router.start(World(able, self.portfolio, self.queries))
        parts: list[list[SimulatedQuery]] = [[] for _ in own]
        for query in self.queries:
            line = router.route(query)
            if line is not None:
                parts[home[line.profile.key]].append(query)
        budget = int(SPENT * MISSED * len(self.queries)) - (len(self.queries) - sum(map(len, parts)))
        curves = [_Curve(self, each, part) for each, part in zip(own, parts, strict=True)]
        numbers = [curve.least(MISSED) for curve in curves]
        left = budget - sum(curve.missed(number) for curve, number in zip(curves, numbers, strict=True))
        while True:  # take away what costs most for the queries that it loses
            able = [
                (price / max(1, more), index, more)
                for index, (curve, number) in enumerate(zip(curves, numbers, strict=True))
                if number > 1
                for more in [curve.missed(number - 1) - curve.missed(number)]
                for price in [curve.price]
                if more <= left
            ]
            if not able:
                break
            _, index, more = max(able)
            numbers[index] -= 1
            left -= more
        workers: Counter[str] = Counter()
        for each, number in zip(own, numbers, strict=True):
            workers[each.group] += number
        console.print(f"static: {dict(workers)}", highlight=False)
        groups = fleet(dict(workers), scales=False)
        scenario = self.scenario(groups)
        placement = _placed(scenario, Keda(first=numbers))
        done = play(scenario, Keda(first=numbers), name="static", placement=placement)
        return self.line(done, ", ".join(f"{number} {group}" for group, number in workers.items()), placement)

    def one(self, policy: Policy) -> Line:
        return self.line(play(self.scenario(fleet(self.begin())), policy))


def _placed(scenario: Scenario, policy: Keda) -> Placement:
    """What it loads at time 0."""
    policy.start(World(scenario.fleet, scenario.portfolio, scenario.queries))
    return {worker: [line.profile.variant for line in lines] for worker, lines in policy.on.items()}


class _Curve:
    """How many queries a deployment misses with each number of workers, played when asked."""

    def __init__(self, plays: Plays, deployment: Deployment, asked: Sequence[SimulatedQuery]) -> None:
        self._plays, self._deployment = plays, deployment
        self._asked = sorted_queries(query.again() for query in asked)
        self._known: dict[int, int] = {}
        self._portfolio = Portfolio(tuple(line.profile for line in deployment.lines))
        self._spec = next(spec for spec in fleet() if spec.name == deployment.group)
        self.price = self._spec.price_per_hour

    def missed(self, number: int) -> int:
        if number not in self._known:
            spec = GroupSpec(self._spec.name, number, self._spec.memory_mb, self._spec.price_per_hour)
            scenario = replace(self._plays.scenario((spec,), self._asked), portfolio=self._portfolio)
            done = play(scenario, Keda(), placement=_placed(scenario, Keda()))
            self._known[number] = sum(query.outcome != "in_time" for query in done.queries)
        return self._known[number]

    def least(self, share: float) -> int:
        """The smallest number with no larger share of misses."""
        enough, high = share * len(self._asked), 1
        while self.missed(high) > enough and self.missed(2 * high) < self.missed(high):
            high *= 2
        low = high // 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.missed(middle) <= enough else (middle, high)
        return high


def _better(one: Line, other: Line) -> bool:
    """In time enough, then cheaper; else more in time."""
    enough = 1 - MISSED
    if (one.in_time >= enough) != (other.in_time >= enough):
        return one.in_time >= enough
    return one.usd < other.usd if one.in_time >= enough else one.in_time > other.in_time


def _needed(of: LeastCost, asked: Sequence[SimulatedQuery], span_ms: float) -> NDArray[np.float64]:
    """Fractional workers of each class by interval of arrival."""
    bins = np.fromiter((query.arrival_ms // span_ms for query in asked), np.int64, len(asked))
    needed = np.zeros((len(MACHINES), int(bins.max(initial=0)) + 1))
    used = of.group >= 0
    np.add.at(needed, (of.group[used], bins[used]), of.device_ms[used] / span_ms)
    return needed


# --- what comes out -----------------------------------------------------------------------------------------------


def show(console: Console, lines: Sequence[Line]) -> None:
    usd = {line.name: line.usd for line in lines}
    table = Table(box=None, pad_edge=False)
    for heading in ("policy", "USD a day", "× bound", "× ours", "in time", "workers", "most", "rents", "batch",
                    "decide µs", "wall s"):  # fmt: skip
        table.add_column(heading, justify="left" if heading == "policy" else "right", no_wrap=True)
    for line in lines:
        ours = f"{line.usd / usd['ours']:.2f}" if "ours" in usd else ""
        rest = (f"{line.workers_mean:.1f}", str(line.workers_max))
        played = (str(line.rents), f"{line.batch:.2f}", f"{line.decide_us:.0f}", f"{line.wall_s:.0f}")
        in_time = f"{line.in_time:.2%}"
        if line.in_time < 1 - MISSED:
            in_time = f"[red]{in_time}[/]"
        shown = ("", "", "", "") if line.name == BOUND else played
        table.add_row(
            line.name, f"{line.usd:,.1f}", f"{line.usd / usd[BOUND]:.2f}", ours, in_time, *rest, *shown,
            style="bold" if line.name == "ours" else None,
        )  # fmt: skip
    console.print(table)


def targets(lines: Sequence[Line]) -> dict[str, bool]:
    """What is hoped for, and whether it is so."""
    by_name: Mapping[str, Line] = {line.name: line for line in lines}
    ours = by_name.get("ours")
    if ours is None:
        return {}
    told = {
        "at most 1 % not in time": ours.in_time >= 1 - MISSED,
        "at most 1.3 times the bound": ours.usd <= 1.3 * by_name[BOUND].usd,
    }
    for name in ("static", "infaas"):
        if name in by_name:
            told[f"at least 2 times cheaper than {name}"] = by_name[name].usd >= 2 * ours.usd
    return told


def draw(path: Path, lines: Sequence[Line], plays: Plays) -> None:
    """Load, workers and cost over the day."""
    from modelless.plot import require

    require(path)
    from matplotlib import pyplot

    begin_h, end_h = plays.day.hours
    hours = np.linspace(begin_h, end_h, len(plays.edges))
    middle = (hours[1:] + hours[:-1]) / 2
    arrived = np.fromiter((query.arrival_ms for query in plays.queries), np.float64, len(plays.queries))
    load = np.histogram(arrived, plays.edges)[0] / (plays.edges[1] / MS_PER_S)
    figure, (top, workers, cost) = pyplot.subplots(3, 1, figsize=(11, 9), sharex=True, layout="constrained")
    top.fill_between(middle, load, color="0.82", step="mid")
    top.set_title("load, queries per second", loc="left", fontsize=10)
    for line in lines:
        if line.name == BOUND:
            workers.fill_between(middle, line.workers, color="0.85", label=BOUND)
            cost.fill_between(middle, line.usd_per_hour, color="0.85", label=f"bound: {line.usd:,.0f} USD a day")
            continue
        width = 2.4 if line.name == "ours" else 1.2
        workers.plot(middle, line.workers, linewidth=width, label=line.name)
        told = f"{line.name}: {line.usd:,.0f} USD a day, {line.in_time:.1%} in time"
        cost.plot(middle, line.usd_per_hour, linewidth=width, label=told)
    workers.set_title("workers that are paid for", loc="left", fontsize=10)
    cost.set_title("USD an hour", loc="left", fontsize=10)
    cost.set_xlabel("hour of the day")
    for axes in (top, workers, cost):
        axes.set_ylim(bottom=0)
        axes.grid(visible=True, color="0.93")
    cost.legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=24.0, help="how many times shorter the day is; 1: as it is")
    parser.add_argument("--rate", type=float, default=200.0, help="queries per second, the day's mean")
    parser.add_argument("--hours", type=float, nargs=2, default=(0.0, 24.0), metavar=("FROM", "TO"), help="of the day")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES), help="beside the bound")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/day.json"))
    parser.add_argument("--plot", type=Path, help="default: beside the JSON, if matplotlib is there")
    asked = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 160)
    day = Day(asked.rate, asked.scale, tuple(asked.hours), seed=asked.seed)
    known = portfolio(seed=asked.seed)
    drawn = queries(day, known)
    began_s = time.perf_counter()
    plays = Plays(day, known, drawn)
    console.print(
        f"{len(drawn):,} queries in {day.seconds:,.0f} s: hours {day.hours[0]:g} to {day.hours[1]:g} of a day that "
        f"passes {day.scale:g} times as fast; starts of 30 and 60 s and bills of {BILL_S_MIN:g} s at least as they are",
        highlight=False,
    )
    lines = [plays.bound_line()]
    for name in asked.policies:
        match name:
            case "static":
                line = plays.static(console)
            case "keda":
                line = plays.keda(console)
            case _:
                line = plays.one(Ours() if name == "ours" else Infaas())
        console.print(f"{name}: {line.usd:,.0f} USD a day, {line.in_time:.2%} in time", highlight=False)
        lines.append(line)
    show(console, lines)
    for line in lines:
        if line.told:
            console.print(f"{line.name}: {line.told}", highlight=False)
    for what, holds in targets(lines).items():
        console.print(f"{'reached' if holds else '[red]missed[/]'}: ours {what}", highlight=False)
    for line in lines:
        for each in line.broken:
            console.print(f"[red]broken[/], {line.name}: {each}", highlight=False)
    console.print(f"{len(lines) - 1} plays judged by simulator.verifier; {time.perf_counter() - began_s:.0f} s")
    asked.json.parent.mkdir(parents=True, exist_ok=True)
    asked.json.write_text(
        json.dumps({"day": asdict(day), "queries": len(drawn), "lines": [asdict(line) for line in lines]}, indent=1)
        + "\n"
    )
    plot = asked.plot or asked.json.with_suffix(".png")
    try:
        draw(plot, lines, plays)
    except Exception as error:  # without matplotlib there is no picture
        console.print(f"no picture: {error}", highlight=False)
    return 1 if any(line.broken for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
