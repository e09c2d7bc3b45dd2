"""How much longer a broker's decisions take while it plans for a large fleet.

    python -m benchmarks.decide_beside_plan [--seconds 20] [--rate 200] [--json FILE]

One process, as a broker that leads: a thread decides (``benchmarks/decide.py``'s system of 1,000 variants) about
queries that come at random, and beside it another plans for 50 tasks, 1,000 variants on six classes of machines
(``benchmarks/day_world.py``) and about 500 workers: :class:`broker.planner.Planner` with the scaler and with the
solver's process, as often as the leader may (:class:`broker.leader.Share`). Demand changes by up to a tenth from plan
to plan.

A decision's time is wall time from when its query was due until it was admitted: what it waits for the interpreter
counts. ``alone`` is without the other thread, before and after. Whoever else runs on the machine counts, too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.day_world import LATENCIES_MS, MACHINES, portfolio
from benchmarks.decide import System, percentile
from broker import placement, sizing
from broker.leader import PLAN_INTERVAL_S, SWITCH_INTERVAL_S, Share
from broker.planner import Planner
from broker.scaler import Scaler, Scaling
from broker.situation import PlannedWorker, Situation
from broker.solver import Solver
from modelless.messages import Demanded, Plan
from modelless.process import settle
from simulator.ours import Names

VARIANTS = 1_000
WORKERS = 500
WARM_UP_S = 5.0


class Leader:
    """Plans for workers that are at once as they are planned."""

    def __init__(self, solver: Solver, seed: int) -> None:
        known = portfolio()
        prices = {machine.name: machine.price_per_hour for machine in MACHINES}
        self._names = Names(known, prices, prices)
        self._planner = Planner(scaler=Scaler(size=solver(sizing.size)), place=solver(placement.place))
        self._plan: Plan | None = None
        self._draw = np.random.default_rng(seed)
        parts = self._draw.exponential(size=len(known.by_task))
        self._asked = [
            Demanded(task, float(self._draw.choice(LATENCIES_MS)), 0.0, "cost", False, float(part))
            for task, part in zip(known.by_task, parts, strict=True)
        ]
        models = {model.key: model for model in self._names.models}
        self._situation = Situation(
            models, {each.key: each for each in self._names.profiles}, (),
            served={model.name: model.key for model in models.values()},
            scaling={
                machine.name: Scaling(0, WORKERS, machine.memory_mb, machine.price_per_hour, machine.start_ms)
                for machine in MACHINES
            },
        )  # fmt: skip
        self._rate = 1_000.0
        self.took_s: list[float] = []
        self.workers = 0

    def plan(self, now_ms: float) -> float:
        """Processor time of this thread, s."""
        total = sum(each.rows_per_second for each in self._asked)
        changes = self._draw.uniform(0.9, 1.1, len(self._asked))
        demand = [
            replace(each, rows_per_second=self._rate / total * each.rows_per_second * change)
            for each, change in zip(self._asked, changes.tolist(), strict=True)
        ]
        began_s, began_wall_s = time.thread_time(), time.perf_counter()
        situation = replace(self._situation, workers=self._workers(), demand=demand)
        self._plan = self._planner.plan(self._plan, situation, "broker-0", now_ms) or self._plan
        self.took_s.append(time.perf_counter() - began_wall_s)
        assert self._plan is not None
        self.workers = sum(target.workers for target in self._plan.fleet.values())
        return time.thread_time() - began_s

    def grow(self) -> None:
        """Until so many workers are needed."""
        for second in range(40):
            self.plan(1000.0 * second)
            if self.workers >= WORKERS:
                break
            self._rate *= min(4.0, 1.05 * WORKERS / max(1, self.workers))
        self.took_s.clear()

    def _workers(self) -> list[PlannedWorker]:
        if self._plan is None:
            return []
        found = []
        for machine in MACHINES:
            makes, memory_bytes = tuple(self._names.makes[machine.name]), int(machine.memory_mb * 2**20)
            target = self._plan.fleet.get(machine.name)
            for number in range(target.workers if target is not None else 0):
                name = f"{machine.name}-{number}"
                loaded = self._plan.workers[name].load if name in self._plan.workers else ()
                found.append(PlannedWorker(name, machine.name, memory_bytes, makes, frozenset(loaded)))
        return found


def decisions(system: System, rate: float, seconds: float, seed: int) -> list[float]:
    """Milliseconds of each, from when its query was due."""
    draw, took_ms = random.Random(seed), []
    due_s = time.perf_counter()
    end_s = due_s + seconds
    while (due_s := due_s + draw.expovariate(rate)) < end_s:
        entry = system.entry()
        system.core.ledger.arrived(entry.record)
        time.sleep(max(0.0, due_s - time.perf_counter()))
        due_s = max(due_s, time.perf_counter() - 0.1)  # it had something else to do for long
        system.admit(entry)
        took_ms.append(1000 * (time.perf_counter() - due_s))
        for group in system.core.groups.values():
            for queue in group.queues.values():
                queue.take_all()
    return took_ms


def beside(leader: Leader, decide: Callable[[], list[float]]) -> tuple[list[float], float]:
    """Decisions while another thread plans, and what share of the time that takes of a processor."""
    ends, used_s = threading.Event(), [0.0]

    def plan() -> None:
        share, began_s = Share(), time.monotonic()
        while not ends.wait(PLAN_INTERVAL_S):
            now_s = time.monotonic()
            if share.is_left(now_s):
                seconds = leader.plan(1e6 + 1000 * (now_s - began_s))
                share.spend(seconds)
                used_s[0] += seconds

    thread = threading.Thread(target=plan)
    began_s = time.monotonic()
    thread.start()
    try:
        found = decide()
    finally:
        ends.set()
        passed_s = time.monotonic() - began_s
        thread.join()
    return found, used_s[0] / passed_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rate", type=float, default=200, help="queries a second")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/decide_beside_plan.json"))
    arguments = parser.parse_args()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    system, solver = System(VARIANTS, random.Random(1)), Solver()
    try:
        leader = Leader(solver, 1)
        leader.grow()
        settle()
        decisions(system, arguments.rate, WARM_UP_S, 0)
        alone = decisions(system, arguments.rate, arguments.seconds / 2, 1)
        planning, share = beside(leader, lambda: decisions(system, arguments.rate, arguments.seconds, 2))
        alone += decisions(system, arguments.rate, arguments.seconds / 2, 3)
    finally:
        solver.stop()
    found = {
        name: {"p50 ms": statistics.median(ms), "p99 ms": percentile(ms, 0.99), "max ms": max(ms), "decisions": len(ms)}
        for name, ms in (("alone", alone), ("planning", planning))
    }
    longest_s = max(leader.took_s, default=0.0)
    print(
        f"{leader.workers} workers, {len(leader.took_s)} plans, at most {longest_s:.2f} s each; {share:.0%} of the time"
    )
    for key in ("p50 ms", "p99 ms", "max ms"):
        before, after = found["alone"][key], found["planning"][key]
        print(f"{key}: {before:.3f} alone, {after:.3f} while it plans: {after / before:.2f}")
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    machine = {"platform": platform.platform(), "python": platform.python_version(), "cores": os.cpu_count()}
    plans = {"workers": leader.workers, "plans": leader.took_s, "share": share}
    arguments.json.write_text(json.dumps({"machine": machine, "found": found, **plans}, indent=1))


if __name__ == "__main__":
    main()
