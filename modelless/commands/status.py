"""``modelless status``: the system at a glance."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Group

    from modelless.config import Config
    from modelless.overview import Overview


def register(app: typer.Typer) -> None:
    """Add the subcommand to ``app``."""

    @app.command()
    def status(
        config: Annotated[Path | None, typer.Option(help="Configuration file; default: ./modelless.toml.")] = None,
        watch: Annotated[bool, typer.Option("--watch", help="Keep showing, every second, until Ctrl-C.")] = False,
        as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of tables.")] = False,
    ) -> None:
        """Show who is alive, what is loaded, what waits, and what is wrong.

        Exit status 0 when brokers and workers are alive, else 1.

        **Examples**

        `modelless status` — once

        `modelless status --watch` — live

        `modelless status --json | jq .warnings` — for scripts
        """
        from modelless.config import load_config

        raise typer.Exit(asyncio.run(_show(load_config(config), watch=watch, as_json=as_json)))


async def _show(config: Config, *, watch: bool, as_json: bool) -> int:
    from rich.live import Live

    from modelless.commands.models import wide_console
    from modelless.overview import observing

    async with observing(config) as observer:
        overview = await observer.look()
        if as_json:
            import json

            typer.echo(json.dumps(_plain(overview), indent=2))
        elif not watch:
            wide_console().print(_render(overview))
        else:
            with Live(_render(overview), auto_refresh=False, screen=True) as live:
                while True:
                    await asyncio.sleep(1)
                    overview = await observer.look()
                    live.update(_render(overview), refresh=True)
    kinds = {member.kind for member in overview.members}
    return 0 if kinds == {"broker", "worker"} else 1


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
        "models": [model.key for model in overview.models],
        "lag": dict(overview.lag),
        "outcomes_per_second": dict(overview.rates),
        "warnings": list(overview.warnings),
    }


def _render(overview: Overview) -> Group:
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    members = Table("", "name", "state", "group", "backlog ms", "unfinished", "per second", "loaded", box=box.SIMPLE)
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
            ", ".join(member.variants),
        )
    lag = Table("query topic", "without outcome", box=box.SIMPLE)
    for topic, count in overview.lag.items():
        lag.add_row(topic, f"{count:,}")
    alarms = [Text(f"! {words}", style="bold red") for words in overview.warnings]
    return Group(members, lag, *(alarms or [Text("all is well", style="green")]))


def _number(statistics: Mapping[str, float], name: str) -> str:
    return f"{statistics[name]:,.0f}" if name in statistics else ""
