"""``modelless up``: the whole system in the foreground."""

from __future__ import annotations

import asyncio

import typer

from modelless.commands import options


def register(app: typer.Typer) -> None:
    """Add the subcommand to ``app``."""

    @app.command()
    def up(
        config: options.ConfigFile = None,
    ) -> None:
        """Run everything here: Kafka (unless you have one), brokers and workers, until Ctrl-C.

        What dies is started again, and groups with `workers_max` have as many workers as the plan says. Ctrl-C drains:
        brokers finish what they hold, then workers and Kafka leave; a second Ctrl-C kills. Prints one line starting
        with "ready" on stdout, logs on stderr.

        **Examples**

        `modelless up` — an embedded Kafka, one broker, one CPU worker

        `modelless up --config gpu.toml` — what the file says: groups of workers, your own Kafka, …

        `MODELLESS_BROKER__BROKERS=2 modelless up` — any setting, from the environment

        Then, from another terminal: `modelless register model.toml`, `modelless status`, `modelless query`.
        """
        from modelless import logs, up
        from modelless.config import load_config

        settings = load_config(config)
        logs.configure(settings.log, "up")
        asyncio.run(up.run(settings, config, on_ready=typer.echo))
