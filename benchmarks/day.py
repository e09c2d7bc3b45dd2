"""What a day costs: ours, INFaaS's autoscaler, KEDA's rule, the best fixed fleet, and what nobody underbids.

    python -m benchmarks.day [--windows 6] [--minutes 3] [--rate 200] [--policies ours keda ...] [--json FILE]

In virtual time (``modelless simulate``): of a day of 200 queries a second in the mean over 50 tasks (Zipf), 1,000
variants, six classes of machines at their on-demand prices, ``--windows`` windows of ``--minutes`` minutes in true
time, evenly over the day (17 million queries are too many). ``benchmarks/day_world`` says what is drawn.

Before each window ``--warm`` minutes are played that do not count, for whoever plays: nobody's day begins with an empty
fleet under full load. Ours has also heard how much was asked for in the ten minutes before; the others do not look at
that. Of the window counts whoever asked in it, and what workers cost in it, a minimum bill where that falls into it.
The day is the mean of the windows: *what is in between is extrapolated*; load changes by less than 1 % a minute.

Played are

* ``ours``: the system's own code, the planner with its scaler included;
* ``infaas``: its selection, its variant autoscaler and its machine autoscaler (``simulator.rivals.infaas``);
* ``keda``: consumers of a fixed choice of variants, scaled by lag (``simulator.rivals.keda``), with the threshold of
  :data:`THRESHOLDS` that costs least where at most 1 % are not in time, or if none is so, that has most in time;
* ``static``: the same consumers, and the cheapest numbers of them that never change, the same in all windows, in
  hindsight: for each deployment every number is played on all of its queries; where spare misses are left, workers are
  taken away while in all at most 1 % are not in time. It has everything loaded at time 0, and is the cheapest for that
  choice of variants and that packing, not of all;
* ``bound``: fractional workers for exactly as long as they run, perfect batches, no starts, no loads, nothing that
  needs memory, and 1 % given up (``simulator.bound.least_cost``). Nobody can have that;
* ``plan``: the best fractional plan of each minute for the rates that it turned out to have (the relaxation of
  ``broker.sizing``, nothing left free for bursts). Fractions of workers have what is asked for loaded.

For ``keda`` and ``static`` the manifests use those classes of machines that cost least together, by a rough sum: each
deployment's load at twice its mean, and at least one worker; all sets of classes are looked at.

All begin with half more workers than they need by a sum: ours and INFaaS than the bound needs, one of each class that
it uses at least; KEDA for each deployment than its mean load in the window. Every play is judged by
``simulator.verifier``, which computes the bill again. Exit status 1 if that finds anything.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import combinations
from math import ceil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.day_world import BILL_S_MIN, MACHINES, MS_PER_S, WORKERS_MAX, Day, fleet, portfolio, queries
from benchmarks.policy_judge import judged
from broker import sizing
from broker.placement_model import Choice, Demand
from modelless.messages import MS_PER_HOUR
from simulator.bound import least_cost
from simulator.facts import INF, GroupSpec, Placement, Portfolio, SimulatedQuery, sorted_queries
from simulator.ours import Ours
from simulator.rivals.infaas import Infaas
from simulator.rivals.keda import Deployment, Keda
from simulator.scenario import Played, Scenario, play
from simulator.world import Policy, World

MISSED = 0.01
THRESHOLDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
POLICIES = ("ours", "infaas", "keda", "static")
BOUND, PLAN = "bound", "plan"
SPENT = 0.95
"""Of that, by the static plan: played together its deployments draw other tails than alone."""
MINUTE_MS = 60_000.0
BEFORE_S = 600.0
"""Before what is played: who learns from what was asked for has seen so much of the day."""
RESERVE = 1.5
"""Of the workers at time 0, beside what is needed by a sum."""


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
    workers_max: float = 0.0
    rents: int = 0
    batch: float = 0.0
    decide_us: float = 0.0
    wall_s: float = 0.0
    told: str = ""
    workers: tuple[float, ...] = ()
    """By window; so are the next two."""
    usd_per_hour: tuple[float, ...] = ()
    missed: tuple[float, ...] = ()
    broken: tuple[str, ...] = ()


class Window:
    """Some minutes of the day, and those before them that do not count."""

    def __init__(self, day: Day, known: Portfolio, warm_s: float) -> None:
        self.day, self.portfolio, self.warm_ms = day, known, warm_s * MS_PER_S
        self.end_ms = (day.seconds - BEFORE_S) * MS_PER_S
        drawn = queries(day, known)
        for query in drawn:
            query.arrival_ms -= BEFORE_S * MS_PER_S
            query.deadline_ms -= BEFORE_S * MS_PER_S
        self.before = [query for query in drawn if query.arrival_ms < 0]
        self.queries = sorted_queries(query for query in drawn if query.arrival_ms >= 0)
        self.counted = [query for query in self.queries if query.arrival_ms >= self.warm_ms]
        self.bound = least_cost(fleet(), known, self.counted, missed=MISSED)

    @property
    def hours(self) -> float:
        """That count."""
        return (self.end_ms - self.warm_ms) / MS_PER_HOUR

    def needed(self) -> NDArray[np.float64]:
        """Workers of each class that the bound takes."""
        used = self.bound.group >= 0
        busy_ms = np.bincount(self.bound.group[used], self.bound.device_ms[used], len(MACHINES))
        return busy_ms / (self.end_ms - self.warm_ms)

    def begin(self) -> dict[str, int]:
        """Workers at time 0."""
        return {
            machine.name: ceil(RESERVE * needed)
            for machine, needed in zip(MACHINES, self.needed().tolist(), strict=True)
        }

    def plan_usd_per_hour(self) -> float:
        """Of the best fractional plan of each minute, in the mean."""
        choices = [
            Choice(p.variant, p.task, p.group, p.accuracy, p.sizes, p.p50_ms, p.p99_ms, p.memory_mb, p.load_ms)
            for p in self.portfolio.profiles
        ]
        groups = [sizing.Limits(m.name, m.memory_mb, m.price_per_hour, 0, WORKERS_MAX) for m in MACHINES]
        options = sizing.Options(utilisation_max=1.0, headroom=0.0, runs_per_latency=1.0)
        minutes: dict[int, Counter[tuple[str, float, float]]] = defaultdict(Counter)
        for query in self.counted:
            kind = query.task, query.latency_ms_max, query.accuracy_min or 0.0
            minutes[int((query.arrival_ms - self.warm_ms) // MINUTE_MS)][kind] += 1
        bounds = []
        for kinds in minutes.values():
            demands = [Demand(*kind, number / 60.0) for kind, number in kinds.items()]
            bounds.append(sizing.size(demands, choices, groups, options).bound_usd_per_hour)
        return float(np.mean(bounds))

    def scenario(self, groups: Sequence[GroupSpec], asked: Sequence[SimulatedQuery] | None = None) -> Scenario:
        return Scenario(groups, self.portfolio, self.queries if asked is None else asked, self.day.seed)

    def missed(self, done: Played) -> int:
        return sum(query.outcome != "in_time" for query in done.queries if query.arrival_ms >= self.warm_ms)

    def worker_ms(self, done: Played) -> dict[str, float]:
        """By class, what is billed within what counts."""
        found: dict[str, float] = defaultdict(float)
        spans = [(r.group, r.start_ms, max(r.end_ms, r.start_ms + BILL_S_MIN * MS_PER_S)) for r in done.rentals]
        spans += [(s.name, 0.0, self.end_ms) for s in done.scenario.fleet if not s.scales for _ in s.worker_names]
        for group, start_ms, end_ms in spans:
            found[group] += max(0.0, min(end_ms, self.end_ms) - max(start_ms, self.warm_ms))
        return found


class Plays:
    """One day's windows, played by anybody."""

    def __init__(self, windows: Sequence[Window]) -> None:
        self.windows = windows
        self.queries = [query for window in windows for query in window.counted]

    def bounds(self) -> list[Line]:
        prices = np.array([machine.price_per_hour for machine in MACHINES])
        needed = [window.needed() for window in self.windows]
        usd = tuple(float(prices @ each) for each in needed)
        workers = tuple(float(each.sum()) for each in needed)
        plan = tuple(window.plan_usd_per_hour() for window in self.windows)
        return [
            Line(BOUND, 24 * float(np.mean(usd)), 1.0 - MISSED, workers_mean=float(np.mean(workers)),
                 workers_max=max(workers), workers=workers, usd_per_hour=usd),
            Line(PLAN, 24 * float(np.mean(plan)), 1.0, usd_per_hour=plan),
        ]  # fmt: skip

    def line(self, plays: Sequence[Played], told: str = "", placements: Sequence[Placement | None] = ()) -> Line:
        """Of one play of each window."""
        prices = {machine.name: machine.price_per_hour for machine in MACHINES}
        counted = [
            query
            for window, done in zip(self.windows, plays, strict=True)
            for query in done.queries
            if query.arrival_ms >= window.warm_ms
        ]
        outcomes = Counter(query.outcome for query in counted)
        ran = sum(1 / query.batch for query in counted if query.batch)
        worker_ms = [window.worker_ms(done) for window, done in zip(self.windows, plays, strict=True)]
        hours = [window.hours for window in self.windows]
        usd = [
            sum(prices[group] * ms for group, ms in own.items()) / MS_PER_HOUR / length
            for own, length in zip(worker_ms, hours, strict=True)
        ]
        workers = [sum(own.values()) / MS_PER_HOUR / length for own, length in zip(worker_ms, hours, strict=True)]
        broken = []
        for number, done in enumerate(plays):
            with tempfile.TemporaryDirectory() as folder:
                broken += judged(done, placements[number] if placements else None, Path(folder))
        asked = sum(len(done.queries) for done in plays)
        return Line(
            plays[0].name,
            24 * float(np.mean(usd)),
            outcomes["in_time"] / len(counted),
            outcomes["late"] / len(counted),
            outcomes["refused"] / len(counted),
            outcomes["expired"] / len(counted),
            float(np.mean(workers)),
            max(workers),
            sum(len(done.rentals) for done in plays),
            sum(1 for query in counted if query.batch) / ran if ran else 0.0,
            sum(done.decide_us * len(done.queries) for done in plays) / asked,
            sum(done.wall_s for done in plays),
            told,
            tuple(workers),
            tuple(usd),
            tuple(w.missed(done) / len(w.counted) for w, done in zip(self.windows, plays, strict=True)),
            tuple(broken),
        )

    def one(self, make: Callable[[Window], Policy]) -> Line:
        return self.line([play(window.scenario(fleet(window.begin())), make(window)) for window in self.windows])

    # --- those that take more than one play -----------------------------------------------------------------------

    @cached_property
    def manifests(self) -> tuple[list[GroupSpec], list[Deployment], list[list[float]]]:
        """The classes that KEDA's deployments use, these deployments, and how many workers each keeps busy in the mean
        of each window; of a world in which nothing is played."""
        numbers = [Counter((q.task, q.latency_ms_max, q.accuracy_min) for q in w.counted) for w in self.windows]
        kinds = sorted_queries(SimulatedQuery(0, task, 0.0, ms, floor) for task, ms, floor in set().union(*numbers))
        known, best_usd = self.windows[0].portfolio, INF
        best: tuple[list[GroupSpec], list[Deployment], list[list[float]]] | None = None
        for size in range(1, len(MACHINES) + 1):
            for groups in combinations(fleet(), size):
                policy = Keda()
                policy.start(World(groups, known, kinds))
                lines = [(query, policy.route(query)) for query in kinds]
                if any(line is None for _, line in lines):
                    continue
                place = {id(each): number for number, each in enumerate(policy.deployments)}
                loads = [[0.0] * len(place) for _ in self.windows]
                for query, line in lines:
                    assert line is not None
                    for own, number, window in zip(loads, numbers, self.windows, strict=True):
                        rows = number[query.task, query.latency_ms_max, query.accuracy_min]
                        busy_ms = rows * line.profile.lat_ms(1)
                        own[place[id(policy.home(line))]] += busy_ms / (window.hours * MS_PER_HOUR)
                prices = {spec.name: spec.price_per_hour for spec in groups}
                mean = np.mean(loads, axis=0).tolist()
                usd = sum(
                    prices[each.group] * max(1, ceil(2 * load))
                    for each, load in zip(policy.deployments, mean, strict=True)
                )
                if usd < best_usd:
                    best_usd, best = usd, (list(groups), policy.deployments, loads)
        assert best is not None, "somebody can answer each"
        return best

    def keda(self, console: Console) -> Line:
        groups, own, loads = self.manifests
        best: Line | None = None
        for threshold in THRESHOLDS:
            plays = []
            for window, busy in zip(self.windows, loads, strict=True):
                first = [max(1, ceil(RESERVE * each)) for each in busy]
                begin: Counter[str] = Counter()
                for each, number in zip(own, first, strict=True):
                    begin[each.group] += number
                used = [spec for spec in fleet(dict(begin)) if spec.name in {each.name for each in groups}]
                plays.append(play(window.scenario(used), Keda(threshold, first=first), name="keda"))
            found = self.line(plays, f"lagThreshold {threshold:g} of {', '.join(f'{t:g}' for t in THRESHOLDS)}")
            console.print(
                f"keda, lagThreshold {threshold:g}: {found.usd:,.0f} USD, {found.in_time:.2%} in time", highlight=False
            )
            if best is None or _better(found, best):
                best = found
        assert best is not None
        return best

    def static(self, console: Console) -> Line:
        """The numbers that never change; see the module."""
        able, own, _ = self.manifests
        home = {line.profile.key: index for index, each in enumerate(own) for line in each.lines}
        parts: list[list[list[SimulatedQuery]]] = [[[] for _ in self.windows] for _ in own]
        for number, window in enumerate(self.windows):
            router = Keda()
            router.start(World(able, window.portfolio, window.queries))
            for query in window.queries:
                line = router.route(query)
                assert line is not None, "manifests are of what somebody can answer"
                parts[home[line.profile.key]][number].append(query)
        budget = int(SPENT * MISSED * len(self.queries))
        curves = [_Curve(self.windows, each, part) for each, part in zip(own, parts, strict=True)]
        numbers = [curve.least(MISSED) for curve in curves]
        left = budget - sum(curve.missed(number) for curve, number in zip(curves, numbers, strict=True))
        while True:  # take away what costs most for the queries that it loses
            gains = [
                (price / max(1, more), index, more)
                for index, (curve, number) in enumerate(zip(curves, numbers, strict=True))
                if number > 1
                for more in [curve.missed(number - 1) - curve.missed(number)]
                for price in [curve.price]
                if more <= left
            ]
            if not gains:
                break
            _, index, more = max(gains)
            numbers[index] -= 1
            left -= more
        workers: Counter[str] = Counter()
        for each, number in zip(own, numbers, strict=True):
            workers[each.group] += number
        console.print(f"static: {dict(workers)}", highlight=False)
        groups = fleet(dict(workers), scales=False)
        plays, placements = [], []
        for window in self.windows:
            scenario = window.scenario(groups)
            placements.append(_placed(scenario, Keda(first=numbers)))
            plays.append(play(scenario, Keda(first=numbers), name="static", placement=placements[-1]))
        return self.line(plays, ", ".join(f"{number} {group}" for group, number in workers.items()), placements)


