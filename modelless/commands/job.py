"""``modelless job``: what a model says of a whole data set, at whatever time there is."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelless.commands import options

if TYPE_CHECKING:
    from modelless.config import Config
    from modelless.dataset import Dataset
    from modelless.job import Job

ROWS_OF_QUERY = 8
TICK_S = 0.25
SAY_S = 10.0
"""Between two lines where there is no terminal."""
FEW = 10
"""Queries: where fewer were answered meanwhile, it says why."""
STOPPED = 130


def register(app: typer.Typer) -> None:
    """Add the subcommand to ``app``."""
    jobs = typer.Typer(help="Ask for a whole data set, in the time that other queries leave.", no_args_is_help=True)
    app.add_typer(jobs, name="job")

    @jobs.callback()
    def _only() -> None:
        """Ask for a whole data set, in the time that other queries leave."""

    @jobs.command()
    def run(
        data: Annotated[Path, typer.Option(help="An .npz or a .jsonl; see above.", show_default=False)],
        out: Annotated[Path, typer.Option(help="Where the answers go, of the same form.", show_default=False)],
        task: options.Task = None,
        model: options.Model = None,
        variant: options.Variant = None,
        accuracy: options.Accuracy = None,
        cost_max: options.CostMax = None,
        prefer: options.Prefer = "cost",
        rows_per_query: Annotated[
            int, typer.Option(min=1, help="Rows of an .npz that are asked, and run, together.")
        ] = ROWS_OF_QUERY,
        name: Annotated[
            str | None, typer.Option(help="Of the job; default: the name of --out.", show_default=False)
        ] = None,
        config: options.ConfigFile = None,
        as_json: Annotated[bool, typer.Option("--json", help="The summary as JSON.")] = False,
    ) -> None:
        """Run a task over a data set, offline: in the device time that queries with a deadline leave.

        Nobody waits for it: online queries always go first, and of several jobs the one that has had the least
        device time. Exit status 0 only if every row has an answer.

        **Data**: an `.npz` with arrays named as the model's inputs, a row each (and `labels`, if the accuracy is to be
        told), gives an `.npz` with arrays named as the outputs. A `.jsonl` with a query in the contract's JSON form on
        each line, which may state what it asks for itself, gives a `.jsonl` of replies. Both in the order of the data.

        **Interruptions**: what is answered is kept in a journal beside `--out`. After Ctrl-C, or a crash, the same
        command goes on where it was; so it does after failures, and asks only for what failed.

        **Rows**: online queries wait until a batch has ended, so offline batches are kept short beside them. Rows that
        are asked together cannot be taken apart: where many of them are slow, fewer of them go sooner.

        **Examples**

        `modelless job run --task digits --data images.npz --out predictions.npz`

        `modelless job run --task digits --data images.npz --out best.npz --prefer accuracy --rows-per-query 32`

        `modelless job run --data questions.jsonl --out answers.jsonl --name nightly`
        """
        from modelless.config import load_config
        from modelless.dataset import open_dataset
        from modelless.errors import InvalidArgumentError

        if data.suffix != out.suffix:
            raise InvalidArgumentError(f"--out {out}: answers to {data.suffix} are {data.suffix}, too")
        named = {"task": task, "model": model, "variant": variant}
        targets = {name: value for name, value in named.items() if value is not None}
        asked = {
            **named,
            "accuracy_min": accuracy,
            "cost_max": cost_max,
            "prefer": prefer,
            "metadata": {"job": name or out.stem},
        }
        if len(targets) > 1 or (data.suffix == ".npz" and not targets):
            raise InvalidArgumentError("give exactly one of --task, --model and --variant")
        settings = load_config(config)
        raise typer.Exit(_run(settings, open_dataset(data, rows_per_query, targets), out, asked, as_json=as_json))


def _run(config: Config, data: Dataset, out: Path, asked: dict[str, Any], *, as_json: bool) -> int:
    """Returns the exit status."""
    from modelless.commands import asking
    from modelless.errors import InvalidArgumentError
    from modelless.job import Job, Journal

    path = out.with_name(out.name + ".journal")
    if out.exists() and not path.exists():
        raise InvalidArgumentError(f"--out {out} is there already: give another one, or delete it")
    try:
        journal = Journal(path, data.digest(asked), data.queries)
    except OSError as error:
        raise InvalidArgumentError(f"--out {out}: {error.strerror}") from None
    with journal:
        job = Job(data, journal, asked)
        try:
            asking.run(config, _ask(config, data, job, journal.flush))
        except (KeyboardInterrupt, asyncio.CancelledError):
            journal.flush()
            typer.echo(
                f"stopped: {job.rows_answered:,} of {data.rows:,} rows are answered and kept in {path}; "
                "the same command goes on from there",
                err=True,
            )
            return STOPPED
        accuracy = data.write(out, journal.replies(), job.failures)
        if not job.failures:
            journal.remove()
        _summarise(job, data, out, accuracy, as_json=as_json)
    return 1 if job.failures else 0


async def _ask(config: Config, data: Dataset, job: Job, flush: Any) -> None:
    from modelless.client import Client

    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with Client.from_config(config) as client:
        showing = asyncio.create_task(_show(config, data, job, flush))
        try:
            await job.run(client)
        finally:
            showing.cancel()
            await asyncio.gather(showing, return_exceptions=True)


async def _show(config: Config, data: Dataset, job: Job, flush: Any) -> None:
    """How far it is: a bar on a terminal, else a line now and then; what is answered is on its way to the disk.

    Where it hardly goes on, why.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("rows  {task.fields[rate]:,.0f} rows/s "),
        TimeRemainingColumn(),
        TextColumn(" ${task.fields[cost]:.4g}{task.fields[failed]}"),
    )
    loop = asyncio.get_running_loop()
    start_s = said_s = looked_s = loop.time()
    before = job.rows_before
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=data.rows, completed=job.rows_before, rate=0.0, cost=0.0, failed="")
        while True:
            await asyncio.sleep(TICK_S)
            flush()
            done = job.rows_answered + job.rows_failed
            rate = (done - job.rows_before) / (loop.time() - start_s)
            failed = f"  {job.rows_failed:,} failed" if job.rows_failed else ""
            progress.update(bar, completed=done, rate=rate, cost=job.cost_usd, failed=failed)
            if loop.time() - looked_s >= SAY_S:
                for words in await _waits(config) if done - before < FEW * data.rows / data.queries else ():
                    console.print(words, highlight=False, soft_wrap=True)
                before, looked_s = done, loop.time()
            if not console.is_terminal and loop.time() - said_s >= SAY_S:
                said_s = loop.time()
                left = f"{(data.rows - done) / rate:,.0f} s left" if rate else "nothing answered yet"
                line = f"{done:,} of {data.rows:,} rows, {rate:,.0f} rows/s, {left}, ${job.cost_usd:.4g}{failed}"
                console.print(line, highlight=False, soft_wrap=True)


