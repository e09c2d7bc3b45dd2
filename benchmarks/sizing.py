"""Time to size a fleet, and what the answers cost beside the relaxed bound, by size.

    python -m benchmarks.sizing [--sizes SMALL MEDIUM LARGE HUGE SPARSE] [--seeds 3] [--time-limit-s 1] [--json FILE]

The instances of ``benchmarks/placement.py`` with six classes of hardware, the faster the dearer per row, and no worker
given: as many as there need be, at most the limit in all. SPARSE is LARGE with a hundredth of its demand, where what
counts is memory, and that workers are whole.

* **greedy**: the answer at once, each class served by what costs the least per row;
* **size**: the program, packed;
* **again**: the same with 10 % more demand and what was found as the least: what a planner asks every period.

The gap is what the answer costs above the bound: the value of the program without whole numbers, which no fleet can
undercut, though perhaps none can reach it. Times are wall time, median over seeds; gaps are the largest.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path

from benchmarks import placement
from broker.sizing import Limits, Options, greedy, size

SIZES = {
    "SMALL": (3, 15, 8, 1.0),
    "MEDIUM": (10, 100, 40, 1.0),
    "LARGE": (50, 1_000, 500, 1.0),
    "HUGE": (50, 1_000, 2_000, 1.0),
    "SPARSE": (50, 1_000, 500, 0.01),
}
"""Tasks, variants in all, workers in all, demand."""
HARDWARE = {
    "cpu-small": (0.3, 0.10),
    "cpu-large": (0.5, 0.25),
    "gpu-small": (1.0, 0.5),
    "gpu-medium": (1.6, 0.9),
    "gpu-large": (2.5, 1.9),
    "gpu-huge": (4.0, 3.9),
}
"""Speed, price per hour."""


def measure(name: str, seed: int, options: Options) -> dict[str, float]:
    tasks, variants, most, times = SIZES[name]
    demands, choices, groups = placement.instance((tasks, variants, most), seed, HARDWARE)
    demands = [replace(demand, rows_per_s=times * demand.rows_per_s) for demand in demands]
    limits = [Limits(group.name, group.memory_mb, group.price_per_hour, 0, most) for group in groups]
    began_s = time.perf_counter()
    quick = greedy(demands, choices, limits, options)
    greedy_s = time.perf_counter() - began_s
    began_s = time.perf_counter()
    best = size(demands, choices, limits, options)
    size_s = time.perf_counter() - began_s
    floors = [replace(of, workers_min=best.workers[of.name]) for of in limits]
    more = [replace(demand, rows_per_s=1.1 * demand.rows_per_s) for demand in demands]
    began_s = time.perf_counter()
    again = size(more, choices, floors, options)
    again_s = time.perf_counter() - began_s
    assert best.serves and again.serves, (best.unserved, again.unserved)
    return {
        "greedy ms": 1000 * greedy_s,
        "size ms": 1000 * size_s,
        "again ms": 1000 * again_s,
        "workers": sum(best.workers.values()),
        "USD/h": best.usd_per_hour,
        "greedy gap %": 100 * (quick.usd_per_hour / best.bound_usd_per_hour - 1),
        "gap %": 100 * (best.usd_per_hour / best.bound_usd_per_hour - 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--time-limit-s", type=float, default=1.0)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/sizing.json"))
    arguments = parser.parse_args()
    options = Options(time_limit_s=arguments.time_limit_s)
    rows = []
    for name in arguments.sizes:
        rounds = [measure(name, seed, options) for seed in range(arguments.seeds)]
        row: dict[str, str | float] = {"size": name}
        for key in rounds[0]:
            told = [each[key] for each in rounds]
            row[key] = max(told) if key.endswith("%") else statistics.median(told)
        rows.append(row)
    placement.tell(rows, arguments.json)


if __name__ == "__main__":
    main()
