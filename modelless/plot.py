"""Accuracy against latency and against cost, with the Pareto frontier drawn: a picture of the variants.

One row of panels per task; a colour per model, a marker per builder, error bars for the 95 % interval. Each panel's
frontier is that of what it shows, accuracy and one of the two. Needs matplotlib, of the extra ``demo``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from math import hypot
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from modelless.errors import ConfigurationError
from modelless.frontier import Point, frontier
from modelless.variants import Variant

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".png", ".svg", ".pdf")
MARKERS = "osD^vP*Xph<>8d"
LABEL_SIZE = 7
MARKER_SIZE = 6.5
"""Points, as all sizes here."""
PANEL_INCHES = (8.8, 7.4)
LEGEND_INCHES = 2.2
DPI = 130
_REACH = (7.0, 12.0, 18.0, 26.0, 36.0, 48.0)
"""How far from its point a label may stand."""
LEADER_REACH = 14.0
"""One that stands farther off is joined to it by a line."""
_DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (0.8, 0.8), (0.8, -0.8), (-0.8, 0.8), (-0.8, -0.8))


class Panel(NamedTuple):
    """What one panel's horizontal axis shows."""

    title: str
    axis: str
    field: str
    """Of :class:`~modelless.frontier.Point`."""
    factor: float = 1.0


PANELS = (
    Panel("accuracy against latency", "latency of one row, ms (median)", "latency_ms"),
    Panel("accuracy against cost", "cost of 1,000 rows, millionths of a USD", "cost", 1e6),
)


class Box(NamedTuple):
    """A rectangle in pixels."""

    left: float
    bottom: float
    right: float
    top: float

    def overlaps(self, other: Box) -> bool:
        return (
            self.left < other.right and other.left < self.right and self.bottom < other.top and other.bottom < self.top
        )

    def within(self, other: Box) -> bool:
        return (
            other.left <= self.left
            and self.right <= other.right
            and other.bottom <= self.bottom
            and self.top <= other.top
        )


def require(path: Path) -> None:
    """Refuse before anything is begun what cannot be drawn.

    Raises:
        ConfigurationError: another suffix, or matplotlib is not installed.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigurationError(f"--plot {path}: the suffix must be one of {', '.join(SUFFIXES)}")
    try:
        import matplotlib as mpl
    except ModuleNotFoundError:
        raise ConfigurationError(
            "--plot needs matplotlib: install its extra, `pip install 'modelless[demo]'`"
        ) from None
    mpl.use("Agg")


def plot_variants(path: Path, found: Iterable[Variant]) -> Path:
    """Draw those that are ready; the file's suffix says how.

    Raises:
        ConfigurationError: as :func:`require`, or nothing of it is measured yet.
    """
    require(path)
    from matplotlib import pyplot

    drawn = [variant for variant in found if variant.point is not None]
    if not drawn:
        raise ConfigurationError("there is nothing to draw yet: no variant has been measured; see `modelless models`")
    tasks = list(dict.fromkeys(variant.model.task for variant in drawn))
    colours = {key: f"C{index % 10}" for index, key in enumerate(dict.fromkeys(v.model.key for v in drawn))}
    markers = dict(zip(sorted({_family(variant) for variant in drawn}), cycle(MARKERS), strict=False))
    width, height = PANEL_INCHES
    figure, grid = pyplot.subplots(
        len(tasks),
        len(PANELS),
        figsize=(width * len(PANELS) + LEGEND_INCHES, height * len(tasks)),
        dpi=DPI,
        squeeze=False,
        sharey="row",
    )
    labelling = []
    for task, row in zip(tasks, grid, strict=True):
        own = [variant for variant in drawn if variant.model.task == task]
        for panel, axes in zip(PANELS, row, strict=True):
            labelling.append((axes, _draw(axes, panel, own, colours, markers), own))
            axes.set_title(f"{task}: {panel.title}", loc="left")
        row[0].set_ylabel("accuracy, with its 95 % interval")
        row[0].tick_params(labelleft=True)
    _legend(figure, colours, markers)
    figure.tight_layout(rect=(0, 0, 1 - LEGEND_INCHES / figure.get_figwidth(), 1))
    figure.canvas.draw()  # sizes in pixels are known from here on
    for axes, places, own in labelling:
        _label(axes, own, places)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)
    pyplot.close(figure)
    return path


def _draw(
    axes: Axes, panel: Panel, own: Sequence[Variant], colours: Mapping[str, str], markers: Mapping[str, str]
) -> list[tuple[float, float, bool]]:
    """Points, error bars and frontier; where each variant is, in data coordinates, and if it is on the frontier."""
    from matplotlib.ticker import LogLocator, NullFormatter

    xs = [getattr(_point(variant), panel.field) * panel.factor for variant in own]
    chosen = set(frontier([Point(variant.accuracy or 0.0, x) for variant, x in zip(own, xs, strict=True)]))
    stairs = sorted((xs[index], own[index].accuracy or 0.0) for index in chosen)
    axes.set_xscale("log")
    axes.grid(visible=True, which="both", color="0.93", zorder=0)
    axes.step(
        [x for x, _ in stairs], [y for _, y in stairs], where="post", color="0.35", linewidth=1.3, zorder=2, alpha=0.8
    )
    for index, (variant, x) in enumerate(zip(own, xs, strict=True)):
        interval, y = variant.interval, variant.accuracy or 0.0
        colour, faint = colours[variant.model.key], index not in chosen
        if interval is not None:
            axes.vlines(
                x, interval.low, interval.high, color=colour, linewidth=1, alpha=0.25 if faint else 0.6, zorder=1
            )
        axes.plot(
            x,
            y,
            markers[_family(variant)],
            color=colour,
            markersize=MARKER_SIZE * (0.85 if faint else 1.15),
            markeredgecolor="white" if faint else "black",
            markeredgewidth=0.5 if faint else 1.0,
            alpha=0.75 if faint else 1.0,
            zorder=3 if faint else 4,
        )
    axes.set_xlabel(panel.axis)
    axes.margins(x=0.12, y=0.08)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    return [
        (x, variant.accuracy or 0.0, index in chosen) for index, (x, variant) in enumerate(zip(xs, own, strict=True))
    ]


def _point(variant: Variant) -> Point:
    point = variant.point
    assert point is not None, "only what was measured is drawn"
    return point


def _family(variant: Variant) -> str:
    """The builder without the exit: one marker for all exits."""
    return variant.builder.partition(".")[0]


def _legend(figure: Any, colours: Mapping[str, str], markers: Mapping[str, str]) -> None:
    from matplotlib.lines import Line2D

    def entry(label: str, **look: Any) -> Line2D:
        return Line2D([], [], linestyle=look.pop("linestyle", ""), label=label, **look)

    models = [entry(key, marker="o", color=colour) for key, colour in colours.items()]
    builders = [entry(name, marker=marker, color="0.3") for name, marker in markers.items()]
    lines = [
        entry("frontier", linestyle="-", color="0.35"),
        entry("on it", marker="o", color="0.8", markeredgecolor="black"),
    ]
    left = 1 - (LEGEND_INCHES - 0.1) / figure.get_figwidth()
    top = 0.97
    for title, handles in (("model", models), ("builder", builders), ("", lines)):
        legend = figure.legend(
            handles=handles, title=title, loc="upper left", bbox_to_anchor=(left, top), frameon=False, fontsize=9
        )
        legend._legend_box.align = "left"
        top -= (len(handles) + 2) * 0.215 / figure.get_figheight()


# --- labels ----------------------------------------------------------------------------------------------------


def _label(axes: Axes, own: Sequence[Variant], places: Sequence[tuple[float, float, bool]]) -> None:
    """Name the variants next to their points, the frontier's first; one that finds no free place goes without."""
    figure = axes.get_figure()
    assert figure is not None
    pixels = figure.dpi / 72
    inside = Box(*axes.get_window_extent().extents)
    anchors = [tuple(axes.transData.transform((x, y))) for x, y, _ in places]
    half = MARKER_SIZE * pixels * 0.6
    taken = [Box(x - half, y - half, x + half, y + half) for x, y in anchors]
    names = _short_names(own)
    for index in sorted(range(len(own)), key=lambda i: (not places[i][2], -places[i][1], places[i][0])):
        x, y, chosen = places[index]
        text = axes.annotate(
            names[index],
            (x, y),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=LABEL_SIZE + (0.5 if chosen else 0),
            fontweight="bold" if chosen else "normal",
            color="black" if chosen else "0.4",
            bbox={"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 0.5},
            zorder=5,
        )
        size = text.get_window_extent()
        place = _place(anchors[index], (size.width, size.height), pixels, taken, inside)
        if place is None:
            text.remove()
            continue
        taken.append(place.box)
        text.set(position=place.offset, horizontalalignment=place.across, verticalalignment=place.along)
        if place.reach > LEADER_REACH:
            leader = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2}
            axes.annotate("", (x, y), place.offset, textcoords="offset points", arrowprops=leader)


