"""Rescue of a batch of records that aiokafka refuses to decode."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from aiokafka import TopicPartition
from aiokafka.structs import ConsumerRecord

from modelless.config import Config


async def rescue(
    config: Config, partition: TopicPartition, position: int, read: Callable[[Iterable[ConsumerRecord]], None]
) -> int | None:
    """Read the batch at ``position`` raw; give what can be read to ``read``; return where to go on, or None."""
    raise NotImplementedError