def _placed(scenario: Scenario, policy: Keda) -> Placement:
    """What it loads at time 0."""
    policy.start(World(scenario.fleet, scenario.portfolio, scenario.queries))
    return {worker: [line.profile.variant for line in lines] for worker, lines in policy.on.items()}


class _Curve:
    """How many queries a deployment misses with each number of workers, played when asked."""

    def __init__(
        self, windows: Sequence[Window], deployment: Deployment, asked: Sequence[Sequence[SimulatedQuery]]
    ) -> None:
        self._windows = windows
        self._asked = [sorted_queries(query.again() for query in own) for own in asked]
        self._counted = sum(
            query.arrival_ms >= window.warm_ms
            for window, own in zip(windows, self._asked, strict=True)
            for query in own
        )
        self._known: dict[int, int] = {}
        self._portfolio = Portfolio(tuple(line.profile for line in deployment.lines))
        self._spec = next(spec for spec in fleet() if spec.name == deployment.group)
        self.price = self._spec.price_per_hour

    def missed(self, number: int) -> int:
        if number not in self._known:
            spec = GroupSpec(self._spec.name, number, self._spec.memory_mb, self._spec.price_per_hour)
            self._known[number] = 0
            for window, own in zip(self._windows, self._asked, strict=True):
                scenario = replace(window.scenario((spec,), own), portfolio=self._portfolio)
                done = play(scenario, Keda(), placement=_placed(scenario, Keda()))
                self._known[number] += window.missed(done)
        return self._known[number]

    def least(self, share: float) -> int:
        """The smallest number with no larger share of misses."""
        enough, high = share * self._counted, 1
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


