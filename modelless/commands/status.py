"""``modelless status``: the system at a glance."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelless.commands import options

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from modelless.config import Config
    from modelless.health import VariantView
    from modelless.overview import Overview

STYLES = {
    "active": "green",
    "loading": "yellow",
    "overloaded": "red",
    "interfered": "red",
    "inactive": "dim",
    "failed": "dim red",
}
LISTED_MAX = 5


def register(app: typer.Typer) -> None:
    """Add the subcommand to ``app``."""

    @app.command()
    def status(
        config: options.ConfigFile = None,
        watch: Annotated[bool, typer.Option("--watch", help="Keep showing, every second, until Ctrl-C.")] = False,
        everything: Annotated[
            bool, typer.Option("--all", help="Variants that are not loaded too, and why not.")
        ] = False,
        as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of tables.")] = False,
    ) -> None:
        """Show who is alive, what is loaded and how it fares, what waits, and what is wrong.

        A variant is *active*, *loading*, *overloaded* (its workers are full), *interfered* (slower than its profile
        although they are not: something else slows them down) or *inactive*. Latencies are for one row: as profiled,
        and as they are now.

        Of groups whose number of workers is planned: how many there are to be and why, how many there are, and what
        keeps them from being started.

        Exit status 0 when brokers and workers are alive (or the plan wants no worker now), else 1.

        **Examples**

        `modelless status` — once

        `modelless status --watch` — live

        `modelless status --all` — why is that variant not loaded?

        `modelless status --json | jq .warnings` — for scripts
        """
        from modelless.commands import asking
        from modelless.config import load_config

        settings = load_config(config)
        shown = _show(settings, watch=watch, everything=everything, as_json=as_json)
        raise typer.Exit(asking.run(settings, shown))


async def _show(config: Config, *, watch: bool, everything: bool, as_json: bool) -> int:
    from rich.live import Live

    from modelless.commands.models import wide_console
    from modelless.overview import observing

    async with observing(config) as observer:
        overview = await observer.look()
        if as_json:
            import json

            typer.echo(json.dumps(_plain(overview), indent=2))
        elif not watch:
            wide_console().print(_render(overview, everything=everything))
        else:
            with Live(_render(overview, everything=everything), auto_refresh=False, screen=True) as live:
                while True:
                    await asyncio.sleep(1)
                    overview = await observer.look()
                    live.update(_render(overview, everything=everything), refresh=True)
    kinds = {member.kind for member in overview.members}
    return 0 if "broker" in kinds and ("worker" in kinds or overview.may_idle) else 1


def _plain(overview: Overview) -> dict[str, Any]:
    return {
        "members": [
            {
                "kind": member.kind,
                "name": member.name,
                "state": member.state,
                "group": member.group,
                "variants": list(member.variants),
                "metrics": member.metrics,
                "statistics": dict(member.statistics),
                "errors": dict(member.errors),
            }
            for member in overview.members
        ],
        "groups": {
            group.name: {
                "wanted": group.wanted,
                "ready": group.ready,
                "starting": group.starting,
                "draining": group.draining,
                "reason": group.reason,
            }
            for group in overview.groups
        },
        "models": [model.key for model in overview.models],
        "variants": [
            {
                "variant": view.profile.variant,
                "group": view.profile.group,
                "state": view.state,
                "p50_ms": view.p50_ms,
                "p99_ms": view.p99_ms,
                "rows_per_second": view.rows_per_second,
                "workers": list(view.workers),
                "why_not": view.why_not,
            }
            for view in overview.variants
        ],
        "to_measure": {name: list(variants) for name, variants in overview.to_measure.items()},
        "lag": dict(overview.lag),
        "outcomes_per_second": dict(overview.rates),
        "warnings": list(overview.warnings),
        "notes": list(overview.notes),
    }


def _render(overview: Overview, *, everything: bool) -> Group:
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    members = Table("", "name", "state", "group", "backlog ms", "unfinished", "per second", "variants", box=box.SIMPLE)
    for member in overview.members:
        rate = overview.rates.get(member.name) if member.kind == "broker" else None
        members.add_row(
            member.kind,
            member.name,
            Text(member.state, style="green" if member.state == "ready" else "yellow"),
            member.group or "",
            _number(member.statistics, "backlog_ms"),
            _number(member.statistics, "unfinished"),
            "" if rate is None else f"{rate:,.0f}",
            str(len(member.variants)) if member.kind == "worker" else "",
        )
    groups = Table("group", "workers wanted", "ready", "starting", "draining", "because", box=box.SIMPLE)
    for group in overview.groups:
        numbers = (group.wanted, group.ready, group.starting, group.draining)
        groups.add_row(group.name, *(str(number) for number in numbers), group.reason)
    lag = Table("query topic", "without outcome", box=box.SIMPLE)
    for topic, count in overview.lag.items():
        lag.add_row(topic, f"{count:,}")
    words = [Text(f"{name} is to measure: {_listed(what)}") for name, what in overview.to_measure.items()]
    words += [Text(note, style="dim") for note in overview.notes]
    alarms = [Text(f"! {warning}", style="bold red") for warning in overview.warnings]
    return Group(
        members,
        *([groups] if overview.groups else []),
        _variants(overview.variants, everything=everything),
        lag,
        *words,
        *(alarms or [Text("all is well", style="green")]),
    )


def _variants(views: Sequence[VariantView], *, everything: bool) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE)
    for heading in ("variant", "group", "state"):
        table.add_column(heading, no_wrap=True)
    for heading in ("profiled ms", "now", "now p99", "rows/s", "workers"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("why not" if everything else "")
    shown = [view for view in views if everything or view.state not in ("inactive", "failed")]
    for view in shown:
        profile = view.profile
        table.add_row(
            profile.variant,
            profile.group,
            Text(view.state, style=STYLES[view.state]),
            f"{profile.batches[0].p50_ms:.2f}" if profile.batches else "",
            "" if view.p50_ms is None else f"{view.p50_ms:.2f}",
            "" if view.p99_ms is None else f"{view.p99_ms:.2f}",
            f"{view.rows_per_second:,.0f}" if view.workers else "",
            str(len(view.workers) or ""),
            view.why_not if everything else "",
        )
    if len(shown) < len(views):
        table.caption = f"{len(views) - len(shown)} more are not loaded: `modelless status --all`"
    return table


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED_MAX} more" if len(names) > LISTED_MAX else ""
    return ", ".join(names[:LISTED_MAX]) + more


def _number(statistics: Mapping[str, float], name: str) -> str:
    return f"{statistics[name]:,.0f}" if name in statistics else ""
