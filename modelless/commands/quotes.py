"""What a demand would cost, for ``modelless plan``: what there is to choose from, and how a quote is shown."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from modelless.errors import DecodeError, InvalidArgumentError, NotFoundError

if TYPE_CHECKING:
    from aiokafka.structs import ConsumerRecord
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


def options_of(config: Config) -> Any:
    """How much is planned beside the demand, as the leader does."""
    from broker.sizing import Options

    return Options(utilisation_max=config.planner.utilisation_max, missed_max=config.planner.missed_max)


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
    for heading in ("task", "latency ms", "accuracy", "prefer", "on miss", "rows/s", "burst", "served", "by"):
        classes.add_column(heading, justify="right" if heading in ("rows/s", "burst", "served") else "left")
    for each in quote.classes:
        asked = each.asked
        classes.add_row(
            asked.task,
            "" if asked.latency_ms == float("inf") else f"{asked.latency_ms:,.4g}",
            f"{each.accuracy_min:.4g}",
            asked.prefer,
            asked.on_miss,
            f"{asked.rows_per_s:,.4g}",
            f"{asked.burst:,.3g}",
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


# --- a topic ----------------------------------------------------------------------------------------------------------

CONNECT_TIMEOUT_S = 15.0
LOOK_S = 1.0
"""So often a quote is made anew."""


class Foreign(NamedTuple):
    """What a record that is no query of ours stands for."""

    task: str
    latency_ms: float | None
    accuracy_min: float | None
    prefer: str
    on_miss: str


async def watching(
    config: Config,
    topic: str,
    foreign: Foreign | None,
    profiles: Path | None,
    fleet: Path | None,
    seconds: float | None,
    *,
    as_json: bool,
) -> int:
    """Follow a topic from its end, and show what it would cost, until Ctrl-C or for so long; the exit status.

    Raises:
        NotFoundError: there is no such topic.
        UnavailableError: Kafka does not answer.
    """
    from time import time

    from rich.live import Live

    from broker.quote import Asked, quote
    from broker.watching import Watch
    from modelless.commands.models import wide_console
    from modelless.fleet import wait_at_most
    from modelless.tables import Follower

    ends = await _ends(config, topic)
    choices, limits = await available(config, profiles, fleet)
    latency_ms = config.broker.latency_ms_default
    stands_for = None
    if foreign is not None:
        stands_for = Asked(foreign.task, 0.0, foreign.latency_ms or latency_ms, *foreign[2:])  # type: ignore[arg-type]
    began_ms = time() * 1000
    watch = Watch(began_ms, stands_for, latency_ms)

    def on_record(record: ConsumerRecord) -> None:
        _count(watch, record, time() * 1000)

    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)
    follower = Follower(config, [topic], on_record, positions=ends)
    await follower.start()
    console = wide_console()
    slack, options = config.broker.accuracy_slack, options_of(config)
    found = quote((), choices, limits, slack, options)
    try:
        with Live(console=console, auto_refresh=False, transient=True) as live:
            while not stop.is_set() and (seconds is None or time() * 1000 < began_ms + seconds * 1000):
                await wait_at_most(stop, LOOK_S)
                now_ms = time() * 1000
                asked = watch.asked(now_ms)
                found = await asyncio.to_thread(quote, asked, choices, limits, slack, options)
                if console.is_terminal and not as_json:
                    live.update(_watched(topic, watch, found, now_ms - began_ms), refresh=True)
    finally:
        await follower.stop()
    if as_json:
        import json

        typer.echo(json.dumps({"topic": topic, "records": watch.counted()} | plain(found), indent=2))
    else:
        console.print(_watched(topic, watch, found, time() * 1000 - began_ms))
    return 0 if found.is_served else 1


async def _ends(config: Config, topic: str) -> dict[Any, int]:
    """Where each partition of it ends now."""
    from aiokafka import TopicPartition
    from aiokafka.errors import KafkaError

    from modelless.kafka import make_consumer, stop_within
    from modelless.topic_settings import unreachable

    consumer = make_consumer(config)
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await consumer.start()
            names = await consumer.topics()
            if topic not in names:
                close = get_close_matches(topic, names, 1, 0.5)
                raise NotFoundError(f"there is no topic {topic!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
            numbers = consumer.partitions_for_topic(topic) or ()
            ends: dict[Any, int] = await consumer.end_offsets([TopicPartition(topic, number) for number in numbers])
            return ends
    except (KafkaError, TimeoutError, OSError) as error:
        raise unreachable(config, error) from None
    finally:
        await stop_within(consumer)


def _count(watch: Any, record: ConsumerRecord, now_ms: float) -> None:
    from modelless.codec import decode_query
    from modelless.headers import read_headers

    try:
        query, _ = decode_query(record.value, read_headers(record.headers))
    except DecodeError:
        watch.foreign(float(record.timestamp), now_ms)
    else:
        watch.query(query, float(record.timestamp), now_ms)


def _watched(topic: str, watch: Any, found: Any, passed_ms: float) -> Group:
    from rich.console import Group
    from rich.text import Text

    rate = sum(each.asked.rows_per_s for each in found.classes)
    head = f"{topic}, {passed_ms / 1000:.0f} s: {watch.queries:,} queries, {watch.others:,} other records"
    lines = [Text(f"{head}; {rate:,.4g} rows a second are quoted for", "bold")]
    if watch.named:
        lines.append(Text(f"{watch.named:,} queries name a model or a variant: a quote covers tasks only", "yellow"))
    if watch.others and not any(each.asked.task for each in found.classes):
        lines.append(Text("other records are not quoted for: say with --task what a row of them would be", "yellow"))
    return Group(*lines, render(found))
