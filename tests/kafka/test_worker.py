"""A real worker process on real Kafka, driven by a small broker that speaks the real link."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import planted_builders
import pytest
from aiokafka.admin import NewTopic
from worker_builders import CRASH, HANG, RAISE, SUPPORT, X, Y, batch, item, write_onnx, write_safetensors

from modelless import frames, link, store
from modelless.catalog import digest_of
from modelless.clock import KafkaClock
from modelless.codec import decode_record, decode_reply, encode_record
from modelless.config import Config
from modelless.fleet import Announcer, FleetView
from modelless.kafka import make_admin, make_consumer, make_producer
from modelless.messages import Assignment, Evaluation, Member, ModelVersion, Plan, Profile, Reply
from modelless.topics import Topics

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

WORKER = "cpu-0"


class Broker:
    """What a worker sees of a broker, and what it is told."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.topics = Topics(config.kafka.topic_prefix)
        self.clock = KafkaClock()
        self.links: list[link.Link] = []
        self.heard: list[frames.Frame] = []
        self.epoch = 0
        self.numbers = 0
        self._producer = make_producer(config)
        self._announcer = Announcer(config, self.clock, self._member)
        self._endpoint = ""

    async def start(self) -> None:
        hello = frames.Hello(frames.LINK_VERSION, "broker-0", "one")
        self._server = await link.serve(
            self.config, hello, self.links.append, lambda _, frame: self.heard.append(frame), self._lost
        )
        self._endpoint = self._server.endpoint
        await self._announcer.start()
        await self._producer.start()

    async def stop(self) -> None:
        for each in self.links:
            each.close()
        self._server.close()
        await self._announcer.stop()
        await self._producer.stop()

    def _member(self) -> Member:
        return Member("broker", "broker-0", "one", "ready", endpoint=self._endpoint)

    def _lost(self, lost: link.Link, _: str) -> None:
        self.links.remove(lost)

    async def register(self, model: ModelVersion) -> None:
        key = f"model/{model.key}".encode()
        await self._producer.send_and_wait(self.topics.registry, encode_record(model), key=key)

    async def plan(self, load: Sequence[str] = (), measure: Sequence[str] = (), worker: str = WORKER) -> None:
        self.epoch += 1
        plan = Plan(self.epoch, "test", 0.0, {worker: Assignment(tuple(load), tuple(measure))})
        await self._producer.send_and_wait(self.topics.plan, encode_record(plan), key=b"plan")

    async def profile(self) -> Profile:
        """The first one that is published."""
        return (await self.profiles(1))[0]

    async def profiles(self, count: int) -> list[Profile]:
        consumer = make_consumer(self.config, self.topics.profiles)
        await consumer.start()
        try:
            async with asyncio.timeout(60):
                return [decode_record(Profile, (await consumer.getone()).value) for _ in range(count)]
        finally:
            await consumer.stop()

    async def ready(self, variant: str) -> None:
        await until(lambda: self.links != [] and variant in self.states())
        await until(lambda: self.states().get(variant) == "ready", 60)

    def states(self) -> dict[str, str]:
        states = [frame for frame in self.heard if isinstance(frame, frames.State)]
        return {v.variant: v.state for v in states[-1].variants} if states else {}

    def send(self, firsts: Sequence[float], variant: str, **fields: object) -> frames.Batch:
        """One query per number; it is the whole row."""
        self.numbers += 1
        offset = 1000 * self.numbers
        topic = fields.pop("reply_topic", self.topics.replies)
        items = [item(offset + i, reply_topic=str(topic))._replace(**fields) for i in range(len(firsts))]  # type: ignore[arg-type]
        rows = np.repeat(np.array(firsts, "<f4")[:, None], 4, axis=1)
        inputs = (frames.BatchTensor("x", "FP32", rows.shape, rows.tobytes()),)
        sent = replace(batch(self.numbers, items, variant=variant), inputs=inputs)
        self.links[-1].send(sent)
        return sent

    async def settled(self, sent: frames.Batch, timeout_s: float = 60) -> dict[int, frames.ItemOutcome]:
        """Outcomes by position in the batch; each exactly once."""

        def found() -> list[frames.Outcome]:
            return [f for f in self.heard if isinstance(f, frames.Outcome) and f.batch == sent.batch]

        await until(lambda: any(frame.final for frame in found()), timeout_s)
        outcomes = [outcome for frame in found() for outcome in frame.items]
        if found()[-1].rest_ok:
            named = {outcome.record for outcome in outcomes}
            rest = [each.record for each in sent.items if each.record not in named]
            outcomes += [frames.ItemOutcome(record, "answered", "OK") for record in rest]
        assert sorted(o.record for o in outcomes) == [i.record for i in sent.items]
        return {o.record.offset % 1000: o for o in outcomes}

    async def replies(self, sent: frames.Batch, count: int) -> dict[int, Reply]:
        """By position in the batch; each exactly once."""
        consumer = make_consumer(self.config, sent.items[0].reply_topic)
        await consumer.start()
        found: dict[int, Reply] = {}
        wanted = {str(i.record) for i in sent.items}
        try:
            async with asyncio.timeout(30):
                while len(found) < count:
                    record = await consumer.getone()
                    reply = decode_reply(record.value)
                    if reply.query in wanted:
                        position = int(reply.query.rpartition("/")[2]) % 1000
                        assert position not in found
                        found[position] = reply
                        assert dict(record.headers)["modelless-status"] == reply.status.encode()
        finally:
            await consumer.stop()
        return found