# --- what comes out -----------------------------------------------------------------------------------------------


def show(console: Console, lines: Sequence[Line]) -> None:
    usd = {line.name: line.usd for line in lines}
    table = Table(box=None, pad_edge=False)
    for heading in ("policy", "USD a day", "× bound", "× plan", "× ours", "in time", "workers", "most", "rents",
                    "batch", "decide µs", "wall s"):  # fmt: skip
        table.add_column(heading, justify="left" if heading == "policy" else "right", no_wrap=True)
    for line in lines:
        ours = f"{line.usd / usd['ours']:.2f}" if "ours" in usd else ""
        rest = (f"{line.workers_mean:.1f}", f"{line.workers_max:.1f}") if line.workers else ("", "")
        played = (str(line.rents), f"{line.batch:.2f}", f"{line.decide_us:.0f}", f"{line.wall_s:.0f}")
        in_time = f"{line.in_time:.2%}"
        if line.in_time < 1 - MISSED:
            in_time = f"[red]{in_time}[/]"
        shown = ("",) * 4 if line.name in (BOUND, PLAN) else played
        table.add_row(
            line.name, f"{line.usd:,.1f}", f"{line.usd / usd[BOUND]:.2f}", f"{line.usd / usd[PLAN]:.2f}", ours, in_time,
            *rest, *shown,
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
        "at most 1.3 times the best fractional plan": ours.usd <= 1.3 * by_name[PLAN].usd,
    }
    for name in ("static", "infaas"):
        if name in by_name:
            told[f"at least 2 times cheaper than {name}"] = by_name[name].usd >= 2 * ours.usd
    return told


