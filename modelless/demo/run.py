"""The demo from beginning to end; each step says what it does."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import uvloop
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from modelless.client import Client
from modelless.config import Config
from modelless.demo import report, scenario, show
from modelless.demo.family import Family, prepare
from modelless.demo.load import Driven, Load
from modelless.demo.measured import register_family
from modelless.demo.plot import plot
from modelless.demo.scenario import Scenario
from modelless.demo.system import System, write_config
from modelless.demo.verify import Count, Verifier

_PAUSE_S = 1.0
"""Between policies, so that one does not inherit the other's tail."""


@dataclass(frozen=True, slots=True)
class Options:
    rate: float = 300.0
    """Queries per second at the end, outside bursts."""
    seconds: float = 20.0
    """Of each of the three policies."""
    seed: int = 7
    keep: bool = False
    folder: Path = Path(".modelless/demo")
    results: Path = Path("demo-results")


def run(options: Options, base: Config | None, console: Console) -> bool:
    """True when every query got exactly one reply. ``base``: see :func:`write_config`."""
    family = _train(options, console)
    config_file = write_config(options.folder, base)
    exact: bool = uvloop.run(_serve(options, config_file, family, console))
    return exact


def _train(options: Options, console: Console) -> Family:
    """Not inside an event loop, so that Ctrl-C interrupts it at once."""
    console.rule("1. a family of models", align="left")
    started_s = time.monotonic()
    with _progress(console) as progress:
        bars: dict[str, int] = {}

        def show_share(name: str, share: float) -> None:
            if name not in bars:
                bars[name] = progress.add_task(f"training {name}", total=1.0)
            progress.update(bars[name], completed=share)  # type: ignore[arg-type]
            if share == 1 and not console.is_terminal:
                console.print(f"trained {name} after {time.monotonic() - started_s:.0f} s")

        family = prepare(options.folder, show_share)
    took = "trained before, reused" if family.is_reused else f"trained in {time.monotonic() - started_s:.0f} s"
    console.print(f"{len(family.specifications)} models, {took}; {len(family.queries.labels)} images are held out")
    return family


async def _serve(options: Options, config_file: Path, family: Family, console: Console) -> bool:
    console.rule("2. the system", align="left")
    console.print(f"modelless up --config {config_file}   ")
    console.print(f"its log: {options.folder / 'up.log'}")
    started_s = time.monotonic()
    async with System(config_file, options.folder / "up.log") as system:
        console.print(f"ready after {time.monotonic() - started_s:.1f} s at {system.config.kafka.servers}")
        console.rule("3. registering and measuring", align="left")
        measured = await register_family(system.config, family, lambda line: console.print(line))
        plan = scenario.make_scenario(measured)
        console.print(show.family_table(plan))
        driven, count = await _drive(options, system, plan, family, console)
        _conclude(options, plan, driven, count, console)
        if options.keep:
            console.print(f"kept running: modelless query --config {config_file} --help; Ctrl-C ends it")
            await system.wait()
    return count.is_exact


async def _drive(
    options: Options, system: System, plan: Scenario, family: Family, console: Console
) -> tuple[dict[str, Driven], Count]:
    console.rule("4. the load", align="left")
    arrivals = scenario.make_arrivals(
        plan.classes,
        seconds=options.seconds,
        rate=options.rate,
        images=len(family.queries.labels),
        seed=options.seed,
    )
    console.print(
        f"{len(arrivals):,} queries in {options.seconds:g} s, the same for each policy (seed {options.seed}): "
        f"{options.rate * scenario.RATE_FIRST:.0f} to {options.rate:.0f} a second, "
        f"{len(scenario.BURSTS)} bursts of {scenario.BURST_FACTOR:g} times that"
    )
    driven: dict[str, Driven] = {}
    async with Verifier(system.config) as verifier, Client.from_config(system.config) as client:
        load = Load(client, family.queries)
        await load.warm_up([model.model for model in plan.measured])
        with _progress(console) as progress:
            for policy in plan.policies:
                bar = progress.add_task(policy.name, total=len(arrivals))
                driven[policy.name] = await load.drive(
                    plan,
                    policy,
                    arrivals,
                    lambda done, bar=bar: progress.update(bar, completed=done),  # type: ignore[misc]
                )
                await asyncio.sleep(_PAUSE_S)
                system.check()
        console.rule("5. counting replies in Kafka", align="left")
        count = await verifier.count(client.id, load.submitted)
        console.print(count.describe(), style="green" if count.is_exact else "bold red")
    return driven, count


def _conclude(options: Options, plan: Scenario, driven: dict[str, Driven], count: Count, console: Console) -> None:
    console.rule("6. what came of it", align="left")
    answers = [answer for part in driven.values() for answer in part.answers]
    rows = report.figures(answers, plan.classes, plan.policies)
    for kind in (*plan.classes, None):
        name = kind.name if kind is not None else "all"
        shown = [row for row in rows if row.kind == name]
        console.print(show.class_table(kind, shown))
        console.print(show.notes(shown) + "\n", highlight=False)
    words = report.verdict(rows)
    lag_ms = max(part.lag_ms_max for part in driven.values())
    console.print(words, style="bold")
    console.print(f"(the load was sent at most {lag_ms:.0f} ms late)", style="dim")
    options.results.mkdir(parents=True, exist_ok=True)
    result = {
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()},
        "options": {"rate": options.rate, "seconds": options.seconds, "seed": options.seed},
        "scenario": asdict(plan),
        "verification": asdict(count),
        "lag_ms_max": {name: part.lag_ms_max for name, part in driven.items()},
        "figures": report.as_dict(rows),
        "verdict": words,
    }
    (options.results / "demo.json").write_text(json.dumps(result, indent=2))
    plot(options.results / "demo.png", plan, answers, options.seconds)
    console.print(f"saved: {options.results / 'demo.json'}, {options.results / 'demo.png'}")


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description:<28}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    return Progress(*columns, TimeElapsedColumn(), console=console)
