"""A picture of what policies made of the same arrivals: load, share in time and goodness over time, and in all.

Needs matplotlib, of the extra ``demo``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from modelless.plot import require
from simulator.report import Report, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Style = Literal["-", "--", ":"]


class Look(NamedTuple):
    """Of a policy's line."""

    colour: str
    style: Style
    width: float


OURS = "ours"
INCHES = (13.0, 8.2)
DPI = 130
COLOURS = ("C0", "C1", "C2", "C4", "C5", "C6", "C8", "C9", "C7")
"""Ours is C3, and bold."""
STYLES: tuple[Style, ...] = ("-", "--", ":")


def draw(path: Path, reports: Sequence[Report]) -> Path:
    """The file's suffix says how.

    Raises:
        ConfigurationError: another suffix, or matplotlib is not installed.
    """
    require(path)
    from matplotlib import pyplot

    looks = _looks(reports)
    figure, grid = pyplot.subplots(
        3, 2, figsize=INCHES, dpi=DPI, width_ratios=(3.2, 1), height_ratios=(0.7, 1, 1), layout="constrained"
    )
    load, in_time, goodness = grid[:, 0]
    _load(load, reports[0].series)
    for axes, field, title in (
        (in_time, "in_time", "share answered in time"),
        (goodness, "goodness", "goodness: accuracy of what was in time, per query asked"),
    ):
        for each in reports:
            colour, style, width = looks[each.name]
            axes.plot(*_steps(each.series, getattr(each.series, field)), style, color=colour, linewidth=width)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_ylim(-0.02, 1.04)
        axes.grid(visible=True, color="0.93")
        axes.sharex(load)
    goodness.set_xlabel("time of arrival, s")
    _legend(grid[0, 1], reports, looks)
    _bars(grid[1, 1], reports, "in_time", looks)
    _bars(grid[2, 1], reports, "goodness", looks)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)
    pyplot.close(figure)
    return path


def _looks(reports: Sequence[Report]) -> dict[str, Look]:
    """Colour, line and its width by policy; no two are alike before all combinations are used up."""
    others = cycle([Look(colour, style, 1.3) for style in STYLES for colour in COLOURS])
    return {each.name: Look("C3", "-", 2.6) if each.name == OURS else next(others) for each in reports}


def _steps(series: Series, values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Middles of the intervals in seconds, and their values."""
    begins = series.begins_ms
    return [(begin + end) / 2000 for begin, end in pairwise(begins)], list(values)


def _load(axes: Axes, series: Series) -> None:
    width_s = (series.begins_ms[1] - series.begins_ms[0]) / 1000
    seconds, queries = _steps(series, [number / width_s for number in series.queries])
    axes.fill_between(seconds, queries, step="mid", color="0.82")
    axes.step(seconds, queries, where="mid", color="0.45", linewidth=1)
    axes.set_ylim(bottom=0)
    axes.set_title("load, queries per second", loc="left", fontsize=10)


def _bars(axes: Axes, reports: Sequence[Report], field: str, looks: dict[str, Look]) -> None:
    """The best on top; each with its figure."""
    ordered = sorted(reports, key=lambda each: getattr(each.total, field))
    values = [getattr(each.total, field) for each in ordered]
    axes.barh([each.name for each in ordered], values, color=[looks[each.name][0] for each in ordered], height=0.7)
    for place, value in enumerate(values):
        axes.text(0.02, place, f"{value:.3f}", va="center", fontsize=8, color="black")
    axes.set_xlim(0, 1)
    axes.set_title("of all queries" if field == "in_time" else "goodness of all queries", loc="left", fontsize=10)
    axes.tick_params(axis="y", labelsize=8, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _legend(axes: Axes, reports: Sequence[Report], looks: dict[str, Look]) -> None:
    from matplotlib.lines import Line2D

    lines = [
        Line2D([], [], color=colour, linestyle=style, linewidth=width, label=each.name)
        for each in reports
        for colour, style, width in [looks[each.name]]
    ]
    axes.axis("off")
    axes.legend(handles=lines, loc="center left", frameon=False, fontsize=8, ncols=2 if len(lines) > 7 else 1)
