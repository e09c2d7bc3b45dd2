"""One run of ``modelless simulate``: reads what goes in, plays the policies, tells and writes what came out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf, nan
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.progress import Progress, TaskID
from rich.table import Table

from modelless.errors import ConfigurationError
from modelless.plot import require
from simulator.arrivals import generate
from simulator.facts import Placement, sorted_queries
from simulator.faults import parse_fault, parse_wrong_profiles
from simulator.files import (
    nearest,
    read_arrivals,
    read_fleet,
    read_placement,
    read_profiles,
    write_arrivals,
    write_placement,
)
from simulator.ours import Ours
from simulator.picture import draw
from simulator.report import Report, beside, report, write_json, write_loads, write_log, write_rentals
from simulator.rivals import RIVALS
from simulator.scenario import Played, Scenario, play
from simulator.world import Policy

if TYPE_CHECKING:
    from rich.console import Console

OURS = "ours"
ALL = "all"


@dataclass(frozen=True, kw_only=True)
class Options:
    """As given on the command line, where each is explained."""

    profiles: Path
    fleet: Path
    arrivals: Path | None = None
    generate: Sequence[str] = ()
    policies: Sequence[str] = (OURS,)
    placements: Sequence[str] = ()
    brokers: int = 1
    topic_weights: Sequence[str] = ()
    seed: int = 0
    faults: Sequence[str] = ()
    wrong_profiles: Sequence[str] = ()
    timer_late_ms: float = 0.0
    intake_ms: float = 0.0
    reply_ms: float = 0.0
    json: Path | None = None
    log: Path | None = None
    plot: Path | None = None
    save_arrivals: Path | None = None


def run(options: Options, console: Console) -> list[Report]:
    """A report per policy, in the order asked for.

    Raises:
        ConfigurationError: a file or an option is wrong.
        PolicyError: a policy did what no device can do.
    """
    if options.plot is not None:
        require(options.plot)
    deciders = _policies(options.policies, options.brokers, _weights(options.topic_weights))
    scenario = _scenario(options)
    placements = _placements(options.placements, list(deciders), scenario)
    if options.save_arrivals is not None:
        write_arrivals(options.save_arrivals, scenario.queries)
    reports = list(_play_all(deciders, scenario, placements, options.log, console))
    _tell(console, reports, scenario)
    if options.json is not None:
        write_json(options.json, reports)
    if options.plot is not None:
        draw(options.plot, reports)
    return reports


# --- what goes in -------------------------------------------------------------------------------------------------


def _weights(texts: Sequence[str]) -> dict[str, float]:
    """From ``TOPIC=WEIGHT``."""
    found = {}
    for text in texts:
        topic, _, weight = text.rpartition("=")
        try:
            found[topic] = float(weight)
        except ValueError:
            found[topic] = nan
        if not topic or not 0.0 < found[topic] < inf:
            raise ConfigurationError(f"--topic-weight {text!r}: expected TOPIC=WEIGHT, a number above 0")
    return found


def _policies(names: Sequence[str], brokers: int, weights: Mapping[str, float]) -> dict[str, Callable[[], Policy]]:
    """By name, in the order asked for."""
    known = _known(brokers, weights)
    if ALL in names:
        return known
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigurationError(f"--policy: there is no {unknown[0]!r}; known: {nearest(unknown[0], known)}")
    return {name: known[name] for name in names}


def _known(brokers: int, weights: Mapping[str, float]) -> dict[str, Callable[[], Policy]]:
    return {OURS: partial(Ours, brokers=brokers, topic_weights=weights), **RIVALS}


def _scenario(options: Options) -> Scenario:
    if options.arrivals is None and not options.generate:
        raise ConfigurationError("no queries: give --arrivals CSV, --generate PROCESS:..., or both")
    portfolio, fleet = read_profiles(options.profiles), read_fleet(options.fleet)
    faults = [parse_fault(text, fleet) for text in options.faults]
    truth = parse_wrong_profiles(options.wrong_profiles, portfolio)
    queries = [] if options.arrivals is None else read_arrivals(options.arrivals)
    if options.generate:
        queries = sorted_queries([*queries, *generate(options.generate, options.seed)])
    return Scenario(
        fleet,
        portfolio,
        queries,
        options.seed,
        faults,
        truth,
        intake_ms=options.intake_ms,
        reply_ms=options.reply_ms,
        timer_late_ms=options.timer_late_ms,
    )


def _placements(texts: Sequence[str], names: Sequence[str], scenario: Scenario) -> dict[str, Placement | None]:
    """By policy; None: what the policy itself works out."""
    found: dict[str, Placement | None] = {}
    for text in texts:
        name, _, path = text.partition("=")
        if name not in names:
            raise ConfigurationError(
                f"--placement {text!r}: expected POLICY=FILE.csv, or POLICY; who plays: {nearest(name, names)}"
            )
        found[name] = read_placement(Path(path), scenario.fleet, scenario.portfolio) if path else None
    return found


def _own_placement(name: str, policy: Policy, scenario: Scenario) -> Placement:
    """What it says that it wants for these arrivals, all of them known."""
    work_out = getattr(policy, "placement_for", None)
    if work_out is None:
        raise ConfigurationError(f"--placement {name}: it has none of its own; give {name}=FILE.csv")
    placement: Placement = work_out(scenario.fleet, scenario.portfolio, scenario.queries, scenario.seed)
    return placement


# --- playing ------------------------------------------------------------------------------------------------------


def _play_all(
    deciders: Mapping[str, Callable[[], Policy]],
    scenario: Scenario,
    placements: Mapping[str, Placement | None],
    log: Path | None,
    console: Console,
) -> Iterator[Report]:
    """One after another; of each only its report is kept."""
    total = len(scenario.queries)

    def told(line: TaskID) -> Callable[[int], None]:
        return lambda done: progress.update(line, completed=done)

    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        for name, make in deciders.items():
            line = progress.add_task(name, total=total)
            policy, placement = make(), placements.get(name)
            if name in placements and placement is None:
                placement = _own_placement(name, policy, scenario)
            played = play(scenario, policy, name=name, placement=placement, on_progress=told(line))
            progress.update(line, completed=total)
            if log is not None:
                own = log if len(deciders) == 1 else log.with_name(f"{log.stem}.{name}{log.suffix}")
                _write_log(own, played, placement)
            yield report(played)


def _write_log(path: Path, played: Played, placement: Placement | None) -> None:
    write_log(path, played.queries)
    write_loads(beside(path, "loads"), played.loads)
    if any(spec.scales for spec in played.scenario.fleet):
        write_rentals(beside(path, "workers"), played.rentals)
    if placement is not None:
        write_placement(beside(path, "placement"), placement)


# --- what comes out -----------------------------------------------------------------------------------------------


def _tell(console: Console, reports: Sequence[Report], scenario: Scenario) -> None:
    console.print(_table(reports))
    if reports[0].topics:
        console.print(_topic_table(reports))
    tasks, workers = len(reports[0].tasks), sum(spec.workers for spec in scenario.fleet)
    most = sum(spec.workers_max or spec.workers for spec in scenario.fleet)
    scaling = f" at first, {most} at most" if most > workers else ""
    last_s = scenario.queries[-1].arrival_ms / 1000
    wall_s = sum(each.wall_s for each in reports)
    console.print(
        f"{len(scenario.queries):,} queries of {tasks} {'task' if tasks == 1 else 'tasks'} in {last_s:,.1f} s on "
        f"{workers} {'worker' if workers == 1 else 'workers'}{scaling}; seed {scenario.seed}; "
        f"played in {wall_s:,.1f} s, {len(reports) * len(scenario.queries) / wall_s:,.0f} queries/s",
        highlight=False,
    )
    unknown = sorted(set(reports[0].tasks) - set(scenario.portfolio.by_task))
    if unknown:
        console.print(f"no profile of {', '.join(unknown[:8])}: nobody can answer these", style="yellow")


def _table(reports: Sequence[Report]) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("policy", no_wrap=True)
    for heading in (
        "in time", "late", "refused", "expired", "goodness", "worst task", "p50 ms", "p99 ms", "batch", "ran $",
        "fleet $", "decide µs",
    ):  # fmt: skip
        table.add_column(heading, justify="right", no_wrap=True)
    scales = any(each.crew is not None for each in reports)
    for heading in ("workers", "most", "rents") if scales else ():
        table.add_column(heading, justify="right", no_wrap=True)
    best = max(each.total.goodness for each in reports)
    for each in reports:
        figures = each.total
        shares = (f"{share:.2%}" for share in (figures.in_time, figures.late, figures.refused, figures.expired))
        table.add_row(
            each.name,
            *shares,
            f"{figures.goodness:.4f}",
            f"{figures.worst_task_goodness:.4f}",
            *(_cell(value) for value in (figures.p50_ms, figures.p99_ms, figures.mean_batch_size)),
            f"{figures.attributed_cost_usd:.6f}",
            f"{figures.fleet_cost_usd:.6f}",
            f"{figures.decide_us:.1f}",
            *((f"{each.crew.mean:.1f}", str(each.crew.most), str(each.crew.rents)) if each.crew is not None else ()),
            style="bold" if len(reports) > 1 and figures.goodness == best else None,
        )
    return table


def _topic_table(reports: Sequence[Report]) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("policy", no_wrap=True)
    table.add_column("topic", no_wrap=True)
    for heading in ("queries", "in time", "late", "refused", "expired", "goodness", "ran $", "of it"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in reports:
        spent_usd = sum(figures.attributed_cost_usd for figures in each.topics.values()) or 1.0
        for topic, of in each.topics.items():
            shares = (f"{share:.2%}" for share in (of.in_time, of.late, of.refused, of.expired))
            cost_usd = of.attributed_cost_usd
            numbers = (f"{of.goodness:.4f}", f"{cost_usd:.6f}", f"{cost_usd / spent_usd:.1%}")
            table.add_row(each.name, topic, f"{of.queries:,}", *shares, *numbers)
    return table


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}"
