"""The asyncio client::

    async with Client("127.0.0.1:9092") as client:
        result = await client.infer(task="digits", inputs={"pixels": array}, latency_ms_max=50, accuracy_min=0.95)

A client reads one partition of the reply topic (pinned: chosen by its id, named in every query) from where it ended
before the first query was sent, so it belongs to no consumer group and sees nobody's old replies. Everything that is
sent leaves through one loop, everything that arrives is matched by :mod:`modelless.client_core`; a call costs no task
besides the caller's own. Kafka may go away and come back: what is outstanding stays so until its time is over, and
what it did not acknowledge is sent again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Mapping
from typing import Any, Self, TypedDict, Unpack
from uuid import uuid4

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.errors import (
    KafkaError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
)
from aiokafka.structs import ConsumerRecord, TopicPartition
from numpy.typing import ArrayLike
from pydantic import ValidationError

from modelless.client_core import (
    OFFLINE_WAIT_MS,
    ClientStatistics,
    Outstanding,
    Result,
    check_query,
    make_error,
    make_feedback,
    make_result,
    make_tensors,
    reply_id,
    reply_partition,
    wait_ms,
)
from modelless.codec import decode_reply, encode_cancel, encode_feedback, encode_query
from modelless.config import Config, KafkaConfig
from modelless.errors import (
    OK,
    ConfigurationError,
    DeadlineExceededError,
    DecodeError,
    InternalError,
    InvalidArgumentError,
    ModellessError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnavailableError,
)
from modelless.kafka import make_consumer, make_producer, stop_within
from modelless.messages import Cancel, OnMiss, Prefer, Query
from modelless.tables import UNREADABLE
from modelless.topics import Topics

CONNECT_TIMEOUT_S = 15.0
CANCEL_TIMEOUT_S = 2.0
FEEDBACK_TIMEOUT_S = 15.0
OUTSTANDING_MAX = 50_000
OUTSTANDING_BYTES_MAX = 256 * 1024 * 1024
BOUND_TOPICS_INTERVAL_S = 5.0
RETRY_INTERVAL_S = 0.2
STALL_S = 10.0
_SENDS_PER_YIELD = 64
_TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)


class Ask(TypedDict, total=False):
    """What a query may ask for; exactly one of task, model and variant. Absent means: no such constraint."""

    task: str
    """Any model of this task."""
    model: str
    """``name``, ``name:version`` or ``name:label``."""
    variant: str
    """``name:version/builder``."""
    latency_ms_max: float | None
    """From Kafka's time of the query to that of the reply; default 30,000."""
    accuracy_min: float | None
    """0 to 1, on the task's evaluation set; default: what the operator set for the task."""
    cost_max: float | None
    """USD per 1,000 rows."""
    prefer: Prefer
    """What to be best at among all that meets the constraints; default ``cost``."""
    on_miss: OnMiss
    """What to do when they cannot be met: ``reject`` (default), ``late``, ``degrade``."""
    tenant: str | None
    """Whom it is counted for, where the topic's policy allows naming that (``broker.tenant_topics``)."""
    metadata: Mapping[str, str]
    """Echoed in the reply."""
    key: str | bytes | None
    """Kafka key of the query and of its reply."""
    timeout_s: float | None
    """How long to wait for the reply; default: the latency bound and 5 s for the error reply to arrive."""
    offline: bool
    """Best effort: runs where what has a deadline leaves room; waits for days unless a latency is stated."""


class _Pending(asyncio.Future[Result]):
    """The caller's future; cancelling it, directly or through the task that awaits it, cancels the query."""

    def __init__(self, client: Client, id: str, topic: str, key: bytes | None, value: bytes) -> None:
        super().__init__(loop=client._loop)
        self._client = client
        self.id = id
        self.topic = topic
        self.key = key
        self.value = value
        self.size_bytes = len(value)
        self.started_s = client._loop.time()
        self.is_sent = False
        self.is_acknowledged = False

    def cancel(self, msg: Any | None = None) -> bool:
        cancelled = super().cancel(msg)
        if cancelled:
            self._client._on_cancelled(self)
        return cancelled


