"""How soon the fleet follows the load, up and down, and what that costs in queries.

    python -m benchmarks.scale [--rate 40] [--seconds 20] [--ray] [--kill-leader] [--json FILE]

A real system (`modelless up`: Kafka, one broker, one group of 1 to 8 emulated devices, which wait instead of computing)
gets Poisson arrivals of one row each at a rate, at four times that, and at that again. A query asks for an answer
within half a second and is refused where load is in the way.

*Decided* is the time from the step to the first plan with more workers, *ready* to when one more is. *Start* is what a
worker says that it took from when it was asked for until it was ready (the median of those of the step).
*Missed* are queries that were refused, late or failed: in the step's window, which is the measured start and a second
more; after it; and after the step down, while workers go.

``--ray`` has the workers as actors of a Ray of one node, started for this. ``--kill-leader`` has two brokers, and kills
(-9) the one that leads as soon as it has written the first plan with more workers: *led again* is from there to the
first plan that was made after it. *Stale* are plans that come after one of a later epoch, or one that was made later.

Aim: decided within 1 s, nothing missed outside of the window, nothing failed on the way down, no stale plan. This
process, Kafka, brokers and workers share the machine's cores.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from aiokafka.structs import ConsumerRecord

from benchmarks.harvest import SIZES, write_model
from benchmarks.ray_cluster import ray_cluster
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
    missed_s: tuple[tuple[float, str], ...]
    """When queries were asked that were missed, from the step up, and their outcomes."""
    window: dict[str, int]
    after: dict[str, int]
    down: dict[str, int]
    led_again_s: float | None
    stale: int

    @property
    def reached(self) -> bool:
        is_quick = self.decided_s is not None and self.decided_s <= 1
        return is_quick and not (self.after or self.down or self.stale)


@dataclass(frozen=True)
class Written:
    """A plan, in the order of the log."""

    at_s: float
    """When it was seen."""
    epoch: int
    created_ms: float
    workers: int


def say(words: str) -> None:
    """How far it is, for who waits."""
    print(f"{time.strftime('%H:%M:%S')} {words}", file=sys.stderr, flush=True)


class Watch:
    """What the plan says and who is ready, with the time at which this was seen."""

    def __init__(self, system: System) -> None:
        self.plans: list[Written] = []
        self.killed_s: float | None = None
        self.ready: list[tuple[float, int]] = []
        self._start_ms: dict[str, tuple[float, float]] = {}
        self._system, self._clock = system, KafkaClock()
        self._kill_above, self._killed_ms = sys.maxsize, 0.0
        self._fleet = FleetView(system.config, self._clock, self._look)
        self._plans = Follower(system.config, [Topics(system.config.kafka.topic_prefix).plan], self._on_plan)

    async def start(self) -> None:
        await self._fleet.start()
        await self._plans.start()
        self._look()

    async def stop(self) -> None:
        await self._plans.stop()
        await self._fleet.stop()

    @property
    def planned(self) -> list[tuple[float, int]]:
        return [(plan.at_s, plan.workers) for plan in self.plans]

    def kill_leader(self, above: int) -> None:
        """As soon as it has planned more workers than these."""
        self._kill_above = above

    @property
    def led_again_s(self) -> float | None:
        """From the leader's death to the first plan that was made after it."""
        if self.killed_s is None:
            return None
        return next((p.at_s - self.killed_s for p in self.plans if p.created_ms > self._killed_ms), None)

    @property
    def stale(self) -> int:
        """Plans after one that was made later, or is of a later epoch."""
        pairs = pairwise(self.plans)
        return sum(plan.epoch <= before.epoch or plan.created_ms < before.created_ms for before, plan in pairs)

    def _on_plan(self, record: ConsumerRecord) -> None:
        plan = decode_record(Plan, record.value)
        workers = sum(target.workers for target in plan.fleet.values())
        if not self.plans or workers != self.plans[-1].workers:
            say(f"{plan.leader} plans {workers} workers: {'; '.join(target.reason for target in plan.fleet.values())}")
        self.plans.append(Written(time.monotonic(), plan.epoch, plan.created_ms, workers))
        if workers > self._kill_above and self.killed_s is None:
            self._system.processes("broker")[plan.leader].kill()
            self.killed_s, self._killed_ms = time.monotonic(), self._clock.now_ms()
            say(f"{plan.leader} is killed")

    def _look(self) -> None:
        ready = [worker for worker in self._fleet.workers() if worker.state == "ready"]
        now_s = time.monotonic()
        for worker in ready:
            self._start_ms.setdefault(worker.incarnation, (now_s, worker.statistics.get(START_MS, 0.0)))
        self.ready.append((now_s, len(ready)))

    def started_since(self, from_s: float) -> list[float]:
        """What each worker's start took that was ready after that, ms."""
        return [start_ms for at_s, start_ms in self._start_ms.values() if at_s > from_s]

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
    say(f"{rate:.0f} queries a second for {seconds:.0f} s")
    draw = np.random.default_rng(seed)
    at_s = time.monotonic()
    end_s = at_s + seconds
    async with asyncio.TaskGroup() as tasks:
        while (at_s := at_s + draw.exponential(1 / rate)) < end_s:
            await asyncio.sleep(max(0.0, at_s - time.monotonic()))
            tasks.create_task(_ask(client, asked))


