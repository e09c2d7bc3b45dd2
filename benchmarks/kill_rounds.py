"""Kill whatever runs, and count replies: none may be missing.

    python -m benchmarks.kill_rounds [--seconds 60] [--rate 300] [--every 2.5] [--workers 2] [--seed 1]

A steady load goes through a system of one broker and two workers while `kill -9` hits one of them at random every few
seconds; `modelless up` restarts what died. The verifier is confluent-kafka and JSON alone: it remembers each id that
Kafka acknowledged, reads every reply on the topic, and compares.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from confluent_kafka import Consumer, Producer, TopicPartition

from benchmarks.system import LAYERS, TASK, System, running_system

SETTLE_S_MAX = 60.0


@dataclass
class Verdict:
    """What an outsider saw."""

    sent: int = 0
    missing: list[str] = field(default_factory=list)
    duplicates: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    versions: list[str] = field(default_factory=list)
    """That answered, in the order of the replies."""
    kills: Counter[str] = field(default_factory=Counter)
    settled_s: float = 0.0
    """From the last query to the last first reply."""

    @property
    def ok_share(self) -> float:
        return self.statuses["OK"] / max(1, self.sent)

    @property
    def duplicate_share(self) -> float:
        return self.duplicates / max(1, self.sent)

    def __str__(self) -> str:
        return (
            f"{self.sent} queries acknowledged by Kafka, {len(self.missing)} without a reply, "
            f"{self.ok_share:.2%} OK ({dict(self.statuses)}), "
            f"{self.duplicates} duplicates ({self.duplicate_share:.2%}), "
            f"kills {dict(self.kills)}, last reply {self.settled_s:.1f} s after the last query"
        )


class Outsider:
    """Publishes JSON queries and reads replies, with confluent-kafka alone."""

    def __init__(self, system: System, latency_ms_max: float = 30_000) -> None:
        prefix = system.config.kafka.topic_prefix
        quiet = {"bootstrap.servers": system.config.kafka.servers, "log_level": 0}
        self._topic = f"{prefix}.queries.{TASK}"
        self._replies = f"{prefix}.replies"
        self._producer = Producer(quiet | {"acks": "all", "linger.ms": 0, "message.timeout.ms": 120_000})
        self._quiet = quiet
        self._latency_ms_max = latency_ms_max
        self._run = f"{time.time_ns():x}"  # ids are unique to this load: other replies on the topic are not its own
        self.acknowledged: dict[str, None] = {}
        self.replies: Counter[str] = Counter()
        self.first: dict[str, str] = {}
        self.versions: list[str] = []
        self.read_s: dict[str, float] = {}
        """When each first reply was read."""
        self._stop = threading.Event()
        self._last_s = 0.0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def send(self, number: int) -> None:
        name = f"{self._run}-{number}"
        body = {
            "id": name,
            "inputs": [
                {"name": "x", "datatype": "FP32", "shape": [1, LAYERS[0]], "data": [number % 7 / 7] * LAYERS[0]}
            ],
            "parameters": {"task": TASK, "latency_ms_max": self._latency_ms_max},
        }
        key = str(number).encode()

        def acknowledged(error: object, _: object) -> None:
            if error is None:
                self.acknowledged[name] = None

        self._producer.produce(self._topic, json.dumps(body), key=key, on_delivery=acknowledged)
        self._producer.poll(0)

    def load(self, rate: float, seconds: float) -> None:
        """A steady stream."""
        start_s = time.perf_counter()
        for number in range(int(rate * seconds)):
            wait_s = start_s + number / rate - time.perf_counter()
            if wait_s > 0:
                time.sleep(wait_s)
            self.send(number)
        self._producer.flush(120)

    def verdict(self, settle_s: float = SETTLE_S_MAX) -> Verdict:
        """Wait until everything has a reply, or for so long; then a moment more for late duplicates."""
        ended_s = time.perf_counter()
        while len(self.first.keys() & self.acknowledged.keys()) < len(self.acknowledged):
            if time.perf_counter() > ended_s + settle_s:
                break
            time.sleep(0.1)
        settled_s = self._last_s - ended_s
        time.sleep(2)
        self._stop.set()
        self._reader.join()
        missing = [name for name in self.acknowledged if name not in self.first]
        duplicates = sum(number - 1 for number in self.replies.values())
        statuses = Counter(self.first.values())
        return Verdict(
            len(self.acknowledged), missing, duplicates, statuses, self.versions, settled_s=max(0.0, settled_s)
        )

    def _read(self) -> None:
        consumer = Consumer(self._quiet | {"group.id": f"outsider-{time.time_ns()}"})
        partitions = consumer.list_topics(self._replies, timeout=20).topics[self._replies].partitions
        consumer.assign([TopicPartition(self._replies, partition, 0) for partition in partitions])
        while not self._stop.is_set():
            for message in consumer.consume(500, 0.2):
                if message.error():
                    continue
                name = dict(message.headers())["modelless-id"].decode()
                if not name.startswith(self._run):
                    continue
                self.replies[name] += 1
                if name not in self.first:
                    reply = json.loads(message.value())
                    self.first[name] = reply["parameters"]["status"]
                    self.versions.append(reply.get("model_version", ""))
                    self._last_s = self.read_s[name] = time.perf_counter()
        consumer.close()


def kill_rounds(system: System, *, seconds: float, rate: float, every_s: float, seed: int) -> Verdict:
    """Load, with a random broker or worker killed every ``every_s`` seconds (half to one and a half of it)."""
    random_source = random.Random(seed)
    outsider = Outsider(system)
    load = threading.Thread(target=outsider.load, args=(rate, seconds))
    load.start()
    kills: Counter[str] = Counter()
    while load.is_alive():
        load.join(random_source.uniform(0.5, 1.5) * every_s)
        victims = {**system.processes("broker"), **system.processes("worker")}
        if load.is_alive() and victims:
            name = random_source.choice(sorted(victims))
            victims[name].kill()
            kills[name] += 1
    verdict = outsider.verdict()
    verdict.kills = kills
    return verdict


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rate", type=float, default=300)
    parser.add_argument("--every", type=float, default=2.5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/kill_rounds.json"))
    arguments = parser.parse_args()
    with running_system(workers=arguments.workers) as system:
        verdict = kill_rounds(
            system, seconds=arguments.seconds, rate=arguments.rate, every_s=arguments.every, seed=arguments.seed
        )
    print(f"seed {arguments.seed}: {verdict}")
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(vars(verdict), indent=1))
    sys.exit(1 if verdict.missing else 0)


if __name__ == "__main__":
    main()
