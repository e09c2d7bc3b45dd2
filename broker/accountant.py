"""From announcements in ``<prefix>.fleet`` to bills in ``<prefix>.usage``: what :mod:`broker.usage` makes of them.

Only the leading broker works. It reads the fleet's log from its beginning (some ten minutes) and the end of what is
written, and writes every period behind that once it is over, in one transaction. The transactional id is the same for
all, so that a leader that was replaced is fenced before its successor reads anything. What lies further back than the
log's memory when nobody led is not written at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog
from aiokafka.structs import ConsumerRecord

from broker.office import Office
from broker.usage import Books
from modelless.clock import KafkaClock
from modelless.codec import decode_record, encode_record
from modelless.config import Config
from modelless.errors import DecodeError
from modelless.fleet import ALIVE_MS
from modelless.kafka import make_producer, stop_within
from modelless.messages import Member, Usage
from modelless.tables import Follower
from modelless.topics import Topics

_log = structlog.get_logger(__name__)

WRITE_INTERVAL_S = 1.0
WRITE_TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 15.0
RETRY_S = 5.0
PERIODS_READ = 60
"""Of what was written before; the fleet's log is shorter."""


class Accountant(Office):
    """One broker's part in accounting.

    Args:
        leads: whether this broker leads now.
    """

    def __init__(self, config: Config, clock: KafkaClock, leads: Callable[[], bool]) -> None:
        self._config, self._clock = config, clock
        self._topics = Topics(config.kafka.topic_prefix)
        super().__init__(
            leads,
            "accountant",
            RETRY_S,
            fenced="another broker accounts for usage",
            failed=f"usage cannot be written to {self._topics.usage}, trying again",
        )

    async def _session(self) -> None:
        """For as long as this broker leads and everything works."""
        producer = make_producer(self._config, transactional_id=self._topics.usage, enable_idempotence=True)
        follower: Follower | None = None
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await producer.start()  # from here on no other one writes
            period_ms = self._config.broker.usage_period_s * 1000
            books = Books(period_ms, await self._written_ms(period_ms), ALIVE_MS)
            follower = Follower(self._config, [self._topics.fleet], lambda record: _hear(books, record))
            await follower.start()
            while self._leads():
                usages = books.closed()
                if usages:
                    async with asyncio.timeout(WRITE_TIMEOUT_S), producer.transaction():
                        for usage in usages:
                            await producer.send(self._topics.usage, encode_record(usage), key=usage.key.encode())
                await asyncio.sleep(WRITE_INTERVAL_S)
        finally:
            if follower is not None:
                await follower.stop()
            await stop_within(producer)

    async def _written_ms(self, period_ms: float) -> float:
        """Up to when it is written."""
        ends_ms = [0.0]

        def on_record(record: ConsumerRecord) -> None:
            try:
                usage = decode_record(Usage, record.value)
            except DecodeError as error:
                _log.warning("ignored a malformed record", what=self._topics.usage, error=error.message)
                return
            ends_ms.append(usage.start_ms + usage.period_ms)

        since_ms = self._clock.now_ms() - max(PERIODS_READ * period_ms, 3_600_000)
        follower = Follower(self._config, [self._topics.usage], on_record, since_ms=since_ms)
        await follower.start()
        await follower.stop()
        return max(ends_ms)


def _hear(books: Books, record: ConsumerRecord) -> None:
    try:
        member = decode_record(Member, record.value)
    except DecodeError:
        return  # who follows the fleet raises the alarm
    books.hear(member, float(record.timestamp))