class Client:
    """Asks queries and gets their answers; for one event loop. Use as an async context manager.

    Args:
        servers: ``host:port,…`` of the Kafka cluster.
        topic_prefix: of the system's topics.
        client_id: default random. Two clients at a time must not share one.
        outstanding_max: calls beyond it wait (:meth:`infer`) or are refused (:meth:`submit`).
        security: ``security_protocol``, ``sasl_*`` and ``ssl_*`` settings, named as in ``[kafka]`` of modelless.toml.
    """

    def __init__(
        self,
        servers: str = "127.0.0.1:9092",
        *,
        topic_prefix: str = "modelless",
        client_id: str | None = None,
        outstanding_max: int = OUTSTANDING_MAX,
        **security: Any,
    ) -> None:
        try:
            kafka = KafkaConfig(bootstrap_servers=servers, topic_prefix=topic_prefix, **security)
        except ValidationError as error:
            first = error.errors()[0]
            raise ConfigurationError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        self._set_up(Config(kafka=kafka), client_id, outstanding_max)

    @classmethod
    def from_config(
        cls, config: Config, *, client_id: str | None = None, outstanding_max: int = OUTSTANDING_MAX
    ) -> Self:
        """A client with the Kafka settings of a ``modelless.toml``; see :func:`modelless.config.load_config`."""
        client = cls.__new__(cls)
        client._set_up(config, client_id, outstanding_max)
        return client

    def _set_up(self, config: Config, client_id: str | None, outstanding_max: int) -> None:
        self.id = client_id or uuid4().hex[:16]
        if not 1 <= len(self.id) <= 100:
            raise InvalidArgumentError("client_id must have 1 to 100 characters")
        self._config = config
        self._topics = Topics(config.kafka.topic_prefix)
        self._outstanding: Outstanding[_Pending] = Outstanding(self.id, outstanding_max, OUTSTANDING_BYTES_MAX)
        self._outbox: deque[_Pending] = deque()
        self._outbox_filled = asyncio.Event()
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._bound_topics: frozenset[str] = frozenset()
        self._takes_feedback = self._takes_offline = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at_ms = 0.0
        self._tasks: list[asyncio.Task[None]] = []
        self._cancels: set[asyncio.Task[None]] = set()
        self._is_open = False
        self._log = structlog.get_logger().bind(client=self.id)

    # --- life -----------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Connect; returns when replies can be received.

        Raises:
            UnavailableError: no Kafka there, or it lacks the system's topics; says what to start.
        """
        self._loop = asyncio.get_running_loop()
        self._producer: AIOKafkaProducer = make_producer(self._config)
        self._consumer: AIOKafkaConsumer = self._make_consumer()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await self._connect()
        except (TimeoutError, KafkaError, OSError) as error:
            await self._disconnect()
            raise UnavailableError(
                f"no Kafka at {self._config.kafka.servers} ({error or type(error).__name__}): "
                "start one with `modelless up`, or give the address of yours"
            ) from None
        except BaseException:
            await self._disconnect()
            raise
        self._is_open = True
        loops = (self._send_forever(), self._receive_forever(), self._watch_topics_forever())
        self._tasks = [self._loop.create_task(loop) for loop in loops]

    async def stop(self) -> None:
        """Leave; what is still outstanding fails with UnavailableError."""
        self._is_open = False
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._cancels:
            await asyncio.wait(self._cancels, timeout=CANCEL_TIMEOUT_S)
        for pending in self._outstanding.drain():
            _fail(pending, UnavailableError("the client was closed before the reply arrived"))
        self._outbox.clear()
        self._release_all()
        await self._disconnect()

    async def _connect(self) -> None:
        await self._producer.start()
        await self._refresh_topics()
        partitions = self._partitions
        self._reply_tp = TopicPartition(self._topics.replies, reply_partition(self.id, partitions))
        await self._consumer.start()
        await self._follow_from((await self._consumer.end_offsets([self._reply_tp]))[self._reply_tp])

    async def _disconnect(self) -> None:
        await asyncio.gather(stop_within(self._producer), stop_within(self._consumer))

    def _make_consumer(self) -> AIOKafkaConsumer:
        # A reader of one partition that only looks forward: a foreign transaction must not hold it up.
        return make_consumer(self._config, isolation_level="read_uncommitted", max_poll_records=1000)

    async def _follow_from(self, offset: int) -> None:
        self._consumer.assign([self._reply_tp])
        self._consumer.seek(self._reply_tp, offset)

    async def _refresh_topics(self) -> None:
        """Learn which query topics are bound to a task; unlike asking for one topic, this never creates one."""
        cluster = await self._producer.client.fetch_all_metadata()
        names = cluster.topics(exclude_internal_topics=True)
        missing = [name for name in (self._topics.queries, self._topics.replies) if name not in names]
        if missing:
            raise UnavailableError(
                f"Kafka at {self._config.kafka.servers} has no topic {' and no '.join(missing)}: "
                "create them with `modelless up` or `modelless check --create`, or give another topic_prefix"
            )
        self._partitions = len(cluster.partitions_for_topic(self._topics.replies) or ())
        self._bound_topics = frozenset(name for name in names if self._topics.task_of(name))
        self._takes_feedback, self._takes_offline = (
            name in names for name in (self._topics.feedback, self._topics.offline)
        )

    # --- asking ---------------------------------------------------------------------------------------------------

    async def infer(self, inputs: Mapping[str, ArrayLike], **ask: Unpack[Ask]) -> Result:
        """Ask one query and wait for its answer. Cancelling the call cancels the query.

        Args:
            inputs: arrays by input name; the first dimension is the batch (rows), dtypes as the model declares.
            ask: see :class:`Ask`.

        Raises:
            ModellessError: the typed error of the reply's status, the reply attached as ``reply``;
                DeadlineExceededError also when no reply arrives in time.
        """
        while self._outstanding.is_full:
            await self._room()
        self._release()
        return await self.submit(inputs, **ask)

    def submit(self, inputs: Mapping[str, ArrayLike], **ask: Unpack[Ask]) -> asyncio.Future[Result]:
        """Ask one query without waiting: for high rates, where a coroutine per call is too much.

        Returns:
            A future of the result, or of its error; cancelling it cancels the query.

        Raises:
            InvalidArgumentError: the query cannot be right.
            ResourceExhaustedError: too many are outstanding; await some first.
            UnavailableError: the client is not open.
        """
        if not self._is_open:
            raise UnavailableError("the client is not open: use it inside `async with`")
        if self._outstanding.is_full:
            raise ResourceExhaustedError("too many queries are outstanding at this client: await some of them first")
        key = ask.pop("key", None)
        timeout_s = ask.pop("timeout_s", None)
        is_offline = ask.pop("offline", False)
        if is_offline and not self._takes_offline:
            raise UnavailableError(
                f"there is no topic {self._topics.offline}: create it with `modelless check --create`"
            )
        query = self._make_query(inputs, ask)
        pending = _Pending(
            self,
            query.id,
            self._topics.offline if is_offline else self._topic_for(query.task),
            key.encode() if isinstance(key, str) else key,
            encode_query(query),
        )
        if pending.size_bytes > self._config.kafka.request_bytes_max:
            raise InvalidArgumentError(
                f"the query takes {pending.size_bytes} bytes, more than kafka.request_bytes_max "
                f"({self._config.kafka.request_bytes_max}): send fewer rows at a time"
            )
        if timeout_s is not None:
            bound_ms = timeout_s * 1000
        elif is_offline and query.latency_ms_max is None:
            bound_ms = OFFLINE_WAIT_MS
        else:
            bound_ms = wait_ms(query.latency_ms_max, query.on_miss)
        self._outstanding.add(pending, pending.started_s * 1000 + bound_ms)
        self._arm()
        self._outbox.append(pending)
        self._outbox_filled.set()
        return pending

    async def feedback(self, result: Result, labels: ArrayLike) -> None:
        """Say which classes were right: it corrects the accuracy that the variant is chosen by.

        Give labels for a fair sample of the answers; for mistakes alone they make a variant look worse than it is.

        Args:
            result: what :meth:`infer` returned; its first output is [rows, classes].
            labels: integers, [rows].

        Raises:
            InvalidArgumentError: the labels do not fit the answer.
            UnavailableError: Kafka did not take it, or has no topic for it.
            PermissionDeniedError: this client may not write to the feedback topic.
        """
        value = encode_feedback(make_feedback(result, labels))
        if not self._is_open:
            raise UnavailableError("the client is not open: use it inside `async with`")
        if not self._takes_feedback:
            raise UnavailableError(
                f"there is no topic {self._topics.feedback}: create it with `modelless check --create`"
            )
        try:
            async with asyncio.timeout(FEEDBACK_TIMEOUT_S):
                await self._producer.send_and_wait(self._topics.feedback, value)
        except TopicAuthorizationFailedError:
            raise PermissionDeniedError(f"this client may not write to {self._topics.feedback}") from None
        except (TimeoutError, KafkaError) as error:
            raise UnavailableError(f"Kafka did not take the feedback ({error or type(error).__name__})") from None

    def statistics(self) -> ClientStatistics:
        return self._outstanding.statistics()

    def _make_query(self, inputs: Mapping[str, ArrayLike], ask: Mapping[str, Any]) -> Query:
        try:
            query = Query(
                id=self._outstanding.next_id(),
                inputs=make_tensors(inputs),
                reply_topic=self._topics.replies,
                reply_partition=self._reply_tp.partition,
                **ask,
            )
        except TypeError as error:
            known = ", ".join(Ask.__annotations__)
            raise InvalidArgumentError(f"{str(error).partition(') ')[2] or error}; known are: {known}") from None
        return check_query(query)

    def _topic_for(self, task: str | None) -> str:
        if task is not None:
            topic = self._topics.task_queries(task)
            if topic in self._bound_topics:
                return topic
        return self._topics.queries

    # --- sending --------------------------------------------------------------------------------------------------

    async def _send_forever(self) -> None:
        sent = 0
        while True:
            await self._outbox_filled.wait()
            self._outbox_filled.clear()
            while self._outbox:
                pending = self._outbox.popleft()
                if not pending.done():
                    await self._send(pending)
                sent += 1
                if sent % _SENDS_PER_YIELD == 0:
                    await asyncio.sleep(0)

    async def _send(self, pending: _Pending) -> None:
        try:
            acknowledged = await self._producer.send(pending.topic, pending.value, key=pending.key)
        except KafkaError as error:
            await self._on_send_failed(pending, error)
            return
        pending.is_sent = True
        acknowledged.add_done_callback(lambda future: self._on_acknowledged(pending, future))

    async def _on_send_failed(self, pending: _Pending, error: KafkaError) -> None:
        """Nothing was sent: Kafka is away for long, or aiokafka's sender died (all that ends it is not retriable)."""
        if _is_final(error):
            self._settle(pending, _send_error(error))
            return
        self._log.warning("cannot send, trying again", error=str(error) or type(error).__name__)
        self._outbox.appendleft(pending)
        await asyncio.sleep(RETRY_INTERVAL_S)
        if not error.retriable:
            await stop_within(self._producer)
            self._producer = make_producer(self._config)
            with contextlib.suppress(KafkaError):
                await self._producer.start()

    def _on_acknowledged(self, pending: _Pending, future: asyncio.Future[Any]) -> None:
        if future.cancelled():
            return
        error = future.exception()
        if error is None:
            pending.is_acknowledged = True
            pending.value = b""  # never sent again
        elif not pending.done() and self._is_open:
            if _is_final(error):
                self._settle(pending, _send_error(error))
            else:
                self._loop.call_later(RETRY_INTERVAL_S, self._send_again, pending)

    def _send_again(self, pending: _Pending) -> None:
        self._outbox.append(pending)
        self._outbox_filled.set()

    # --- receiving ------------------------------------------------------------------------------------------------

    async def _receive_forever(self) -> None:
        progress_s = self._loop.time()
        while True:
            try:
                fetched = await self._consumer.getmany(timeout_ms=1000)
            except UNREADABLE:
                fetched = await self._read_one()
            except KafkaError as error:
                self._log.warning("cannot read replies, trying again", error=str(error) or type(error).__name__)
                await asyncio.sleep(RETRY_INTERVAL_S)
                continue
            now_s = self._loop.time()
            for records in fetched.values():
                for record in records:
                    self._on_reply(record, now_s)
            if fetched or not len(self._outstanding):
                progress_s = now_s
            elif now_s - progress_s > STALL_S:
                progress_s = now_s
                await self._restart_if_stalled()

    async def _read_one(self) -> dict[TopicPartition, list[ConsumerRecord[Any, Any]]]:
        """The next record, or nothing when it is one that cannot be read, which would raise for ever: step over it."""
        position = await self._consumer.position(self._reply_tp)
        self._consumer.seek(self._reply_tp, position)
        fetched: dict[TopicPartition, list[ConsumerRecord[Any, Any]]] = {}
        try:
            fetched = await self._consumer.getmany(timeout_ms=1000, max_records=1)
        except UNREADABLE as error:
            self._log.warning("skipping an unreadable record", offset=position, error=type(error).__name__)
            self._consumer.seek(self._reply_tp, position + 1)
        except KafkaError:
            await asyncio.sleep(RETRY_INTERVAL_S)
        return fetched

    def _on_reply(self, record: ConsumerRecord[Any, Any], now_s: float) -> None:
        pending = self._outstanding.match(reply_id(record.headers))
        if pending is None:
            return
        self._release()
        if pending.done():
            return
        try:
            reply = decode_reply(record.value)
        except DecodeError as error:
            pending.set_exception(InternalError(f"the reply cannot be decoded: {error.message}"))
            return
        if reply.status == OK:
            pending.set_result(make_result(reply, (now_s - pending.started_s) * 1000))
        else:
            pending.set_exception(make_error(reply))

    async def _restart_if_stalled(self) -> None:
        """aiokafka's fetcher may stop without an error (#1037): replies are there, and none arrive."""
        with contextlib.suppress(KafkaError, TimeoutError):
            async with asyncio.timeout(STALL_S):
                position = await self._consumer.position(self._reply_tp)
                end = (await self._consumer.end_offsets([self._reply_tp]))[self._reply_tp]
                if end <= position:
                    return
                self._log.warning("reading replies stalled, connecting again", position=position, end=end)
                stalled, self._consumer = self._consumer, self._make_consumer()
                await stop_within(stalled)
                await self._consumer.start()
                await self._follow_from(position)

    async def _watch_topics_forever(self) -> None:
        while True:
            await asyncio.sleep(BOUND_TOPICS_INTERVAL_S)
            with contextlib.suppress(KafkaError, UnavailableError):
                await self._refresh_topics()

    # --- ends -----------------------------------------------------------------------------------------------------

    def _settle(self, pending: _Pending, error: ModellessError) -> None:
        if self._outstanding.cancel(pending.id):
            self._release()
            _fail(pending, error)

    def _on_cancelled(self, pending: _Pending) -> None:
        if not self._outstanding.cancel(pending.id):
            return
        self._release()
        if self._is_open and pending.is_sent:  # else it never will be
            task = self._loop.create_task(self._publish_cancel(pending.id))
            self._cancels.add(task)
            task.add_done_callback(self._cancels.discard)

    async def _publish_cancel(self, id: str) -> None:
        """Best effort: at worst the query runs for nothing."""
        with contextlib.suppress(KafkaError, TimeoutError):
            async with asyncio.timeout(CANCEL_TIMEOUT_S):
                await self._producer.send(self._topics.cancel, encode_cancel(Cancel(id=id)))

    def _arm(self) -> None:
        wake_at_ms = self._outstanding.wake_at_ms()
        if wake_at_ms is None or (self._timer is not None and self._timer_at_ms <= wake_at_ms):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(wake_at_ms / 1000, self._on_timer)
        self._timer_at_ms = wake_at_ms  # uvloop's handles do not always know when

    def _on_timer(self) -> None:
        self._timer = None
        for pending in self._outstanding.expire(self._loop.time() * 1000):
            self._release()
            waited_s = self._loop.time() - pending.started_s
            _fail(pending, DeadlineExceededError(_no_reply(waited_s, is_taken=pending.is_acknowledged)))
        self._arm()

    # --- backpressure ---------------------------------------------------------------------------------------------

    async def _room(self) -> None:
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self._release()  # hand the place on
            raise

    def _release(self) -> None:
        """Let the next call that waits for room look again."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def _release_all(self) -> None:
        while self._waiters:
            self._release()


def _fail(pending: _Pending, error: ModellessError) -> None:
    if not pending.done():
        pending.set_exception(error)


def _no_reply(waited_s: float, *, is_taken: bool) -> str:
    if is_taken:
        return f"no reply within {waited_s:.1f} s: see `modelless status` for whether brokers and workers are alive"
    return f"Kafka did not take the query within {waited_s:.1f} s: is it running?"


def _is_final(error: BaseException) -> bool:
    """True for errors that sending again cannot help."""
    return isinstance(error, (*_TOO_LARGE, TopicAuthorizationFailedError))


def _send_error(error: BaseException) -> ModellessError:
    if isinstance(error, _TOO_LARGE):
        return InvalidArgumentError("the query is larger than its topic allows: send fewer rows at a time")
    return PermissionDeniedError("this client may not write to the query topic: ask the operator for the right to")
