"""Our policy beside those of other systems and beside what nobody can beat, over a grid of loads and arrivals.

    python -m benchmarks.policies [--quick] [--jobs 2] [--trace NAME=FILE ...] [--timm DIR] [--json FILE]

In virtual time (``modelless simulate``): a fleet of CPUs and two classes of GPU, load from 0.5 to 5 times what the best
static placement carries of Poisson arrivals, arrivals that are Poisson, Gamma (shape 0.05), in bursts
(Markov-modulated), and as in the traces given; one and several tasks, several brokers, a fifth of the workers lost in
the middle. Every policy of ``simulator.rivals`` plays the same arrivals. See ``benchmarks/policy_grid.py`` for variants
and queries. All begin with nothing loaded but ``static-hindsight``, so that the queries of a warm-up do not count.

Told are *goodness* (the accuracies of all answers in time, by queries asked) and the share of the way from
``static-hindsight`` to the bound (``simulator.bound``) that ours goes; the highest load at which 99 % are in time, ours
and the best rival's; several brokers against one. Intervals are 95 %, Student's t over seeds.

``--timm DIR`` takes variants from measured image models (accuracy, one CPU, two GPUs; pytorch-image-models' results)
instead of synthetic ones; of GPUs only one large batch was measured, so that the part of a batch's time that does not
depend on its size is assumed, 1, 3 and 6 ms. A trace (column ``TIMESTAMP`` or ``arrival_ms``, or ``timestamp,value``
for counts) gives only the pattern of arrivals: it is stretched to each load, which is a substitution of its workload.

One play of each policy in each column is judged by ``simulator.verifier``, which shares no code with the simulator.
Exit status 1 if that finds anything, or a policy does what no device can do.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.policy_grid import (
    BOUND,
    OURS,
    STATIC,
    Cell,
    Column,
    Family,
    Figures,
    Setting,
    Times_s,
    bound_figures,
    carried,
    figures,
    first_guess,
    play_cell,
    synthetic,
)
from benchmarks.policy_judge import judged
from benchmarks.policy_report import (
    Carried,
    Row,
    brokers,
    carried_by,
    draw,
    label,
    overall,
    show,
    show_brokers,
    show_overall,
    show_worst,
    summaries,
)
from benchmarks.policy_timm import timm
from simulator.rivals import RIVALS

DRAWN = ("poisson", "gamma", "bursts")
LOADS = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0)
LOADS_FEW = (0.5, 1.0, 2.0)
BROKERS = (2, 4, 8)
INTERCEPTS_MS = (1.0, 3.0, 6.0)
TASKS = 3
BASE_SEEDS = 3
EVERYBODY = (OURS, *RIVALS, BOUND)


@dataclass(frozen=True)
class Size:
    """How much is played."""

    seconds: Times_s
    seeds: int
    loads: Sequence[float]
    loads_few: Sequence[float]
    """Of the columns beside the main ones, and of several brokers."""
    arrivals_few: int | None
    """Those columns, and searches, have only the first so many arrivals; None: all."""
    tasks: Sequence[int]
    brokers: Sequence[int]
    base_seeds: int
    ratio: float
    """Loads of 99 % are found to within this."""
    carried_tasks: Sequence[int]
    carried_seeds: int


FULL = Size(Times_s(20.0, 60.0), 5, LOADS, LOADS_FEW, None, (1, TASKS), BROKERS, BASE_SEEDS, 1.03, (1, TASKS), 3)
QUICK = Size(Times_s(6.0, 12.0), 2, (0.5, 1.0, 5.0), (1.0,), 1, (TASKS,), (8,), 1, 1.1, (TASKS,), 1)


class Job(NamedTuple):
    """One play, or one search for the highest rate."""

    what: str
    """``play``, ``judge`` (a play that is also verified), ``carried``."""
    cell: Cell
    seed: int
    policy: str
    rate: float
    """Of a search: where it begins."""
    ratio: float = 1.0


class Done(NamedTuple):
    job: Job
    figures: Figures | None = None
    rate: float = 0.0
    broken: tuple[str, ...] = ()
    """What the verifier says, or why it did not play."""


_setting: Setting | None = None


def _begin(setting: Setting) -> None:
    """In each process of the pool."""
    global _setting
    _setting = setting


def _work(job: Job) -> Done:
    assert _setting is not None
    setting, cell = _setting, job.cell
    try:
        if job.what == "carried":
            return Done(job, rate=carried(setting, cell, job.seed, job.policy, job.rate, job.ratio))
        if job.policy == BOUND:
            return Done(job, bound_figures(setting, cell, job.rate, job.seed))
        played, placement = play_cell(setting, cell, job.rate, job.seed, job.policy)
        broken: Sequence[str] = ()
        if job.what == "judge":
            with tempfile.TemporaryDirectory() as folder:
                broken = judged(played, placement, Path(folder))
        return Done(job, figures(played, cell.column.kind, setting.seconds), broken=tuple(broken))
    except Exception as error:  # a policy that fails is a result, told at the end
        return Done(job, broken=(f"{type(error).__name__}: {error}", traceback.format_exc(limit=-3)))


def carry_out(setting: Setting, jobs: Sequence[Job], processes: int, console: Console, title: str) -> list[Done]:
    """In the order of the jobs. The longest are begun first."""
    done: dict[Job, Done] = {}
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console,
        transient=True, disable=not console.is_terminal,
    ) as progress:  # fmt: skip
        line = progress.add_task(title, total=len(jobs))

        def told(each: Done) -> None:
            done[each.job] = each
            progress.update(line, advance=1, description=f"{title}: {each.job.policy}")

        ordered = sorted(jobs, key=lambda job: -job.rate * (job.policy.startswith(OURS) * 10 + 1))
        if processes <= 1:
            _begin(setting)
            for job in ordered:
                told(_work(job))
        else:
            with ProcessPoolExecutor(processes, initializer=_begin, initargs=(setting,)) as pool:
                futures: list[Future[Done]] = [pool.submit(_work, job) for job in ordered]
                for future in as_completed(futures):
                    told(future.result())
    return [done[job] for job in jobs]


# --- what is played -----------------------------------------------------------------------------------------------


def bases(
    setting: Setting, columns: Iterable[Column], size: Size, play: Callable[[list[Job], str], list[Done]]
) -> dict[Column, float]:
    """By column: queries per second of Poisson arrivals that the best static placement carries; losses apart."""
    wanted = list(dict.fromkeys(column._replace(lost=False) for column in columns))
    jobs = [
        Job("carried", Cell(column, "poisson", 1.0), seed, STATIC,
            first_guess(setting.family_by_name[column.family].of(column.tasks)), size.ratio)
        for column in wanted for seed in range(size.base_seeds)
    ]  # fmt: skip
    found: dict[Column, list[float]] = {column: [] for column in wanted}
    for each in play(jobs, "what a static placement carries"):
        if each.broken or not each.rate:
            raise SystemExit(
                f"no base of {each.job.cell.column.label}: {' '.join(each.broken) or 'it carries nothing'}"
            )
        found[each.job.cell.column].append(each.rate)
    return {column: median(rates) for column, rates in found.items()}


def cells_of(families: Iterable[str], arrivals: Sequence[str], size: Size) -> list[Cell]:
    cells = []
    for family in families:
        main = [Column(tasks, "scaled", False, family) for tasks in size.tasks]
        few = [Column(max(size.tasks), "floors", False, family), Column(max(size.tasks), "scaled", True, family)]
        few += [Column(1, "scaled", False, family)] if 1 not in size.tasks else []
        cells += [Cell(column, name, load) for column in main for name in arrivals for load in size.loads]
        cells += [
            Cell(column, name, load)
            for column in few
            for name in arrivals[: size.arrivals_few]
            for load in size.loads_few
        ]
    return cells


def jobs_of(cells: Sequence[Cell], base: Mapping[Column, float], policies: Sequence[str], size: Size) -> list[Job]:
    """Everybody in each cell; ours with several brokers in the largest main column; of each a play is judged."""
    jobs, seen = [], set()
    for cell in cells:
        rate = cell.load * base[cell.column._replace(lost=False)]
        names = list(policies)
        is_main = cell.column.tasks == max(size.tasks) and cell.column.kind == "scaled" and not cell.column.lost
        if is_main and cell.load in size.loads_few and OURS in policies:
            names += [f"{OURS} {number}" for number in size.brokers]
        for name in names:
            for seed in range(size.seeds):
                is_first = (cell.column, name) not in seen and name != BOUND
                seen.add((cell.column, name))
                jobs.append(Job("judge" if is_first else "play", cell, seed, name, rate))
    return jobs


def searches_of(
    families: Iterable[str], arrivals: Sequence[str], base: Mapping[Column, float], policies: Sequence[str], size: Size
) -> list[Job]:
    """For the highest load at which 99 % are in time."""
    return [
        Job("carried", Cell(column, name, 0.0), seed, policy, base[column] * 2, size.ratio)
        for family in families
        for column in (Column(tasks, "scaled", False, family) for tasks in size.carried_tasks)
        for name in arrivals[: size.arrivals_few]
        for policy in policies
        if policy != BOUND
        for seed in range(size.carried_seeds)
    ]


# --- the command --------------------------------------------------------------------------------------------------


def main() -> int:
    asked = _asked()
    console = Console(width=None if sys.stdout.isatty() else 200)
    size = _size(asked)
    traces = dict(text.split("=", 1) for text in asked.trace)
    families: list[Family] = [synthetic(TASKS)]
    if asked.timm is not None:
        families = [timm(asked.timm, TASKS, intercept_ms) for intercept_ms in asked.intercepts]
    policies = [name for name in EVERYBODY if not asked.policies or name in (*asked.policies, OURS, STATIC, BOUND)]
    setting = Setting({family.name: family for family in families}, traces, size.seconds)
    arrivals = [name for name in (*DRAWN, *traces) if not asked.arrivals or name in asked.arrivals]
    cells = cells_of(setting.family_by_name, arrivals, size)
    began_s = time.perf_counter()

    def play(jobs: list[Job], title: str) -> list[Done]:
        return carry_out(setting, jobs, asked.jobs, console, title)

    base = bases(setting, [cell.column for cell in cells], size, play)
    searches = searches_of(setting.family_by_name, arrivals, base, policies, size) if not asked.no_search else []
    done = play([*jobs_of(cells, base, policies, size), *searches], "playing")
    rows = [Row(d.job.cell, d.job.seed, d.job.policy, d.figures) for d in done if d.figures is not None]
    found = [Carried(d.job.cell, d.job.seed, d.job.policy, d.rate / base[d.job.cell.column])
             for d in done if d.job.what == "carried" and not d.broken]  # fmt: skip
    told = summaries(rows)
    show(console, told, found)
    totals = {}
    for kind in ("scaled", "floors"):
        own = [each for each in told if each.cell.column.kind == kind]
        if own:
            totals[kind] = overall(own)
            console.print(f"[bold]{kind}[/]: ", end="")
            show_overall(console, totals[kind])
    several = brokers(told)
    show_brokers(console, several)
    show_worst(console, told)
    if asked.timm is not None:
        console.print(
            "the part of a GPU's batch time that does not depend on its size is assumed: "
            f"{', '.join(f'{each:g}' for each in asked.intercepts)} ms; only one large batch was measured"
        )
    if traces:
        console.print(f"{', '.join(traces)}: only the pattern of arrivals, stretched to each load")
    judged_number = sum(d.job.what == "judge" and d.figures is not None for d in done)
    broken = [(d.job, d.broken) for d in done if d.broken]
    console.print(
        f"base: {', '.join(f'{rate:.0f}/s ({column.label})' for column, rate in base.items())}; {len(done)} jobs, "
        f"{size.seeds} seeds, {size.seconds.counted:g} s after {size.seconds.warm:g} s of warm-up each; "
        f"{judged_number} plays judged by simulator.verifier; {time.perf_counter() - began_s:.0f} s",
        highlight=False,
    )
    for job, lines in broken:
        console.print(
            f"[red]broken[/]: {label(job.cell)}, seed {job.seed}, {job.policy} ({job.what}):", highlight=False
        )
        for line in lines:
            console.print(f"    {line}", highlight=False, markup=False)
    _write(asked.json, asked, size, base, rows, totals, several, found, broken)
    for value in ("goodness", "in_time"):
        draw(asked.json.with_name(f"{asked.json.stem}-{value}.png"), told, value)
    return 1 if broken else 0


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few minutes on one core: fewer cells, 2 seeds")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--seeds", type=int, help="instead of the size's own")
    parser.add_argument("--loads", type=float, nargs="+", help="of the main columns")
    parser.add_argument("--seconds", type=float, nargs=2, metavar=("WARM", "COUNTED"), help="virtual, of each play")
    parser.add_argument("--arrivals", nargs="+", help="only these")
    parser.add_argument("--policies", nargs="+", choices=list(RIVALS), help=f"only these beside {OURS} and {STATIC}")
    parser.add_argument("--no-search", action="store_true", help="without the loads at which 99 %% are in time")
    parser.add_argument(
        "--trace", action="append", default=[], metavar="NAME=FILE", help="recorded arrivals; repeatable"
    )
    parser.add_argument("--timm", type=Path, metavar="DIR", help="variants from pytorch-image-models' measurements")
    parser.add_argument("--intercepts", type=float, nargs="+", default=list(INTERCEPTS_MS), help="of --timm, ms")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/policies.json"))
    asked = parser.parse_args()
    for text in asked.trace:
        name, _, path = text.partition("=")
        if not name or name in DRAWN or not Path(path).is_file():
            parser.error(
                f"--trace {text!r}: expected NAME=FILE, another name than {', '.join(DRAWN)}, a file that exists"
            )
    return asked


def _size(asked: argparse.Namespace) -> Size:
    size = QUICK if asked.quick else FULL
    if asked.seeds:
        size = replace(size, seeds=asked.seeds)
    if asked.loads:
        size = replace(size, loads=tuple(asked.loads))
    if asked.seconds:
        size = replace(size, seconds=Times_s(*asked.seconds))
    return size


def _write(
    path: Path,
    asked: argparse.Namespace,
    size: Size,
    base: Mapping[Column, float],
    rows: Sequence[Row],
    totals: Mapping[str, Any],
    several: Mapping[str, Any],
    found: Sequence[Carried],
    broken: Sequence[tuple[Job, Sequence[str]]],
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = {"platform": platform.platform(), "python": platform.python_version(), "cores": os.cpu_count()}
    told = {
        "machine": machine,
        "options": {name: value for name, value in vars(asked).items() if name not in ("json", "trace", "timm")},
        "seconds": size.seconds._asdict(),
        "base_per_s": {column.label: rate for column, rate in base.items()},
        "overall": totals,
        "brokers": several,
        "carried": carried_by(found) if found else [],
        "broken": [
            {"cell": label(job.cell), "seed": job.seed, "policy": job.policy, "why": list(why)} for job, why in broken
        ],
        "rows": [
            {"column": row.cell.column.label, "arrivals": row.cell.arrivals, "load": row.cell.load, "seed": row.seed,
             "policy": row.policy, **row.figures.plain()}
            for row in rows
        ],
    }  # fmt: skip
    path.write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    sys.exit(main())
