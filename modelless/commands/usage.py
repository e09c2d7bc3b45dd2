"""``modelless usage``: what each tenant and task cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelless.commands import options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from modelless.messages import Usage


def register(app: typer.Typer) -> None:
    """Add the subcommand to ``app``."""

    @app.command()
    def usage(
        since: Annotated[
            str, typer.Option(metavar="SPAN|TIME", help="90s, 30min, 24h, 7d; or 2026-11-23, 2026-11-23T15:00 (UTC).")
        ] = "24h",
        as_json: Annotated[
            bool, typer.Option("--json", help="JSON instead of a table: by period and group too.")
        ] = False,
        config: options.ConfigFile = None,
    ) -> None:
        """Show what each tenant and task cost, idle devices included: the parts sum up to what the fleet cost.

        A tenant is who a query names where its topic's policy allows that, else the topic. *Busy* is price times device
        time; *idle* the part of everything else that workers cost (idle devices, loading, measuring), in proportion to
        the busy time in the same period and group. What groups cost that nobody used is the tenant *idle*'s.

        The leading broker writes it to `<prefix>.usage` when a period of `broker.usage_period_s` (60) is over, where
        it can be read by whoever makes the bills.

        **Examples**

        `modelless usage` — of the last 24 hours

        `modelless usage --since 2026-11-01`

        `modelless usage --since 7d --json | jq '.tenants[] | [.tenant, .total_usd]'`
        """
        from time import time

        from modelless.commands import asking
        from modelless.config import load_config
        from modelless.usage import read, since_ms

        settings = load_config(config)
        usages = asking.run(settings, read(settings, since_ms(since, time() * 1000)))
        if as_json:
            import json

            typer.echo(json.dumps(plain(usages), indent=2))
        else:
            from modelless.commands.models import wide_console

            wide_console().print(render(usages, since))


def plain(usages: Sequence[Usage]) -> dict[str, Any]:
    """For scripts."""
    from dataclasses import asdict

    from modelless.usage import parts

    return {
        "total_usd": sum(each.total_usd for each in usages),
        "tenants": [asdict(part) | {"total_usd": part.total_usd} for part in parts(usages)],
        "periods": [asdict(usage) | {"total_usd": usage.total_usd} for usage in usages],
    }


def render(usages: Sequence[Usage], since: str) -> Table:
    """By tenant and task; the last line is the sum."""
    from datetime import UTC, datetime

    from rich import box
    from rich.table import Table

    from modelless.usage import parts

    table = Table("tenant", "task", box=box.SIMPLE, show_footer=bool(usages))
    total = sum(each.total_usd for each in usages)
    for heading in ("queries", "rows", "busy s", "USD busy", "USD idle", "USD", "share"):
        table.add_column(heading, justify="right", no_wrap=True)
    for part in parts(usages):
        table.add_row(
            part.tenant,
            part.task,
            f"{part.queries:,}",
            f"{part.rows:,}",
            f"{part.busy_ms / 1000:,.1f}",
            f"{part.cost_usd:,.6f}",
            f"{part.idle_usd:,.6f}",
            f"{part.total_usd:,.6f}",
            f"{part.total_usd / total:.1%}" if total else "",
        )
    if not usages:
        table.caption = (
            f"nothing was written since {since}: `modelless status` says whether brokers and workers are alive"
        )
        return table
    sums = (
        "",
        f"{sum(each.queries for each in usages):,}",
        f"{sum(each.rows for each in usages):,}",
        f"{sum(each.busy_ms for each in usages) / 1000:,.1f}",
        f"{sum(each.cost_usd for each in usages):,.6f}",
        f"{sum(each.idle_usd for each in usages):,.6f}",
        f"{total:,.6f}",
        "",
    )
    for column, footer in zip(table.columns, ("all", *sums), strict=True):
        column.footer = footer
    begin, end = min(each.start_ms for each in usages), max(each.start_ms + each.period_ms for each in usages)
    times = (f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M:%S}" for ms in (begin, end))
    table.caption = " to ".join(times) + " UTC"
    return table
