"""A whole system for a benchmark, from `modelless up`, in a temporary folder; and the load that it is put under."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import psutil
from confluent_kafka import Consumer, Producer, TopicPartition
from onnx import TensorProto, helper, numpy_helper

from modelless.codec import encode_query
from modelless.config import Config, load_config
from modelless.messages import Query
from modelless.registration import register
from modelless.tensors import Tensor

LAYERS = (64, 256, 256, 10)
TASK = "mlp"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_mlp(folder: Path, seed: int = 7, *, broken: bool = False) -> Path:
    """The small MLP, 64-256-256-10, as ONNX with random weights, and its specification.

    Another seed is another version. A ``broken`` one can be measured (on zeros), and fails on other queries.
    """
    random = np.random.default_rng(seed)
    nodes, weights, before = [], [], "x"
    for index, (size_in, size_out) in enumerate(pairwise(LAYERS)):
        last = index == len(LAYERS) - 2
        weight = random.normal(0, size_in**-0.5, (size_in, size_out)).astype(np.float32)
        weights += [
            numpy_helper.from_array(weight, f"w{index}"),
            numpy_helper.from_array(np.zeros(size_out, np.float32), f"b{index}"),
        ]
        after = "logits" if last else f"h{index}"
        nodes.append(helper.make_node("Gemm", [before, f"w{index}", f"b{index}"], [after if last else f"g{index}"]))
        if not last:
            nodes.append(helper.make_node("Relu", [f"g{index}"], [after]))
        before = after
    if broken:
        nodes[-1].output[0] = "sound"
        weights += [
            numpy_helper.from_array(np.array([1.0], np.float32), "table"),
            numpy_helper.from_array(np.array(1000.0, np.float32), "thousand"),
        ]
        nodes += [
            helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
            helper.make_node("Mul", ["sum", "thousand"], ["many"]),
            helper.make_node("Cast", ["many"], ["row"], to=TensorProto.INT64),
            helper.make_node("Gather", ["table", "row"], ["one"]),  # of the table's one row, unless all of x is 0
            helper.make_node("Mul", ["sound", "one"], ["logits"]),
        ]
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", LAYERS[0]])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", LAYERS[-1]])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "mlp.onnx")
    specification = folder / "mlp.toml"
    specification.write_text(
        f'name = "mlp"\ntask = "{TASK}"\nartifact = "mlp.onnx"\n'
        f'[inputs.x]\ndatatype = "FP32"\nshape = [-1, {LAYERS[0]}]\n'
        f'[outputs.logits]\ndatatype = "FP32"\nshape = [-1, {LAYERS[-1]}]\n'
        "[evaluation]\naccuracy = 0.9\n"
    )
    return specification


def command_of(process: psutil.Process) -> list[str]:
    """The words of its command line; a fork shows its own in one piece."""
    return " ".join(process.cmdline()).split()


@dataclass
class System:
    """A running `modelless up`."""

    config: Config
    file: Path
    """The configuration's."""
    up: subprocess.Popen[bytes]
    log: Path
    specification: Path

    def processes(self, kind: str) -> dict[str, psutil.Process]:
        """Brokers or workers that are alive, by name."""
        found = {}
        for child in psutil.Process(self.up.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                command = command_of(child)
                if kind in command and "--name" in command:
                    found[command[command.index("--name") + 1]] = child
        return found

    def register(self) -> None:
        """Register the small MLP and wait until every group serves it."""
        asyncio.run(register(self.config, self.specification))


@contextlib.contextmanager
def running_system(
    *, brokers: int = 1, workers: int = 1, servers: str | None = None, more: str = ""
) -> Iterator[System]:
    """`modelless up` with the small MLP registered. Everything is gone afterwards.

    Args:
        servers: an existing Kafka; None: its own embedded one.
        more: further TOML.
    """
    group = f"""
[[groups]]
name = "cpu"
device = "cpu"
threads = 1
workers = {workers}
price_per_hour = 0.17
builders = ["onnx-fp32", "torch-fp32"]  # no others to build and measure meanwhile
{more}
"""
    with running_up(group, brokers=brokers, servers=servers) as system:
        system.register()
        yield system


@contextlib.contextmanager
def running_up(sections: str, *, brokers: int = 1, servers: str | None = None) -> Iterator[System]:
    """`modelless up` with nothing registered. Everything is gone afterwards.

    Args:
        sections: TOML: the groups, and sections besides kafka, broker, metrics and store.
    """
    with tempfile.TemporaryDirectory(prefix="modelless-") as name:
        folder = Path(name)
        prefix = f"t{time.time_ns():x}" if servers else "modelless"
        address = f'bootstrap_servers = "{servers}"' if servers else f"embedded_port = {free_port()}"
        file = folder / "modelless.toml"
        file.write_text(f"""
state = "{folder}/state"
[kafka]
{address}
topic_prefix = "{prefix}"
embedded_data = "{folder}/kafka"
partitions = 2
[broker]
brokers = {brokers}
[metrics]
port = 0
[store]
url = "{folder}/store"
cache = "{folder}/cache"
{sections}
""")
        config = load_config(file)
        command = [sys.executable, "-m", "modelless", "up", "--config", str(file)]
        with (folder / "up.log").open("wb") as log:
            up = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
        system = System(config, file, up, folder / "up.log", write_mlp(folder))
        try:
            wait_for_kafka(config, up, system.log)
            yield system
        except BaseException:
            sys.stderr.write(system.log.read_text()[-20_000:])
            raise
        finally:
            stop(up)


def stop(up: subprocess.Popen[bytes], timeout_s: float = 60) -> int | None:
    """SIGTERM, and SIGKILL when that does not do; returns the exit status."""
    up.send_signal(signal.SIGTERM)
    try:
        return up.wait(timeout_s)
    except subprocess.TimeoutExpired:
        up.kill()
        up.wait()
        return None


def wait_for_kafka(config: Config, up: subprocess.Popen[bytes], log: Path) -> None:
    consumer = Consumer({"bootstrap.servers": config.kafka.servers, "group.id": "probe", "log_level": 0})
    deadline_s = time.monotonic() + 120
    while time.monotonic() < deadline_s:
        if up.poll() is not None:
            raise RuntimeError(f"modelless up ended:\n{log.read_text()}")
        with contextlib.suppress(Exception):
            if f"{config.kafka.topic_prefix}.fleet" in consumer.list_topics(timeout=1).topics:
                consumer.close()
                return
        time.sleep(0.3)
    raise RuntimeError(f"Kafka did not come up:\n{log.read_text()}")


class Load:
    """One process's queries to one query topic, replies pinned to partition 0 of one reply topic."""

    def __init__(self, servers: str, queries: str, replies: str, *, latency_ms_max: float = 60_000) -> None:
        self.queries = queries
        quiet = {"bootstrap.servers": servers, "log_level": 0}
        self._producer = Producer(quiet | {"acks": "all", "linger.ms": 0, "queue.buffering.max.messages": 200_000})
        self._consumer = Consumer(
            quiet | {"group.id": f"load-{time.time_ns()}", "fetch.wait.max.ms": 100, "auto.offset.reset": "latest"}
        )
        self._consumer.assign(
            [TopicPartition(replies, 0, self._consumer.get_watermark_offsets(TopicPartition(replies, 0))[1])]
        )
        self._consumer.consume(1, 1.0)
        values = np.random.default_rng(1).normal(size=(1, LAYERS[0])).astype(np.float32)
        query = Query(
            "template", (Tensor.from_numpy("x", values),), task=TASK, latency_ms_max=latency_ms_max, reply_partition=0
        )
        if replies != "modelless.replies":
            query = Query(
                "template",
                query.inputs,
                task=TASK,
                latency_ms_max=latency_ms_max,
                reply_partition=0,
                reply_topic=replies,
            )
        self._value = encode_query(query)
        self._sent_s: dict[bytes, float] = {}
        self._next = 0
        self.latencies_ms: list[float] = []
        self.failed = 0

    def send(self) -> None:
        self._next += 1
        query_id = b"%d-%d" % (id(self), self._next)
        self._sent_s[query_id] = time.perf_counter()
        self._producer.produce(self.queries, self._value, headers=[("modelless-id", query_id)])

    def receive(self, timeout_s: float) -> int:
        """Take what is there; waits for the first one at most so long. Sleeps in librdkafka meanwhile."""
        first = self._consumer.poll(timeout_s)
        messages = [] if first is None else [first, *self._consumer.consume(500, 0)]
        now_s = time.perf_counter()
        received = 0
        for message in messages:
            if message.error():
                continue
            headers = dict(message.headers() or ())
            sent_s = self._sent_s.pop(headers.get("modelless-id", b""), None)
            if sent_s is not None:
                received += 1
                self.latencies_ms.append((now_s - sent_s) * 1000)
                self.failed += headers["modelless-status"] != b"OK"
        self._producer.poll(0)
        return received

    def closed_loop(self, outstanding: int, seconds: float) -> float:
        """Keep that many queries outstanding; returns replies per second, the first fifth left out."""
        for _ in range(outstanding):
            self.send()
        start_s = time.perf_counter()
        counted = 0
        counted_from_s = start_s + seconds / 5
        while (now_s := time.perf_counter()) < start_s + seconds:
            received = self.receive(0.05)
            for _ in range(received):
                self.send()
            counted += received if now_s >= counted_from_s else 0
        rate = counted / (time.perf_counter() - counted_from_s)
        self.drain()
        return rate

    def open_loop(self, per_second: float, seconds: float) -> list[float]:
        """Send at a steady rate whatever comes back; returns latencies in ms, the first fifth left out."""
        self.latencies_ms = []
        number = int(per_second * seconds)
        sender = threading.Thread(target=self._send_steadily, args=(per_second, number))
        sender.start()
        while sender.is_alive():
            self.receive(0.02)
        self.drain()
        return self.latencies_ms[number // 5 :]

    def _send_steadily(self, per_second: float, number: int) -> None:
        start_s = time.perf_counter()
        for index in range(number):
            wait_s = start_s + index / per_second - time.perf_counter()
            if wait_s > 0:
                time.sleep(wait_s)
            self.send()

    def drain(self, seconds: float = 20) -> None:
        end_s = time.perf_counter() + seconds
        while self._sent_s and time.perf_counter() < end_s:
            self.receive(0.1)
        if self._sent_s:
            raise RuntimeError(f"{len(self._sent_s)} queries were never answered")
