"""``modelless models``: what is registered, and how it runs where."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from modelless.catalog import Catalog
    from modelless.config import Config
    from modelless.messages import Profile

MS_PER_HOUR = 3_600_000.0


class Best(NamedTuple):
    """The measured batch size with the highest throughput."""

    batch_size: int
    p50_ms: float
    rows_per_second: float
    cost: float
    """USD per 1,000 rows."""


def best_batch(profile: Profile) -> Best | None:
    """None when nothing was measured."""
    if not profile.batches:
        return None
    best = min(profile.batches, key=lambda batch: batch.p50_ms / batch.batch_size)
    row_ms = best.p50_ms / best.batch_size
    return Best(
        best.batch_size,
        best.p50_ms,
        1000 / row_ms if row_ms > 0 else float("inf"),
        profile.price_per_hour / MS_PER_HOUR * row_ms * 1000,
    )


def describe(profile: Profile) -> str:
    """A profile in one line."""
    best = best_batch(profile)
    parts = [
        "" if profile.accuracy is None else f"accuracy {profile.accuracy:.4f}",
        f"loads in {profile.load_ms:,.0f} ms",
        f"{profile.memory_bytes / 2**20:,.0f} MB",
        "" if not profile.batches else f"{profile.batches[0].p50_ms:.2f} ms for one row",
        "" if best is None else f"{best.rows_per_second:,.0f} rows/s in batches of {best.batch_size}",
        "" if best is None else f"${best.cost:.6f} per 1,000",
    ]
    return ", ".join(part for part in parts if part)


def register(app: typer.Typer) -> None:
    """Add the subcommand to ``app``."""

    @app.command()
    def models(
        config: Annotated[Path | None, typer.Option(help="Configuration file; default: ./modelless.toml.")] = None,
        as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
    ) -> None:
        """List the models with their versions and variants, and how each runs on each group.

        Accuracy is on the model's evaluation set (or as declared), times are supervisor to supervisor, the cost is
        that of the batch size with the highest throughput.

        **Examples**

        `modelless models`

        `modelless models --json | jq '.[] | {model, task}'`
        """
        from modelless.config import load_config

        asyncio.run(_show(load_config(config), as_json=as_json))


async def _show(config: Config, *, as_json: bool) -> None:
    from modelless.catalog import CatalogView

    view = CatalogView(config)
    await view.start()
    await view.stop()
    if as_json:
        import json

        typer.echo(json.dumps(_plain(view.catalog), indent=2))
    else:
        _print(view.catalog)


def _plain(catalog: Catalog) -> list[dict[str, Any]]:
    from dataclasses import asdict

    return [
        {
            "model": model.key,
            "task": model.task,
            "format": model.format,
            "digest": model.digest,
            "inputs": [asdict(spec) for spec in model.inputs],
            "outputs": [asdict(spec) for spec in model.outputs],
            "variants": [asdict(profile) for profile in catalog.profiles(model)],
        }
        for model in catalog.models()
    ]


def _print(catalog: Catalog) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, pad_edge=False)
    for heading in ("task", "variant", "group"):
        table.add_column(heading, no_wrap=True)
    for heading in ("accuracy", "on rows", "load ms", "MB", "lat(1) ms", "lat(b) ms", "b", "rows/s", "$ per 1,000"):
        table.add_column(heading, justify="right", no_wrap=True)
    notes = []
    for model in catalog.models():
        profiles = catalog.profiles(model)
        if not profiles:
            notes.append(f"{model.key} of task {model.task}: not measured yet")
        for profile in profiles:
            table.add_row(model.task, profile.variant, profile.group, *_cells(profile))
            if profile.status == "failed":
                notes.append(f"{profile.variant} on {profile.group} failed: {profile.reason or 'it did not say why'}")
    console = wide_console()
    if table.row_count:
        console.print(table)
    for note in notes:
        console.print(note, highlight=False)
    if not catalog.models():
        console.print("no model is registered: `modelless register model.toml`")


def wide_console() -> Console:
    """A terminal's own width; elsewhere (a pipe, a file) as wide as a table needs."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=200)


def _cells(profile: Profile) -> list[str]:
    best = best_batch(profile)
    if profile.status == "failed" or best is None:
        return ["failed"]
    return [
        "" if profile.accuracy is None else f"{profile.accuracy:.4f}",
        f"{profile.accuracy_rows:,}" if profile.accuracy_rows else "declared",
        f"{profile.load_ms:,.0f}",
        f"{profile.memory_bytes / 2**20:,.0f}",
        f"{profile.batches[0].p50_ms:.2f}",
        f"{best.p50_ms:.2f}",
        str(best.batch_size),
        f"{best.rows_per_second:,.0f}",
        f"{best.cost:.6f}",
    ]