async def until(reached: Callable[[], bool], timeout_s: float = 30) -> None:
    async with asyncio.timeout(timeout_s):
        while not reached():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@pytest.fixture
async def broker(config: Config) -> AsyncIterator[Broker]:
    broker = Broker(config)
    await broker.start()
    yield broker
    await broker.stop()


@contextlib.asynccontextmanager
async def worker(
    config: Config, device: str = "cpu", name: str = WORKER, path: Path | None = None, **env: str
) -> AsyncIterator[subprocess.Popen[bytes]]:
    """``path``: another folder to import from."""
    group = {"name": "cpu", "device": device, "price_per_hour": 3.6}
    settings = {
        "KAFKA__BOOTSTRAP_SERVERS": config.kafka.servers,
        "KAFKA__TOPIC_PREFIX": config.kafka.topic_prefix,
        "STORE__URL": config.store.url,
        "STORE__CACHE": str(config.store.cache),
        "STATE": str(config.state),
        "METRICS__PORT": "0",
        "WORKER__FACTORIES_ALLOWED": '["worker_builders"]',
        "WORKER__MEASURE_S": "1",
        "GROUPS": json.dumps([group]),
    } | env
    python_path = SUPPORT if path is None else f"{SUPPORT}:{path}"
    environment = os.environ | {"PYTHONPATH": python_path} | {f"MODELLESS_{k}": v for k, v in settings.items()}
    command = [sys.executable, "-c", "from modelless.commands import main; main()", "worker", "--group", "cpu"]
    process = subprocess.Popen([*command, "--name", name], env=environment)  # noqa: ASYNC220
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        await asyncio.to_thread(process.wait)


async def registered(broker: Broker, path: Path, **fields: object) -> ModelVersion:
    url, sha256, size = await asyncio.to_thread(store.put, broker.config, path)
    kind = {".onnx": "onnx", ".safetensors": "safetensors", ".csv": "emulated"}[path.suffix]
    model = ModelVersion("m", 1, "t", kind, url, sha256, size, (X,), (Y,), Evaluation(0.9), "")
    model = replace(model, **fields)  # type: ignore[arg-type]
    model = replace(model, digest=digest_of(model))
    await broker.register(model)
    return model


async def test_measured_loaded_answered_drained(broker: Broker, config: Config, tmp_path: Path) -> None:
    model = await registered(broker, write_onnx(tmp_path / "m.onnx"))
    variant = f"{model.key}/onnx-fp32"
    await broker.plan(measure=[variant])
    async with worker(config) as process:
        profile = await broker.profile()
        assert (profile.status, profile.group, profile.digest) == ("ready", "cpu", model.digest)
        assert (profile.accuracy, profile.accuracy_rows) == (0.9, 0)
        assert profile.batches[0].batch_size == 1
        await broker.plan(load=[variant])
        await broker.ready(variant)
        await until(lambda: any(isinstance(f, frames.Credit) and f.window_ms > 0 for f in broker.heard))

        sent = broker.send([1.0, 2.0, 3.0], variant, headers=(("traceparent", b"00-x"),), metadata={"a": "b"})
        assert {o.disposition for o in (await broker.settled(sent)).values()} == {"answered"}
        replies = await broker.replies(sent, 3)
        assert [replies[i].outputs[0].to_numpy().tolist() for i in range(3)] == [[[2.0] * 4], [[3.0] * 4], [[4.0] * 4]]
        assert (replies[0].status, replies[0].batch_size, replies[0].metadata) == ("OK", 3, {"a": "b"})
        assert replies[0].cost is not None
        assert replies[0].cost > 0

        await replies_that_cannot_be_written(broker, variant)
        await a_new_link_hears_what_was_answered(broker, sent)

        late = broker.send([1.0], variant, deadline_ms=broker.clock.now_ms() - 1000)  # by either's clock
        assert (await broker.settled(late))[0].status == "DEADLINE_EXCEEDED"
        assert (await broker.replies(late, 1))[0].status == "DEADLINE_EXCEEDED"

        await broker.plan()
        await until(lambda: variant not in broker.states())
        await asyncio.sleep(1)  # what was sent before the news arrived still runs
        gone = broker.send([1.0], variant)
        assert (await broker.settled(gone))[0].disposition == "returned"

        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 20) == 0
        assert any(isinstance(f, frames.Drain) for f in broker.heard)


