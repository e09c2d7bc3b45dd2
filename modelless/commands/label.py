"""``modelless label``: which versions of a model answer."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelless.commands import options

if TYPE_CHECKING:
    from modelless.catalog import Catalog
    from modelless.config import Config
    from modelless.messages import Labels, Member, Served


def register(app: typer.Typer) -> None:
    """Add the subcommand to ``app``."""

    @app.command()
    def label(
        target: Annotated[str, typer.Argument(help="NAME, NAME:VERSION or NAME:VERSION/BUILDER.", show_default=False)],
        name: Annotated[
            str | None, typer.Argument(metavar="[stable|canary|shadow]", help="The label.", show_default=False)
        ] = None,
        weight: Annotated[
            float | None,
            typer.Option(help="Share of the queries: of a canary 0.1, of a shadow 1.0.", show_default=False),
        ] = None,
        errors_margin: Annotated[
            float | None,
            typer.Option(help="Canary: rolled back when its share of errors is higher by more [0.02]."),
        ] = None,
        latency_margin: Annotated[
            float | None,
            typer.Option(help="Canary: rolled back when most batches take longer by more than this share [0.5]."),
        ] = None,
        samples_min: Annotated[
            int | None, typer.Option(help="Canary: answers before it is judged [100].", show_default=False)
        ] = None,
        remove: Annotated[
            str | None, typer.Option(metavar="LABEL", help="Take this label from whatever has it.", show_default=False)
        ] = None,
        config: options.ConfigFile = None,
        as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
    ) -> None:
        """Say which versions of a model answer, or (with a NAME alone) show it with what each answered.

        Without a label the newest version that can be served answers, as soon as it is loaded wherever it should be;
        the one before answers until then, and no query is lost.

        **stable** answers instead. **canary** answers a share of what stable would, and is rolled back by itself when
        it fails more often, or is slower, than stable by a margin. **shadow** (a version, or one variant) gets copies
        of a share of the queries when a device idles; what it answers is compared and dropped.
        Counts begin anew whenever the labels of the model change.

        **Examples**

        `modelless label digits-cnn:2 stable` — version 2 answers, whatever is registered later

        `modelless label digits-cnn:3 canary --weight 0.1` — every tenth query is answered by version 3

        `modelless label digits-cnn:3 stable` — promote it; it is no canary then

        `modelless label digits-cnn:3/onnx-int8 shadow --weight 0.5` — compare one variant on half of the traffic

        `modelless label digits-cnn --remove canary` — stop it

        `modelless label digits-cnn` — labels, answers, failures, times, and how often the shadow agreed
        """
        from modelless.commands import asking
        from modelless.config import load_config
        from modelless.errors import InvalidArgumentError
        from modelless.labels import LABELS

        for given in (name, remove):
            if given is not None and given not in LABELS:
                raise InvalidArgumentError(f"{given!r} is no label; there are {', '.join(LABELS)}")
        numbers = {
            "weight": weight,
            "errors_margin": errors_margin,
            "latency_margin": latency_margin,
            "samples_min": samples_min,
        }
        settings = load_config(config)
        asking.run(settings, _run(settings, target, name, remove, numbers, as_json=as_json))


async def _run(
    config: Config, target: str, name: str | None, remove: str | None, numbers: dict[str, Any], *, as_json: bool
) -> None:
    from modelless.errors import InvalidArgumentError
    from modelless.labels import labelled, split_target, unlabelled
    from modelless.registry import settle

    if name is None and any(value is not None for value in numbers.values()):
        raise InvalidArgumentError("a weight or a margin belongs to a label: `modelless label NAME:VERSION canary ...`")
    if name is None and remove is None:
        return await _show(config, target, as_json=as_json)
    if name is not None and remove is not None:
        raise InvalidArgumentError("either a label or --remove: they are two commands")
    now_ms = float(int(time.time() * 1000))
    if name is not None:
        label: Any = name
        labels = await settle(config, lambda catalog: labelled(catalog, target, label, **numbers, now_ms=now_ms))
    else:
        gone: Any = remove
        model = split_target(target)[0]
        labels = await settle(config, lambda catalog: unlabelled(catalog, model, gone, now_ms))
    for line in in_words(labels):
        typer.echo(line)
    return None


def in_words(labels: Labels) -> list[str]:
    """The labels of a model in words, a line each."""
    name = labels.name
    stable = f"{name}:{labels.stable}" if labels.stable is not None else "the newest version that is loaded"
    lines = [f"stable: {stable}"]
    if labels.canary is not None:
        lines.append(
            f"canary: {name}:{labels.canary} answers {labels.canary_weight:.1%}; rolled back after "
            f"{labels.samples_min} answers when it fails more often by {labels.errors_margin:.1%}, or takes longer by "
            f"{labels.latency_margin:.0%}"
        )
    if labels.shadow is not None:
        shadow = f"{name}:{labels.shadow}" if labels.shadow.isdigit() else labels.shadow
        lines.append(f"shadow: {shadow} gets copies of {labels.shadow_weight:.1%}")
    if labels.reason:
        lines.append(f"rolled back: {labels.reason}")
    return lines


async def _show(config: Config, name: str, *, as_json: bool) -> None:
    from modelless.catalog import CatalogView
    from modelless.fleet import FleetView
    from modelless.labels import check_known, tally
    from modelless.messages import Labels
    from modelless.overview import LOOK_S
    from modelless.registration import wall_clock

    view, fleet = CatalogView(config), FleetView(config, wall_clock())
    await asyncio.gather(view.start(), fleet.start())
    await asyncio.sleep(LOOK_S)
    members = fleet.members()
    await asyncio.gather(view.stop(), fleet.stop())
    check_known(view.catalog, name)
    labels = view.catalog.labels(name) or Labels(name)
    rows = _rows(view.catalog, labels, tally(labels, members), members)
    if as_json:
        import json
        from dataclasses import asdict

        typer.echo(json.dumps({"labels": asdict(labels), "versions": rows}, indent=2))
    else:
        _print(labels, rows)


def _rows(
    catalog: Catalog, labels: Labels, counts: dict[str, Served], members: tuple[Member, ...]
) -> list[dict[str, Any]]:
    """Every version of the model, and its shadow's variants, with what was counted."""
    from modelless.labels import shadow_of

    loaded = [variant for member in members for variant in member.variants]
    versions = [model for model in catalog.models() if model.name == labels.name]
    shadow = shadow_of(labels)
    shadows = [key for key in counts if "/" in key] or ([shadow[1] or shadow[0]] if shadow else [])
    rows = []
    for key in [model.key for model in versions] + [variant for variant in shadows if "/" in variant]:
        names = {labels.stable: "stable", labels.canary: "canary"}
        version = int(key.partition("/")[0].rpartition(":")[2])
        label = "shadow" if "/" in key else names.get(version, "")
        served = counts.get(key)
        rows.append(
            {
                "version": key,
                "label": label,
                "loaded": sum(variant == key or variant.startswith(f"{key}/") for variant in loaded),
                "answered": served.answered if served else 0,
                "failed": served.failed if served else 0,
                "execute_ms_mean": served.execute_ms / served.answered if served and served.answered else None,
                "slow_batches": served.slow if served else 0,
                "batches": served.batches if served else 0,
                "shadowed": served.shadowed if served else 0,
                "agreement": served.agreed / served.shadowed if served and served.shadowed else None,
            }
        )
    return rows


def _print(labels: Labels, rows: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.table import Table

    from modelless.commands.models import wide_console

    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("version", no_wrap=True)
    table.add_column("label", no_wrap=True)
    for heading in ("loaded", "answered", "failed", "ms per row", "slow batches", "copies", "agreement"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        mean, agreement = row["execute_ms_mean"], row["agreement"]
        table.add_row(
            row["version"],
            row["label"],
            str(row["loaded"]),
            f"{row['answered']:,}",
            f"{row['failed']:,}",
            "" if mean is None else f"{mean:.3f}",
            f"{row['slow_batches']:,} of {row['batches']:,}" if row["batches"] else "",
            f"{row['shadowed']:,}" if row["shadowed"] else "",
            "" if agreement is None else f"{agreement:.1%}",
        )
    console = wide_console()
    console.print(table)
    for line in in_words(labels):
        console.print(line, highlight=False)
