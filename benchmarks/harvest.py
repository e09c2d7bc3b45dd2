"""What an offline job gets of the device time that online queries leave, and what that does to them.

    python -m benchmarks.harvest [--seconds 30] [--rounds 3] [--simulated-only] [--json FILE]

A real system (`modelless up`: Kafka, one broker, two emulated devices, which wait instead of computing) gets an online
load of half of what its devices can do with the largest batches that are in time: Poisson arrivals, one row each, a
latency of half a second. In turn it is sent alone and beside `modelless job run` over more rows than can be answered,
with the same arrivals. Then the same is played in the simulator, which runs the same core in virtual time.

*Left* is the device time that the online queries do not take when they are alone. *Harvested* is what the job's answers
were charged for in the same seconds, as a share of it. Device time of a query is that of its batch by its share of the
rows; of a real answer it is its ``cost`` over the price. *In time* is the online share; ``points`` are what the job
takes from it. *Rows* is what the job got through in a second. The first ten seconds are in no figure.

Aim: harvested at least 80 %, and at most 0.5 points. This process, Kafka, the broker, the workers and the job share the
machine's cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.real_simulated import SEED, Answer, Known, Part, drive, known, loaded
from benchmarks.system import System, running_up
from modelless.registration import register
from modelless.store import EMULATED_HEADER
from modelless.tensors import Tensor
from simulator.arrivals import generate
from simulator.facts import INF, GroupSpec, Portfolio, SimulatedQuery, VariantProfile, sorted_queries
from simulator.ours import Ours
from simulator.scenario import Scenario, play

WARM_UP_S, SETTLE_S = 10.0, 3.0
LATENCY_MS = 500.0
LOAD = 0.5
HARVESTED_MIN, POINTS_MAX = 0.8, 0.5
SIZES = (1, 2, 4, 8)
FIXED_MS, ROW_MS = 8.0, 16.0
WORKERS, PRICE_PER_HOUR = 2, 3.6
ROWS_OF_QUERY = 2
_FRAME = struct.Struct("<QIdI")
"""Of a job's journal: number, bytes, cost, check sum."""
SECTIONS = f"""
[worker]
measure_s = 2
batch_size_max = {SIZES[-1]}
[[groups]]
name = "devices"
device = "emulated"
workers = {WORKERS}
price_per_hour = {PRICE_PER_HOUR}
"""


@dataclass(frozen=True)
class Round:
    """One round's online part, and the job's, in the seconds that count."""

    in_time: float
    p95_ms: float
    online_share: float
    """Of the device time."""
    offline_share: float
    offline_rows_per_s: float


@dataclass(frozen=True)
class Found:
    where: str
    alone: list[Round]
    beside: list[Round]

    @property
    def harvested(self) -> float:
        return _median(self.beside, "offline_share") / (1.0 - _median(self.alone, "online_share"))

    @property
    def points(self) -> float:
        return 100 * (_median(self.alone, "in_time") - _median(self.beside, "in_time"))

    @property
    def reached(self) -> bool:
        return self.harvested >= HARVESTED_MIN and self.points <= POINTS_MAX


def _median(rounds: Sequence[Round], name: str) -> float:
    return float(np.median([getattr(each, name) for each in rounds]))


def write_model(folder: Path) -> Path:
    rows = [f"devices,{size},{FIXED_MS + ROW_MS * size},{FIXED_MS + ROW_MS * size},300,40" for size in SIZES]
    (folder / "m.csv").write_text("\n".join([EMULATED_HEADER, *rows, ""]))
    path = folder / "m.toml"
    path.write_text(
        'name = "m"\ntask = "rows"\nartifact = "m.csv"\n'
        '[inputs.x]\ndatatype = "FP32"\nshape = [-1, 2]\n[outputs.logits]\ndatatype = "FP32"\nshape = [-1, 10]\n'
        "[evaluation]\naccuracy = 0.9\n"
    )
    return path


def online(facts: Known, seconds: float) -> list[SimulatedQuery]:
    rate = LOAD * facts.capacity("rows", 0.0, LATENCY_MS)
    return generate(
        [f"poisson:rate={rate:.2f},seconds={WARM_UP_S + seconds},task=rows,latency_ms_max={LATENCY_MS}"], SEED
    )