async def replies_that_cannot_be_written(broker: Broker, variant: str) -> None:
    small = f"{broker.topics.replies}.small"
    admin = make_admin(broker.config)
    await admin.start()
    await admin.create_topics([NewTopic(small, 1, 1, topic_configs={"max.message.bytes": "2000"})])
    await admin.close()
    large = broker.send([1.0, 2.0], variant, reply_topic=small, metadata={"pad": "x" * 600})
    fits = await broker.settled(large)
    assert {o.status for o in fits.values()} == {"OK"}
    metadata = {"pad": "x" * 900, "more": "y" * 800}
    large = broker.send([1.0], variant, reply_topic=small, metadata=metadata)
    assert (await broker.settled(large))[0].disposition == "undeliverable"
    missing = broker.send([1.0], variant, reply_topic=f"{broker.topics.replies}.missing", reply_partition=0)
    outcome = (await broker.settled(missing))[0]
    assert (outcome.disposition, "does not exist" in (outcome.message or "")) == ("undeliverable", True)
    beyond = broker.send([1.0], variant, reply_partition=77)
    assert (await broker.settled(beyond))[0].disposition == "undeliverable"


async def a_new_link_hears_what_was_answered(broker: Broker, sent: frames.Batch) -> None:
    broker.heard.clear()
    broker.links[-1].close()
    await until(lambda: any(isinstance(f, frames.Answered) for f in broker.heard))
    told = next(f for f in broker.heard if isinstance(f, frames.Answered))
    offsets = {offset for _, _, each in told.records for offset in each}
    assert {i.record.offset for i in sent.items} <= offsets
    await until(lambda: any(isinstance(f, frames.Credit) for f in broker.heard))


@pytest.mark.timeout(400)
async def test_queries_that_crash_hang_and_raise(broker: Broker, config: Config, tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "m.safetensors")
    model = await registered(broker, path, factory="worker_builders:nasty")
    variant = f"{model.key}/torch-fp32"
    await broker.plan(load=[variant])
    fleet = FleetView(config, broker.clock)
    await fleet.start()
    async with worker(config, WORKER__HANG_S="3"):
        await broker.ready(variant)
        good = [float(i) for i in range(32)]

        raising = broker.send([*good[:9], RAISE, *good[9:15]], variant)
        outcomes = await broker.settled(raising)
        assert {i for i, o in outcomes.items() if o.status != "OK"} == {9}
        assert (outcomes[9].disposition, outcomes[9].status) == ("answered", "INTERNAL")

        crashing = broker.send([*good[:20], CRASH, *good[21:]], variant)
        bystander = broker.send([1.0], variant)
        outcomes = await broker.settled(crashing, 150)
        assert {i for i, o in outcomes.items() if o.disposition != "answered"} == {20}
        assert outcomes[20].disposition == "poisoned"
        replies = await broker.replies(crashing, 32)
        assert {i for i, r in replies.items() if r.status != "OK"} == {20}
        assert (await broker.settled(bystander))[0].status == "OK"
        await until(lambda: any(w.statistics["child_deaths"] > 0 for w in fleet.workers()))
        deaths = fleet.workers()[0].statistics["child_deaths"]
        print(f"\n{deaths:.0f} deaths for one poison among 32")
        assert deaths <= 6

        hanging = broker.send([1.0, HANG], variant)
        outcomes = await broker.settled(hanging, 90)
        assert [outcomes[i].disposition for i in range(2)] == ["answered", "poisoned"]
    await fleet.stop()


