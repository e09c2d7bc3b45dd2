"""``modelless models``: what is registered, and how it runs where."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelless.commands import options

if TYPE_CHECKING:
    from rich.console import Console

    from modelless.catalog import Catalog
    from modelless.config import Config
    from modelless.messages import Labels, Member, ModelVersion, Profile
    from modelless.variants import Variant


def describe(profile: Profile) -> str:
    """A profile in one line."""
    from modelless.variants import best_batch

    best = best_batch(profile)
    parts = [
        "" if profile.accuracy is None else f"accuracy {profile.accuracy:.4f}",
        f"loads in {profile.load_ms:,.0f} ms",
        f"{profile.memory_bytes / 2**20:,.0f} MB",
        "" if not profile.batches else f"{profile.batches[0].p50_ms:.2f} ms for one row",
        "" if best is None else f"{best.rows_per_second:,.0f} rows/s in batches of {best.batch_size}",
        "" if best is None else f"${best.cost:.3g} per 1,000",
    ]
    return ", ".join(part for part in parts if part)


def register(app: typer.Typer) -> None:
    """Add the subcommand to ``app``."""

    @app.command()
    def models(
        config: options.ConfigFile = None,
        task: Annotated[str | None, typer.Option(help="Only models of this task.")] = None,
        model: Annotated[str | None, typer.Option(help="Only this model: name or name:version.")] = None,
        as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
        plot: Annotated[
            Path | None,
            typer.Option(metavar="FILE", help="Draw accuracy against latency and cost: .png, .svg or .pdf."),
        ] = None,
    ) -> None:
        """List the models with their versions and variants, and how each runs on each group.

        Accuracy is on the second half of the model's evaluation set (or as declared), corrected by labels of answered
        queries where there are any; what is chosen by is the lower end of its 95 % interval. Times are supervisor to
        supervisor: loading for the first time in a process that has its libraries, and again; medians of one row and
        of the batch size with the highest throughput, which the cost (in millionths of a USD per 1,000 rows) is of too.

        **\\*** marks the frontier: nothing of its task beats these in accuracy, latency of one row and cost at once.

        **Examples**

        `modelless models --task digits`

        `modelless models --model digits-cnn:2`

        `modelless models --plot frontier.png` — accuracy against latency and cost, with the frontier drawn

        `modelless models --json | jq '.[].variants[] | select(.on_frontier) | .variant'`
        """
        from modelless.commands import asking
        from modelless.config import load_config

        if plot is not None:
            from modelless.plot import require

            require(plot)
        settings = load_config(config)
        asking.run(settings, _show(settings, task, model, as_json=as_json, plot=plot))


async def _show(config: Config, task: str | None, model: str | None, *, as_json: bool, plot: Path | None) -> None:
    from modelless.catalog import CatalogView
    from modelless.fleet import FleetView
    from modelless.registration import wall_clock
    from modelless.variants import variants

    view, fleet = CatalogView(config), FleetView(config, wall_clock())
    try:
        await asyncio.gather(view.start(), fleet.start())
    finally:
        await asyncio.gather(view.stop(), fleet.stop())
    chosen = select(view.catalog.models(), task, model)
    workers = fleet.workers()
    found = variants(view.catalog, chosen, {name for worker in workers for name in worker.variants})
    if plot is not None:
        from modelless.plot import plot_variants

        typer.echo(f"saved: {plot_variants(plot, found)}")
    elif as_json:
        import json

        typer.echo(json.dumps(_plain(view.catalog, chosen, found), indent=2))
    else:
        console = wide_console()
        for line in render(chosen, found, view.catalog, workers):
            console.print(line, highlight=False, no_wrap=True, crop=False, overflow="ignore", soft_wrap=True)


def select(models: Sequence[ModelVersion], task: str | None, name: str | None) -> list[ModelVersion]:
    """Raises NotFoundError when something is asked for that is not registered."""
    from modelless.errors import NotFoundError

    chosen = [m for m in models if task in (None, m.task) and name in (None, m.name, m.key)]
    if not chosen and (task, name) != (None, None):
        tasks = ", ".join(sorted({m.task for m in models})) or "none"
        names = ", ".join(dict.fromkeys(m.name for m in models)) or "none"
        wanted = " and ".join(f"{what} {asked!r}" for what, asked in (("task", task), ("model", name)) if asked)
        raise NotFoundError(f"there is no {wanted}; registered are tasks {tasks} and models {names}")
    return chosen


def _plain(catalog: Catalog, models: Sequence[ModelVersion], found: Sequence[Variant]) -> list[dict[str, Any]]:
    from dataclasses import asdict

    plain = []
    for model in models:
        labels = catalog.labels(model.name)
        plain.append(
            {
                "model": model.key,
                "task": model.task,
                "format": model.format,
                "digest": model.digest,
                "labels": _roles(model, labels),
                "inputs": [asdict(spec) for spec in model.inputs],
                "outputs": [asdict(spec) for spec in model.outputs],
                "variants": [_plain_variant(variant) for variant in found if variant.model.key == model.key],
            }
        )
    return plain


def _plain_variant(variant: Variant) -> dict[str, Any]:
    from dataclasses import asdict

    best = variant.best
    return asdict(variant.profile) | {
        "state": variant.state,
        "is_loaded": variant.is_loaded,
        "on_frontier": variant.on_frontier,
        "best": None if best is None else best._asdict(),
        "condition": None if variant.condition is None else asdict(variant.condition),
        "correction": None if variant.correction is None else asdict(variant.correction),
    }


# --- the table -------------------------------------------------------------------------------------------------

_HEADINGS = (
    "variant", "group", "accuracy", "95 %", "measured", "labels", "load ms", "warm ms", "MB", "lat(1) ms",
    "lat(b) ms", "b", "µ$/1,000", "state",
)  # fmt: skip
_TEXT = ("variant", "group", "state")
_OF_LABELS = ("measured", "labels")
Style = str | None


def render(
    models: Sequence[ModelVersion], found: Sequence[Variant], catalog: Catalog, workers: Sequence[Member] = ()
) -> Iterable[str]:
    """Lines with rich's markup: a block per model, columns aligned over all of them; then what is wrong, each once."""
    from rich.markup import escape

    if not models:
        yield "no model is registered: `modelless register model.toml`"
        return
    ready = [variant for variant in found if variant.profile.status == "ready"]
    corrected = any(variant.correction is not None for variant in ready)
    headings = [heading for heading in _HEADINGS if corrected or heading not in _OF_LABELS]
    rows = {id(variant): _cells(variant) for variant in ready}
    widths = {h: max([len(h), *(len(cells[h]) for cells in rows.values())]) for h in headings}
    if ready:
        yield f"[dim]{_line(dict(zip(headings, headings, strict=True)), headings, widths)}[/dim]"
    for model in models:
        own = [variant for variant in found if variant.model.key == model.key]
        yield f"[bold]{escape(_heading(model, catalog.labels(model.name)))}[/bold]"
        if not own:
            yield "  not measured yet"
        for variant in own:
            if id(variant) in rows:
                yield _styled(variant, escape(_line(rows[id(variant)], headings, widths, marked=variant.on_frontier)))
    yield from map(escape, ("", *_summary(ready), *_problems(found, workers), *_rolled_back(models, catalog)))