def _round(answers: Sequence[Answer], seconds: float, offline_ms: float, offline_rows: int) -> Round:
    counted = [answer for answer in answers if answer.arrival_ms >= 1000 * WARM_UP_S]
    device_ms = 1000 * seconds * WORKERS
    ran = [answer for answer in counted if answer.batch]
    return Round(
        sum(answer.outcome == "in_time" for answer in counted) / len(counted),
        float(np.quantile([answer.latency_ms for answer in ran], 0.95)),
        sum(answer.run_ms / answer.batch for answer in ran) / device_ms,
        offline_ms / device_ms,
        offline_rows / seconds,
    )


# --- the real system ----------------------------------------------------------------------------------------------


class RunningJob:
    """`modelless job run` over more rows than there is time for; stopped at the end."""

    def __init__(self, system: System, folder: Path, number: int, rows: int) -> None:
        data, out = folder / f"data{number}.npz", folder / f"out{number}.npz"
        np.savez(data, x=np.zeros((rows, 2), np.float32))
        self._journal = Path(f"{out}.journal")
        command = [sys.executable, "-m", "modelless", "job", "run", "--task", "rows", "--config", str(system.file)]
        command += ["--data", str(data), "--out", str(out), "--rows-per-query", str(ROWS_OF_QUERY)]
        self._process = subprocess.Popen(command, stderr=subprocess.DEVNULL)

    def answered(self) -> tuple[int, float]:
        """(queries, USD) so far."""
        queries, cost_usd = 0, 0.0
        if self._journal.exists():
            content = self._journal.read_bytes()
            at = content.find(b"\n") + 1
            while at + _FRAME.size <= len(content):
                _, size, cost, _ = _FRAME.unpack_from(content, at)
                at += _FRAME.size + size
                if at <= len(content):
                    queries, cost_usd = queries + 1, cost_usd + cost
        return queries, cost_usd

    def stop(self) -> None:
        assert self._process.poll() is None, "the job had rows for longer"
        self._process.send_signal(signal.SIGINT)
        self._process.wait(30)


def real_round(
    system: System, part: Part, queries: Sequence[SimulatedQuery], seconds: float, job: bool, n: int
) -> Round:
    time.sleep(SETTLE_S)
    seen: list[tuple[int, float]] = []
    with tempfile.TemporaryDirectory(prefix="modelless-") as folder:
        running = RunningJob(system, Path(folder), n, int(1000 * WORKERS / ROW_MS * (seconds + 60))) if job else None

        def look() -> None:
            assert running is not None
            for wait_s in (WARM_UP_S, seconds):
                time.sleep(wait_s)
                seen.append(running.answered())

        if running is not None:
            end_s = time.monotonic() + 30
            while not running.answered()[0] and time.monotonic() < end_s:
                time.sleep(0.1)
        looking = threading.Thread(target=look if job else lambda: None)
        looking.start()
        answers = drive(system, part, queries).answers
        looking.join()
        if running is not None:
            running.stop()
    if not job:
        return _round(answers, seconds, 0.0, 0)
    (queries_before, cost_before), (queries_after, cost_after) = seen
    offline_ms = (cost_after - cost_before) / (PRICE_PER_HOUR / 3_600_000)
    return _round(answers, seconds, offline_ms, (queries_after - queries_before) * ROWS_OF_QUERY)


def real(seconds: float, rounds: int) -> tuple[Found, Known]:
    with running_up(SECTIONS) as system, tempfile.TemporaryDirectory(prefix="modelless-") as folder:
        asyncio.run(register(system.config, write_model(Path(folder)), wait_all=True, timeout_s=120))
        while len(asyncio.run(loaded(system.config))) < WORKERS:
            time.sleep(0.5)
        facts = asyncio.run(known(system.config))
        part = Part("harvest", SECTIONS, lambda _: (), (Tensor.from_numpy("x", np.zeros((1, 2), np.float32)),),
                    lambda *_: {}, "rows", ())  # fmt: skip
        queries = online(facts, seconds)
        found: dict[bool, list[Round]] = {False: [], True: []}
        for number in range(rounds):
            for job in (False, True):
                found[job].append(real_round(system, part, queries, seconds, job, number))
                _tell_round("real", job, found[job][-1])
        return Found("real", found[False], found[True]), facts


# --- the simulator ------------------------------------------------------------------------------------------------


