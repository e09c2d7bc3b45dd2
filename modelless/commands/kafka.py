"""``modelless kafka``: the embedded Apache Kafka in the foreground."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the subcommand to ``app``."""
    app.command()(kafka)


def kafka(
    config: Annotated[Path | None, typer.Option(help="Configuration; default: modelless.toml here.")] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Where it listens; default: kafka.embedded_port.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of its logs; default: kafka.embedded_data.")] = None,
    heap_mb: Annotated[int | None, typer.Option(min=128, help="Java heap; default: kafka.embedded_heap_mb.")] = None,
    topics: Annotated[bool, typer.Option(help="Create the system's topics.")] = True,
) -> None:
    """Run a real Apache Kafka (one node, loopback only), with nothing installed by hand.

    The first start fetches its jars (70 MB) into the user's cache. It runs until Ctrl-C; the data stays.

    **Examples**

        modelless kafka

        modelless kafka --port 19092 --data /var/tmp/kafka
    """
    from modelless.config import load_config
    from modelless.embedded import EmbeddedKafka
    from modelless.errors import UnavailableError
    from modelless.logs import configure
    from modelless.topic_settings import create_missing

    settings = load_config(config)
    configure(settings.log, "kafka")
    node = EmbeddedKafka(
        port or settings.kafka.embedded_port,
        data or settings.kafka.embedded_data,
        heap_mb or settings.kafka.embedded_heap_mb,
        progress=lambda line: typer.echo(line, err=True),
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt), node:
        if topics:
            address = settings.kafka.model_copy(update={"bootstrap_servers": node.bootstrap_servers})
            asyncio.run(create_missing(settings.model_copy(update={"kafka": address})))
        typer.echo(f"Kafka is ready at {node.bootstrap_servers}")
        node.wait()
        raise UnavailableError(f"the embedded Kafka ended; its log says:\n{node.log_tail()}")
