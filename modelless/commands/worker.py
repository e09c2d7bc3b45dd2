"""``modelless worker``: one worker process."""

from __future__ import annotations

import asyncio
from pathlib import Path

import typer

from modelless.config import load_config
from modelless.logs import configure


def register(app: typer.Typer) -> None:
    """Add the subcommand to ``app``."""

    @app.command(rich_help_panel="Processes")
    def worker(
        group: str = typer.Option(..., help="The group to work for: one of \\[[groups]] in the configuration."),
        name: str | None = typer.Option(None, help="This worker's name, unique and stable (default: GROUP-0)."),
        config: Path | None = typer.Option(None, "--config", help="Configuration file (default: modelless.toml here)."),
    ) -> None:
        """Run one worker: loads what the plan says, runs batches for every broker, writes the replies.

        A worker owns one device. Models run in a child process, so that one that crashes or hangs costs a moment and
        its own query. Run as many as the machine carries, each under its own name; `modelless up` does it for you.
        SIGTERM drains: what runs is finished and answered, the rest goes back to its broker, then it leaves with
        status 0. A second SIGTERM leaves at once.

        Example:  modelless worker --group cpu --name cpu-1 --config modelless.toml
        """
        raise typer.Exit(work(group, name or f"{group}-0", config))


def work(group: str, name: str, config: Path | None) -> int:
    """Be that worker; the exit status. Raises ConfigurationError."""
    import uvloop

    from workers.supervisor import Worker

    settings = load_config(config)
    settings.group(group)
    configure(settings.log, "worker", name)

    async def serve() -> int:
        return await Worker(settings, group, name).run()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serve())
