"""Throughput and latency of the whole path, beside a plain one-hop Kafka relay on the same Kafka, in turn.

    python -m benchmarks.end_to_end [--rounds 3] [--seconds 5] [--json FILE]

The model is a small MLP (64-256-256-10) on one thread, the queries 64 floats each, the load one process of
confluent-kafka. Each round measures every point with the relay and with modelless, one right after the other; the
table gives the median of the rounds and the median of the rounds' ratios. Both run for a while before: Kafka's virtual
machine compiles what it runs, and a query costs it twice as much until it has. On a machine whose cores the load,
Kafka, brokers and workers share, all of them compete; that is why only the ratio means something elsewhere.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from confluent_kafka.admin import AdminClient, NewTopic

from benchmarks.system import TASK, Load, running_system
from modelless.config import Config
from modelless.topics import Topics

OUTSTANDING = (64, 512, 2048)
RATES = (100, 1000)
WARM_OUTSTANDING, WARM_S = 512, 10.0
RELAY_QUERIES, RELAY_REPLIES = "relay.queries", "relay.replies"

Point = Callable[[Load, float], float]


def throughput(outstanding: int) -> Point:
    return lambda load, seconds: load.closed_loop(outstanding, seconds)


def latency(rate: int, percentile: int) -> Point:
    def measure(load: Load, seconds: float) -> float:
        values = sorted(load.open_loop(rate, seconds))
        return values[min(len(values) - 1, len(values) * percentile // 100)]

    return measure


POINTS: dict[str, tuple[str, Point]] = {
    **{f"throughput at {n} outstanding": ("queries/s", throughput(n)) for n in OUTSTANDING},
    **{f"p50 at {r}/s": ("ms", latency(r, 50)) for r in RATES},
    **{f"p99 at {r}/s": ("ms", latency(r, 99)) for r in RATES},
}


@contextlib.contextmanager
def running_relay(config: Config, loop: str = "uvloop") -> Iterator[Load]:
    """The relay as a process, only while it is measured: idle it would still poll."""
    command = [
        sys.executable,
        str(Path(__file__).with_name("relay.py")),
        config.kafka.servers,
        RELAY_QUERIES,
        RELAY_REPLIES,
        loop,
    ]
    relay = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert relay.stdout is not None
    relay.stdout.readline()
    try:
        load = Load(config.kafka.servers, RELAY_QUERIES, RELAY_REPLIES)
        load.closed_loop(16, 1)
        yield load
    finally:
        relay.terminate()
        relay.wait()


def make_relay_topics(config: Config) -> None:
    admin = AdminClient({"bootstrap.servers": config.kafka.servers, "log_level": 0})
    settings = {"message.timestamp.type": "LogAppendTime"}
    created = admin.create_topics(
        [NewTopic(name, config.kafka.partitions, 1, config=settings) for name in (RELAY_QUERIES, RELAY_REPLIES)]
    )
    for future in created.values():
        future.result()


def run(rounds: int, seconds: float, points: list[str], loop: str) -> dict[str, dict[str, list[float]]]:
    results: dict[str, dict[str, list[float]]] = {name: {"relay": [], "modelless": []} for name in points}
    with running_system() as system:
        config = system.config
        topics = Topics(config.kafka.topic_prefix)
        make_relay_topics(config)
        ours = Load(config.kafka.servers, topics.task_queries(TASK), topics.replies)
        with running_relay(config, loop) as load:
            load.closed_loop(WARM_OUTSTANDING, WARM_S)
        ours.closed_loop(WARM_OUTSTANDING, WARM_S)
        for number in range(rounds):
            for name in points:
                with running_relay(config, loop) as load:
                    results[name]["relay"].append(POINTS[name][1](load, seconds))
                results[name]["modelless"].append(POINTS[name][1](ours, seconds))
                relay, modelless = results[name]["relay"][-1], results[name]["modelless"][-1]
                print(
                    f"round {number + 1}  {name:32} relay {relay:10.1f}  modelless {modelless:10.1f} {POINTS[name][0]}",
                    flush=True,
                )
        if ours.failed:
            raise RuntimeError(f"{ours.failed} replies were not OK")
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--only", help="measure only the points whose name contains this")
    parser.add_argument("--relay-loop", choices=("uvloop", "asyncio"), default="uvloop", help="the relay's event loop")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/end_to_end.json"))
    arguments = parser.parse_args()
    points = [name for name in POINTS if not arguments.only or arguments.only in name]
    results = run(arguments.rounds, arguments.seconds, points, arguments.relay_loop)
    rows = []
    for name, values in results.items():
        ratios = [ours / relay for ours, relay in zip(values["modelless"], values["relay"], strict=True)]
        rows.append({"point": name, "unit": POINTS[name][0], **values, "ratio": statistics.median(ratios)})
    print(f"\n{'median of ' + str(arguments.rounds):34}{'relay':>10} {'modelless':>10}  {'ratio':>6}")
    for row in rows:
        relay, ours = statistics.median(row["relay"]), statistics.median(row["modelless"])
        print(f"{row['point']:34}{relay:10.1f} {ours:10.1f}  {row['ratio']:6.2f}  {row['unit']}")
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    machine = {"platform": platform.platform(), "python": platform.python_version()}
    arguments.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
