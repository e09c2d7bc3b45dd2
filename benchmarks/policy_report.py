"""What ``benchmarks.policies`` says of the plays: summaries, tables, plots. Pure but for the plots' files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table
from scipy.stats import t as students

from benchmarks.policy_grid import BOUND, OURS, STATIC, Cell, Column, Figures

ROOM_MIN = 0.01
"""Between the static placement and the bound; with less, the share of it says nothing."""
CONFIDENCE = 0.95
SHOWN_RIVALS = 3


class Row(NamedTuple):
    """One play."""

    cell: Cell
    seed: int
    policy: str
    figures: Figures


class Carried(NamedTuple):
    """The highest rate, as a multiple of the base, of which the policy answers 99 % in time."""

    cell: Cell
    seed: int
    policy: str
    load: float


class Interval(NamedTuple):
    mean: float
    half: float | None
    """Half of the 95 % interval (Student's t over seeds); None: one seed."""

    def text(self, scale: float = 1.0, digits: int = 2, sign: str = "") -> str:
        told = f"{self.mean * scale:{sign}.{digits}f}"
        return told if self.half is None else f"{told} ± {self.half * scale:.{digits}f}"


@dataclass(frozen=True)
class CellSummary:
    """Of one cell over all seeds. Goodness is in shares (0 to 1)."""

    cell: Cell
    ours: Interval
    static: Interval
    bound: Interval
    share: float | None
    """Of the way from static to the bound that ours goes; below 0 where it is worse; None: there is hardly a way."""
    best: str
    """The rival with the most goodness in this cell."""
    lead: Interval
    """Ours less the best rival, seed by seed."""
    figures: Mapping[str, Figures]
    """By policy, of the first seed, for what a mean would hide."""
    goodness: Mapping[str, Interval]
    in_time: Mapping[str, Interval]


def interval(values: Sequence[float]) -> Interval:
    if len(values) < 2:
        return Interval(values[0], None)
    half = float(students.ppf(0.5 + CONFIDENCE / 2, len(values) - 1)) * stdev(values) / sqrt(len(values))
    return Interval(mean(values), half)


def is_rival(policy: str) -> bool:
    return policy != BOUND and not policy.startswith(OURS)


def summaries(rows: Iterable[Row]) -> list[CellSummary]:
    """Of every cell in which ours, static-hindsight and the bound were played, in the order of the rows."""
    by_cell: dict[Cell, dict[str, dict[int, Figures]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        by_cell[row.cell][row.policy][row.seed] = row.figures
    found = []
    for cell, plays in by_cell.items():
        if not {OURS, STATIC, BOUND} <= plays.keys():
            continue
        goodness = {name: interval([each.goodness for each in seeds.values()]) for name, seeds in plays.items()}
        in_time = {name: interval([each.in_time for each in seeds.values()]) for name, seeds in plays.items()}
        best = max((name for name in plays if is_rival(name)), key=lambda name: goodness[name].mean)
        both = sorted(plays[OURS].keys() & plays[best].keys())
        lead = interval([plays[OURS][seed].goodness - plays[best][seed].goodness for seed in both])
        room = goodness[BOUND].mean - goodness[STATIC].mean
        share = (goodness[OURS].mean - goodness[STATIC].mean) / room if room >= ROOM_MIN else None
        first = {name: next(iter(seeds.values())) for name, seeds in plays.items()}
        found.append(
            CellSummary(
                cell, goodness[OURS], goodness[STATIC], goodness[BOUND], share, best, lead, first, goodness, in_time
            )
        )
    return found


def overall(cells: Sequence[CellSummary]) -> dict[str, Any]:
    """The figures that sum up a grid."""
    shares = [each.share for each in cells if each.share is not None]
    worst = min(cells, key=lambda each: each.lead.mean)
    gained = sum(each.ours.mean - each.static.mean for each in cells)
    room = sum(each.bound.mean - each.static.mean for each in cells)
    one = single_best(cells)
    return {
        "cells": len(cells),
        "share_mean": mean(shares) if shares else None,
        "share_pooled": gained / room if room > 0 else None,
        "share_worst": min(shares, default=None),
        "share_cells": len(shares),
        "lead_mean_points": 100 * mean(each.lead.mean for each in cells),
        "lead_worst_points": 100 * worst.lead.mean,
        "lead_worst_cell": label(worst.cell),
        "lead_worst_rival": worst.best,
        "cells_ahead": sum(each.lead.mean > 0 for each in cells),
        "single_best_rival": one,
        "lead_on_single_best_points": 100 * mean(each.ours.mean - each.goodness[one].mean for each in cells),
    }


def single_best(cells: Sequence[CellSummary]) -> str:
    """The rival with the most goodness over all cells; no rival is the best in each."""
    names = set.intersection(*(set(each.goodness) for each in cells))
    return max(filter(is_rival, names), key=lambda name: mean(each.goodness[name].mean for each in cells))


def brokers(cells: Sequence[CellSummary]) -> dict[str, dict[str, float]]:
    """What several brokers have more than one, by their number.

    Points of goodness, and per cent of one's goodput (answers in time), in the mean and in the worst cell.
    """
    found = {}
    for name in sorted({name for each in cells for name in each.goodness if name.startswith(f"{OURS} ")}):
        more = [100 * (each.goodness[name].mean - each.ours.mean) for each in cells if name in each.goodness]
        in_time = [each.in_time for each in cells if name in each.in_time]
        goodput = [100 * (each[name].mean / each[OURS].mean - 1) for each in in_time]
        found[name] = {
            "cells": len(more),
            "goodness_mean_points": mean(more),
            "goodness_worst_points": min(more),
            "goodput_mean_percent": mean(goodput),
            "goodput_worst_percent": min(goodput),
        }
    return found


def carried_by(found: Iterable[Carried]) -> list[dict[str, Any]]:
    """By column and arrivals: what ours carries, the best rival, their ratio, and everybody."""
    by_cell: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for each in found:
        by_cell[each.cell.column.label, each.cell.arrivals][each.policy].append(each.load)
    told = []
    for (column, arrivals), policies in by_cell.items():
        loads = {name: mean(values) for name, values in policies.items()}
        best = max(filter(is_rival, loads), key=lambda name: loads[name])
        ours = loads.get(OURS, 0.0)
        ratio = ours / loads[best] if loads[best] else None
        told.append(
            {"column": column, "arrivals": arrivals, "ours": ours, "best": best, "best_load": loads[best],
             "ratio": ratio, "loads": dict(sorted(loads.items(), key=lambda item: -item[1]))}
        )  # fmt: skip
    return told


def label(cell: Cell) -> str:
    return f"{cell.column.label}; {cell.arrivals} {cell.load:g}x"


# --- tables -------------------------------------------------------------------------------------------------------


def show(console: Console, cells: Sequence[CellSummary], carried: Sequence[Carried]) -> None:
    for column in dict.fromkeys(each.cell.column for each in cells):
        own = [each for each in cells if each.cell.column == column]
        console.print(_cell_table(column, own))
        console.print(_policy_table(own))
    if carried:
        console.print(_carried_table(carried))


def show_overall(console: Console, told: Mapping[str, Any]) -> None:
    way = f"{STATIC} is as good as the bound"
    if told["share_mean"] is not None:
        way = (
            f"ours goes {told['share_mean']:.0%} of the way from {STATIC} to the bound (mean of {told['share_cells']} "
            f"cells; {told['share_pooled']:.0%} of all that there is to gain; worst {told['share_worst']:.0%})"
        )
    console.print(
        f"[bold]goodness[/]: {way}; against the best rival of each cell {told['lead_mean_points']:+.2f} points "
        f"in the mean, {told['lead_worst_points']:+.2f} in the worst ({told['lead_worst_cell']}, against "
        f"{told['lead_worst_rival']}), ahead in {told['cells_ahead']} of {told['cells']}; against the best single "
        f"rival, {told['single_best_rival']}, {told['lead_on_single_best_points']:+.2f} in the mean",
        highlight=False,
    )


def show_brokers(console: Console, told: Mapping[str, Mapping[str, float]]) -> None:
    for name, points in told.items():
        console.print(
            f"[bold]{name.partition(' ')[2]} brokers[/] against 1: goodness {points['goodness_mean_points']:+.2f} "
            f"points in the mean of {points['cells']} cells, {points['goodness_worst_points']:+.2f} in the worst; "
            f"goodput {points['goodput_mean_percent']:+.1f} %, {points['goodput_worst_percent']:+.1f} % in the worst",
            highlight=False,
        )


def show_worst(console: Console, cells: Sequence[CellSummary], number: int = 3) -> None:
    """What ours and the best rival did where ours is furthest behind: what they used, how busy, batches and waits."""
    for each in sorted(cells, key=lambda each: each.lead.mean)[:number]:
        if each.lead.mean >= 0:
            break
        table = Table(
            title=f"where ours is behind: {label(each.cell)} (first seed)", box=box.SIMPLE, title_justify="left"
        )
        for name in ("policy", "in time", "accuracy", "batch", "wait ms", "loads", "busy", "answered in time by"):
            table.add_column(name, no_wrap=name != "answered in time by")
        for name in (OURS, each.best, STATIC) if each.best != STATIC else (OURS, STATIC):
            told = each.figures[name]
            busy = " ".join(f"{share:.2f}" for share in (told.busy or {}).values())
            used = ", ".join(f"{key} {share:.1%}" for key, share in (told.used or {}).items() if share >= 0.005)
            table.add_row(name, f"{told.in_time:.2%}", f"{told.accuracy:.4f}", f"{told.batch:.1f}",
                          f"{told.wait_ms:.0f}", str(told.loads), busy, used)  # fmt: skip
        console.print(table)


def _cell_table(column: Column, cells: Sequence[CellSummary]) -> Table:
    measure = "goodness (accuracy of in-time answers by queries)" if column.kind == "scaled" else "share in time"
    table = Table(title=f"{column.label}: {measure}, %", box=box.SIMPLE, title_justify="left", pad_edge=False)
    table.add_column("arrivals", no_wrap=True)
    for name in ("load", "ours", "in time", STATIC, "bound", "of the way", "best rival", "its goodness", "ours ahead"):
        table.add_column(name, justify="left" if name == "best rival" else "right", no_wrap=True)
    for each in cells:
        table.add_row(
            each.cell.arrivals,
            f"{each.cell.load:g}x",
            each.ours.text(100),
            f"{100 * each.in_time[OURS].mean:.1f}",
            f"{100 * each.static.mean:.2f}",
            f"{100 * each.bound.mean:.2f}",
            "" if each.share is None else f"{each.share:.0%}",
            each.best,
            f"{100 * each.goodness[each.best].mean:.2f}",
            each.lead.text(100, sign="+"),
            style="red" if each.lead.mean < 0 else None,
        )
    return table


def _policy_table(cells: Sequence[CellSummary]) -> Table:
    """Everybody, in the mean over the column's cells."""
    names = sorted(set.intersection(*(set(each.goodness) for each in cells)),
                   key=lambda name: -mean(each.goodness[name].mean for each in cells))  # fmt: skip
    table = Table(title="everybody, mean of these cells", box=box.SIMPLE, title_justify="left", pad_edge=False)
    table.add_column("policy", no_wrap=True)
    for name in ("goodness", "in time", "accuracy", "worst task", "$ per 1M", "batch", "wait ms", "loads", "decide µs"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in names:
        own = [each.figures[name] for each in cells]
        row = [f"{100 * mean(each.goodness[name].mean for each in cells):.2f}",
               f"{100 * mean(each.in_time[name].mean for each in cells):.2f}"]  # fmt: skip
        if name != BOUND:
            usd = sum(1e3 * f.usd_per_1000 * f.queries * f.in_time for f in own)
            row += [
                f"{mean(f.accuracy for f in own):.4f}",
                f"{100 * mean(f.worst_task for f in own):.2f}",
                f"{usd / max(1.0, sum(f.queries * f.in_time for f in own)):.2f}",
                f"{mean(f.batch for f in own):.1f}",
                f"{mean(f.wait_ms for f in own):.0f}",
                f"{mean(f.loads for f in own):.0f}",
                f"{mean(f.decide_us for f in own):.0f}",
            ]
        table.add_row(name, *row, style="bold" if name == OURS else "dim" if name == BOUND else None)
    return table


def _carried_table(carried: Sequence[Carried]) -> Table:
    table = Table(title="load at which 99 % are in time", box=box.SIMPLE, title_justify="left", pad_edge=False)
    for name in ("column", "arrivals", "ours", "best rival", "its load", "ours / it", "next"):
        table.add_column(name, no_wrap=True)
    for each in carried_by(carried):
        others = [f"{name} {load:.2f}" for name, load in each["loads"].items() if is_rival(name)][1 : SHOWN_RIVALS + 1]
        table.add_row(each["column"], each["arrivals"], f"{each['ours']:.2f}x", each["best"],
                      f"{each['best_load']:.2f}x", "" if each["ratio"] is None else f"{each['ratio']:.2f}",
                      ", ".join(others))  # fmt: skip
    return table


# --- plots --------------------------------------------------------------------------------------------------------


def draw(path: Path, cells: Sequence[CellSummary], value: str) -> None:
    """``value``, ``goodness`` or ``in_time``, over load: a panel for each column and arrivals with several loads."""
    from matplotlib import pyplot

    panels: dict[tuple[Column, str], list[CellSummary]] = defaultdict(list)
    for each in cells:
        panels[each.cell.column, each.cell.arrivals].append(each)
    panels = {key: sorted(own, key=lambda each: each.cell.load) for key, own in panels.items() if len(own) > 1}
    if not panels:
        return
    columns = list(dict.fromkeys(column for column, _ in panels))
    arrivals = list(dict.fromkeys(name for _, name in panels))
    figure, grid = pyplot.subplots(
        len(columns), len(arrivals), figsize=(4.2 * len(arrivals), 3.4 * len(columns)), squeeze=False,
        sharey="row", layout="constrained",
    )  # fmt: skip
    shown = _shown(cells)
    for (column, name), own in panels.items():
        axes = grid[columns.index(column)][arrivals.index(name)]
        loads = [each.cell.load for each in own]
        for number, policy in enumerate(shown):
            found = [getattr(each, value).get(policy) for each in own]
            if None in found:
                continue
            middles, halves = [each.mean for each in found], [each.half or 0.0 for each in found]
            colour = (
                "C3" if policy == OURS else "black" if policy == BOUND else f"C{(0, 1, 2, 4, 5, 6, 8, 9)[number % 8]}"
            )
            style = "--" if policy == BOUND else "-"
            axes.errorbar(loads, middles, halves, fmt=style, color=colour, capsize=2, label=policy,
                          linewidth=2.4 if policy == OURS else 1.2)  # fmt: skip
        axes.set_xscale("log")
        axes.set_xticks(loads, [f"{load:g}" for load in loads], minor=False)
        axes.minorticks_off()
        axes.set_title(f"{column.label}\n{name}", fontsize=9, loc="left")
        axes.grid(visible=True, color="0.93")
    for axes in grid[-1]:
        axes.set_xlabel("load, x what a static placement carries")
    grid[0][0].legend(fontsize=7, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _shown(cells: Sequence[CellSummary]) -> list[str]:
    """Ours, the bound, static-hindsight, and the rivals that are best most often or in the mean."""
    names = set.intersection(*(set(each.goodness) for each in cells))
    ranked = sorted(filter(is_rival, names), key=lambda name: -mean(each.goodness[name].mean for each in cells))
    ahead = [each.best for each in cells]
    rivals = list(dict.fromkeys([STATIC, *ranked[:4], *sorted(set(ahead), key=lambda name: -ahead.count(name))]))
    return [OURS, BOUND, *[name for name in rivals if name in names][:7]]
