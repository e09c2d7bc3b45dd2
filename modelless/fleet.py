"""Who is alive: every process announces itself in ``<prefix>.fleet`` once a second.

Three rooms: :class:`Roster` is the pure judgement, :class:`FleetView` reads the topic into one, :class:`Announcer`
writes to it, and keeps the clock right on the way, as the topic is LogAppendTime.

A member is alive when it was seen within ``ALIVE_MS`` of Kafka time. That time is taken from the topic itself, the
stamp of its newest record, so that no clock of ours can be wrong; and a silence of the *whole* topic is Kafka's fault,
not the members': it counts for ``SILENCE_MS_MAX``, so that an outage of Kafka does not look like the death of all.
Silence while Kafka confirms that there is nothing new does count.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Literal

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from aiokafka.structs import ConsumerRecord

from modelless.clock import KafkaClock
from modelless.codec import decode_record, encode_record
from modelless.config import Config
from modelless.errors import DecodeError, UnavailableError
from modelless.kafka import make_producer, raise_if_cancelled, report_failure, stop_within
from modelless.messages import Member
from modelless.tables import Follower
from modelless.topics import Topics

ANNOUNCE_INTERVAL_S = 1.0
ALIVE_MS = 5_000.0
SILENCE_MS_MAX = 1_500.0
"""What a gap in the topic counts for at most, while following it."""
SEND_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 10.0
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 2.0
RETRY_S = 0.5
PAST_INTERVAL_MS = 1_000.0
_JUDGE_INTERVAL_S = 0.5

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Seen:
    member: Member
    at_ms: float


class Roster:
    """Pure: announcements in, living members out. Its time, ``fleet_ms``, passes only while somebody is heard."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], _Seen] = {}
        self._newest_ms: float | None = None
        self._fleet_ms = 0.0

    def hear(self, member: Member, log_ms: float, gap_ms_max: float = SILENCE_MS_MAX) -> None:
        """One announcement with its log time; ``gap_ms_max`` is what a silence before it may count for."""
        self.pass_to(log_ms, gap_ms_max)
        self._seen[member.kind, member.name] = _Seen(member, self._fleet_ms)

    def pass_to(self, kafka_ms: float, gap_ms_max: float) -> None:
        """Let time pass to ``kafka_ms``, by ``gap_ms_max`` at most."""
        if self._newest_ms is not None:
            self._fleet_ms += min(max(0.0, kafka_ms - self._newest_ms), gap_ms_max)
        self._newest_ms = kafka_ms

    def alive(self, quiet_ms: float = 0.0) -> tuple[Member, ...]:
        """By kind and name; ``quiet_ms`` is how long Kafka has confirmed that nobody is heard."""
        oldest_ms = self._fleet_ms + quiet_ms - ALIVE_MS
        self._seen = {key: seen for key, seen in sorted(self._seen.items()) if seen.at_ms >= oldest_ms}
        return tuple(seen.member for seen in self._seen.values() if seen.member.state != "stopped")


