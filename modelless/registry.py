"""Writing to the registry so that nobody comes between reading it and writing to it.

Model versions and labels are decided from what is registered already: the next free version, labels beside labels.
Two operators at once would decide from the same reading. So everybody writes under one fixed transactional id: who
opened it last has fenced the others, reads what they committed, decides, and writes; a fenced one begins again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import TypeVar

from aiokafka.errors import KafkaError, ProducerFenced

from modelless.catalog import Catalog, CatalogView
from modelless.codec import encode_record
from modelless.config import Config
from modelless.errors import UnavailableError
from modelless.kafka import make_producer, stop_within
from modelless.messages import Labels, ModelVersion
from modelless.topic_settings import unreachable
from modelless.topics import Topics

ATTEMPTS_MAX = 6
TIMEOUT_S = 30.0

T = TypeVar("T", ModelVersion, Labels)
Decide = Callable[[Catalog], T]
"""What should stand in the registry, from what does; it may be called more than once, and may raise."""


async def settle(config: Config, decide: Decide[T]) -> T:
    """Write what ``decide`` returns, unless it stands there already; returns it.

    Raises:
        UnavailableError: no Kafka, or others write all the time.
        ModellessError: whatever ``decide`` raises; nothing is written then.
    """
    for attempt in range(ATTEMPTS_MAX):
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return await _settle_once(config, decide)
        except ProducerFenced:
            await asyncio.sleep(random.uniform(0, 0.25 * 2**attempt))  # noqa: S311  (so that they do not meet again)
        except (KafkaError, TimeoutError, OSError) as error:
            raise unreachable(config, error) from error
    raise UnavailableError("others write to the registry all the time: try again")


async def _settle_once(config: Config, decide: Decide[T]) -> T:
    """Raises ProducerFenced when somebody else began after us."""
    topic = Topics(config.kafka.topic_prefix).registry
    producer = make_producer(config, transactional_id=f"{topic}.versions", enable_idempotence=True)
    try:
        await producer.start()  # from here on, earlier ones are fenced, and what they committed is readable
        view = CatalogView(config)
        try:
            await view.start()
        finally:
            await view.stop()
        wanted = decide(view.catalog)
        if not _stands(view.catalog, wanted):
            key = wanted.key if isinstance(wanted, Labels) else f"model/{wanted.key}"
            async with producer.transaction():
                await producer.send_and_wait(topic, encode_record(wanted), key=key.encode())
        return wanted
    finally:
        await stop_within(producer)


def _stands(catalog: Catalog, wanted: ModelVersion | Labels) -> bool:
    if isinstance(wanted, Labels):
        return catalog.labels(wanted.name) == wanted
    return wanted in catalog.models()
