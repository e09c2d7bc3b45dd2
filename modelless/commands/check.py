"""``modelless check``: does this Kafka let us keep our promises?"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from modelless.topic_settings import Finding

_COLOURS = {"blocks": "red", "weakens": "yellow", "unknown": "cyan"}


def register(app: typer.Typer) -> None:
    """Add the subcommand to ``app``."""
    app.command()(check)


def check(
    config: Annotated[Path | None, typer.Option(help="Configuration; default: modelless.toml here.")] = None,
    create: Annotated[
        bool, typer.Option("--create", help="Create the topics that are missing, with their settings.")
    ] = False,
) -> None:
    """Grade the Kafka cluster: what blocks, what weakens which promise, and what to change.

    Exit status 1 when something blocks.

    **Examples**

        modelless check                      # look, change nothing

        modelless check --create             # create missing topics first; existing ones are left as they are
    """
    from rich.console import Console

    from modelless import topic_settings
    from modelless.config import load_config
    from modelless.logs import configure

    settings = load_config(config)
    configure(settings.log, "check")
    console = Console()
    if create:
        created = asyncio.run(topic_settings.create_missing(settings))
        console.print(f"created: {', '.join(created)}" if created else "no topic was missing", highlight=False)
    cluster = asyncio.run(topic_settings.inspect(settings))
    findings = topic_settings.grade(settings, cluster)
    if findings:
        _print(console, findings)
    blocking = sum(finding.severity == "blocks" for finding in findings)
    verdict = f"{blocking} findings block" if blocking else "nothing blocks"
    console.print(
        f"Kafka at {settings.kafka.servers}, {len(cluster.topics)} topics: {verdict}, "
        f"{sum(f.severity == 'weakens' for f in findings)} weaken a promise, "
        f"{sum(f.severity == 'unknown' for f in findings)} could not be checked",
        highlight=False,
        soft_wrap=True,
    )
    if blocking:
        raise typer.Exit(1)


def _print(console: Console, findings: list[Finding]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("topic", "", "found", "costs", "change", show_edge=False)
    for finding in findings:
        severity = Text(finding.severity, style=_COLOURS[finding.severity])
        table.add_row(Text(finding.topic), severity, Text(finding.what), Text(finding.costs), Text(finding.change))
    console.print(table)
