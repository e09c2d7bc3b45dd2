"""Time to place variants on workers, and how good the answers are, by size of the fleet.

    python -m benchmarks.placement [--sizes SMALL MEDIUM LARGE] [--seeds 3] [--time-limit-s 2] [--json FILE]

Synthetic, each from its seed: tasks with variants whose time grows with their accuracy, every variant on every group,
four groups of different speed and price, two classes of demand per task with latencies of 50 to 500 ms, as much demand
in all as about half of the fleet could serve. Nothing is loaded at first.

* **greedy**: the answer at once;
* **place**: the MILP, packed and routed;
* **again**: the MILP when its own answer is loaded and demand is 10 % more: what a planner does every period.

Quality is the objective as a share of the bound that the solver proved; the bound ignores that variants on one worker
share its time, so nobody may be able to reach it. Times are wall time, median over seeds.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from broker.placement import Allocation, Choice, Demand, Group, Options, greedy, place

SIZES = {
    "SMALL": (3, 15, 8),
    "MEDIUM": (10, 100, 40),
    "LARGE": (50, 1_000, 500),
}
"""Tasks, variants in all, workers in all."""
GROUPS = {"cpu": (0.3, 0.34), "gpu-small": (1.0, 1.006), "gpu-large": (1.6, 1.86), "gpu-huge": (2.5, 3.9)}
"""Speed, price per hour."""


def instance(
    size: tuple[int, int, int], seed: int, hardware: Mapping[str, tuple[float, float]] = GROUPS
) -> tuple[list[Demand], list[Choice], list[Group]]:
    tasks, variants, workers = size
    draw = random.Random(seed)
    groups = [
        Group(name, 8_000.0, price, {f"{name}-{i}": frozenset() for i in range(workers // len(hardware))})
        for name, (_, price) in hardware.items()
    ]
    choices, demands = [], []
    for task in range(tasks):
        for number in range(variants // tasks):
            worth = draw.random()
            for group, (speed, _) in hardware.items():
                one_ms = 2 * 20**worth / speed * draw.uniform(0.7, 1.3)
                sizes = (1, 2, 4, 8, 16, 32)
                p50_ms = tuple(one_ms * (1 + 0.3 * (rows - 1)) for rows in sizes)
                choices.append(
                    Choice(
                        f"t{task}v{number}",
                        f"t{task}",
                        group,
                        0.6 + 0.35 * worth,
                        sizes,
                        p50_ms,
                        tuple(1.2 * ms for ms in p50_ms),
                        draw.uniform(500, 4_000),
                        draw.uniform(500, 10_000),
                    )
                )
        for _ in range(2):
            rate = draw.expovariate(1.0) * 60 * workers / tasks
            demands.append(
                Demand(
                    f"t{task}",
                    draw.uniform(50, 500),
                    draw.choice((0.0, 0.7, 0.8)),
                    rate,
                    draw.choice(("cost", "accuracy")),
                    draw.random() < 0.3,
                )
            )
    return demands, choices, groups


def measure(size: str, seed: int, options: Options) -> dict[str, float]:
    demands, choices, groups = instance(SIZES[size], seed)

    def timed(decide: object, *arguments: object) -> tuple[Allocation, float]:
        began_s = time.perf_counter()
        found = decide(*arguments, options)  # type: ignore[operator]
        return found, time.perf_counter() - began_s

    quick, greedy_s = timed(greedy, demands, choices, groups)
    best, place_s = timed(place, demands, choices, groups)
    there = [replace(g, loaded={w: frozenset(best.load[w]) for w in g.loaded}) for g in groups]
    more = [replace(d, rows_per_s=1.1 * d.rows_per_s) for d in demands]
    again, again_s = timed(place, more, choices, there)
    asked = sum(d.rows_per_s for d in demands)
    return {
        "greedy ms": 1000 * greedy_s,
        "place ms": 1000 * place_s,
        "again ms": 1000 * again_s,
        "greedy/bound": quick.objective / best.bound,
        "place/bound": best.objective / best.bound,
        "served": best.served_rows_per_s / asked,
        "copies": sum(len(variants) for variants in best.load.values()),
        "new again": len(again.new_loads),
    }


def tell(rows: Sequence[Mapping[str, str | float]], file: Path) -> None:
    """Print them as a table, and write them down with the machine."""
    print("".join(f"{key:>14}" for key in rows[0]))
    for row in rows:
        texts = (v if isinstance(v, str) else f"{v:,.{3 if v < 10 else 2 if v < 100 else 0}f}" for v in row.values())
        print("".join(f"{text:>14}" for text in texts))
    file.parent.mkdir(parents=True, exist_ok=True)
    machine = {"platform": platform.platform(), "python": platform.python_version()}
    file.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--time-limit-s", type=float, default=2.0)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/placement.json"))
    arguments = parser.parse_args()
    options = Options(time_limit_s=arguments.time_limit_s)
    rows: list[dict[str, str | float]] = []
    for size in arguments.sizes:
        rounds = [measure(size, seed, options) for seed in range(arguments.seeds)]
        rows.append({"size": size, **{key: statistics.median(r[key] for r in rounds) for key in rounds[0]}})
    tell(rows, arguments.json)


if __name__ == "__main__":
    main()