async def measure(system: System, rate: float, seconds: float, *, kill_leader: bool = False) -> Found:
    watch, asked = Watch(system), list[Asked]()
    await watch.start()
    async with Client.from_config(system.config) as client:
        await _load(client, rate, WARM_UP_S + seconds, asked, 1)
        up_s = time.monotonic()
        if kill_leader:
            watch.kill_leader(watch.at(watch.planned, up_s))
        await _load(client, TIMES * rate, seconds, asked, 2)
        down_s = time.monotonic()
        await _load(client, rate, SCALE_DOWN_S + seconds, asked, 3)
    before, most = watch.at(watch.planned, up_s), watch.at(watch.planned, down_s)
    started = watch.started_since(up_s)
    start_s = statistics.median(started) / 1000 if started else 0.0
    await watch.stop()

    late = sorted((each.at_s, each.outcome) for each in asked if each.outcome != "in time" and each.at_s >= up_s)

    def missed(from_s: float, to_s: float) -> dict[str, int]:
        return dict(Counter(outcome for at_s, outcome in late if from_s <= at_s < to_s))

    window_s = up_s + start_s + 1
    return Found(
        (before, most, watch.planned[-1][1]),
        watch.since(watch.planned, up_s, before + 1),
        watch.since(watch.ready, up_s, watch.at(watch.ready, up_s) + 1),
        start_s,
        len(asked),
        tuple((round(at_s - up_s, 2), outcome) for at_s, outcome in late),
        missed(up_s, window_s),
        missed(window_s, down_s),
        missed(down_s, time.monotonic()),
        watch.led_again_s,
        watch.stale,
    )


@contextlib.contextmanager
def ray_section() -> Iterator[str]:
    """The section of the configuration for a Ray that is there meanwhile."""
    with ray_cluster() as address:
        yield f'[provisioner]\nkind = "ray"\nray_address = "{address}"\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=40, help="queries a second, before and after the step")
    parser.add_argument("--seconds", type=float, default=20, help="of each of the three parts")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/scale.json"))
    parser.add_argument("--ray", action="store_true", help="workers are actors of a Ray of one node")
    parser.add_argument("--kill-leader", action="store_true", help="two brokers; who leads is killed in mid-scale")
    arguments = parser.parse_args()
    section = ray_section() if arguments.ray else contextlib.nullcontext("")
    with section as more, running_up(SECTIONS + more, brokers=1 + arguments.kill_leader) as system:
        asyncio.run(register(system.config, write_model(system.file.parent)))
        found = asyncio.run(measure(system, arguments.rate, arguments.seconds, kill_leader=arguments.kill_leader))
    before, most, end = found.workers
    print(f"workers planned: {before} before the step, {most} at its end, {end} at the end; {found.asked} queries")
    for name, seconds in (("decided after", found.decided_s), ("ready after", found.ready_s), ("start", found.start_s)):
        print(f"{name:<15} {'never' if seconds is None else f'{seconds:.2f} s'}")
    for name, counted in (("in the window", found.window), ("after it", found.after), ("on the way down", found.down)):
        print(f"missed {name:<16} {sum(counted.values()):>5}  {counted or ''}")
    seconds = Counter(int(at_s) for at_s, _ in found.missed_s)
    print(f"missed by second {' '.join(f'{second}:{number}' for second, number in seconds.items()) or 'none'}")
    if arguments.kill_leader:
        print(f"led again after {'never' if found.led_again_s is None else f'{found.led_again_s:.2f} s'}")
    print(f"stale plans     {found.stale:>5}")
    print(f"aim reached: {'yes' if found.reached else 'NO'}")
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    machine = {"platform": platform.platform(), "python": platform.python_version(), "cores": os.cpu_count()}
    arguments.json.write_text(json.dumps({"machine": machine, "found": asdict(found)}, indent=1))


if __name__ == "__main__":
    main()
