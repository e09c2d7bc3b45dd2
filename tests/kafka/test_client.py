"""The client on real Kafka. The system behind it is a small responder that does what a query's metadata says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import numpy as np
import pytest
from record_batches import NOT_UTF8, exchange
from responder import Responder

from modelless import BlockingClient, Client
from modelless.client_core import reply_partition
from modelless.codec import encode_reply
from modelless.config import Config
from modelless.embedded import EmbeddedKafka
from modelless.errors import (
    DeadlineExceededError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from modelless.kafka import make_producer
from modelless.messages import Reply
from modelless.tensors import Tensor
from modelless.topic_settings import ensure_task_topic
from modelless.topics import Topics

pytestmark = pytest.mark.kafka

PIXELS = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
async def responder(config: Config) -> AsyncIterator[Responder]:
    await ensure_task_topic(config, "digits")
    async with Responder(config) as responder:
        yield responder


@pytest.fixture
async def client(config: Config, responder: Responder) -> AsyncIterator[Client]:
    async with Client.from_config(config) as client:
        yield client


async def test_numpy_in_and_out(client: Client) -> None:
    result = await client.infer({"pixels": PIXELS}, model="echo", latency_ms_max=1000, accuracy_min=0.5)

    assert np.array_equal(result.outputs["pixels"], PIXELS)
    assert (result.status, result.model, result.version, result.missed) == ("OK", "echo", 1, ())
    assert 0 < result.latency_ms < 5000
    assert result.reply.query.count("/") == 2


async def test_first_query_after_start_is_not_missed(config: Config, responder: Responder) -> None:
    for _ in range(5):
        async with Client.from_config(config) as client:
            await client.infer({"pixels": PIXELS}, model="echo", timeout_s=5)


async def test_goes_to_the_bound_topic_of_its_task(client: Client, responder: Responder, config: Config) -> None:
    await client.infer({"pixels": PIXELS}, task="digits", key="camera-1")
    await client.infer({"pixels": PIXELS}, task="letters")

    assert [topic for topic, _ in responder.queries] == [
        Topics(config.kafka.topic_prefix).task_queries("digits"),
        Topics(config.kafka.topic_prefix).queries,
    ]
    assert responder.keys == [b"camera-1", None]


@pytest.mark.parametrize(
    ("status", "error"), [("NOT_FOUND", NotFoundError), ("RESOURCE_EXHAUSTED", ResourceExhaustedError)]
)
async def test_typed_errors(client: Client, status: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"answered with {status}") as caught:
        await client.infer({"pixels": PIXELS}, model="echo", metadata={"do": status})
    assert caught.value.reply.status == status  # type: ignore[attr-defined]
    if status == "RESOURCE_EXHAUSTED":
        assert caught.value.retry_after_ms == 40.0  # type: ignore[attr-defined]


async def test_nothing_is_sent_that_cannot_be_right(client: Client, responder: Responder) -> None:
    with pytest.raises(InvalidArgumentError, match="exactly one"):
        await client.infer({"pixels": PIXELS})
    with pytest.raises(InvalidArgumentError, match="unexpected keyword argument 'latency'"):
        await client.infer({"pixels": PIXELS}, task="digits", latency=3)  # type: ignore[call-arg]
    with pytest.raises(InvalidArgumentError, match="fewer rows"):
        await client.infer({"pixels": np.zeros((9 * 1024 * 1024,), np.uint8)}, task="digits")
    await client.infer({"pixels": PIXELS}, model="echo")
    assert len(responder.queries) == 1
    assert client.statistics().outstanding == 0


async def test_first_reply_wins(client: Client) -> None:
    results = [await client.infer({"pixels": PIXELS}, model="echo", metadata={"do": "twice"}) for _ in range(3)]
    await client.infer({"pixels": PIXELS}, model="echo")

    assert len(results) == 3
    assert client.statistics().answered == 4
    assert client.statistics().duplicates == 3


async def test_replies_of_others_are_skipped(config: Config, client: Client) -> None:
    partition = reply_partition(client.id, config.kafka.partitions)
    async with make_producer(config) as producer:
        for headers in ([], [("modelless-id", b"someone-1")], [("modelless-id", b"\xff")]):
            await producer.send_and_wait(
                Topics(config.kafka.topic_prefix).replies, b"not a reply", partition=partition, headers=headers
            )
    await client.infer({"pixels": PIXELS}, model="echo")
    assert client.statistics().foreign == 3


async def test_unreadable_records_among_the_replies_are_stepped_over(config: Config, client: Client) -> None:
    """A batch of two good replies and a record whose header key is not UTF-8."""
    replies, partition = Topics(config.kafka.topic_prefix).replies, reply_partition(client.id, config.kafka.partitions)
    waiting = [client.submit({"x": PIXELS}, model="echo", metadata={"do": "ignore"}, timeout_s=20) for _ in range(2)]
    async with make_producer(config) as producer:
        batch = producer.create_batch()
        for n in range(1, 4):
            id = f"{client.id}-{n}"
            reply = encode_reply(Reply(id, f"{replies}/0/{n}", "OK", outputs=(Tensor.from_numpy("x", PIXELS),)))
            key = "\x01\x02\x03" if n == 3 else "modelless-id"
            assert batch.append(key=None, value=reply, timestamp=None, headers=[(key, id.encode())]) is not None
        batch.close()
        batch._build()
        batch._buffer = bytearray(exchange(bytes(batch._buffer), b"\x01\x02\x03", NOT_UTF8))
        await (await producer.send_batch(batch, replies, partition=partition))
    results = await asyncio.gather(*waiting)

    assert [result.reply.query.rpartition("/")[2] for result in results] == ["1", "2"]
    await client.infer({"pixels": PIXELS}, model="echo", timeout_s=5)


async def test_no_reply_is_an_error_in_time(client: Client, responder: Responder) -> None:
    started_s = time.monotonic()
    with pytest.raises(DeadlineExceededError, match=r"no reply within 0\.3 s"):
        await client.infer({"pixels": PIXELS}, model="echo", metadata={"do": "ignore"}, timeout_s=0.3)
    assert 0.3 <= time.monotonic() - started_s < 1.5
    assert client.statistics().outstanding == 0


async def test_cancelling_a_call_cancels_its_query(client: Client, responder: Responder) -> None:
    call = asyncio.create_task(client.infer({"pixels": PIXELS}, model="echo", metadata={"do": "ignore"}))
    await asyncio.wait_for(responder.arrived.wait(), 5)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call

    assert await asyncio.wait_for(responder.cancelled.get(), 5) == responder.queries[0][1].id
    assert client.statistics().cancelled == 1
    assert client.statistics().outstanding == 0


async def test_cancelled_before_it_was_sent_is_never_sent(client: Client, responder: Responder) -> None:
    client.submit({"pixels": PIXELS}, model="echo").cancel()
    await client.infer({"pixels": PIXELS}, model="echo")

    assert [query.id for _, query in responder.queries] == [f"{client.id}-2"]
    assert responder.cancelled.empty()


async def test_ten_thousand_outstanding(client: Client) -> None:
    started_s = time.monotonic()
    futures = [client.submit({"x": np.array([n], np.int64)}, model="echo", timeout_s=60) for n in range(10_000)]
    results = await asyncio.gather(*futures)

    assert [int(result.output[0]) for result in results] == list(range(10_000))
    assert time.monotonic() - started_s < 30
    assert client.statistics().outstanding == 0


async def test_calls_wait_for_room_and_submit_refuses(config: Config, responder: Responder) -> None:
    async with Client.from_config(config, outstanding_max=10) as client:
        calls = [client.infer({"x": np.array([n], np.int64)}, model="echo") for n in range(200)]
        results = await asyncio.gather(*calls)
        assert [int(result.output[0]) for result in results] == list(range(200))

        held = [client.submit({"x": PIXELS}, model="echo") for _ in range(10)]
        with pytest.raises(ResourceExhaustedError, match="await some"):
            client.submit({"x": PIXELS}, model="echo")
        await asyncio.gather(*held)


async def test_stop_fails_what_is_outstanding(config: Config, responder: Responder) -> None:
    async with Client.from_config(config) as client:
        future = client.submit({"x": PIXELS}, model="echo", metadata={"do": "ignore"})
    with pytest.raises(UnavailableError, match="closed"):
        await future
    with pytest.raises(UnavailableError, match="async with"):
        client.submit({"x": PIXELS}, model="echo")


async def test_no_kafka_and_no_topics(kafka: EmbeddedKafka, free_port: int) -> None:
    with pytest.raises(UnavailableError, match="modelless up"):
        await Client(f"127.0.0.1:{free_port}").start()
    with pytest.raises(UnavailableError, match=r"has no topic nowhere\.queries"):
        await Client(kafka.bootstrap_servers, topic_prefix="nowhere").start()


async def test_blocking_client(config: Config, responder: Responder) -> None:
    def work() -> tuple[list[int], int]:
        with BlockingClient.from_config(config) as client:
            one = client.infer({"x": np.array([7], np.int64)}, model="echo")
            many = client.map(({"x": np.array([n], np.int64)} for n in range(100)), outstanding=10, model="echo")
            with pytest.raises(NotFoundError):
                client.infer({"x": PIXELS}, model="echo", metadata={"do": "NOT_FOUND"})
            return [int(result.output[0]) for result in many], int(one.output[0])

    with pytest.raises(UnavailableError, match="inside `with`"):
        BlockingClient.from_config(config).infer({"x": PIXELS}, model="echo")
    many, one = await asyncio.to_thread(work)
    assert (many, one) == (list(range(100)), 7)
