"""Time per decision, and per update of a profile, by number of variants; beside a scan of all of them.

    python -m benchmarks.decide [--variants 10 1000 10000] [--decisions 4000] [--rounds 5] [--json FILE]

A real :class:`broker.core.Core` knows that many variants on three groups of two workers; each worker has half of its
group's variants loaded, and what is sent to the groups makes them wait differently. Queries have constraints drawn at
random, all preferences, all of ``on_miss``, 1 to 64 rows; all come at one instant, as what a broker reads together,
and find device time priced. What is timed, query by query:

* **decide**: from the decoded query to the choice, and nothing else: name to target, waits, prices, choice, refusals
  with their words;
* **admit**: the same, with the ledger before it and the queue behind it, until the query waits in its batch;
* **scan**: what the selector did before there was a ranking: look at every candidate. Only the choice among what
  answers in time, without what follows when there is none;
* **update**: ``put_profile`` of one variant, with other latencies, accuracy and cost, and the next decision.

Each round draws its own queries; the table gives the median of the rounds' figures. Times are of the thread's
processor, less what reading that clock takes, so that whoever shares the machine counts as little as possible. The
garbage collector is set as a broker sets it.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
import statistics
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from time import thread_time_ns

from broker.catalog import Candidate
from broker.core import Core
from broker.devices import Worker
from broker.ledger import Address, Entry, Source
from broker.ranking import Teams
from broker.selector import Chosen
from modelless import frames
from modelless.messages import ON_MISS, PREFERENCES, BatchTime, Evaluation, ModelVersion, Profile, Query, RecordId
from modelless.process import settle
from modelless.tensors import Tensor, TensorSpec

TOPIC, TASK = "modelless.queries", "t"
GROUPS = {"cpu-small": 0.17, "cpu-large": 0.34, "gpu": 1.006}
WORKERS = 2
LOADED = 0.5
UPDATES = 100
INF = float("inf")
CLOCK_NS = statistics.median(-(thread_time_ns() - thread_time_ns()) for _ in range(2001))
SPEC = TensorSpec("x", "FP32", (-1, 1))


def model(number: int) -> ModelVersion:
    return ModelVersion(
        f"m{number}", 1, TASK, "onnx", "file:///m", "0" * 64, 1, (SPEC,), (SPEC,), Evaluation(), f"m{number}"
    )


def profile(number: int, draw: random.Random) -> Profile:
    """Slower ones tend to be more accurate."""
    of, group = model(number), list(GROUPS)[number % len(GROUPS)]
    size = draw.random()
    one_ms = 0.5 * 400 ** min(1.0, max(0.0, size + draw.gauss(0, 0.1)))
    row_ms = one_ms * draw.uniform(0.1, 0.8)
    accuracy = min(0.999, max(0.1, 0.6 + 0.38 * size + draw.gauss(0, 0.03)))
    batches = tuple(BatchTime(1 << n, one_ms + row_ms * ((1 << n) - 1), 2 * one_ms) for n in range(7))
    return Profile(
        f"{of.key}/onnx-fp32", group, "ready", of.digest, accuracy=accuracy, accuracy_low=accuracy - 0.01,
        batches=batches, price_per_hour=GROUPS[group],
    )  # fmt: skip


class System:
    """A core with workers that have something to do."""

    def __init__(self, variants: int, draw: random.Random) -> None:
        self.draw = draw
        self.core = Core()
        self.core.ledger.assign(TOPIC, 0, 0, "")
        self.offsets = iter(range(1 << 60))
        by_group: dict[str, list[str]] = {group: [] for group in GROUPS}
        for number in range(variants):
            self.core.catalog.put_model(model(number).key, model(number))
            made = profile(number, draw)
            self.core.catalog.put_profile(made.key, made)
            by_group[made.group].append(made.variant)
        for group, names in by_group.items():
            for index in range(WORKERS):
                loaded = [name for name in names if draw.random() < LOADED]
                worker = Worker(f"{group}-{index}", f"{group}-{index}", group, GROUPS[group], 1 << 34, ())
                self.core.joined(worker)
                states = tuple(frames.VariantState(name, "ready") for name in loaded)
                self.core.frame(worker, frames.State(states, 0, 0.0, 1), 0.0)
                worker.occupy(draw.uniform(0, 10), 0.0)
        target = self.core.catalog.resolve(self.query())
        assert target is not None
        self.target = target
        self.core.poll(0.0)  # device time has its price from here on

    def query(self) -> Query:
        draw = self.draw
        return Query(
            id="q",
            inputs=(Tensor("x", "FP32", (draw.choice((1, 1, 1, 1, draw.randint(1, 64))), 1), b"\0\0\0\0"),),
            task=TASK,
            latency_ms_max=10 ** draw.uniform(0.3, 3.3),
            accuracy_min=draw.choice((None, draw.uniform(0.5, 1.0), draw.uniform(0.5, 1.0))),
            cost_max=draw.choice((None, None, 10 ** draw.uniform(-5, -2))),
            prefer=draw.choice(PREFERENCES),
            on_miss=draw.choice(ON_MISS),
        )

    def entry(self) -> Entry:
        query = self.query()
        source = Source(RecordId(TOPIC, 0, next(self.offsets)), None, b"", (), 0.0)
        rows, deadline_ms = query.inputs[0].shape[0], query.latency_ms_max
        late = query.on_miss == "late"
        address = Address("q", "modelless.replies", None, "msgpack")
        return Entry(source, query, address, rows, 1000, deadline_ms, None if late else deadline_ms, deadline_ms)

    def decide(self, entry: Entry) -> object:
        target = self.core.catalog.resolve(entry.query)
        assert target is not None
        wanting = next(self.core._turn)
        return self.core._selector.choose(entry, target, 1.0, self.core._waits_ms, wanting=wanting)

    def scan(self, entry: Entry) -> Candidate | None:
        return scan(entry, self.target.ranking.candidates, self.core)

    def admit(self, entry: Entry) -> None:
        self.core.admit(entry, 1.0)


def scan(entry: Entry, candidates: Iterable[Candidate], core: Core) -> Candidate | None:
    """The best by ``prefer`` of those that answer in time, by looking at each."""
    query, rows = entry.query, entry.rows
    floor, cost_max = query.accuracy_min or 0.0, INF if query.cost_max is None else query.cost_max
    deadline_ms = INF if entry.latency_deadline_ms is None else entry.latency_deadline_ms
    waits_ms: dict[frozenset[str], float] = {}
    best, best_rank = None, (INF, INF, INF)
    for candidate in candidates:
        if candidate.accuracy_low < floor or candidate.cost_per_1000_usual > cost_max or not candidate.workers:
            continue
        team, cost, accuracy = candidate.team, candidate.cost_per_1000_usual, candidate.accuracy_low
        rank = (-accuracy, cost) if query.prefer == "accuracy" else (cost, -accuracy)
        if query.prefer != "latency" and rank > best_rank[:2]:
            continue
        if team not in waits_ms:
            (waits_ms[team],) = core._waits_ms((Teams(candidate.group, (team,)),), entry, 1.0)
        finish_ms = 1.0 + waits_ms[team] + candidate.table.p50_ms(rows)
        if finish_ms > deadline_ms:
            continue
        whole = (finish_ms, *rank) if query.prefer == "latency" else (*rank, finish_ms)
        if whole < best_rank:
            best, best_rank = candidate, whole
    return best


def timed(action: Callable[[Entry], object], entries: list[Entry]) -> list[float]:
    """Microseconds of each."""
    took = []
    for entry in entries:
        began_ns = thread_time_ns()
        action(entry)
        took.append((thread_time_ns() - began_ns - CLOCK_NS) / 1000)
    return took


def update(system: System, number: int) -> float:
    """Milliseconds of one profile's update and the next decision."""
    made, entry = profile(number, system.draw), system.entry()
    began_ns = thread_time_ns()
    system.core.catalog.put_profile(made.key, made)
    system.decide(entry)
    return (thread_time_ns() - began_ns) / 1e6


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.floor(len(ordered) * share))]


