"""Rows of mixed lengths with padding and without, in turn: what sharing batches is worth.

    python -m benchmarks.padding [--rounds 3] [--seconds 5] [--outstanding 64] [--json FILE]

One small transformer (two layers of width 64, torch-fp32 on one thread) is registered twice: padded to 8, 16 and 32
tokens, and as it is, so that only rows of exactly the same length share a batch (the load sends the mask itself then).
The load is one process with the Python client; the lengths of its rows are uniform from 1 to 32. Each round measures
both, one right after the other; the table has the median of the rounds, and the median of the rounds' ratios. Answers
of both are compared before. The worker's processor time for an answer means something on a busy machine too.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from benchmarks.padding_network import WORDS, classifier
from benchmarks.system import System, running_up
from benchmarks.variants import worker_cpu_s
from modelless import Client
from modelless.registration import register

LENGTH_MAX = 32
LENGTHS = (8, 16, LENGTH_MAX)
SECTIONS = """
[[groups]]
name = "cpu"
device = "cpu"
threads = 1
workers = 1
price_per_hour = 0.17
builders = ["torch-fp32"]
[worker]
factories_allowed = ["benchmarks.padding_network"]
batch_size_max = 32
"""
SPECIFICATION = """
name = "{name}"
task = "{name}"
artifact = "classifier.safetensors"
factory = "benchmarks.padding_network:classifier"
[inputs.tokens]
datatype = "INT64"
shape = [-1, -1]
{padding}
[inputs.mask]
datatype = "FP32"
shape = [-1, -1]
[outputs.logits]
datatype = "FP32"
shape = [-1, 8]
[evaluation]
accuracy = 0.9
"""
PADDING = f'padding = {{ lengths = {list(LENGTHS)}, mask = "mask" }}'
Arrays = dict[str, Any]


@dataclass(frozen=True)
class Point:
    rate: float
    """Answers a second."""
    batch_rows: float
    """Of the batch that a query ran in, the mean over queries."""
    p50_ms: float
    worker_ms: float
    """Processor time of the worker and its executors for an answer."""


def prepare(folder: Path) -> list[Path]:
    """The artifact, and a specification for each way."""
    torch.manual_seed(0)
    safetensors.torch.save_file(classifier().state_dict(), folder / "classifier.safetensors")
    paths = []
    for name, padding in (("padded", PADDING), ("plain", "")):
        (folder / f"{name}.toml").write_text(SPECIFICATION.format(name=name, padding=padding))
        paths.append(folder / f"{name}.toml")
    return paths


def rows(task: str, number: int) -> list[Arrays]:
    """The same for both ways; who pads nothing sends the mask."""
    rng = np.random.default_rng(1)
    tokens = [rng.integers(0, WORDS, (1, rng.integers(1, LENGTH_MAX + 1))) for _ in range(number)]
    made: Sequence[Arrays] = [{"tokens": each} for each in tokens]
    if task == "plain":
        made = [each | {"mask": np.ones(each["tokens"].shape, "f4")} for each in made]
    return list(made)


async def compare(client: Client) -> None:
    """Raises AssertionError where the answers differ."""
    for padded, plain in zip(rows("padded", 50), rows("plain", 50), strict=True):
        one = await client.infer(padded, task="padded", latency_ms_max=60_000)
        other = await client.infer(plain, task="plain", latency_ms_max=60_000)
        assert np.allclose(one.output, other.output, atol=1e-4), "padding changes the answer"


async def measure(client: Client, task: str, outstanding: int, seconds: float) -> Point:
    """So many queries outstanding all the time; the first fifth does not count."""
    asked = rows(task, 512)
    start_s = time.perf_counter()
    counted_from_s, end_s = start_s + seconds / 5, start_s + seconds
    found: list[tuple[float, int]] = []
    answered, cpu_before_s = 0, worker_cpu_s()

    async def keep_asking(turn: int) -> None:
        nonlocal answered
        while time.perf_counter() < end_s:
            result = await client.infer(asked[turn % len(asked)], task=task, latency_ms_max=60_000)
            turn += outstanding
            answered += 1
            if counted_from_s <= time.perf_counter() < end_s:
                found.append((result.latency_ms, result.batch_size or 1))

    await asyncio.gather(*[keep_asking(turn) for turn in range(outstanding)])
    return Point(
        len(found) / (end_s - counted_from_s),
        statistics.fmean(batch_rows for _, batch_rows in found),
        statistics.median(latency_ms for latency_ms, _ in found),
        1000 * (worker_cpu_s() - cpu_before_s) / answered,
    )


async def run(system: System, rounds: int, outstanding: int, seconds: float) -> dict[str, list[Point]]:
    for path in prepare(system.file.parent):
        await register(system.config, path, wait_all=True)
    found: dict[str, list[Point]] = {"padded": [], "plain": []}
    kafka = system.config.kafka
    async with Client(kafka.servers, topic_prefix=kafka.topic_prefix) as client:
        await compare(client)
        for _ in range(rounds):
            for task, points in found.items():
                points.append(await measure(client, task, outstanding, seconds))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--outstanding", type=int, default=64)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
    with running_up(SECTIONS) as system:
        found = asyncio.run(run(system, options.rounds, options.outstanding, options.seconds))
    names = [field.name for field in fields(Point)]
    print(f"{'':<16}" + "".join(f"{name:>12}" for name in names))
    for task, each in found.items():
        medians = [statistics.median(getattr(point, name) for point in each) for name in names]
        print(f"{task:<16}" + "".join(f"{median:>12.2f}" for median in medians))
    pairs = list(zip(found["padded"], found["plain"], strict=True))
    ratios = {name: [getattr(padded, name) / getattr(plain, name) for padded, plain in pairs] for name in names}
    print(f"{'padded / plain':<16}" + "".join(f"{statistics.median(ratios[name]):>12.2f}" for name in names))
    if options.json:
        points = {task: [asdict(point) for point in each] for task, each in found.items()}
        options.json.write_text(
            json.dumps({"machine": platform.platform(), "points": points, "ratios": ratios}, indent=2)
        )


if __name__ == "__main__":
    main()
