"""``modelless explain``: what would be chosen for a query, and why."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelless.commands import options
from modelless.messages import USUAL_ROWS, USUAL_SLOWNESS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.table import Table

    from modelless.config import Config
    from modelless.messages import Member, Query


def register(app: typer.Typer) -> None:
    """Add the subcommand to ``app``."""

    @app.command()
    def explain(
        task: options.Task = None,
        model: options.Model = None,
        variant: options.Variant = None,
        latency_ms: options.LatencyMs = None,
        accuracy: options.Accuracy = None,
        cost_max: options.CostMax = None,
        prefer: options.Prefer = "cost",
        on_miss: options.OnMiss = "reject",
        rows: Annotated[int, typer.Option(min=1, help="Rows of the query.")] = 1,
        as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
        config: options.ConfigFile = None,
    ) -> None:
        """Say which variant a query would get now, with every candidate's numbers and why it was or was not chosen.

        It asks nobody: it reads what is registered, measured, planned and loaded, and decides as a broker does.
        Accuracy is chosen by its lower bound; latencies are those of late, and the finish adds the work that workers
        said they hold. To see why a real query got what it got, send it with the header `modelless-explain: 1`: its
        reply carries the same as JSON.

        Exit status 0 when something is chosen, 1 when it would wait or be refused.

        **Examples**

        `modelless explain --task digits --latency-ms 30 --accuracy 0.95`

        `modelless explain --model digits-cnn --prefer accuracy --cost-max 0.00002`

        `modelless explain --task digits --latency-ms 5 --on-miss degrade --json | jq .decision`
        """
        from modelless.commands import asking
        from modelless.config import load_config
        from modelless.errors import InvalidArgumentError
        from modelless.messages import ON_MISS, PREFERENCES, Query

        if sum(name is not None for name in (task, model, variant)) != 1:
            raise InvalidArgumentError("give exactly one of --task, --model and --variant")
        if prefer not in PREFERENCES or on_miss not in ON_MISS:
            raise InvalidArgumentError(
                f"--prefer is one of {', '.join(PREFERENCES)}; --on-miss of {', '.join(ON_MISS)}"
            )
        query = Query("", (), task, model, variant, latency_ms, None, accuracy, cost_max, prefer, on_miss)
        settings = load_config(config)
        raise typer.Exit(asking.run(settings, _show(settings, query, rows, as_json=as_json)))


async def _show(config: Config, query: Query, rows: int, *, as_json: bool) -> int:
    from broker.explain import asked, explain_asked, plain
    from broker.selector import Chosen
    from modelless.errors import NotFoundError

    catalog, backlog_ms, states = await _look(config)
    target = catalog.resolve(query)
    name = query.task or query.model or query.variant
    if target is None:
        raise NotFoundError(f"there is no {name!r}; `modelless models` lists what there is")
    if not len(target.ranking):
        typer.echo(f"nothing of {name} has been measured yet: a query would wait; see `modelless status`")
        return 1
    entry = asked(query, rows, config.broker.latency_ms_default)
    choice, explanation = explain_asked(entry, target, catalog, backlog_ms, config.broker.accuracy_slack)
    if as_json:
        import json

        content = plain(explanation)
        for judged in content["candidates"]:
            judged["state"] = states.get(f"{judged['variant']}@{judged['group']}", "")
        typer.echo(json.dumps(content, indent=2))
    else:
        from modelless.commands.models import wide_console

        console = wide_console()
        console.print(_table(explanation, states))
        console.print(explanation.decision, highlight=False, style="bold")
    return 0 if isinstance(choice, Chosen) else 1


async def _look(config: Config) -> tuple[Any, Mapping[str, float], Mapping[str, str]]:
    """The catalog that a broker would have, ms of work by group, and states by ``variant@group``."""
    from broker.explain import catalog_of
    from modelless.catalog import CatalogView
    from modelless.fleet import FleetView
    from modelless.registration import PlanView, wall_clock

    view, fleet, plans = CatalogView(config), FleetView(config, wall_clock()), PlanView(config)
    try:
        await asyncio.gather(view.start(), fleet.start(), plans.start())
    finally:
        await asyncio.gather(view.stop(), fleet.stop(), plans.stop())
    known, workers = view.catalog, fleet.workers()
    models, conditions = known.models(), known.conditions()
    labels = [known.labels(name) for name in {model.name for model in models}]
    catalog = catalog_of(
        models,
        known.all_profiles(),
        known.corrections(),
        conditions,
        filter(None, labels),
        workers,
        plans.plan,
        _usual(fleet.brokers()),
        next((broker.demand for broker in fleet.brokers()), ()),
    )
    backlog_ms: dict[str, float] = {}
    for worker in workers:
        group = worker.group or ""
        backlog_ms[group] = backlog_ms.get(group, 0.0) + worker.statistics.get("backlog_ms", 0.0)
    states = {each.key: "active" if each.workers else "inactive" for each in catalog.candidates()}
    states |= {f"{each.variant}@{each.group}": each.state for each in conditions}
    return catalog, backlog_ms, states


def _usual(brokers: Sequence[Member]) -> dict[str, tuple[float, float]]:
    """Rows and slowness that are usual on each group, as any of the brokers saw it lately."""
    return {
        group: (rows, broker.statistics.get(f"{USUAL_SLOWNESS}{group}", 1.0))
        for broker in brokers
        for name, rows in broker.statistics.items()
        if (group := name.removeprefix(USUAL_ROWS)) != name
    }


def _table(explanation: Any, states: Mapping[str, str]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, pad_edge=False)
    for heading in ("", "variant", "group", "state"):
        table.add_column(heading, no_wrap=True)
    for heading in ("accuracy", "at least", "lat ms", "finish ms", "$ per 1,000", "ready on"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("why", overflow="fold")
    for judged in explanation.candidates:
        style = "bold green" if judged.chosen else None
        table.add_row(*_cells(judged, states.get(f"{judged.variant}@{judged.group}", "")), style=style)
    return table


def _cells(judged: Any, state: str) -> list[Any]:
    return [
        "→" if judged.chosen else "",
        judged.variant,
        judged.group,
        state,
        f"{judged.accuracy:.4f}",
        f"{judged.accuracy_low:.4f}",
        f"{judged.lat_ms:.2f}",
        "" if judged.finish_ms is None else f"{judged.finish_ms:.2f}",
        f"{judged.cost:.6f}",
        str(judged.workers or ""),
        judged.why,
    ]