def as_written() -> Known:
    """The profiles that the emulated devices play."""
    ms = tuple(FIXED_MS + ROW_MS * size for size in SIZES)
    profile = VariantProfile("rows", "m:1", "m:1/emulated", "devices", 0.9, 300.0, 40.0, SIZES, ms, ms)
    return Known(Portfolio((profile,)), (GroupSpec("devices", WORKERS, 2048.0, PRICE_PER_HOUR),))


def simulated_round(facts: Known, queries: Sequence[SimulatedQuery], seconds: float, job: bool, seed: int) -> Round:
    rows = int(1000 * WORKERS / ROW_MS * (WARM_UP_S + seconds)) if job else 0
    offline = [SimulatedQuery(0, "rows", 0.0, INF) for _ in range(rows)]
    everything = sorted_queries([*(query.again() for query in queries), *offline])
    variant = facts.portfolio.profiles[0].variant
    placement = {name: (variant,) for group in facts.fleet for name in group.worker_names}
    played = play(Scenario(facts.fleet, facts.portfolio, everything, seed, intake_ms=2.0, reply_ms=2.0), Ours(),
                  placement=placement).queries  # fmt: skip
    answers = [
        Answer(q.outcome or "", q.arrival_ms, q.end_ms - q.arrival_ms + 2.0, 0.0, q.end_ms - q.start_ms, q.batch)
        for q in played
        if q.latency_ms_max < INF
    ]
    begin_ms, end_ms = 1000 * WARM_UP_S, 1000 * (WARM_UP_S + seconds)
    parts = [
        max(0.0, min(q.end_ms, end_ms) - max(q.start_ms, begin_ms)) / q.batch
        for q in played
        if q.latency_ms_max == INF and q.batch
    ]
    done = sum(q.latency_ms_max == INF and begin_ms <= q.end_ms < end_ms for q in played)
    return _round(answers, seconds, sum(parts), done)


def simulated(facts: Known, seconds: float, rounds: int) -> Found:
    queries = online(facts, seconds)
    found: dict[bool, list[Round]] = {False: [], True: []}
    for seed in range(rounds):
        for job in (False, True):
            found[job].append(simulated_round(facts, queries, seconds, job, seed))
            _tell_round("simulated", job, found[job][-1])
    return Found("simulated", found[False], found[True])


# --- words --------------------------------------------------------------------------------------------------------


def _tell_round(where: str, job: bool, of: Round) -> None:
    beside = f"  job {of.offline_share:6.1%} of the devices, {of.offline_rows_per_s:.1f} rows/s" if job else ""
    print(
        f"  {where:<10}{'beside' if job else 'alone':<7} in time {of.in_time:8.3%}  p95 {of.p95_ms:6.1f} ms  "
        f"online {of.online_share:6.1%}{beside}",
        flush=True,
    )


def _table(found: Sequence[Found]) -> None:
    print(
        f"\n{'':<11}{'online alone':>13} {'left':>7} {'harvested':>10} {'in time':>17} {'points':>7} {'rows/s':>7}"
        "   reached"
    )
    for each in found:
        busy = _median(each.alone, "online_share")
        shares = f"{_median(each.alone, 'in_time'):.2%} {_median(each.beside, 'in_time'):.2%}"
        print(
            f"{each.where:<11}{busy:>13.1%} {1 - busy:>7.1%} {each.harvested:>10.1%} {shares:>17} {each.points:>7.2f} "
            f"{_median(each.beside, 'offline_rows_per_s'):>7.1f}   {'yes' if each.reached else 'NO'}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30, help="of each round, after the warm-up")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--simulated-only", action="store_true")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/harvest.json"))
    arguments = parser.parse_args()
    found, facts = [], as_written()
    if not arguments.simulated_only:
        of_real, facts = real(arguments.seconds, arguments.rounds)
        found.append(of_real)
    found.append(simulated(facts, arguments.seconds, arguments.rounds))
    _table(found)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    machine = {"platform": platform.platform(), "python": platform.python_version(), "cores": os.cpu_count()}
    plain = [asdict(each) | {"harvested": each.harvested, "points": each.points} for each in found]
    arguments.json.write_text(json.dumps({"machine": machine, "seconds": arguments.seconds, "found": plain}, indent=1))


if __name__ == "__main__":
    main()
