"""Announcing and seeing on real Kafka."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from itertools import pairwise

import pytest
import structlog

from modelless.clock import KafkaClock
from modelless.codec import encode_record
from modelless.config import Config
from modelless.fleet import ALIVE_MS, Announcer, FleetView
from modelless.kafka import make_producer
from modelless.messages import Member
from modelless.topics import Topics

pytestmark = pytest.mark.kafka

BROKER = Member("broker", "broker-0", "incarnation", "ready", endpoint="unix:/nowhere")
WORKER = Member("worker", "cpu-0", "incarnation", "ready", group="cpu")


class Changes:
    """What the view said at each change, and a way to wait."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def __call__(self) -> None:
        self._changed.set()

    async def until(self, view: FleetView, names: list[str], timeout_s: float = 10) -> None:
        async with asyncio.timeout(timeout_s):
            while [member.name for member in view.members()] != names:
                self._changed.clear()
                await self._changed.wait()


async def test_members_appear_change_and_die(config: Config) -> None:
    clock, changes = KafkaClock(), Changes()
    state = BROKER
    broker = Announcer(config, clock, lambda: state)
    worker = Announcer(config, KafkaClock(), lambda: WORKER)
    view = FleetView(config, clock, changes)
    await broker.start()
    await worker.start()
    await view.start()
    assert (view.brokers(), view.workers()) == ((BROKER,), (WORKER,))
    async with asyncio.timeout(5):
        while clock.allowance_ms >= 100:  # noqa: ASYNC110 - the first record of a new topic may have to be sent again
            await asyncio.sleep(0.05)
    assert abs(clock.now_ms() - time.time() * 1000) < 200, "the same machine's clock"

    state = replace(BROKER, endpoint="unix:/elsewhere")
    broker.announce()
    async with asyncio.timeout(0.9):
        while view.brokers() != (state,):  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    assert worker._task is not None
    worker._task.cancel()  # a death without a farewell
    await changes.until(view, ["broker-0"])

    state = replace(BROKER, state="stopped")
    await broker.stop()
    await changes.until(view, [], timeout_s=1)
    await view.stop()


async def test_all_may_die(config: Config) -> None:
    changes = Changes()
    async with make_producer(config) as producer:
        await producer.send_and_wait(
            Topics(config.kafka.topic_prefix).fleet, encode_record(WORKER), key=b"worker/cpu-0"
        )
    view = FleetView(config, KafkaClock(), changes)
    await view.start()
    assert view.workers() == (WORKER,)
    await changes.until(view, [], timeout_s=12)
    await view.stop()


async def test_what_is_not_an_announcement_is_passed_over(config: Config) -> None:
    topic = Topics(config.kafka.topic_prefix).fleet
    async with make_producer(config) as producer:
        for value in (b"", b"\xc1", b"\x80", None):
            await producer.send_and_wait(topic, value, key=b"worker/cpu-0")
    view = FleetView(config, KafkaClock())
    await view.start()
    assert view.members() == ()
    await view.stop()


async def test_only_who_looks_back_reads_what_is_long_over(config: Config) -> None:
    async with make_producer(config) as producer:
        await producer.send_and_wait(Topics(config.kafka.topic_prefix).fleet, b"\xc1", key=b"worker/cpu-0")
    clock, past = KafkaClock(), list[tuple[float, list[str]]]()
    announcer = Announcer(config, clock, lambda: BROKER)
    await announcer.start()
    await asyncio.sleep(ALIVE_MS / 1000 + 2)
    for on_past in (None, lambda at_ms, members: past.append((at_ms, [member.name for member in members]))):
        with structlog.testing.capture_logs() as logs:
            view = FleetView(config, clock, on_past=on_past)
            await view.start()
            await view.stop()
        assert view.brokers() == (BROKER,)
        assert ["cannot be read" in line["event"] for line in logs] == ([] if on_past is None else [True])
    await announcer.stop()
    assert len(past) >= 4 and all(names == ["broker-0"] for _, names in past)
    assert all(at_ms >= before_ms + 1000 for (before_ms, _), (at_ms, _) in pairwise(past))
