"""From labels in ``<prefix>.feedback`` to corrections in ``<prefix>.profiles``: what :mod:`broker.tally` decides.

Only the leading broker works; the others keep their evaluations ready. It goes on from what was written last: the
corrections hold the counts, and with them, **in one transaction**, go the positions of the labels that are in them,
under a consumer group of their own. So each label counts once whatever dies in between, and since the transactional id
is the same for all, a leader that was replaced is fenced before its successor reads anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from time import monotonic

import structlog
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import GroupCoordinatorNotAvailableError
from aiokafka.structs import ConsumerRecord, OffsetAndMetadata

from broker.office import Office
from broker.tally import Tally
from modelless.catalog import read_correction
from modelless.clock import KafkaClock
from modelless.codec import decode_feedback, encode_record
from modelless.config import Config
from modelless.errors import DecodeError
from modelless.kafka import make_admin, make_producer, stop_within
from modelless.messages import Correction, ModelVersion, Profile
from modelless.tables import Follower
from modelless.topics import Topics

_log = structlog.get_logger(__name__)

WRITE_INTERVAL_S = 1.0
KEEP_INTERVAL_S = 3600.0
"""Positions are written again so often although nothing came: Kafka forgets a group that is silent for days."""
WRITE_TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 15.0
RETRY_S = 2.0
_CORRECTION = b"correction/"


class Corrector(Office):
    """One broker's part in correcting accuracies.

    Args:
        leads: whether this broker leads now.
        models: by ``name:version``, as known now.
    """

    def __init__(
        self,
        config: Config,
        clock: KafkaClock,
        leads: Callable[[], bool],
        models: Callable[[], Mapping[str, ModelVersion]],
    ) -> None:
        super().__init__(
            leads,
            "feedback",
            RETRY_S,
            fenced="another broker corrects accuracies",
            failed="taking feedback was interrupted, trying again",
        )
        self._config, self._clock, self._models = config, clock, models
        self._topics = Topics(config.kafka.topic_prefix)
        self._group = self._topics.feedback
        self._unreadable = 0
        self._written: dict[TopicPartition, int] = {}
        self._written_s = 0.0
        self._drifted: set[str] = set()
        self.tally = Tally()

    def put_profile(self, key: str, profile: Profile | None) -> None:
        """A profile was read."""
        self.tally.put_profile(key, profile)

    def drifted(self) -> list[str]:
        """Variants whose labels say that they are less accurate than measured; none on a broker that does not lead."""
        return self.tally.drifted() if self._leads() else []

    async def _session(self) -> None:
        """Take feedback for as long as this broker leads and everything works."""
        producer = make_producer(self._config, transactional_id=self._group, enable_idempotence=True)
        follower: Follower | None = None
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await producer.start()  # from here on no other one writes
            self.tally.restore(await self._corrections())
            self._drifted = set(self.tally.drifted())
            self._unreadable = 0
            self._written, self._written_s = await self._positions(), monotonic()
            follower = Follower(self._config, [self._topics.feedback], self._on_record, positions=self._written)
            follower.begin()
            while self._leads():
                await asyncio.sleep(WRITE_INTERVAL_S)
                await self._write(producer, follower)
        finally:
            if follower is not None:
                await follower.stop()
            await stop_within(producer)

    def _on_record(self, record: ConsumerRecord) -> None:
        try:
            self.tally.take(decode_feedback(record.value), self._models())
        except DecodeError as error:
            self.tally.malformed()
            _log.debug("feedback that cannot be read", offset=record.offset, error=error.message)

    async def _write(self, producer: AIOKafkaProducer, follower: Follower) -> None:
        """What has changed; the two lines that belong together have no await between them."""
        corrections = self.tally.corrections(self._clock.now_ms())
        positions = follower.positions
        while self._unreadable < follower.unreadable:
            self._unreadable += 1
            self.tally.malformed()
        if positions == self._written and monotonic() - self._written_s < KEEP_INTERVAL_S:
            return
        async with asyncio.timeout(WRITE_TIMEOUT_S), producer.transaction():
            for correction in corrections:
                await producer.send(self._topics.profiles, encode_record(correction), key=correction.key.encode())
            offsets = {partition: OffsetAndMetadata(offset, "") for partition, offset in positions.items()}
            if offsets:
                await producer.send_offsets_to_transaction(offsets, self._group)
        self._written, self._written_s = positions, monotonic()
        for correction in corrections:
            self._tell(correction)

    def _tell(self, correction: Correction) -> None:
        """Warn once when a variant drifts; say once when it is as good again."""
        variant = correction.variant
        if correction.drifted and variant not in self._drifted:
            self._drifted.add(variant)
            _log.warning(
                "labels say that a variant has become less accurate than it was measured",
                variant=variant,
                labelled_rows=round(correction.rows),
                right=round(correction.right / correction.rows, 4),
                accuracy=round(correction.accuracy, 4),
            )
        elif not correction.drifted and variant in self._drifted:
            self._drifted.discard(variant)
            _log.info("labels say that a variant is as accurate as measured again", variant=variant)

    async def _corrections(self) -> list[Correction]:
        """Everything that is written now."""
        found: dict[str, Correction] = {}

        def on_record(record: ConsumerRecord) -> None:
            if record.key is None or not record.key.startswith(_CORRECTION):
                return
            key = record.key.decode(errors="replace")
            try:
                correction = read_correction(key, record.value)
            except DecodeError as error:
                _log.warning("ignored a malformed record", what=key, error=error.message)
                return
            if correction is None:
                found.pop(key, None)
            else:
                found[key] = correction

        follower = Follower(self._config, [self._topics.profiles], on_record)
        await follower.start()
        await follower.stop()
        return list(found.values())

    async def _positions(self) -> dict[TopicPartition, int]:
        admin = make_admin(self._config)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await admin.start()
                committed = await admin.list_consumer_group_offsets(self._group)
        except GroupCoordinatorNotAvailableError:  # a cluster where nobody has committed anything yet
            committed = {}
        finally:
            await admin.close()
        return {partition: at.offset for partition, at in committed.items() if partition.topic == self._topics.feedback}
