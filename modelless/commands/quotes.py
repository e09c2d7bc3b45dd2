"""What a demand would cost, for ``modelless plan``: what there is to choose from, and how a quote is shown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelless.errors import InvalidArgumentError

if TYPE_CHECKING:
    from rich.console import Group

    from modelless.config import Config

LISTED_MAX = 3
Available = tuple[list[Any], list[Any]]
"""Choices and limits, as :mod:`broker.sizing` takes them."""


def from_files(profiles: Path, fleet: Path) -> Available:
    """Of a simulation's files; a group may have as many workers as the fleet says, and as few as none.

    Raises:
        ConfigurationError: names the file, the line and the column.
    """
    from broker.placement_model import Choice
    from broker.sizing import Limits
    from simulator.files import read_fleet, read_profiles

    choices = [
        Choice(p.variant, p.task, p.group, p.accuracy, p.sizes, p.p50_ms, p.p99_ms, p.memory_mb, p.load_ms)
        for p in read_profiles(profiles).profiles
    ]
    return choices, [Limits(g.name, g.memory_mb, g.price_per_hour, 0, g.workers) for g in read_fleet(fleet)]


async def from_system(config: Config) -> Available:
    """Of what is registered and measured, on the configured groups.

    Raises:
        UnavailableError: no Kafka, or it lacks our topics.
    """
    from broker.quote import choices_of
    from modelless.catalog import CatalogView

    view = CatalogView(config)
    try:
        await view.start()
    finally:
        await view.stop()
    catalog = view.catalog
    models = {model.key: model for model in catalog.models()}
    labels = {model.name: own for model in models.values() if (own := catalog.labels(model.name)) is not None}
    corrections = {correction.variant: correction for correction in catalog.corrections()}
    return choices_of(models, catalog.all_profiles(), labels, corrections), limits_of(config)


def limits_of(config: Config) -> list[Any]:
    """Where the number of workers is fixed, they are there and cost, whatever is asked for."""
    from broker.sizing import Limits

    return [
        Limits(
            group.name,
            float(group.memory_mb_max),
            group.price_per_hour,
            group.workers if group.workers_max is None else group.workers_min,
            group.workers if group.workers_max is None else group.workers_max,
        )
        for group in config.groups
    ]


def read(demand: Path) -> list[Any]:
    """What :func:`broker.quote.quote` takes, from a file. Raises as :func:`from_files`."""
    from broker.quote import Asked
    from simulator.files import read_demand

    return [
        Asked(terms.task, rate, terms.latency_ms_max, terms.accuracy_min, terms.prefer, terms.on_miss, burst)
        for terms, rate, burst in read_demand(demand)
    ]


async def available(config: Config, profiles: Path | None, fleet: Path | None) -> Available:
    """From the files if they are given, else from the system."""
    if (profiles is None) != (fleet is None):
        raise InvalidArgumentError("give both --profiles and --fleet, or none of them to ask the running system")
    if profiles is not None and fleet is not None:
        return from_files(profiles, fleet)
    return await from_system(config)


def plain(quote: Any) -> dict[str, Any]:
    """For scripts."""
    return {
        "is_served": quote.is_served,
        "usd_per_hour": quote.usd_per_hour,
        "usd_per_1000_rows": quote.usd_per_1000_rows,
        "bound_usd_per_hour": quote.bound_usd_per_hour,
        "headroom": quote.headroom,
        "groups": [
            {
                "group": group.name,
                "workers": group.workers,
                "workers_max": group.workers_max,
                "usd_per_hour": group.usd_per_hour,
                "rows_per_second": group.rows_per_s,
                "usd_per_1000_rows": group.usd_per_1000_rows,
            }
            for group in quote.groups
        ],
        "classes": [
            {
                "task": each.asked.task,
                "latency_ms_max": None if each.asked.latency_ms == float("inf") else each.asked.latency_ms,
                "accuracy_min": each.accuracy_min,
                "prefer": each.asked.prefer,
                "on_miss": each.asked.on_miss,
                "rows_per_second": each.asked.rows_per_s,
                "burst": each.asked.burst,
                "served": each.served,
                "shares": {f"{variant}@{group}": share for (variant, group), share in each.shares.items()},
                "why_not": each.why_not,
            }
            for each in quote.classes
        ],
    }


def render(quote: Any) -> Group:
    """Who serves what, how many workers that takes, what it costs."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    classes = Table(box=box.SIMPLE)
    for heading in ("task", "latency ms", "accuracy", "prefer", "on miss", "rows/s", "served", "by"):
        classes.add_column(heading, justify="right" if heading in ("rows/s", "served") else "left")
    for each in quote.classes:
        asked = each.asked
        classes.add_row(
            asked.task,
            "" if asked.latency_ms == float("inf") else f"{asked.latency_ms:,.4g}",
            f"{each.accuracy_min:.4g}",
            asked.prefer,
            asked.on_miss,
            f"{asked.rows_per_s:,.4g}",
            Text(f"{each.served:.1%}", "green" if each.why_not is None else "red"),
            _by(each),
        )
    groups = Table(box=box.SIMPLE)
    for heading in ("group", "workers", "at most", "USD/h", "rows/s", "USD per 1,000 rows"):
        groups.add_column(heading, justify="left" if heading == "group" else "right")
    for group in quote.groups:
        groups.add_row(
            group.name,
            str(group.workers),
            str(group.workers_max),
            f"{group.usd_per_hour:,.4g}",
            f"{group.rows_per_s:,.4g}",
            "" if group.usd_per_1000_rows is None else f"{group.usd_per_1000_rows:,.4g}",
        )
    return Group(classes, groups, Text(summary(quote), "bold"), *(Text(line, "red") for line in refusals(quote)))


def summary(quote: Any) -> str:
    """In one line."""
    per_1000 = quote.usd_per_1000_rows
    return (
        f"${quote.usd_per_hour:,.4g} an hour"
        + ("" if per_1000 is None else f", ${per_1000:,.4g} per 1,000 rows")
        + f"; no fleet that serves as much costs less than ${quote.bound_usd_per_hour:,.4g} an hour"
        + f" ({quote.headroom:.0%} of the demand is added for bursts)"
    )


def refusals(quote: Any) -> Sequence[str]:
    """What cannot be served, and why, a line each."""
    return [
        f"cannot be served: {_named(each)}: {each.served:.1%} served; {each.why_not}"
        for each in quote.classes
        if each.why_not is not None
    ]


def _named(each: Any) -> str:
    asked = each.asked
    latency = "" if asked.latency_ms == float("inf") else f" within {asked.latency_ms:,.4g} ms"
    return f"{asked.task}{latency} with accuracy {each.accuracy_min:.4g}, {asked.rows_per_s:,.4g} rows a second"


def _by(each: Any) -> str:
    ranked = sorted(each.shares.items(), key=lambda item: -item[1])
    shown = [f"{variant}@{group} {share:.0%}" for (variant, group), share in ranked if share > 5e-4]
    more = f" and {len(shown) - LISTED_MAX} more" if len(shown) > LISTED_MAX else ""
    return ", ".join(shown[:LISTED_MAX]) + more