def _rolled_back(models: Sequence[ModelVersion], catalog: Catalog) -> Iterable[str]:
    """Why the canaries of these models were."""
    for name in dict.fromkeys(model.name for model in models):
        labels = catalog.labels(name)
        if labels is not None and labels.reason:
            yield f"the canary of {name} was rolled back: {labels.reason}"


def _line(cells: dict[str, str], headings: Sequence[str], widths: dict[str, int], *, marked: bool = False) -> str:
    parts = [cells[h].ljust(widths[h]) if h in _TEXT else cells[h].rjust(widths[h]) for h in headings]
    return f"{'*' if marked else ' '} {'  '.join(parts)}".rstrip()


def _styled(variant: Variant, line: str) -> str:
    if variant.state in ("overloaded", "interfered") or (variant.correction is not None and variant.correction.drifted):
        return f"[yellow]{line}[/yellow]"
    return f"[green]{line}[/green]" if variant.on_frontier else line


def _cells(variant: Variant) -> dict[str, str]:
    profile, correction, best, interval = variant.profile, variant.correction, variant.best, variant.interval
    declared = correction is None and not profile.accuracy_rows
    return {
        "variant": variant.builder,
        "group": profile.group,
        "accuracy": "" if variant.accuracy is None else f"{variant.accuracy:.4f}",
        "95 %": "" if interval is None else "declared" if declared else f"{interval.low:.3f}–{interval.high:.3f}",
        "measured": "" if correction is None or profile.accuracy is None else f"{profile.accuracy:.4f}",
        "labels": "" if correction is None else f"{correction.rows:,.0f}",
        "load ms": f"{profile.load_ms:,.0f}",
        "warm ms": f"{profile.load_warm_ms:,.0f}",
        "MB": f"{profile.memory_bytes / 2**20:,.0f}",
        "lat(1) ms": f"{profile.batches[0].p50_ms:.2f}" if profile.batches else "",
        "lat(b) ms": "" if best is None else f"{best.p50_ms:.2f}",
        "b": "" if best is None else str(best.batch_size),
        "µ$/1,000": "" if best is None else f"{best.cost * 1e6:,.1f}",
        "state": _state(variant),
    }


