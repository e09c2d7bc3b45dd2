"""Hostile input on a real Kafka with a real broker process: it is refused, once, and nobody else notices.

Every case is written to the partition that good queries come through. Its outcome must be seen, the next good query
must be answered within two seconds, everything must be committed, and no topic may come into being. No worker runs: a
good query is one for a task that does not exist, and its answer is NOT_FOUND.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import confluent_kafka
import msgpack
import pytest
from aiokafka.errors import NoError, for_code
from aiokafka.protocol.produce import ProduceRequest
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic, ResourceType
from record_batches import Record, batch, with_bad_header_key

from modelless.codec import decode_reply, encode_query
from modelless.config import Config, load_config
from modelless.embedded import EmbeddedKafka
from modelless.kafka import make_client
from modelless.messages import Query, Reply
from modelless.tensors import Tensor
from modelless.topic_settings import create_missing
from modelless.topics import Topics

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(240)]

ANSWER_S_MAX = 2.0
START_S_MAX = 60.0
INPUTS = (Tensor("x", "FP32", (1, 2), b"\0" * 8),)
Headers = Sequence[tuple[str, bytes | str | None]]


@dataclass
class Outcome:
    """A reply or a dead letter."""

    topic: str
    key: bytes | None
    value: bytes
    headers: dict[str, bytes]

    @property
    def query(self) -> str:
        """The record that it is about."""
        return self.headers["modelless-query"].decode()

    @property
    def reply(self) -> Reply:
        return decode_reply(self.value)


class Bench:
    """A broker, and everything that is written to its topics and comes out of it, through another Kafka library."""

    def __init__(self, config: Config, node: EmbeddedKafka, process: subprocess.Popen[bytes]) -> None:
        self.config = config
        self.node = node
        self.process = process
        self.topics = Topics(config.kafka.topic_prefix)
        servers = {"bootstrap.servers": config.kafka.servers, "log_level": 2}
        self.admin = AdminClient(servers)
        self.producer = confluent_kafka.Producer(
            servers | {"message.max.bytes": 100_000_000, "linger.ms": 0, "topic.metadata.refresh.interval.ms": 1000}
        )
        self.consumer = confluent_kafka.Consumer(
            servers
            | {
                "group.id": f"watch-{uuid.uuid4().hex}",
                "auto.offset.reset": "earliest",
                "fetch.message.max.bytes": 16 << 20,
                "topic.metadata.refresh.interval.ms": 1000,
            }
        )
        self._commits = confluent_kafka.Consumer(servers | {"group.id": f"{self.topics.prefix}.brokers"})
        watched = [self.topics.replies, self.topics.dead_letter]
        self.consumer.assign(
            [
                confluent_kafka.TopicPartition(topic, partition, 0)
                for topic in watched
                for partition in self.admin.list_topics(topic).topics[topic].partitions
            ]
        )
        self.outcomes: dict[str, list[Outcome]] = {}

    def close(self) -> None:
        self.consumer.close()
        self._commits.close()

    # --- in ---

    def send(self, value: bytes | None, headers: Headers = (), key: bytes | None = None, **more: Any) -> str:
        """Write a record to the query topic, or to another, by default to partition 0; its name."""
        delivered: list[Any] = []
        topic, partition = more.pop("topic", self.topics.queries), more.pop("partition", 0)
        self.producer.produce(
            topic,
            value,
            key=key,
            headers=list(headers),
            partition=partition,
            on_delivery=lambda error, message: delivered.append((error, message)),
            **more,
        )
        assert self.producer.flush(20) == 0
        error, message = delivered[0]
        if error is not None:
            raise confluent_kafka.KafkaException(error)
        return f"{topic}/{partition}/{message.offset()}"

    def send_batch(self, data: bytes, count: int) -> list[str]:
        """Write a batch made by hand to partition 0; the names of its records."""

        async def produce() -> int:
            client = make_client(self.config)
            await client.bootstrap()
            try:
                await client.set_topics([self.topics.queries])
                node = next(iter(client.cluster.brokers())).nodeId
                request = ProduceRequest(None, -1, 10_000, [(self.topics.queries, [(0, data)])])
                response = await client.send(node, request)
                _, [(_, code, offset, *_)] = response.topics[0]
                assert for_code(code) is NoError, for_code(code)
                return int(offset)
            finally:
                await client.close()

        first = asyncio.run(produce())
        return [f"{self.topics.queries}/0/{first + delta}" for delta in range(count)]

    # --- out ---

    def outcome(self, record: str, seconds: float = ANSWER_S_MAX) -> Outcome:
        """The one outcome of a record."""
        until = time.monotonic() + seconds
        while record not in self.outcomes:
            message = self.consumer.poll(max(0.0, until - time.monotonic()))
            assert message is not None, f"no outcome of {record} within {seconds} s"
            if message.error() is None:
                headers = dict(message.headers() or ())
                outcome = Outcome(message.topic(), message.key(), message.value() or b"", headers)
                self.outcomes.setdefault(outcome.query, []).append(outcome)
        assert len(self.outcomes[record]) == 1
        return self.outcomes[record][0]

    def good(self, **fields: Any) -> str:
        """Send a good query; its record."""
        return self.send(good_query(**fields))

    def answered(self, record: str, seconds: float = ANSWER_S_MAX) -> None:
        outcome = self.outcome(record, seconds)
        assert (outcome.topic, outcome.reply.status) == (self.topics.replies, "NOT_FOUND")

    def still_well(self) -> None:
        """The next good query is answered in time, and everything that was written is committed."""
        self.answered(self.good())
        self.committed()

    def committed(self, seconds: float = 5.0, partition: int = 0) -> None:
        of = confluent_kafka.TopicPartition(self.topics.queries, partition)
        _, end = self._commits.get_watermark_offsets(of)
        until = time.monotonic() + seconds
        while (found := self._commits.committed([of])[0].offset) != end:
            assert time.monotonic() < until, f"committed up to {found} of {end}"
            time.sleep(0.05)

    def existing(self) -> set[str]:
        """All topics but Kafka's own."""
        return {topic for topic in self.admin.list_topics(timeout=10).topics if not topic.startswith("__")}


