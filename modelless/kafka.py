"""aiokafka's three clients, made in one place: every security setting applied, everything that we rely on explicit.

None of them is started. Why the values are what they are:

* consumers never commit by themselves, never skip to the end, and never see records of aborted transactions;
* producers ask for every in-sync replica and are not idempotent: aiokafka keeps one request in flight per node, so
  order holds anyway, and a retried send may at worst appear twice, which readers bear. Idempotent ones get stuck on
  OutOfOrderSequenceNumber until they are rebuilt (aiokafka #1017);
* a linger of 0 is right for latency, and batches of 256 KiB let one awaiting loop fill them.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import AIOKafkaClient
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.helpers import create_ssl_context
from aiokafka.partitioner import murmur2

from modelless.config import Config
from modelless.errors import ConfigurationError

REQUEST_TIMEOUT_MS = 30_000
"""Longest life of one request, and of a record in a producer before its send fails."""
STOP_TIMEOUT_S = 5.0


def make_consumer(config: Config, *topics: str, group_id: str | None = None, **overrides: Any) -> AIOKafkaConsumer:
    """A consumer, not started; ``overrides`` are aiokafka's arguments. Call it inside a running event loop.

    Raises:
        ConfigurationError: a password or certificate file cannot be read.
    """
    session_timeout_ms = config.broker.session_timeout_ms
    settings: dict[str, Any] = {
        "group_id": group_id,
        "enable_auto_commit": False,
        "auto_offset_reset": "earliest",
        "isolation_level": "read_committed",
        "session_timeout_ms": session_timeout_ms,
        "heartbeat_interval_ms": session_timeout_ms // 4,
        "rebalance_timeout_ms": 60_000,
        "max_poll_interval_ms": 300_000,
        "max_poll_records": 500,
        "fetch_max_wait_ms": 500,
        "fetch_max_bytes": 16 * 1024 * 1024,
        "max_partition_fetch_bytes": 1024 * 1024,
        "check_crcs": True,
        "metadata_max_age_ms": 10_000,
        "request_timeout_ms": REQUEST_TIMEOUT_MS,
        "partition_assignment_strategy": (StickyPartitionAssignor,),
    }
    return AIOKafkaConsumer(*topics, **_connection(config), **settings | overrides)


def make_producer(config: Config, **overrides: Any) -> AIOKafkaProducer:
    """A producer, not started; ``overrides`` are aiokafka's arguments. Call it inside a running event loop.

    Raises:
        ConfigurationError: a password or certificate file cannot be read.
    """
    settings: dict[str, Any] = {
        "acks": "all",
        "enable_idempotence": False,
        "linger_ms": 0,
        "max_batch_size": 256 * 1024,
        "max_request_size": config.kafka.request_bytes_max,
        "compression_type": None,
        "metadata_max_age_ms": 30_000,
        "request_timeout_ms": REQUEST_TIMEOUT_MS,
    }
    return AIOKafkaProducer(**_connection(config), **settings | overrides)


def make_admin(config: Config, **overrides: Any) -> AIOKafkaAdminClient:
    """An admin client, not started; ``close()`` ends it.

    Raises:
        ConfigurationError: a password or certificate file cannot be read.
    """
    settings: dict[str, Any] = {"request_timeout_ms": REQUEST_TIMEOUT_MS}
    return AIOKafkaAdminClient(**_connection(config), **settings | overrides)


def make_client(config: Config, **overrides: Any) -> AIOKafkaClient:
    """The connections under the other three, for single requests; ``bootstrap()`` starts it, ``close()`` ends it.

    Raises:
        ConfigurationError: a password or certificate file cannot be read.
    """
    settings: dict[str, Any] = {"metadata_max_age_ms": 30_000, "request_timeout_ms": REQUEST_TIMEOUT_MS}
    return AIOKafkaClient(**_connection(config), **settings | overrides)


async def stop_within(client: AIOKafkaConsumer | AIOKafkaProducer, timeout_s: float = STOP_TIMEOUT_S) -> bool:
    """Stop a consumer or producer; False when it did not stop in time, and was abandoned: what it held is not sent.

    ``stop()`` never returns while Kafka is down, or raises the CancelledError of an inner task (aiokafka #1101, #1013).
    """
    stopped = False
    try:
        async with asyncio.timeout(timeout_s):
            await client.stop()
            stopped = True
    except (TimeoutError, asyncio.CancelledError) as error:
        raise_if_cancelled(error)
    finally:
        if not stopped:
            await _abandon(client)
    return stopped


async def _abandon(client: AIOKafkaConsumer | AIOKafkaProducer) -> None:
    """End the tasks and connections that an interrupted ``stop()`` leaves behind: they would try for ever."""
    producer = isinstance(client, AIOKafkaProducer)
    sending = client._sender.sender_task if producer and client._sender is not None else None
    if sending is not None:
        sending.cancel()
    connections = client.client if producer else client._client
    await close_within(connections, 1.0, *(() if sending is None else (sending,)))


async def close_within(connections: AIOKafkaClient, timeout_s: float, *beside: asyncio.Task[Any]) -> None:
    """Close connections, and wait for tasks that are to end as well; what is not done in time is abandoned."""
    closing = asyncio.create_task(connections.close())
    await asyncio.wait([closing, *beside], timeout=timeout_s)
    closing.cancel()


def partition_of(key: bytes, partitions: int) -> int:
    """Where a key goes, as Java's and aiokafka's producers place it."""
    return int((murmur2(key) & 0x7FFFFFFF) % partitions)


def raise_if_cancelled(error: BaseException) -> None:
    """Raise ``error`` when it is our own cancellation: aiokafka's clients let those of their inner tasks escape."""
    task = asyncio.current_task()
    if isinstance(error, asyncio.CancelledError) and (task is None or task.cancelling()):
        raise error


def report_failure(task: asyncio.Task[None], ready: asyncio.Future[None]) -> None:
    """When ``task`` fails, whoever waits for ``ready`` is told; once that is done, the loop's exception handler."""

    def ended(task: asyncio.Task[None]) -> None:
        if task.cancelled() or (error := task.exception()) is None:
            return
        if ready.done():
            task.get_loop().call_exception_handler({"message": f"{task.get_name()} ended", "exception": error})
        else:
            ready.set_exception(error)

    task.add_done_callback(ended)


def _connection(config: Config) -> dict[str, Any]:
    kafka = config.kafka
    settings: dict[str, Any] = {
        "bootstrap_servers": kafka.servers,
        "client_id": "modelless",
        "security_protocol": kafka.security_protocol,
    }
    if kafka.security_protocol.startswith("SASL_"):
        settings["sasl_mechanism"] = kafka.sasl_mechanism
        settings["sasl_plain_username"] = _required("sasl_username", kafka.sasl_username)
        settings["sasl_plain_password"] = _password(config)
    if kafka.security_protocol.endswith("SSL"):
        settings["ssl_context"] = _ssl_context(config)
    return settings


def _required(field: str, value: Any) -> Any:
    if value is None:
        raise ConfigurationError(f"kafka.{field}: is needed with kafka.security_protocol = SASL_*")
    return value


def _password(config: Config) -> str:
    file = _required("sasl_password_file", config.kafka.sasl_password_file)
    try:
        password: str = file.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"kafka.sasl_password_file: cannot read {str(file)!r}: {error}") from None
    return password


def _ssl_context(config: Config) -> ssl.SSLContext:
    kafka = config.kafka
    try:
        context: ssl.SSLContext = create_ssl_context(
            cafile=kafka.ssl_ca_file, certfile=kafka.ssl_certificate_file, keyfile=kafka.ssl_key_file
        )
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"kafka.ssl_ca_file, ssl_certificate_file, ssl_key_file: cannot be loaded as PEM: {error}"
        ) from None
    return context