def draw(path: Path, lines: Sequence[Line], plays: Plays) -> None:
    """Load, workers and cost of each window."""
    from modelless.plot import require

    require(path)
    from matplotlib import pyplot

    hours = [window.day.hours[1] for window in plays.windows]
    load = [len(window.counted) / (window.hours * 3600) for window in plays.windows]
    figure, (top, workers, cost) = pyplot.subplots(3, 1, figsize=(11, 9), sharex=True, layout="constrained")
    top.plot(hours, load, color="0.4", marker="o")
    top.set_title("load, queries per second", loc="left", fontsize=10)
    for line in lines:
        style = {"color": "0.6", "linestyle": "--"} if line.name in (BOUND, PLAN) else {"marker": "o"}
        width = 2.4 if line.name == "ours" else 1.2
        if line.workers:
            workers.plot(hours, line.workers, linewidth=width, label=line.name, **style)
        told = f"{line.name}: {line.usd:,.0f} USD a day, {line.in_time:.1%} in time"
        cost.plot(hours, line.usd_per_hour, linewidth=width, label=told, **style)
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
    parser.add_argument("--windows", type=int, default=6, help="evenly over the day")
    parser.add_argument("--minutes", type=float, default=3.0, help="of each window")
    parser.add_argument("--warm", type=float, default=3.0, help="minutes before each that do not count")
    parser.add_argument("--rate", type=float, default=200.0, help="queries per second, the day's mean")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES), help="beside the bound")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/day.json"))
    parser.add_argument("--plot", type=Path, help="default: beside the JSON, if matplotlib is there")
    asked = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 160)
    known = portfolio(seed=asked.seed)
    began_s = time.perf_counter()
    ends = [(number + 0.5) * 24 / asked.windows + asked.minutes / 60 for number in range(asked.windows)]
    long_h = (asked.minutes + asked.warm) / 60 + BEFORE_S / 3600
    days = [Day(asked.rate, (end - long_h, end), seed=asked.seed) for end in ends]
    plays = Plays([Window(day, known, 60 * asked.warm) for day in days])
    console.print(
        f"{len(plays.queries):,} queries of {asked.windows} windows of {asked.minutes:g} minutes, after {asked.warm:g} "
        f"that do not count; starts of 30 and 60 s, bills of {BILL_S_MIN:g} s at least",
        highlight=False,
    )
    lines = plays.bounds()
    for name in asked.policies:
        match name:
            case "static":
                line = plays.static(console)
            case "keda":
                line = plays.keda(console)
            case "ours":
                line = plays.one(lambda window: Ours(before=window.before))
            case _:
                line = plays.one(lambda _: Infaas())
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
    console.print(
        f"{(len(lines) - 2) * asked.windows} plays judged by simulator.verifier; {time.perf_counter() - began_s:.0f} s"
    )
    asked.json.parent.mkdir(parents=True, exist_ok=True)
    asked.json.write_text(
        json.dumps(
            {
                "days": [asdict(day) for day in days],
                "queries": len(plays.queries),
                "lines": [asdict(line) for line in lines],
            },
            indent=1,
        )
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