class FleetView:
    """The living members, from the topic.

    Args:
        clock: used when it is synchronized, to tell at the start how old the newest announcement is.
        on_change: called when somebody appears, dies, or changes in more than its statistics; sync.
        on_past: at the start, while the topic's last minutes are read: called about once a second of its time with that
            time, Unix ms, and who was alive then; in order, sync.
    """

    def __init__(
        self,
        config: Config,
        clock: KafkaClock,
        on_change: Callable[[], None] | None = None,
        on_past: Callable[[float, Sequence[Member]], None] | None = None,
    ) -> None:
        self._clock = clock
        self._on_change = on_change or (lambda: None)
        self._on_past = on_past
        self._past_ms = -inf
        self._roster = Roster()
        self._members: tuple[Member, ...] = ()
        self._started = False
        self._config = config
        self._follower: Follower | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Return once the present fleet is known.

        Raises:
            UnavailableError: the topic cannot be read.
        """
        since_ms = None  # from the beginning
        if self._clock.synchronized and self._on_past is None:  # who was last heard before that is not alive
            since_ms = self._clock.now_ms() - self._clock.allowance_ms - ALIVE_MS
        topic = Topics(self._config.kafka.topic_prefix).fleet
        self._follower = Follower(self._config, [topic], self._on_record, since_ms=since_ms)
        await self._follower.start(timeout_s)
        if self._clock.synchronized:
            self._roster.pass_to(self._clock.now_ms(), ALIVE_MS + 1)
        self._started = True
        self._judge()
        self._task = asyncio.create_task(self._watch(), name="fleet view")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._follower is not None:
            await self._follower.stop()

    def members(self) -> tuple[Member, ...]:
        """Everybody alive, by kind and name."""
        return self._members

    def brokers(self) -> tuple[Member, ...]:
        return self._of("broker")

    def workers(self) -> tuple[Member, ...]:
        return self._of("worker")

    def _of(self, kind: Literal["broker", "worker", "provisioner"]) -> tuple[Member, ...]:
        return tuple(member for member in self._members if member.kind == kind)

    def _on_record(self, record: ConsumerRecord) -> None:
        try:
            member = decode_record(Member, record.value)
        except DecodeError as error:
            _log.warning("an announcement cannot be read", offset=record.offset, error=error.message)
            return
        if record.key != _key(member):
            _log.warning("an announcement has somebody else's key", offset=record.offset, member=member.name)
            return
        self._roster.hear(member, record.timestamp, SILENCE_MS_MAX if self._started else ALIVE_MS + 1)
        if self._started:
            self._judge()
        elif self._on_past is not None and record.timestamp >= self._past_ms + PAST_INTERVAL_MS:
            self._past_ms = float(record.timestamp)
            self._on_past(self._past_ms, self._roster.alive())

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_JUDGE_INTERVAL_S)
            self._judge()

    def _judge(self) -> None:
        quiet_ms = self._follower.quiet_ms if self._follower is not None else 0.0
        before, self._members = self._members, self._roster.alive(quiet_ms)
        if [_essence(member) for member in before] != [_essence(member) for member in self._members]:
            self._on_change()


def _essence(member: Member) -> Member:
    """Without the statistics, which change every second."""
    return replace(member, statistics={})


def _key(member: Member) -> bytes:
    return f"{member.kind}/{member.name}".encode()


class Announcer:
    """Publishes ``member()`` once a second and on ``announce()``; feeds ``clock`` with every acknowledgement."""

    def __init__(self, config: Config, clock: KafkaClock, member: Callable[[], Member]) -> None:
        self._config = config
        self._clock = clock
        self._member = member
        self._topic = Topics(config.kafka.topic_prefix).fleet
        self._wanted = asyncio.Event()
        self._announced: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._failure: BaseException | None = None
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    async def start(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Return once the first announcement is in Kafka: the clock is synchronized then.

        Raises:
            UnavailableError: that took longer than ``timeout_s``.
        """
        self._task = asyncio.create_task(self._run(), name="announcer")
        report_failure(self._task, self._announced)
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(self._announced)
        except TimeoutError:
            raise UnavailableError(
                f"topic {self._topic} at {self._config.kafka.servers} cannot be written "
                f"({type(self._failure).__name__ if self._failure else 'slow'}); `modelless check` says more"
            ) from self._failure
        finally:
            if not self._announced.done():
                self._task.cancel()
                await asyncio.wait([self._task])

    def announce(self) -> None:
        """Publish at once."""
        self._wanted.set()

    async def stop(self) -> None:
        """Announce ``member()`` a last time, if Kafka takes it in ``STOP_TIMEOUT_S``, and end."""
        self._stopping = True
        self.announce()
        if self._task is not None:
            _, late = await asyncio.wait([self._task], timeout=STOP_TIMEOUT_S)
            if late:
                self._task.cancel()
                await asyncio.wait(late)

    async def _run(self) -> None:
        while not self._stopping:
            producer = make_producer(self._config)
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    await producer.start()
                await self._announce_with(producer)
            except (KafkaError, OSError, TimeoutError, asyncio.CancelledError) as error:
                raise_if_cancelled(error)
                self._failure = error
                _log.warning("announcing was interrupted", error=repr(error))
                await asyncio.sleep(RETRY_S)
            finally:
                await stop_within(producer, STOP_TIMEOUT_S)

    async def _announce_with(self, producer: AIOKafkaProducer) -> None:
        """With one producer for as long as it works: any failure rebuilds it, which is the cure for all of them."""
        while True:
            self._wanted.clear()
            member = self._member()
            sent_ms = self._clock.local_ms()
            async with asyncio.timeout(SEND_TIMEOUT_S):
                ack = await producer.send_and_wait(self._topic, encode_record(member), key=_key(member))
            if ack.timestamp_type == 1:
                self._clock.observe(sent_ms, ack.timestamp, self._clock.local_ms())
            if not self._announced.done():
                self._announced.set_result(None)
            if self._stopping and not self._wanted.is_set():
                return
            await wait_at_most(self._wanted, ANNOUNCE_INTERVAL_S)


async def wait_at_most(event: asyncio.Event, timeout_s: float) -> None:
    """Until it is set, or so long."""
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return
