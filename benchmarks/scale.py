"""How soon the fleet follows the load, up and down, and what that costs in queries.

    python -m benchmarks.scale [--rate 25] [--seconds 40] [--json FILE]

A real system (`modelless up`: Kafka, one broker, one group of 1 to 8 emulated devices, which wait instead of computing)
gets Poisson arrivals of one row each at a rate, at four times that, and at that again. A query asks for an answer
within half a second and is refused where load is in the way.

*Decided* is the time from the step to the first plan with more workers, *ready* to when as many are as the plan of the
step's end says. *Start* is what a worker says that it took from its process's start until it was ready (the median).
*Missed* are queries that were refused, late or failed: in the step's window, which is the measured start and a second
more; after it; and after the step down, while workers go.

Aim: decided within 1 s, nothing missed outside of the window, nothing failed on the way down. This process, Kafka, the
broker and the workers share the machine's cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from aiokafka.structs import ConsumerRecord

from benchmarks.harvest import SIZES, write_model
from benchmarks.system import System, running_up
from modelless import Client, register
from modelless.clock import KafkaClock
from modelless.codec import decode_record
from modelless.errors import ModellessError
from modelless.fleet import FleetView
from modelless.messages import START_MS, Plan
from modelless.tables import Follower
from modelless.topics import Topics

TIMES = 4.0
LATENCY_MS = 500.0
WARM_UP_S = 20.0
SCALE_DOWN_S = 15.0
SECTIONS = f"""
[worker]
measure_s = 2
batch_size_max = {SIZES[-1]}
[planner]
scale_down_s = {SCALE_DOWN_S}
[[groups]]
name = "devices"
device = "emulated"
workers_min = 1
workers_max = 8
price_per_hour = 3.6
"""


@dataclass(frozen=True)
class Asked:
    at_s: float
    outcome: str
    """``in time``, ``late`` or the status."""


@dataclass(frozen=True)
class Found:
    workers: tuple[int, int, int]
    """That the plan had before the step, at its end, and at the end."""
    decided_s: float | None
    ready_s: float | None
    start_s: float
    asked: int
    window: dict[str, int]
    after: dict[str, int]
    down: dict[str, int]

    @property
    def reached(self) -> bool:
        return self.decided_s is not None and self.decided_s <= 1 and not self.after and not self.down


class Watch:
    """What the plan says and who is ready, with the time at which this was seen."""

    def __init__(self, system: System) -> None:
        self.planned: list[tuple[float, int]] = []
        self.ready: list[tuple[float, int]] = []
        self.start_ms: dict[str, float] = {}
        self._fleet = FleetView(system.config, KafkaClock(), self._look)
        self._plans = Follower(system.config, [Topics(system.config.kafka.topic_prefix).plan], self._on_plan)

    async def start(self) -> None:
        await self._fleet.start()
        await self._plans.start()
        self._look()

    async def stop(self) -> None:
        await self._plans.stop()
        await self._fleet.stop()

    def _on_plan(self, record: ConsumerRecord) -> None:
        targets = decode_record(Plan, record.value).fleet
        self.planned.append((time.monotonic(), sum(target.workers for target in targets.values())))

    def _look(self) -> None:
        ready = [worker for worker in self._fleet.workers() if worker.state == "ready"]
        self.start_ms.update({w.incarnation: w.statistics[START_MS] for w in ready if START_MS in w.statistics})
        self.ready.append((time.monotonic(), len(ready)))

    @staticmethod
    def at(series: list[tuple[float, int]], now_s: float) -> int:
        return max(((at_s, number) for at_s, number in series if at_s <= now_s), default=(0.0, 0))[1]

    @staticmethod
    def since(series: list[tuple[float, int]], from_s: float, least: int) -> float | None:
        """How long after ``from_s`` there were at least so many."""
        return next((at_s - from_s for at_s, number in series if at_s >= from_s and number >= least), None)


async def _ask(client: Client, asked: list[Asked]) -> None:
    at_s = time.monotonic()
    try:
        result = await client.infer(task="rows", inputs={"x": np.zeros((1, 2), np.float32)}, latency_ms_max=LATENCY_MS)
        asked.append(Asked(at_s, "late" if "latency" in result.missed else "in time"))
    except ModellessError as error:
        asked.append(Asked(at_s, error.code))


async def _load(client: Client, rate: float, seconds: float, asked: list[Asked], seed: int) -> None:
    draw = np.random.default_rng(seed)
    at_s = time.monotonic()
    end_s = at_s + seconds
    async with asyncio.TaskGroup() as tasks:
        while (at_s := at_s + draw.exponential(1 / rate)) < end_s:
            await asyncio.sleep(max(0.0, at_s - time.monotonic()))
            tasks.create_task(_ask(client, asked))


async def measure(system: System, rate: float, seconds: float) -> Found:
    watch, asked = Watch(system), list[Asked]()
    await watch.start()
    async with Client.from_config(system.config) as client:
        await _load(client, rate, WARM_UP_S + seconds, asked, 1)
        up_s = time.monotonic()
        await _load(client, TIMES * rate, seconds, asked, 2)
        down_s = time.monotonic()
        await _load(client, rate, SCALE_DOWN_S + seconds, asked, 3)
    before, most = watch.at(watch.planned, up_s), watch.at(watch.planned, down_s)
    start_s = statistics.median(watch.start_ms.values()) / 1000
    await watch.stop()

    def missed(from_s: float, to_s: float) -> dict[str, int]:
        return dict(Counter(each.outcome for each in asked if from_s <= each.at_s < to_s and each.outcome != "in time"))

    window_s = up_s + start_s + 1
    return Found(
        (before, most, watch.planned[-1][1]),
        watch.since(watch.planned, up_s, before + 1),
        watch.since(watch.ready, up_s, watch.at(watch.ready, up_s) + 1),
        start_s,
        len(asked),
        missed(up_s, window_s),
        missed(window_s, down_s),
        missed(down_s, time.monotonic()),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=25, help="queries a second, before and after the step")
    parser.add_argument("--seconds", type=float, default=40, help="of each of the three parts")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/scale.json"))
    arguments = parser.parse_args()
    with running_up(SECTIONS) as system:
        asyncio.run(register(system.config, write_model(system.file.parent)))
        found = asyncio.run(measure(system, arguments.rate, arguments.seconds))
    before, most, end = found.workers
    print(f"workers planned: {before} before the step, {most} at its end, {end} at the end; {found.asked} queries")
    for name, seconds in (("decided after", found.decided_s), ("ready after", found.ready_s), ("start", found.start_s)):
        print(f"{name:<15} {'never' if seconds is None else f'{seconds:.2f} s'}")
    for name, counted in (("in the window", found.window), ("after it", found.after), ("on the way down", found.down)):
        print(f"missed {name:<16} {sum(counted.values()):>5}  {counted or ''}")
    print(f"aim reached: {'yes' if found.reached else 'NO'}")
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    machine = {"platform": platform.platform(), "python": platform.python_version(), "cores": os.cpu_count()}
    arguments.json.write_text(json.dumps({"machine": machine, "found": asdict(found)}, indent=1))


if __name__ == "__main__":
    main()
