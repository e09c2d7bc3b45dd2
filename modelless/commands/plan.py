"""``modelless plan``: the present plan and why; what a hypothetical, or an existing, demand would cost."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelless.commands import options

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from modelless.config import Config
    from modelless.messages import Demanded, Plan
    from modelless.overview import Overview
    from modelless.planned import GroupView, WorkerView

LISTED_MAX = 4


def register(app: typer.Typer) -> None:
    """Add the subcommand to ``app``."""

    @app.command()
    def plan(
        demand: Annotated[
            Path | None, typer.Option(metavar="CSV", help="Quote this demand instead, and do nothing; columns above.")
        ] = None,
        profiles: Annotated[
            Path | None, typer.Option(metavar="CSV", help="With --fleet: quote for these variants, without a system.")
        ] = None,
        fleet: Annotated[
            Path | None, typer.Option(metavar="CSV", help="With --profiles: groups, with the most workers of each.")
        ] = None,
        watch: Annotated[
            str | None,
            typer.Option(
                metavar="TOPIC", help="Quote for what is written to this topic meanwhile; reads, and no more."
            ),
        ] = None,
        task: Annotated[
            str | None, typer.Option(help="With --watch: what a record that is no query stands for.")
        ] = None,
        latency_ms: Annotated[float | None, typer.Option(help="Likewise, its latency.")] = None,
        accuracy: Annotated[
            float | None, typer.Option(help="Likewise, its least accuracy; default: the task's.")
        ] = None,
        prefer: options.Prefer = "cost",
        on_miss: options.OnMiss = "reject",
        seconds: Annotated[
            float | None, typer.Option(min=1, help="With --watch: end after so long; default: at Ctrl-C.")
        ] = None,
        follow: Annotated[bool, typer.Option("--follow", help="Keep showing, every second, until Ctrl-C.")] = False,
        as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of tables.")] = False,
        config: options.ConfigFile = None,
    ) -> None:
        """Show the present plan and why; or quote what a demand, or an existing topic, would cost.

        **The present plan**: workers by group, what each has loaded, the demand that it is made for. The leading broker
        makes it anew every half second and writes it when it changes. A group's number of workers is the planner's to
        choose where the group has `workers_max`. Exit status 1 when there is no plan.

        **A quote** (`--demand`) says how many workers of each group would serve a demand, which variants, and what that
        costs, as the planner would have it: with head-room for bursts, within the groups' `workers_max`. The file is
        CSV with the columns `task,latency_ms_max,accuracy_min,rate,prefer,on_miss,burst`, of which `task` and `rate`
        (rows a second) are needed; `burst` is the variance of the rows that come in some time over their mean, 1 if
        they come independently of each other. Variants are those of the running system and groups those of the
        configuration, or with `--profiles` and `--fleet` those of files as `modelless simulate` reads them. Exit status
        1 when something cannot be served, and then it says what keeps it from that.

        **A topic** (`--watch`) of whatever program is read from now on, without a consumer group, and quoted for:
        queries of ours as they ask, any other record as one row of `--task`, with `--latency-ms` and `--accuracy`.
        Rates are means since it began, until Ctrl-C or for `--seconds`.

        **Examples**

        `modelless plan` — once

        `modelless plan --follow` — live

        `modelless plan --json | jq .groups` — for scripts

        `modelless plan --demand examples/plan/demand.csv --profiles examples/simulate/profiles.csv
        --fleet examples/simulate/fleet.csv` — without a system

        `modelless plan --watch orders --task fraud --latency-ms 100` — what would it cost to answer each order?
        """
        from modelless.commands import asking
        from modelless.config import load_config
        from modelless.errors import InvalidArgumentError
        from modelless.messages import ON_MISS, PREFERENCES

        if demand is None and watch is None and (profiles, fleet) != (None, None):
            raise InvalidArgumentError("--profiles and --fleet are for a quote: give --demand or --watch too")
        if sum((demand is not None, watch is not None, follow)) > 1:
            raise InvalidArgumentError("give one of --demand, --watch and --follow; --follow is for the present plan")
        if watch is None and (task, latency_ms, accuracy, seconds) != (None,) * 4:
            raise InvalidArgumentError("--task, --latency-ms, --accuracy and --seconds are for --watch")
        if task is None and (latency_ms, accuracy) != (None, None):
            raise InvalidArgumentError(
                "--latency-ms and --accuracy are of records that are no queries: give --task too"
            )
        if prefer not in PREFERENCES or on_miss not in ON_MISS:
            raise InvalidArgumentError(
                f"--prefer is one of {', '.join(PREFERENCES)}; --on-miss of {', '.join(ON_MISS)}"
            )
        loaded = load_config(config)
        if watch is not None:
            from modelless.commands.quotes import Foreign, watching

            foreign = None if task is None else Foreign(task, latency_ms, accuracy, prefer, on_miss)
            ended = watching(loaded, watch, foreign, profiles, fleet, seconds, as_json=as_json)
            raise typer.Exit(asking.run(loaded, ended))
        if demand is not None:
            quoted = _quote(loaded, demand, profiles, fleet, as_json=as_json)
            raise typer.Exit(asking.run(loaded, quoted) if profiles is None else asyncio.run(quoted))
        raise typer.Exit(asking.run(loaded, _show(loaded, follow=follow, as_json=as_json)))


async def _quote(config: Config, demand: Path, profiles: Path | None, fleet: Path | None, *, as_json: bool) -> int:
    from broker.quote import quote
    from modelless.commands import quotes
    from modelless.commands.models import wide_console

    asked = quotes.read(demand)
    choices, limits = await quotes.available(config, profiles, fleet)
    found = quote(asked, choices, limits, config.broker.accuracy_slack, quotes.options_of(config))
    if as_json:
        import json

        typer.echo(json.dumps(quotes.plain(found), indent=2))
    else:
        wide_console().print(quotes.render(found))
    return 0 if found.is_served else 1


@dataclass(frozen=True, slots=True)
class _Picture:
    """The plan, and what there is beside it."""

    plan: Plan
    groups: Sequence[GroupView]
    workers: Sequence[WorkerView]
    demand: Sequence[Demanded]
    """What brokers are asked for now, the most first."""


async def _show(config: Config, *, follow: bool, as_json: bool) -> int:
    from rich.live import Live

    from modelless.commands.models import wide_console
    from modelless.overview import observing

    async with observing(config) as observer:
        picture = _picture(config, await observer.look())
        if as_json:
            import json

            typer.echo(json.dumps(None if picture is None else _plain(picture), indent=2))
        elif not follow:
            wide_console().print(_render(picture))
        else:
            with Live(_render(picture), auto_refresh=False, screen=True) as live:
                while True:
                    await asyncio.sleep(1)
                    picture = _picture(config, await observer.look())
                    live.update(_render(picture), refresh=True)
    return 0 if picture is not None else 1


def _picture(config: Config, overview: Overview) -> _Picture | None:
    """None while there is no plan."""
    from broker.demand import total
    from modelless.planned import group_views, prices, worker_views

    plan = overview.plan
    if plan is None:
        return None
    configured = {group.name: group.price_per_hour for group in config.groups}
    by_group = prices(overview.members, overview.profiles, configured)
    asked = total(each for member in overview.members for each in member.demand)
    return _Picture(
        plan,
        group_views(overview.members, by_group, plan),
        worker_views(overview.members, overview.profiles, plan),
        sorted(asked, key=lambda each: -each.rows_per_second),
    )


def _plain(picture: _Picture) -> dict[str, Any]:
    from dataclasses import asdict

    plan = picture.plan
    return {
        "epoch": plan.epoch,
        "leader": plan.leader,
        "created_ms": plan.created_ms,
        "usd_per_hour": sum(group.usd_per_hour for group in picture.groups),
        "usd_per_hour_planned": sum(group.usd_per_hour_planned for group in picture.groups),
        "groups": [
            asdict(group) | {"usd_per_hour": group.usd_per_hour, "usd_per_hour_planned": group.usd_per_hour_planned}
            for group in picture.groups
        ],
        "workers": [asdict(worker) for worker in picture.workers],
        "demand": [asdict(each) for each in picture.demand],
        "reasons": list(plan.reasons),
    }


def _render(picture: _Picture | None) -> Group:
    from time import time

    from rich.console import Group
    from rich.text import Text

    if picture is None:
        return Group(Text("no plan was written yet: it needs a broker (`modelless up`, `modelless status`)", "yellow"))
    plan = picture.plan
    age_s = max(0.0, time() - plan.created_ms / 1000)
    usd, planned = (sum(values) for values in zip(*_costs(picture.groups), strict=True))
    head = f"plan {plan.epoch} of {plan.leader}, written {_ago(age_s)} ago; ${usd:,.4g} an hour now"
    head += f", ${planned:,.4g} as planned" if planned != usd else ""
    return Group(
        Text(head, "bold"),
        _groups(picture.groups),
        _workers(picture.workers),
        _demand(picture.demand),
        *(Text(f"{group.name}: {group.error}", "red") for group in picture.groups if group.error),
        *(Text(reason, "dim") for reason in plan.reasons),
    )


def _costs(groups: Iterable[GroupView]) -> list[tuple[float, float]]:
    return [(group.usd_per_hour, group.usd_per_hour_planned) for group in groups] or [(0.0, 0.0)]


def _ago(seconds: float) -> str:
    for length_s, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * length_s:
            return f"{seconds / length_s:.0f} {unit}"
    return f"{seconds:.0f} s"


def _groups(groups: Sequence[GroupView]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE)
    for heading in ("group", "workers", "ready", "planned", "USD/h", "planned"):
        table.add_column(heading, justify="left" if heading == "group" else "right", no_wrap=True)
    table.add_column("leaving")
    table.add_column("why")
    for group in groups:
        table.add_row(
            group.name,
            str(group.workers),
            str(group.ready),
            "fixed" if group.target is None else str(group.target),
            f"{group.usd_per_hour:,.4g}",
            f"{group.usd_per_hour_planned:,.4g}",
            ", ".join(group.leaving),
            group.reason,
        )
    return table


def _workers(workers: Sequence[WorkerView]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table("worker", "state", "loaded", "to load", "to unload", "to measure", box=box.SIMPLE)
    for worker in workers:
        state = f"{worker.state}, leaving" if worker.leaving else worker.state
        table.add_row(
            worker.name,
            Text(state, "green" if state == "ready" else "yellow"),
            *(_listed(names) for names in (worker.loaded, worker.to_load, worker.to_unload, worker.to_measure)),
        )
    return table


def _demand(demand: Sequence[Demanded]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table("asked for: task", "latency ms", "accuracy", "prefer", "degrades", box=box.SIMPLE)
    table.add_column("rows/s", justify="right")
    for each in demand:
        table.add_row(
            each.task,
            "" if each.latency_ms is None else f"{each.latency_ms:,.0f}",
            f"{each.accuracy_min:.4g}",
            each.prefer,
            "yes" if each.degrades else "",
            f"{each.rows_per_second:,.1f}",
        )
    if not demand:
        table.caption = "nobody asks for a task now"
    return table


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED_MAX} more" if len(names) > LISTED_MAX else ""
    return ", ".join(names[:LISTED_MAX]) + more