async def _waits(config: Config) -> list[str]:
    """Why it may be that nothing is answered, as far as the brokers say."""
    from modelless.clock import KafkaClock
    from modelless.errors import UnavailableError
    from modelless.fleet import FleetView
    from modelless.health import withheld

    fleet = FleetView(config, KafkaClock())
    try:
        await fleet.start()
        return withheld(fleet.brokers())
    except UnavailableError as error:
        return [error.message]
    finally:
        await fleet.stop()


def _summarise(job: Job, data: Dataset, out: Path, accuracy: float | None, *, as_json: bool) -> None:
    reasons = job.reasons
    if as_json:
        found = {
            "rows": data.rows,
            "answered": job.rows_answered,
            "answered_before": job.rows_before,
            "failed": job.rows_failed,
            "reasons": dict(reasons),
            "cost_usd": job.cost_usd,
            "accuracy": accuracy,
            "out": str(out),
        }
        typer.echo(json.dumps(found, indent=2))
        return
    before = f" ({job.rows_before:,} of them in an earlier run)" if job.rows_before else ""
    right = "" if accuracy is None else f", accuracy {accuracy:.4f}"
    typer.echo(f"{job.rows_answered:,} of {data.rows:,} rows answered{before}, ${job.cost_usd:.4g}{right}: {out}")
    for reason, number in reasons.most_common(10):
        typer.secho(f"  {number:,} queries failed: {reason}", err=True, fg=typer.colors.RED)
    if reasons:
        typer.echo("the same command asks again for what failed", err=True)
