"""Following tables on real Kafka."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest
from aiokafka.structs import ConsumerRecord

from modelless.config import Config
from modelless.errors import UnavailableError
from modelless.kafka import make_producer
from modelless.tables import Follower
from modelless.topics import Topics

pytestmark = pytest.mark.kafka


class Table:
    """Values in the order of their delivery, and a way to wait for one."""

    def __init__(self) -> None:
        self.values: list[bytes | None] = []
        self._changed = asyncio.Event()

    def __call__(self, record: ConsumerRecord) -> None:
        self.values.append(record.value)
        self._changed.set()

    async def until(self, done: Callable[[list[bytes | None]], bool]) -> None:
        async with asyncio.timeout(30):
            while not done(self.values):
                self._changed.clear()
                await self._changed.wait()


def topics(config: Config) -> Topics:
    return Topics(config.kafka.topic_prefix)


async def test_start_delivers_all_partitions_and_following_goes_on(config: Config) -> None:
    replies, registry = topics(config).replies, topics(config).registry
    table = Table()
    async with make_producer(config) as producer:
        for number in range(10):
            await producer.send_and_wait(replies, b"%d" % number, partition=number % 2)
        await producer.send_and_wait(registry, b"model", key=b"key")
        follower = Follower(config, [replies, registry], table)
        await follower.start()
        assert sorted(v or b"" for v in table.values) == sorted([b"%d" % n for n in range(10)] + [b"model"])
        await producer.send_and_wait(registry, None, key=b"key")
        await table.until(lambda values: values[-1] is None)
    await follower.stop()


async def test_start_returns_on_empty_topics(config: Config) -> None:
    table = Table()
    follower = Follower(config, [topics(config).plan, topics(config).registry], table)
    await follower.start()
    assert table.values == []
    await follower.stop()


async def test_nothing_waits_for_records_that_do_not_come(config: Config) -> None:
    followers = [Follower(config, [topics(config).cancel], Table(), since_ms=n * 1e9 or None) for n in range(4)]
    began_s = time.monotonic()
    for follower in followers:
        await follower.start()
    assert time.monotonic() - began_s < 0.5, "each answer of Kafka behind a fetch takes a quarter of a second"
    await asyncio.gather(*[follower.stop() for follower in followers])


async def test_the_barrier_knows_control_records_and_hides_what_was_aborted(config: Config) -> None:
    plan = topics(config).plan
    table = Table()
    async with make_producer(config, transactional_id=f"{plan}-leader") as producer:
        async with producer.transaction():
            await producer.send_and_wait(plan, b"first", key=b"plan")
        await producer.begin_transaction()
        await producer.send_and_wait(plan, b"aborted", key=b"plan")
        await producer.abort_transaction()
        follower = Follower(config, [plan], table)
        await follower.start()
        assert table.values == [b"first"]
        async with producer.transaction():
            await producer.send_and_wait(plan, b"second", key=b"plan")
        await table.until(lambda values: values[1:] == [b"second"])
    await follower.stop()


async def test_an_open_transaction_does_not_hold_up_the_barrier(config: Config) -> None:
    plan = topics(config).plan
    table = Table()
    async with make_producer(config, transactional_id=f"{plan}-leader") as producer:
        async with producer.transaction():
            await producer.send_and_wait(plan, b"first", key=b"plan")
        await producer.begin_transaction()
        await producer.send_and_wait(plan, b"open", key=b"plan")
        follower = Follower(config, [plan], table)
        await follower.start(timeout_s=10)
        assert table.values == [b"first"]
        await producer.commit_transaction()
        await table.until(lambda values: values == [b"first", b"open"])
    await follower.stop()


async def test_since_a_time_skips_what_is_older(config: Config) -> None:
    fleet = topics(config).fleet
    table = Table()
    async with make_producer(config) as producer:
        old = await producer.send_and_wait(fleet, b"old")
        while (new := await producer.send_and_wait(fleet, b"new")).timestamp == old.timestamp:
            old = new
        follower = Follower(config, [fleet], table, since_ms=new.timestamp)
        await follower.start()
        assert table.values == [b"new"]
        await producer.send_and_wait(fleet, b"newer")
        await table.until(lambda values: values == [b"new", b"newer"])
    await follower.stop()


async def test_since_the_future_starts_at_the_end(config: Config) -> None:
    fleet = topics(config).fleet
    table = Table()
    async with make_producer(config) as producer:
        old = await producer.send_and_wait(fleet, b"old")
        follower = Follower(config, [fleet], table, since_ms=old.timestamp + 3_600_000)
        await follower.start()
        await producer.send_and_wait(fleet, b"new")
        await table.until(lambda values: values == [b"new"])
    await follower.stop()


async def test_silence_is_confirmed_by_kafka(config: Config) -> None:
    follower = Follower(config, [topics(config).fleet], Table())
    await follower.start()
    async with asyncio.timeout(10):
        while follower.quiet_ms < 1000:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    await follower.stop()


async def test_a_topic_that_is_not_there_is_an_error_in_time(config: Config) -> None:
    follower = Follower(config, [f"{config.kafka.topic_prefix}.nowhere"], Table())
    with pytest.raises(UnavailableError, match=r"nowhere.*modelless check"):
        await follower.start(timeout_s=2)


async def test_no_kafka_is_an_error_in_time(make_config: Callable[[str], Config]) -> None:
    follower = Follower(make_config("127.0.0.1:1"), ["any"], Table())
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1"):
        await follower.start(timeout_s=2)


async def test_a_reader_that_raises_fails_the_start(config: Config) -> None:
    def broken(record: ConsumerRecord) -> None:
        raise AssertionError("broken reader")

    async with make_producer(config) as producer:
        await producer.send_and_wait(topics(config).registry, b"value", key=b"key")
    with pytest.raises(AssertionError, match="broken reader"):
        await Follower(config, [topics(config).registry], broken).start()