def measure(variants: int, decisions: int, seed: int) -> dict[str, float]:
    draw = random.Random(seed)
    system = System(variants, draw)
    settle()
    timed(system.decide, [system.entry() for _ in range(1000)])
    entries = [system.entry() for _ in range(decisions)]
    decide = timed(system.decide, entries)
    outcomes = Counter(type(system.decide(entry)) is Chosen for entry in entries)
    scanned = timed(system.scan, entries[: max(20, min(decisions, 200_000 // variants))])
    updates = [update(system, draw.randrange(variants)) for _ in range(UPDATES)]
    timed(system.decide, entries[:300])
    for entry in entries:
        system.core.ledger.arrived(entry.record)
    admit = []
    for start in range(0, decisions, 10):  # no more wait at once than in a broker that keeps up
        admit += timed(system.admit, entries[start : start + 10])
        for group in system.core.groups.values():
            for queue in group.queues.values():
                queue.take_all()
    return {
        "decide p50 us": statistics.median(decide),
        "decide p99 us": percentile(decide, 0.99),
        "admit p50 us": statistics.median(admit),
        "scan p50 us": statistics.median(scanned),
        "chosen share": outcomes[True] / decisions,
        "update p50 ms": statistics.median(updates),
        "update max ms": max(updates),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", type=int, nargs="+", default=[10, 1_000, 10_000])
    parser.add_argument("--decisions", type=int, default=4_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/decide.json"))
    arguments = parser.parse_args()
    rows = []
    for variants in arguments.variants:
        rounds = [measure(variants, arguments.decisions, seed) for seed in range(arguments.rounds)]
        rows.append({"variants": variants, **{key: statistics.median(r[key] for r in rounds) for key in rounds[0]}})
    print("".join(f"{key:>15}" for key in rows[0]))
    for row in rows:
        print("".join(f"{value:15,.{0 if key == 'variants' else 2}f}" for key, value in row.items()))
    medians = [row["decide p50 us"] for row in rows]
    print(f"\nslowest median over fastest: {max(medians) / min(medians):.2f}")
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    machine = {"platform": platform.platform(), "python": platform.python_version()}
    arguments.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