def good_query(**fields: Any) -> bytes:
    return encode_query(Query(**{"id": uuid.uuid4().hex, "inputs": INPUTS, "task": "none"} | fields))


def wrong(**fields: Any) -> bytes:
    """A good query with some fields made wrong."""
    packed: bytes = msgpack.packb(msgpack.unpackb(good_query(id="wrong")) | fields)
    return packed


def tensor(**fields: Any) -> list[dict[str, Any]]:
    return [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": b"\0" * 8} | fields]


@pytest.fixture(scope="module")
def bench(kafka: EmbeddedKafka, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("hostile")
    prefix = f"h{uuid.uuid4().hex[:8]}"
    file = folder / "modelless.toml"
    file.write_text(
        f'state = "{folder}"\n[kafka]\nbootstrap_servers = "{kafka.bootstrap_servers}"\ntopic_prefix = "{prefix}"\n'
        f'partitions = 2\n[broker]\ncommit_interval_ms = 50\nreply_topics_allowed = ["other-{prefix}.ours"]\n'
        f'[store]\nurl = "{folder / "store"}"\n[metrics]\nport = 0\n[log]\nformat = "json"\n'
    )
    config = load_config(file)
    asyncio.run(create_missing(config))
    with (folder / "broker.log").open("wb") as log:
        command = [sys.executable, "-m", "modelless", "broker", "--name", "broker-0", "--config", str(file)]
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    made = Bench(config, kafka, process)
    try:
        made.answered(made.good(), START_S_MAX)
        yield made
        assert process.poll() is None, (folder / "broker.log").read_text()[-3000:]
    finally:
        made.close()
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(30) == 0, (folder / "broker.log").read_text()[-3000:]
        except subprocess.TimeoutExpired:
            process.kill()
            raise


@pytest.fixture(autouse=True)
def unharmed(bench: Bench) -> Iterator[None]:
    """Whatever a test did, afterwards the broker serves, everything is committed, and no topic was created."""
    before = bench.existing()
    yield
    bench.still_well()
    assert bench.existing() <= before


# --- a reply topic that goes -----------------------------------------------------------------------------------


@dataclass
class Orphans:
    """Queries in partition 1 whose reply topic was deleted when it had been written to."""

    topic: str
    records: list[str]


@pytest.fixture(scope="module")
def orphans(bench: Bench) -> Orphans:
    topic = f"{bench.topics.replies}.{uuid.uuid4().hex}"
    bench.admin.create_topics([NewTopic(topic, 1, 1)])[topic].result()
    watcher = confluent_kafka.Consumer({"bootstrap.servers": bench.config.kafka.servers, "group.id": topic})
    watcher.assign([confluent_kafka.TopicPartition(topic, 0, 0)])
    bench.good(reply_topic=topic)
    message = watcher.poll(10)
    assert message is not None
    assert decode_reply(message.value()).status == "NOT_FOUND"
    watcher.close()
    bench.admin.delete_topics([topic])[topic].result()
    return Orphans(topic, [bench.send(good_query(reply_topic=topic), partition=1) for _ in range(5)])


def test_a_reply_topic_deleted_meanwhile_holds_nobody_up(bench: Bench, orphans: Orphans) -> None:
    for _ in range(5):
        bench.answered(bench.send(good_query(), partition=1))
        bench.answered(bench.good())


# --- values ----------------------------------------------------------------------------------------------------

VALUES: dict[str, bytes | None] = {
    "nothing": None,
    "empty": b"",
    "text": b"hello",
    "truncated": good_query()[:-3],
    "trailing bytes": good_query() + b"\x00",
    "reserved 0xc1": b"\xc1",
    "a million levels": b"\x91" * 1_000_000,
    "4 billion elements": b"\xdd\xff\xff\xff\xff",
    "a megabyte of empty maps": b"\xdd" + (1_000_000).to_bytes(4, "big") + b"\x80" * 1_000_000,
    "a timestamp of 2**62": b"\xc7\x0c\xff" + b"\0\0\0\0" + (1 << 62).to_bytes(8, "big"),
    "another extension": b"\xc7\x04\x05abcd",
    "a key twice": b"\x82\xa2id\xa1a\xa2id\xa1b",
    "text that is not UTF-8": b"\x81\xa2id\xa2\xff\xfe",
    "JSON cut short": b'{"id": "a", "inputs": [',
    "JSON, a million levels": b'{"a":' * 200_000,
    "JSON that is not UTF-8": b'{"id": "\xff"}',
    "NaN as accuracy": wrong(accuracy_min=float("nan")),
    "infinite latency": wrong(latency_ms_max=float("inf")),
    "NaN as cost": wrong(cost_max=float("nan")),
    "deadline 0": wrong(deadline_ms=0),
    "a negative deadline": wrong(deadline_ms=-5),
    "deadline NaN": wrong(deadline_ms=float("nan")),
    "deadline in the year 9999": wrong(deadline_ms=253_402_300_000_000),
    "a field that is not ours": wrong(latency_max_ms=5),
    "no target": wrong(task=None),
    "shape that the bytes do not fit": wrong(inputs=tensor(shape=[1, 3])),
    "negative shape": wrong(inputs=tensor(shape=[-1, -2])),
    "a product that overflows": wrong(inputs=tensor(shape=[2**32, 2**32])),
    "objects": wrong(inputs=tensor(datatype="BYTES")),
    "rows that differ": wrong(inputs=tensor() + tensor(name="y", shape=[2, 1])),
    "inputs that are no list": wrong(inputs=5),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_malformed_value_with_a_known_address_is_told_so(bench: Bench, name: str) -> None:
    record = bench.send(VALUES[name], [("modelless-id", "who-asks")], key=b"k")
    outcome = bench.outcome(record)
    assert (outcome.topic, outcome.key) == (bench.topics.replies, b"k")
    assert outcome.headers["modelless-id"] == b"who-asks"
    assert (outcome.reply.id, outcome.reply.query) == ("who-asks", record)
    assert outcome.reply.status == "INVALID_ARGUMENT"
    assert outcome.reply.message


@pytest.mark.parametrize("name", [name for name, value in VALUES.items() if b"wrong" not in (value or b"")])
def test_a_malformed_value_without_an_address_is_a_dead_letter(bench: Bench, name: str) -> None:
    value = VALUES[name]
    if name in ("truncated", "trailing bytes"):
        value = b"\x81\xa1a" if name == "truncated" else b"\x80\x00"
    outcome = bench.outcome(bench.send(value, [("x-trace", b"1"), ("x-none", None)], key=b"k"))
    assert (outcome.topic, outcome.key, outcome.value) == (bench.topics.dead_letter, b"k", value or b"")
    assert outcome.headers["modelless-code"] == b"INVALID_ARGUMENT"
    assert (outcome.headers["x-trace"], outcome.headers["x-none"]) == (b"1", None)


def test_a_lone_surrogate_is_refused_and_not_echoed(bench: Bench) -> None:
    body = {"id": "\ud800", "inputs": [], "parameters": {"task": "t", "metadata": {"\ud800": "\ud800"}}}
    record = bench.send(json.dumps(body).encode(), [("modelless-id", "surrogate")])
    assert bench.outcome(record).reply.status == "INVALID_ARGUMENT"


def test_a_decompression_bomb_is_refused_by_the_topic(bench: Bench) -> None:
    bomb = confluent_kafka.Producer(
        {"bootstrap.servers": bench.config.kafka.servers, "message.max.bytes": 100_000_000, "compression.type": "gzip"}
    )
    refused: list[Any] = []
    bomb.produce(bench.topics.queries, bytes(60_000_000), partition=0, on_delivery=lambda e, _: refused.append(e))
    assert bomb.flush(30) == 0
    assert refused[0].code() == confluent_kafka.KafkaError.MSG_SIZE_TOO_LARGE


# --- headers, keys, batches ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        ("modelless-deadline-ms", b"0"),
        ("modelless-deadline-ms", b"-1"),
        ("modelless-deadline-ms", b"nan"),
        ("modelless-deadline-ms", b"253402300000000"),
        ("modelless-reply-partition", b"-1"),
        ("content-type", b"application/x-pickle"),
    ],
    ids=str,
)
def test_a_malformed_header_is_told_to_the_address_in_the_others(bench: Bench, header: tuple[str, bytes]) -> None:
    outcome = bench.outcome(bench.send(good_query(), [("modelless-id", "who-asks"), header]))
    if outcome.reply.status != "NOT_FOUND" or header[0] != "content-type":  # an unknown content type may be ignored
        assert (outcome.reply.id, outcome.reply.status) == ("who-asks", "INVALID_ARGUMENT")


def test_150_000_headers_are_a_dead_letter(bench: Bench) -> None:
    record = bench.send(good_query(), [("a", b"")] * 150_000)
    outcome = bench.outcome(record)
    assert outcome.topic == bench.topics.dead_letter
    assert b"headers" in outcome.headers["modelless-reason"]
    assert outcome.headers["modelless-truncated"] == b"150000 headers"


def test_an_oversize_key_is_a_dead_letter(bench: Bench) -> None:
    key = bytes(900_000)
    outcome = bench.outcome(bench.send(good_query(), key=key))
    assert (outcome.topic, outcome.key) == (bench.topics.dead_letter, key)


@pytest.mark.parametrize("bad", [0, 2, 4])
def test_a_header_key_that_is_not_utf8_costs_its_record_only(bench: Bench, bad: int) -> None:
    data = with_bad_header_key([Record(good_query()) for _ in range(5)], bad)
    elsewhere = bench.good()
    records = bench.send_batch(data, 5)
    after = bench.good()
    for index, record in enumerate(records):
        if index != bad:
            bench.answered(record)
    bench.answered(elsewhere)
    bench.answered(after)
    outcome = bench.outcome(records[bad])
    assert outcome.topic == bench.topics.dead_letter
    assert outcome.headers["modelless-reason"] == b"a header key is not UTF-8"
    assert outcome.headers[r"\xff\xfe\xfd"] == b"value"


def test_bad_batches_back_to_back_delay_nobody(bench: Bench) -> None:
    bad, good = [], []
    for _ in range(10):
        bad += bench.send_batch(with_bad_header_key([Record(b"x")], 0), 1)
        good.append(bench.good())
    for record in good:
        bench.answered(record)
    assert {bench.outcome(record).topic for record in bad} == {bench.topics.dead_letter}


def test_a_bad_batch_hides_nothing_of_the_other_partition(bench: Bench) -> None:
    """Both are in the broker's hands at once, in whatever order."""
    for _ in range(6):
        with held_up(bench):
            others = [bench.send(good_query(), partition=1) for _ in range(3)]
            bad = bench.send_batch(with_bad_header_key([Record(b"x")], 0), 1)
        for record in others:
            bench.answered(record)
        assert bench.outcome(bad[0]).topic == bench.topics.dead_letter


def test_a_batch_that_is_corrupt_on_disk_is_one_dead_letter(bench: Bench) -> None:
    """One byte of the log is flipped while the broker is away reading nothing yet: it has not been fetched before."""
    marker = uuid.uuid4().bytes
    with held_up(bench):
        records = bench.send_batch(batch([Record(b"zero"), Record(marker), Record(b"two")]), 3)
        after = bench.good()
        segment = next((bench.node.data / "logs" / f"{bench.topics.queries}-0").glob("*.log"))
        at = segment.read_bytes().index(marker)
        with segment.open("r+b") as log:
            log.seek(at)
            log.write(bytes([marker[0] ^ 0xFF]))
    bench.answered(after, 10)
    outcome = bench.outcome(records[0])
    assert outcome.topic == bench.topics.dead_letter
    assert outcome.headers["modelless-reason"] == b"the batch fails its checksum"
    assert marker[1:] in outcome.value


@contextlib.contextmanager
def held_up(bench: Bench) -> Iterator[None]:
    """The broker stands still for a moment."""
    bench.process.send_signal(signal.SIGSTOP)
    try:
        time.sleep(0.3)  # a fetch that waits at Kafka returns, and is not read
        yield
    finally:
        bench.process.send_signal(signal.SIGCONT)


# --- reply topics ----------------------------------------------------------------------------------------------

FORBIDDEN: dict[str, Callable[[Topics], str]] = {
    "another tenant's": lambda topics: f"other-{topics.prefix}.replies",
    "Kafka's own": lambda _: "__consumer_offsets",
    "ours, a loop": lambda topics: topics.queries,
    "ours, the plan": lambda topics: topics.plan,
    "ours, dead letters": lambda topics: topics.dead_letter,
    "a path": lambda _: "../x",
    "300 characters": lambda topics: f"{topics.replies}.{'x' * 300}",
    "empty": lambda _: "",
}


@pytest.mark.parametrize("where", ["header", "body"])
@pytest.mark.parametrize("name", FORBIDDEN)
def test_a_reply_topic_that_may_not_be_written(bench: Bench, name: str, where: str) -> None:
    topic = FORBIDDEN[name](bench.topics)
    if where == "header":
        record = bench.send(good_query(), [("modelless-reply-topic", topic)])
    else:
        record = bench.send(wrong(reply_topic=topic))
    after = bench.good()
    bench.answered(after)
    outcome = bench.outcome(record)
    if name == "empty":  # no name at all: the default one
        assert (outcome.topic, outcome.reply.status) == (bench.topics.replies, "INVALID_ARGUMENT")
    else:
        assert outcome.topic == bench.topics.dead_letter
        assert outcome.headers["modelless-code"] in (b"PERMISSION_DENIED", b"INVALID_ARGUMENT")


@pytest.mark.parametrize("name", ["replies", "other"])
def test_a_reply_topic_that_does_not_exist(bench: Bench, name: str) -> None:
    topic = f"{bench.topics.replies}.missing" if name == "replies" else f"other-{bench.topics.prefix}.ours"
    record = bench.send(wrong(reply_topic=topic))
    bench.answered(bench.good())
    outcome = bench.outcome(record, 5)
    assert (outcome.topic, outcome.headers["modelless-code"]) == (bench.topics.dead_letter, b"NOT_FOUND")


def test_a_reply_partition_that_does_not_exist(bench: Bench) -> None:
    outcome = bench.outcome(bench.send(good_query(reply_partition=7)))
    assert outcome.topic == bench.topics.dead_letter


def test_a_reply_that_its_topic_does_not_take(bench: Bench) -> None:
    topic = f"{bench.topics.replies}.small-{uuid.uuid4().hex}"
    bench.admin.create_topics([NewTopic(topic, 1, 1, config={"max.message.bytes": "500"})])[topic].result()
    try:
        record = bench.good(reply_topic=topic, metadata={"long": "x" * 1000})
        bench.answered(bench.good())
        outcome = bench.outcome(record, 10)
        assert (outcome.topic, outcome.headers["modelless-code"]) == (bench.topics.dead_letter, b"UNDELIVERABLE")
    finally:
        bench.admin.delete_topics([topic])[topic].result()


# --- dead letters ----------------------------------------------------------------------------------------------


def test_a_record_at_the_limit_still_fits_the_dead_letters(bench: Bench) -> None:
    limit_bytes = bench.config.kafka.request_bytes_max + 64 * 1024
    outcome = bench.outcome(bench.send(bytes(limit_bytes - 200), [("x", b"y")]), 10)
    assert outcome.topic == bench.topics.dead_letter
    assert len(outcome.value) == limit_bytes - 200


def test_a_dead_letter_too_large_for_its_topic_is_cut(bench: Bench) -> None:
    limit(bench, "2000")
    try:
        record = bench.send(bytes(10_000), [("x", bytes(1000))], key=bytes(1000))
        outcome = bench.outcome(record, 5)
        assert (outcome.topic, outcome.key, outcome.value) == (bench.topics.dead_letter, None, b"")
        assert outcome.headers["modelless-truncated"]
        assert outcome.headers["modelless-value-bytes"] == b"10000"
        assert len(outcome.headers["modelless-value-sha256"]) == 64
    finally:
        limit(bench, str(bench.config.kafka.request_bytes_max + 128 * 1024))


def limit(bench: Bench, bytes_max: str) -> None:
    entry = ConfigEntry("max.message.bytes", bytes_max, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, bench.topics.dead_letter, incremental_configs=[entry])
    for future in bench.admin.incremental_alter_configs([resource]).values():
        future.result()
    time.sleep(0.3)  # until the node has it


# --- identity, time, tenants -----------------------------------------------------------------------------------


def test_an_id_used_twice_is_two_queries(bench: Bench) -> None:
    first, second = bench.good(id="the same"), bench.good(id="the same")
    assert bench.outcome(first).reply.id == bench.outcome(second).reply.id == "the same"
    assert bench.outcome(first).reply.query == first
    assert bench.outcome(second).reply.query == second


@pytest.mark.parametrize("timestamp_ms", [1, 4_102_444_800_000])
def test_a_forged_timestamp_changes_nothing(bench: Bench, timestamp_ms: int) -> None:
    bench.answered(bench.send(good_query(latency_ms_max=5_000), timestamp=timestamp_ms))


@pytest.mark.parametrize(
    "target",
    [{"model": "../../etc/passwd"}, {"model": "another-tenants:3"}, {"variant": "a:1/onnx-fp32"}, {"task": "\0"}],
    ids=str,
)
def test_what_is_unknown_is_not_found_whatever_it_is_called(bench: Bench, target: dict[str, str]) -> None:
    reply = bench.outcome(bench.good(**{"task": None} | target)).reply
    ((kind, asked),) = target.items()
    assert (reply.status, reply.message) == ("NOT_FOUND", f"no such {kind}: {asked!r}")  # or is it somebody's?


def test_naming_a_tenant_is_denied(bench: Bench) -> None:
    assert bench.outcome(bench.good(tenant="somebody")).reply.status == "PERMISSION_DENIED"


# --- what the system knows -------------------------------------------------------------------------------------


@pytest.mark.parametrize("topic", ["registry", "profiles", "plan", "cancel", "fleet"])
def test_garbage_in_our_own_topics_is_ignored(bench: Bench, topic: str) -> None:
    for key in (b"model/x:1", b"\xff", b"plan"):
        for value in (b"\xc1", b"", b"\x91" * 100_000, msgpack.packb({"name": "x"}), None):
            bench.send(value, key=key, topic=getattr(bench.topics, topic))


# --- a reply topic that went -----------------------------------------------------------------------------------


@pytest.mark.slow  # aiokafka's producer gives a topic up after 30 seconds: the first test here began to wait for that
def test_queries_whose_reply_topic_was_deleted_are_dead_letters(bench: Bench, orphans: Orphans) -> None:
    for record in orphans.records:
        assert bench.outcome(record, 60).topic == bench.topics.dead_letter
    assert orphans.topic not in bench.existing()
    bench.committed(partition=1)
