"""Counts replies per query in Kafka itself, sharing nothing with the client and little with the system.

It notes where the query and reply topics end, and after the load reads both from there, raw: every record of ours in a
query topic (ours: its id starts with the client's) must be named by exactly one record in a reply topic. A reply's
``query`` is ``topic/partition/offset``, so that even a query that was sent twice is told apart.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgpack
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.structs import ConsumerRecord, TopicPartition

from modelless.config import Config
from modelless.kafka import make_admin, make_consumer, stop_within

SETTLE_S = 10.0
"""How long a missing reply is waited for."""
_SHOWN_MAX = 5


@dataclass(frozen=True, slots=True)
class Count:
    """What the topics hold."""

    submitted: int
    published: int
    """Records in query topics."""
    replies: int
    missing: tuple[str, ...]
    """Records of queries that no reply names."""
    duplicates: Mapping[str, int]
    """Records of queries that several replies name, and how many."""
    strangers: tuple[str, ...]
    """Queries that replies name and that were never published."""

    @property
    def is_exact(self) -> bool:
        return self.submitted == self.published == self.replies and not (
            self.missing or self.duplicates or self.strangers
        )

    def describe(self) -> str:
        words = f"{self.submitted} queries asked, {self.published} in Kafka, {self.replies} replies: "
        if self.is_exact:
            return words + "each got exactly one"
        return words + "; ".join(
            f"{len(found)} {what} ({', '.join(list(found)[:_SHOWN_MAX])})"
            for what, found in (
                ("without a reply", self.missing),
                ("with several", self.duplicates),
                ("never asked", self.strangers),
            )
            if found
        )


def count(submitted: int, published: Iterable[str], answered: Iterable[str]) -> Count:
    """Match records: ``published`` are those of the queries, ``answered`` what each reply names."""
    queries, replies = set(published), Counter(answered)
    return Count(
        submitted=submitted,
        published=len(queries),
        replies=replies.total(),
        missing=tuple(sorted(queries - replies.keys())),
        duplicates={query: n for query, n in sorted(replies.items()) if n > 1},
        strangers=tuple(sorted(replies.keys() - queries)),
    )


class Verifier:
    """Use as an async context manager around the load; ``count`` afterwards."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._queries = f"{config.kafka.topic_prefix}.queries"
        self._replies = f"{config.kafka.topic_prefix}.replies"
        self._begin: dict[TopicPartition, int] = {}

    async def __aenter__(self) -> Verifier:
        self._consumer: AIOKafkaConsumer = make_consumer(self._config)
        self._admin: AIOKafkaAdminClient = make_admin(self._config)
        await asyncio.gather(self._consumer.start(), self._admin.start())
        self._begin = await self._ends()
        return self

    async def __aexit__(self, *_: object) -> None:
        await stop_within(self._consumer)
        await self._admin.close()

    async def count(self, client_id: str, submitted: int) -> Count:
        """Read until every query has a reply, or for SETTLE_S after the last news."""
        await self._from_the_beginning()
        published: list[str] = []
        answered: list[str] = []
        quiet_s = time.monotonic()
        while True:
            fetched = await self._consumer.getmany(timeout_ms=500)
            for partition, records in fetched.items():
                for record in records:
                    self._note(partition.topic, record, f"{client_id}-", published, answered)
            if fetched:
                quiet_s = time.monotonic()
            is_complete = len(published) >= submitted and len(answered) >= submitted and not fetched
            if is_complete or time.monotonic() - quiet_s > SETTLE_S:
                return count(submitted, published, answered)

    def _note(
        self,
        topic: str,
        record: ConsumerRecord[bytes, bytes],
        prefix: str,
        published: list[str],
        answered: list[str],
    ) -> None:
        try:
            body = msgpack.unpackb(record.value)
            is_ours = body["id"].startswith(prefix)
        except (ValueError, TypeError, KeyError, AttributeError, msgpack.UnpackException):
            return  # on a shared cluster: somebody else's, in another form
        if not is_ours:
            return
        if self._is_of(self._queries, topic):
            published.append(f"{record.topic}/{record.partition}/{record.offset}")
        else:
            answered.append(body["query"])

    async def _from_the_beginning(self) -> None:
        """Topics that were made meanwhile (bound to a task, say) are read from their beginning."""
        partitions = list(await self._ends())
        self._consumer.assign(partitions)
        for partition in partitions:
            self._consumer.seek(partition, self._begin.get(partition, 0))

    async def _ends(self) -> dict[TopicPartition, int]:
        partitions = [
            TopicPartition(topic["topic"], partition["partition"])
            for topic in await self._admin.describe_topics()
            if self._is_of(self._queries, topic["topic"]) or self._is_of(self._replies, topic["topic"])
            for partition in topic["partitions"]
        ]
        return dict(await self._consumer.end_offsets(partitions)) if partitions else {}

    @staticmethod
    def _is_of(family: str, topic: str) -> bool:
        return topic == family or topic.startswith(f"{family}.")
