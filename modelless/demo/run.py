"""The demo from beginning to end; each step says what it does."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from modelless.client import Client
from modelless.config import Config
from modelless.demo import report, scenario, show
from modelless.demo.family import Family, prepare
from modelless.demo.load import Driven, Load, ask_of
from modelless.demo.measured import measured, register_family
from modelless.demo.plot import plot
from modelless.demo.scenario import Arrival, Policy, Scenario
from modelless.demo.system import BUILDERS, System, write_config
from modelless.demo.verify import Count, Verifier
from modelless.plot import plot_variants
from modelless.variants import Variant

WARM_UP_MS = 20_000
_PAUSE_S = 0.5
"""Between turns, so that one does not inherit the other's tail."""


@dataclass(frozen=True, slots=True)
class Options:
    rate: float = 300.0
    """Queries per second at the end, outside bursts."""
    seconds: float = 15.0
    """Of each of the four policies."""
    make_s_max: float = 600.0
    """How long to wait for variants; what is not made by then is left out, and disturbs the first policy."""
    seed: int = 7
    compile: bool = False
    """Also make the variants that take a compiler."""
    keep: bool = False
    folder: Path = Path(".modelless/demo")
    results: Path = Path("demo-results")


def run(options: Options, base: Config | None, console: Console) -> bool:
    """True when every query got exactly one reply. ``base``: see :func:`write_config`."""
    family = _train(options, console)
    config_file = write_config(options.folder, base, () if options.compile else BUILDERS)
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
        console.rule("3. registering; making and measuring variants", align="left")
        found = await _register(options, system, family, console)
        plan, driven, count = await _drive(options, system, scenario.make_scenario(measured(found)), family, console)
        _conclude(options, plan, found, driven, count, console)
        if options.keep:
            kafka = system.config.kafka
            console.print(
                f"kept running at {kafka.servers}, topics {kafka.topic_prefix}.*; Ctrl-C ends it\n"
                f"ask it: modelless query --config {config_file} --help, or from Java, Go or kcat: docs/clients.md"
            )
            await system.wait()
    return count.is_exact


async def _register(options: Options, system: System, family: Family, console: Console) -> tuple[Variant, ...]:
    started_s = time.monotonic()
    with _progress(console) as progress:
        bars: dict[str, Any] = {}

        def made(model: str, done: int, total: int) -> None:
            if model not in bars:
                bars[model] = progress.add_task(f"making {model}", total=None)
            progress.update(bars[model], completed=done, total=max(total, 1))

        found = await register_family(system.config, family, made, options.make_s_max)
    ready = sum(variant.point is not None for variant in found)
    console.print(f"{ready} variants of {len(family.specifications)} models in {time.monotonic() - started_s:.0f} s")
    console.print(show.family_table(found))
    for line in show.failures(found):
        console.print(line, highlight=False)
    return found


async def _drive(
    options: Options, system: System, plan: Scenario, family: Family, console: Console
) -> tuple[Scenario, list[Driven], Count]:
    """A rehearsal, from which the oracle knows what the load is like; then all policies, in turns."""
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
    async with Verifier(system.config) as verifier, Client.from_config(system.config) as client:
        load = Load(client, family.queries)
        with _progress(console) as progress:

            async def drive(policy: Policy, bar: TaskID, arrivals: Sequence[Arrival], from_s: float = 0.0) -> Driven:
                part = await load.drive(plan, policy, arrivals, lambda: progress.advance(bar), from_s)
                await asyncio.sleep(_PAUSE_S)
                system.check()
                return part

            async def warm_up(policy: Policy) -> None:
                await load.warm_up([ask_of(kind, policy) | {"latency_ms_max": WARM_UP_MS} for kind in plan.classes])

            ours = plan.policies[0]
            await warm_up(ours)
            bar = progress.add_task("rehearsal, not counted below", total=len(arrivals))
            rehearsed = report.figures((await drive(ours, bar, arrivals)).answers, plan.classes, [ours])
            last = scenario.oracle(plan, {row.kind: row.batch_rows for row in rehearsed if row.batch_rows is not None})
            plan = replace(plan, policies=(*plan.policies, last))
            bars = {policy.name: progress.add_task(policy.name, total=len(arrivals)) for policy in plan.policies}
            for policy in plan.policies[1:]:
                await warm_up(policy)
            driven = [
                await drive(turn.policy, bars[turn.policy.name], turn.arrivals, turn.from_s)
                for turn in scenario.in_turns(plan.policies, arrivals, options.seconds)
            ]
        console.rule("5. counting replies in Kafka", align="left")
        count = await verifier.count(client.id, load.submitted)
        console.print(count.describe(), style="green" if count.is_exact else "bold red")
    return plan, driven, count


def _conclude(
    options: Options,
    plan: Scenario,
    found: Sequence[Variant],
    driven: Sequence[Driven],
    count: Count,
    console: Console,
) -> None:
    console.rule("6. what came of it", align="left")
    answers = [answer for part in driven for answer in part.answers]
    rows = report.figures(answers, plan.classes, plan.policies)
    for kind in (*plan.classes, None):
        name = kind.name if kind is not None else "all"
        shown = [row for row in rows if row.kind == name]
        console.print(show.class_table(kind, shown))
        console.print(show.notes(shown) + "\n", highlight=False)
    for line in show.policy_notes(plan):
        console.print(line, highlight=False)
    ours, single, *_, oracle = (policy.name for policy in plan.policies)
    ratios = report.cost_ratios(rows, ours, oracle, single)
    to_oracle_by_part = []
    for first in range(0, len(driven), len(plan.policies)):
        own = [answer for part in driven[first : first + len(plan.policies)] for answer in part.answers]
        of_part = report.figures(own, plan.classes, plan.policies)
        to_oracle_by_part.append(report.cost_ratios(of_part, ours, oracle, single).to_oracle)
    words = report.verdict(rows)
    lag_ms = max(part.lag_ms_max for part in driven)
    console.print(words, style="bold")
    console.print(show.ratios(ratios, to_oracle_by_part), style="bold")
    console.print(f"(the load was sent at most {lag_ms:.0f} ms late)", style="dim")
    options.results.mkdir(parents=True, exist_ok=True)
    result = {
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()},
        "options": {"rate": options.rate, "seconds": options.seconds, "seed": options.seed},
        "scenario": asdict(plan),
        "variants": [asdict(variant.profile) for variant in found],
        "verification": asdict(count),
        "lag_ms_max": [part.lag_ms_max for part in driven],
        "figures": report.as_dict(rows),
        "cost_ratios": asdict(ratios),
        "to_oracle_by_part": to_oracle_by_part,
        "verdict": words,
    }
    (options.results / "demo.json").write_text(json.dumps(result, indent=2))
    plot(options.results / "demo.png", plan, answers, options.seconds)
    plot_variants(options.results / "frontier.png", found)
    names = ", ".join(str(options.results / name) for name in ("demo.json", "demo.png", "frontier.png"))
    console.print(f"saved: {names}")


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description:<28}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    return Progress(*columns, TimeElapsedColumn(), console=console)
