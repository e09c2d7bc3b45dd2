"""Fetching on the consumer's own connections: one request to a leader, one answer, nothing in between.

From a response to whoever waits for its records aiokafka's fetcher needs two tasks, three timers and several turns of
the event loop, which is a fifth of what a broker does for a query that comes alone. The positions are the ledger's
here, so that nothing is ever sought. What aiokafka's decoder refuses is decoded tolerantly from the same bytes
(:mod:`broker.rescue`), so that one bad record costs only itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, NamedTuple

import structlog
from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.consumer.fetcher import READ_COMMITTED, PartitionRecords
from aiokafka.errors import CorruptRecordException, KafkaError, NoError, for_code
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import ConsumerRecord

from broker.pace import Fetch
from broker.rescue import Stretch, Unreadable, decode, record_of

FETCH_BYTES_MAX = 16 * 1024 * 1024
PARTITION_BYTES_MAX = 256 * 1024
"""Of one partition in one answer, some hundreds of queries; Kafka returns a first batch whole, however large it is."""

_log = structlog.get_logger(__name__)


class Fetched:
    """What a fetch returned of a partition, decoded as it is taken.

    Args:
        aborted: (producer id, first offset) of the aborted transactions in it.
        position: that it was fetched from.
        stable: the last stable offset.
    """

    def __init__(
        self,
        partition: TopicPartition,
        data: bytes,
        aborted: Iterable[tuple[int, int]] | None,
        position: int,
        stable: int,
    ) -> None:
        self.partition = partition
        self.position = position
        """Behind what was taken, and once that is all, behind whatever gaps follow."""
        self._data, self._aborted, self._stable = data, list(aborted or ()), stable
        self._records: PartitionRecords | None = None
        self._rest: Stretch | None = None

    def take(self, number: int) -> list[ConsumerRecord | Unreadable]:
        """The next ones; fewer than ``number`` when there are no more."""
        taken: list[ConsumerRecord | Unreadable] = []
        if self._rest is None:
            try:
                self._decode(taken, number)
            except Exception as error:  # whatever a decoder or a codec raises
                _log.warning("aiokafka cannot decode", topic=self.partition.topic, error=repr(error))
                if self._records is not None:
                    self.position = self._records.next_fetch_offset
                self._rest = decode(self.partition, self._data, self._aborted, self.position, self._stable)
        if self._rest is not None:
            items, missing = self._rest.items, number - len(taken)
            taken += items[:missing]
            del items[:missing]
            self.position = record_of(items[0]).offset if items else self._rest.position
        return taken

    def _decode(self, taken: list[ConsumerRecord | Unreadable], number: int) -> None:
        """Add the next ones; those before a bad one are added when it raises."""
        if self._records is None:
            records = MemoryRecords(self._data)
            if not records.has_next():
                raise CorruptRecordException("the first batch is not whole, as which Kafka returns it")
            self._records = PartitionRecords(
                self.partition, records, self._aborted, self.position, None, None, True, READ_COMMITTED
            )
        for record in islice(self._records, number):
            taken.append(record)  # noqa: PERF402
        self.position = self._records.next_fetch_offset


class Answer(NamedTuple):
    """``fetched``: of the partitions that had something. ``ends``: of the logs of all that are well."""

    fetched: list[Fetched]
    ends: dict[TopicPartition, int]
    errors: dict[TopicPartition, type[KafkaError]]


async def fetch(client: AIOKafkaClient, node: int, positions: Mapping[TopicPartition, int], ask: Fetch) -> Answer:
    """Ask a leader for what there is from these positions on.

    Raises:
        KafkaError: it cannot be asked now.
    """
    wanted: dict[str, list[tuple[int, int, int]]] = {}
    for (topic, partition), position in positions.items():
        wanted.setdefault(topic, []).append((partition, position, PARTITION_BYTES_MAX))
    request = FetchRequest(ask.wait_ms, ask.bytes_min, FETCH_BYTES_MAX, READ_COMMITTED, list(wanted.items()))
    response: Any = await client.send(node, request)
    answer = Answer([], {}, {})
    aborted_at = 5 if response.API_VERSION >= 5 else 4
    for topic, parts in response.topics:
        for part in parts:
            key = TopicPartition(topic, part[0])
            if part[1]:
                error = for_code(part[1])
                assert error is not NoError
                answer.errors[key] = error
                continue
            answer.ends[key] = part[2]
            if part[-1]:
                answer.fetched.append(Fetched(key, part[-1], part[aborted_at], positions[key], part[3]))
    return answer
