"""A new version of a model takes over under load: nothing fails, nothing is lost, and what it costs in latency.

    python -m benchmarks.hot_swap [--rounds 3] [--rate 500] [--seconds 30] [--json FILE]

One broker, two workers, a steady load of JSON queries against one task. After a third of the time the next version is
registered: it is measured, loaded on both workers, and takes over while queries flow. *During* is from registering to
the first reply of the new version, and as long again; before and after are what lies around it. Latency is from
sending to reading the reply, all by the outsider (confluent-kafka and JSON, see kill_rounds.py), which shares the
machine's cores with Kafka, broker and workers. The table has the median of the rounds; the counts are their sums.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import threading
import time
from pathlib import Path

from benchmarks.kill_rounds import Outsider, Verdict
from benchmarks.system import System, running_system, write_mlp
from modelless.registration import register

PHASES = ("before", "during", "after")
WARM_UP_S = 10.0


class Timed(Outsider):
    """Remembers when each query was sent; when it was read, and by which version, is in ``read``."""

    def __init__(self, system: System) -> None:
        super().__init__(system)
        self.sent_s: list[float] = []

    def send(self, number: int) -> None:
        self.sent_s.append(time.perf_counter())
        super().send(number)

    def latencies(self) -> list[tuple[float, float]]:
        """(when sent, ms until it was read) of all that were answered."""
        found = []
        for name, read_s in self.read_s.items():
            sent_s = self.sent_s[int(name.rpartition("-")[2])]
            found.append((sent_s, (read_s - sent_s) * 1000))
        return sorted(found)


def swap(system: System, seed: int, rate: float, seconds: float) -> tuple[Verdict, dict[str, list[float]], float]:
    """One round; returns what was seen, latencies by phase in ms, and the seconds from registering to taking over."""
    outsider = Timed(system)
    load = threading.Thread(target=outsider.load, args=(rate, seconds))
    load.start()
    time.sleep(seconds / 3)
    registered_s = time.perf_counter()
    model = asyncio.run(register(system.config, write_mlp(system.specification.parent, seed), timeout_s=120)).model
    while str(model.version) not in outsider.versions and load.is_alive():
        time.sleep(0.05)
    took_s = time.perf_counter() - registered_s
    load.join()
    verdict = outsider.verdict()
    if str(model.version) not in verdict.versions:
        raise RuntimeError(f"{model.key} did not take over in {seconds * 2 / 3:.0f} s: give --seconds more")
    phases: dict[str, list[float]] = {phase: [] for phase in PHASES}
    for sent_s, latency_ms in outsider.latencies():
        since_s = sent_s - registered_s
        phases["before" if since_s < 0 else "during" if since_s < 2 * took_s else "after"].append(latency_ms)
    return verdict, phases, took_s


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] if values else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=500.0, help="queries a second")
    parser.add_argument("--seconds", type=float, default=30.0, help="of load, each round")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rounds = []
    with running_system(workers=2) as system:
        warm_up = Outsider(system)
        warm_up.load(options.rate, WARM_UP_S)
        warm_up.verdict()
        for number in range(options.rounds):
            verdict, phases, took_s = swap(system, 100 + number, options.rate, options.seconds)
            print(f"round {number + 1}: {verdict}, took over after {took_s:.1f} s", flush=True)
            rounds.append(
                {
                    "sent": verdict.sent,
                    "lost": len(verdict.missing),
                    "failed": verdict.sent - len(verdict.missing) - verdict.statuses["OK"],
                    "duplicates": verdict.duplicates,
                    "took_over_s": took_s,
                    "load_average": os.getloadavg()[0],
                    "answered_by": {name: verdict.versions.count(name) for name in sorted(set(verdict.versions))},
                    "latency_ms": {
                        phase: {"p50": percentile(values, 0.5), "p99": percentile(values, 0.99), "queries": len(values)}
                        for phase, values in phases.items()
                    },
                }
            )
    report(rounds, options.rate)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        result = {"rate": options.rate, "seconds": options.seconds, "rounds": rounds}
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def report(rounds: list[dict[str, object]], rate: float) -> None:
    def total(name: str) -> int:
        return sum(one[name] for one in rounds)  # type: ignore[misc]

    def median(phase: str, name: str) -> float:
        return statistics.median(one["latency_ms"][phase][name] for one in rounds)  # type: ignore[index]

    print(f"\nhot swap under {rate:.0f} queries/s, {len(rounds)} rounds: {total('sent'):,} queries, ", end="")
    print(f"{total('failed')} failed, {total('lost')} lost, {total('duplicates')} duplicates")
    print(f"{'latency':<10}{'p50 ms':>10}{'p99 ms':>10}{'queries':>10}")
    for phase in PHASES:
        print(f"{phase:<10}{median(phase, 'p50'):>10.1f}{median(phase, 'p99'):>10.1f}{median(phase, 'queries'):>10.0f}")


if __name__ == "__main__":
    main()
