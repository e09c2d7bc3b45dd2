"""``modelless simulate``: what policies would make of the same arrivals, in virtual time."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the subcommand to ``app``."""
    app.command("simulate")(simulate)


def simulate(
    profiles: Annotated[Path, typer.Option(metavar="CSV", help="Measured variants; columns above.")],
    fleet: Annotated[Path, typer.Option(metavar="CSV", help="Groups of workers; columns above.")],
    arrivals: Annotated[Path | None, typer.Option(metavar="CSV", help="Queries; columns above.")] = None,
    generate: Annotated[
        list[str] | None,
        typer.Option(metavar="PROCESS:...", help="Draw queries instead, or besides; see above. Repeatable."),
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Who decides; default: ours. Repeatable; `all` for everyone."),
    ] = None,
    placement: Annotated[
        list[str] | None,
        typer.Option(
            metavar="POLICY[=CSV]",
            help="What it has loaded at time 0; default: nothing. Without a file what it works out itself, "
            "if it can. Repeatable.",
        ),
    ] = None,
    brokers: Annotated[int, typer.Option(min=1, help="Brokers of ours.")] = 1,
    topic_weight: Annotated[
        list[str] | None,
        typer.Option(metavar="TOPIC=WEIGHT", help="Parts of the devices that ours gives a topic; else 1. Repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of all that is drawn.")] = 0,
    fault: Annotated[
        list[str] | None, typer.Option(metavar="KIND:...", help="What goes wrong, and when; see above. Repeatable.")
    ] = None,
    wrong_profile: Annotated[
        list[str] | None,
        typer.Option(metavar="VARIANT@GROUP*TIMES", help="So many times slower than its profile. Repeatable."),
    ] = None,
    timer_late_ms: Annotated[float, typer.Option(min=0, help="Timers are late by up to so much.")] = 0.0,
    intake_ms: Annotated[float, typer.Option(min=0, help="From a query's time until the policy sees it.")] = 0.0,
    reply_ms: Annotated[float, typer.Option(min=0, help="From a batch's end until its replies are out.")] = 0.0,
    as_json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all figures.")] = None,
    log: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV", help="Write every query, and beside it every load; with the policy's name if many."
        ),
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="PNG", help="Draw it (.png, .svg, .pdf).")] = None,
    save_arrivals: Annotated[
        Path | None, typer.Option(metavar="CSV", help="Write the queries, to play the same ones again.")
    ] = None,
) -> None:
    """Play arrivals against measured variants and a fleet, in virtual time, and compare policies.

    `ours` is the real broker, batcher, device queue and planner; others are rules of other systems. Files are CSV with
    a header; an empty cell is the contract's default, or none:

    * arrivals: `arrival_ms,task,latency_ms_max,accuracy_min,on_miss,prefer`, and `topic` if there are several
    * profiles: `task,model,variant,group,batch_size,p50_ms,p99_ms,accuracy,load_ms,memory_mb`, a row per batch size
    * fleet: `group,workers,memory_mb,price_per_hour`; the workers of `gpu` are `gpu-0`, `gpu-1` and so on. A group with
      `workers_max` scales, from `workers` at time 0 on: also `workers_min`, `start_ms` and `bill_s_min`
    * placement: `worker,variant`

    **Drawn arrivals** are a process and its arguments, with the columns of an arrivals file, `|` between alternatives:
    `poisson:rate,seconds`, `gamma:rate,seconds,shape` (0.05: in clumps), `bursts:rate,seconds,times,burst_s,calm_s`,
    `diurnal:rate,seconds,period_s,swing`, `trace:file,rate,seconds` (column TIMESTAMP or arrival_ms) and
    `counts:file,rate,seconds` (columns timestamp, value). `zipf=1` makes the k-th task asked for in proportion to 1/k.

    **Faults** happen at a time in ms: `lost:WORKER@MS`, `back:WORKER@MS`, `slow:WORKER*TIMES@MS`, `price:GROUP=USD@MS`.

    **Examples**

    `modelless simulate --arrivals a.csv --profiles p.csv --fleet f.csv`

    `modelless simulate --generate "gamma:rate=200,shape=0.05,seconds=60,task=digits,latency_ms_max=50|200"
    --profiles p.csv --fleet f.csv --policy all --plot policies.png`

    `modelless simulate --arrivals a.csv --profiles p.csv --fleet f.csv --fault "lost:gpu-0@20000" --fault
    "back:gpu-0@40000" --json figures.json --log run.csv`

    `modelless simulate --generate "diurnal:rate=100,seconds=600,period_s=600,task=digits,latency_ms_max=100"
    --profiles examples/simulate/profiles.csv --fleet examples/simulate/scaling.csv --policy ours --policy keda`

    `python -m simulator.verifier run.csv --profiles p.csv --fleet f.csv` computes the figures again from the log.
    """
    from modelless.commands.models import wide_console
    from simulator.run import Options, run

    options = Options(
        profiles=profiles,
        fleet=fleet,
        arrivals=arrivals,
        generate=generate or (),
        policies=policy or ("ours",),
        placements=placement or (),
        brokers=brokers,
        topic_weights=topic_weight or (),
        seed=seed,
        faults=fault or (),
        wrong_profiles=wrong_profile or (),
        timer_late_ms=timer_late_ms,
        intake_ms=intake_ms,
        reply_ms=reply_ms,
        json=as_json,
        log=log,
        plot=plot,
        save_arrivals=save_arrivals,
    )
    run(options, wide_console())