def _state(variant: Variant) -> str:
    words = [variant.state]
    if variant.state == "interfered" and variant.condition is not None:
        words = [f"interfered, {variant.condition.p50_scale:.2g} times as slow"]
    if variant.correction is not None and variant.correction.drifted:
        words.append("drifted")
    return ", ".join(words)


def _heading(model: ModelVersion, labels: Labels | None) -> str:
    parts = [f"task {model.task}", model.format]
    if model.exits > 1:
        parts.append(f"{model.exits} exits")
    return f"{model.key}  {', '.join([*parts, *_roles(model, labels)])}"


def _roles(model: ModelVersion, labels: Labels | None) -> list[str]:
    """What an operator uses this version as."""
    from modelless.labels import shadow_of

    if labels is None:
        return []
    shadow = shadow_of(labels)
    roles = [
        "stable" if labels.stable == model.version else "",
        f"canary of {labels.canary_weight:.0%}" if labels.canary == model.version else "",
        f"shadow of {labels.shadow_weight:.0%}" if shadow is not None and shadow[0] == model.key else "",
    ]
    return [role for role in roles if role]


def _summary(ready: Sequence[Variant]) -> Iterable[str]:
    """A line per task: how many there are, how far they are apart."""
    for task in dict.fromkeys(variant.model.task for variant in ready):
        own = [variant for variant in ready if variant.model.task == task and variant.point is not None]
        points = [variant.point for variant in own if variant.point is not None]
        if not points:
            continue
        accuracies = [variant.accuracy or 0.0 for variant in own]
        latencies, costs = [p.latency_ms for p in points], [p.cost * 1e6 for p in points]
        yield (
            f"{task}: {len(own)} variants of {len({v.model.key for v in own})} models, "
            f"{sum(v.on_frontier for v in own)} on the frontier (*); accuracy {min(accuracies):.3f} to "
            f"{max(accuracies):.3f}, one row {min(latencies):.2f} to {max(latencies):.2f} ms, "
            f"µ$ {min(costs):,.1f} to {max(costs):,.1f} per 1,000"
        )


def _problems(found: Sequence[Variant], workers: Sequence[Member]) -> Iterable[str]:
    """Builders that cannot work on a group, and variants that could not be made; each reason once."""
    from modelless.health import failures
    from modelless.messages import split_variant

    refused: dict[tuple[str, str], dict[str, None]] = {}
    for worker in workers:
        for subject, reason in worker.errors.items():
            if "/" not in subject:  # a builder's, not a variant's
                refused.setdefault((subject, reason), {})[worker.group or worker.name] = None
    for (builder, reason), groups in refused.items():
        yield f"{builder} is not offered on {', '.join(groups)}: {reason}"
    for (builder, group, reason), failed in failures(variant.profile for variant in found).items():
        yield f"{builder} on {group} failed for {', '.join(split_variant(name)[0] for name in failed)}: {reason}"


def wide_console() -> Console:
    """A terminal's own width; elsewhere (a pipe, a file) as wide as a table needs."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=200)
