"""``modelless broker``: one broker process."""

from __future__ import annotations

import asyncio
from pathlib import Path

import typer

from modelless.config import load_config
from modelless.logs import configure


def register(app: typer.Typer) -> None:
    """Add the subcommand to ``app``."""

    @app.command(rich_help_panel="Processes")
    def broker(
        name: str = typer.Option(
            "broker-0",
            help="This broker's name, unique and stable: a restarted broker takes its partitions back at once.",
        ),
        config: Path | None = typer.Option(None, "--config", help="Configuration file (default: modelless.toml here)."),
    ) -> None:
        """Run one broker: reads queries, chooses a variant for each, batches, hands them to workers.

        Brokers are a consumer group: run as many as you like, each under its own name. `modelless up` does it for you.
        SIGTERM drains: what was read is finished and committed, then it leaves with status 0.

        Example:  modelless broker --name broker-1 --config modelless.toml
        """
        raise typer.Exit(route(name, config))


def route(name: str, config: Path | None) -> int:
    """Be that broker; the exit status. Raises ConfigurationError."""
    import uvloop

    from broker.service import Broker

    settings = load_config(config)
    configure(settings.log, "broker", name)

    async def serve() -> int:
        return await Broker(settings, name).run()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serve())