Across = Literal["left", "center", "right"]
Along = Literal["bottom", "center", "top"]


class Place(NamedTuple):
    """Where a label goes."""

    box: Box
    offset: tuple[float, float]
    """From its point, in points, of the corner or edge that ``across`` and ``along`` say."""
    across: Across
    along: Along
    reach: float


def _place(
    anchor: tuple[float, ...], size: tuple[float, float], pixels: float, taken: Sequence[Box], inside: Box
) -> Place | None:
    """The nearest place around a point where a text of ``size`` (width, height; pixels) touches nothing."""
    (x, y), (width, height) = anchor, size
    for reach in _REACH:
        for right, up in _DIRECTIONS:
            scale = reach / hypot(right, up)
            offset = (right * scale, up * scale)
            across: Across = "left" if right > 0 else "right" if right < 0 else "center"
            along: Along = "bottom" if up > 0 else "top" if up < 0 else "center"
            left = x + offset[0] * pixels - {"left": 0.0, "center": width / 2, "right": width}[across]
            bottom = y + offset[1] * pixels - {"bottom": 0.0, "center": height / 2, "top": height}[along]
            box = Box(left, bottom, left + width, bottom + height)
            if box.within(inside) and not any(box.overlaps(other) for other in taken):
                return Place(box, offset, across, along, reach)
    return None


def _short_names(own: Sequence[Variant]) -> list[str]:
    """``cnn onnx-int8``: without what all models' names begin with, and without the group where there is one."""
    names = list(dict.fromkeys(variant.model.name for variant in own))
    head = _common_head(names)
    versions = {variant.model.name: set[int]() for variant in own}
    for variant in own:
        versions[variant.model.name].add(variant.model.version)
    groups = {variant.profile.group for variant in own}
    return [
        f"{variant.model.name.removeprefix(head)}"
        + (f":{variant.model.version}" if len(versions[variant.model.name]) > 1 else "")
        + f" {variant.builder}"
        + (f"@{variant.profile.group}" if len(groups) > 1 else "")
        for variant in own
    ]


def _common_head(names: Sequence[str]) -> str:
    """``digits-`` of ``digits-cnn`` and ``digits-mlp``; nothing of a single name."""
    heads = {name.partition("-")[0] for name in names}
    return f"{next(iter(heads))}-" if len(names) > 1 and len(heads) == 1 and all("-" in name for name in names) else ""