async def test_what_cannot_be_measured_says_why(broker: Broker, config: Config, tmp_path: Path) -> None:
    model = await registered(broker, write_safetensors(tmp_path / "m.safetensors"), factory="elsewhere:build")
    await broker.plan(measure=[f"{model.key}/torch-fp32"])
    async with worker(config):
        profile = await broker.profile()
        assert profile.status == "failed"
        assert "worker.factories_allowed" in (profile.reason or "")


async def test_one_trained_network_becomes_several_variants(broker: Broker, config: Config, tmp_path: Path) -> None:
    """Of its weights alone; each is measured with itself, on the half of the evaluation set that no builder sees."""
    x = np.random.default_rng(1).random((60, 4), dtype="f4")
    np.savez(tmp_path / "eval.npz", x=x, labels=x.argmax(axis=1))
    url, sha256, _ = await asyncio.to_thread(store.put, config, tmp_path / "eval.npz")
    model = await registered(
        broker,
        write_safetensors(tmp_path / "m.safetensors"),
        factory="worker_builders:nasty",
        evaluation=Evaluation(None, url, sha256),
    )
    exact, rounded = (f"{model.key}/{name}" for name in ("torch-fp32", "torch-bf16"))
    await broker.plan(measure=[rounded, exact])
    async with worker(config):
        profiles = {profile.variant: profile for profile in await broker.profiles(2)}
        assert list(profiles) == [exact, rounded], "the quickly made one first, whatever the plan's order"
        for profile in profiles.values():
            assert profile.status == "ready"
            assert profile.accuracy_rows == 30
            assert profile.accuracy is not None
            assert profile.accuracy_low is not None
            assert profile.accuracy_low < profile.accuracy
        assert profiles[exact].accuracy == 1.0
        await broker.plan(load=[exact, rounded])
        await broker.ready(exact)
        await broker.ready(rounded)


async def test_what_one_worker_built_the_next_one_loads(broker: Broker, config: Config, tmp_path: Path) -> None:
    """On another machine, as far as it can tell: its cache is empty. A builder that fails is in nobody's way."""
    planted_builders.install(tmp_path)
    model = await registered(broker, write_onnx(tmp_path / "m.onnx"))
    refused, planted, plain = (f"{model.key}/{name}" for name in ("refused", "planted", "onnx-fp32"))
    await broker.plan(measure=[refused, planted, plain])
    fleet = FleetView(config, broker.clock)
    await fleet.start()

    def builds() -> list[float]:
        return [member.statistics["builds"] for member in fleet.workers()]

    async with worker(config, path=tmp_path):
        profiles = {profile.variant: profile for profile in await broker.profiles(3)}
        assert {variant: profile.status for variant, profile in profiles.items()} == {
            refused: "failed",
            planted: "ready",
            plain: "ready",
        }
        assert profiles[planted].build_ms > 0
        assert profiles[planted].load_warm_ms > 0
        await broker.plan(load=[planted, plain])
        await broker.ready(planted)
        await until(lambda: builds() == [1.0])
    broker.heard.clear()
    await broker.plan(load=[planted, plain], worker="cpu-1")
    async with worker(config, name="cpu-1", path=tmp_path, STORE__CACHE=str(tmp_path / "elsewhere")):
        await broker.ready(planted)
        sent = broker.send([1.0], planted)
        assert (await broker.replies(sent, 1))[0].outputs[0].to_numpy().tolist() == [[2.0] * 4]
        await until(lambda: any(m.name == "cpu-1" and m.statistics["builds"] == 0 for m in fleet.workers()))
    assert list((tmp_path / "elsewhere").rglob("*.onnx"))
    await fleet.stop()


async def test_an_emulated_worker_is_a_real_member(broker: Broker, config: Config, tmp_path: Path) -> None:
    table = tmp_path / "e.csv"
    table.write_text(f"{store.EMULATED_HEADER}\ncpu,1,4,5,10,50\ncpu,4,6,7,10,50\n")
    model = await registered(broker, table)
    variant = f"{model.key}/emulated"
    await broker.plan(measure=[variant])
    async with worker(config, "emulated"):
        profile = await broker.profile()
        assert profile.memory_bytes == 50 * 2**20
        assert profile.batches[0].p50_ms == pytest.approx(4, abs=2)
        await broker.plan(load=[variant])
        await broker.ready(variant)
        sent = broker.send([1.0, 2.0], variant)
        assert {o.status for o in (await broker.settled(sent)).values()} == {"OK"}
        assert (await broker.replies(sent, 2))[0].outputs[0].to_numpy().tolist() == [[0.0] * 4]
