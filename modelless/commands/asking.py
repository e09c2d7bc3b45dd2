"""What the commands that ask Kafka something have in common: they wait for it a little, and say so once."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import typer

if TYPE_CHECKING:
    from modelless.config import Config

PATIENCE_S = 15.0
"""As long as `modelless up`, which may just have been typed, takes to start a Kafka."""
RETRY_S = 0.5

T = TypeVar("T")


def run(config: Config, work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` once Kafka answers.

    Raises:
        UnavailableError: it does not, for ``PATIENCE_S``.
    """

    async def when_there() -> T:
        try:
            with _silent():
                await _kafka(config)
            return await work
        finally:
            work.close()  # if it never began

    return asyncio.run(when_there())


async def _kafka(config: Config) -> None:
    from aiokafka.errors import KafkaError

    from modelless.kafka import make_client
    from modelless.topic_settings import unreachable

    end_s, told = time.monotonic() + PATIENCE_S, False
    while True:
        client = make_client(config)
        try:
            async with asyncio.timeout(max(0.0, end_s - time.monotonic())):
                await client.bootstrap()
            return
        except (KafkaError, OSError, TimeoutError) as error:
            if time.monotonic() + RETRY_S > end_s:
                raise unreachable(config, error) from None
        finally:
            await client.close()
        if not told:
            typer.echo(f"waiting for Kafka at {config.kafka.servers}, {PATIENCE_S:.0f} s at most", err=True)
            told = True
        await asyncio.sleep(RETRY_S)


@contextmanager
def _silent() -> Iterator[None]:
    """aiokafka would tell of every attempt."""
    logger = logging.getLogger("aiokafka")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
