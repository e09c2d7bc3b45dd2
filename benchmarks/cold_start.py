"""How long it takes until a worker answers that was not there, and what two with the same large model take of memory.

    python -m benchmarks.cold_start [--rounds 5] [--json FILE]

The model is a perceptron of 50 million weights (200 MB, fp32), as safetensors with a factory; one thread.

* ``plain``: one fresh process imports torch, makes the network, loads the weights into it as safetensors' and torch's
  documentation do, and answers one row: what a server does that is started for a query.
* ``cold``: a fresh executor child, as a worker starts one, loads the variant and answers. ``warm``: one that waits with
  its imports behind it (the worker's spare) does so.
* ``from zero``: the whole system (Kafka, a broker, no worker). A query is sent, and a worker process is started; until
  it announces that the variant is loaded, and until the answer is read. Kafka keeps the query meanwhile.
* ``memory``: the proportional share (PSS: a page that n processes share counts as an n-th of it in each) of two
  processes that have answered: two executor children, and two plain ones.

Medians of the rounds, in which the ways take turns. The file is in the page cache: it was written before.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import safetensors.torch

from benchmarks.cold_network import CLASSES, WIDTH, perceptron
from benchmarks.system import running_up, stop
from modelless.client import Client
from modelless.config import Config
from modelless.fleet import FleetView
from modelless.frames import BatchTensor
from modelless.registration import register, wall_clock
from modelless.tensors import TensorSpec
from workers.executor import ChildExecutor, LoadSpec

FACTORY = "benchmarks.cold_network:perceptron"
X, Y = TensorSpec("x", "FP32", (-1, WIDTH)), TensorSpec("y", "FP32", (-1, CLASSES))
PLAIN = """
import time
begin_s = time.perf_counter()
import sys, torch, safetensors.torch
torch.set_num_threads(1)
imported_s = time.perf_counter()
from benchmarks.cold_network import WIDTH, perceptron
module = perceptron()
module.load_state_dict(safetensors.torch.load_file(sys.argv[1]))
module.eval()
loaded_s = time.perf_counter()
with torch.inference_mode():
    module(torch.ones(1, WIDTH))
print(imported_s - begin_s, loaded_s - imported_s, time.perf_counter() - loaded_s, flush=True)
sys.stdin.read()
"""
SECTIONS = """
[worker]
measure_s = 1
batch_size_max = 1
factories_allowed = ["benchmarks.cold_network"]
[[groups]]
name = "cpu"
device = "cpu"
threads = 1
workers = 0
memory_mb_max = 2048
price_per_hour = 0.17
builders = ["torch-fp32"]
"""
Times = dict[str, list[float]]


def pss_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def start_plain(weights: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PLAIN, str(weights)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def plain(weights: Path, times: Times) -> None:
    """Two at once, for the memory; the first one's time is taken before the second begins."""
    begin_s = time.perf_counter()
    processes = [start_plain(weights)]
    assert processes[0].stdout is not None
    parts = [float(part) for part in processes[0].stdout.readline().split()]
    times["plain: first answer, s"].append(time.perf_counter() - begin_s)
    for name, part in zip(("import", "load", "run"), parts, strict=True):
        times[f"plain: {name}, s"].append(part)
    processes.append(start_plain(weights))
    assert processes[1].stdout is not None
    processes[1].stdout.readline()
    times["plain: memory of two, MB"].append(sum(pss_mb(process.pid) for process in processes))
    for process in processes:
        process.communicate()


async def ours(weights: Path, times: Times) -> None:
    spec = LoadSpec("m:1/torch-fp32", "torch-fp32", weights, (X,), (Y,), FACTORY, ("benchmarks.cold_network",))
    row = (BatchTensor("x", "FP32", (1, WIDTH), np.ones(WIDTH, "<f4").tobytes()),)
    children = []
    for kind in ("cold", "warm"):
        begin_s = time.perf_counter()
        child = await ChildExecutor.spawn("cpu", 1, lambda _: None)
        children.append(child)
        await child.prepare(["torch-fp32"] if kind == "warm" else ())
        if kind == "warm":
            begin_s = time.perf_counter()
        await child.load(spec)
        times[f"{kind}: load, s"].append(time.perf_counter() - begin_s)
        await child.run(spec.variant, row)
        times[f"{kind}: first answer, s"].append(time.perf_counter() - begin_s)
    times["ours: memory of two, MB"].append(sum(pss_mb(child.pid) for child in children))
    for child in children:
        await child.close()


async def from_zero(config: Config, file: Path, times: Times) -> None:
    """A worker is started for a query that is there already, and stopped again."""
    fleet = FleetView(config, wall_clock())
    await fleet.start()
    command = [sys.executable, "-m", "modelless", "worker", "--group", "cpu", "--config", str(file)]
    try:
        async with Client.from_config(config) as client:
            row = {"x": np.ones((1, WIDTH), np.float32)}
            answer = client.submit(row, task="cold", latency_ms_max=120_000, on_miss="late")
            await asyncio.sleep(1.0)
            assert not answer.done(), "nobody is there"
            begin_s = time.perf_counter()
            worker = subprocess.Popen(command, stderr=subprocess.DEVNULL)  # noqa: ASYNC220
            try:
                while not any(member.variants for member in fleet.workers()):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                ready_s = time.perf_counter() - begin_s
                await answer
                answered_s = time.perf_counter() - begin_s
            finally:
                await asyncio.to_thread(stop, worker)
            times["from zero: announced ready, s"].append(ready_s)
            times["from zero: first answer, s"].append(answered_s)
            while any(member.variants for member in fleet.workers()):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    finally:
        await fleet.stop()


def system(weights: Path, rounds: int, times: Times) -> None:
    specification = weights.parent / "cold.toml"
    specification.write_text(
        f'name = "cold"\ntask = "cold"\nartifact = "{weights.name}"\nfactory = "{FACTORY}"\n'
        f'[inputs.x]\ndatatype = "FP32"\nshape = [-1, {WIDTH}]\n'
        f'[outputs.y]\ndatatype = "FP32"\nshape = [-1, {CLASSES}]\n'
        "[evaluation]\naccuracy = 0.9\n"
    )
    with running_up(SECTIONS) as running:
        first = subprocess.Popen(
            [sys.executable, "-m", "modelless", "worker", "--group", "cpu", "--config", str(running.file)],
            stderr=subprocess.DEVNULL,
        )
        asyncio.run(register(running.config, specification, wait_all=True, timeout_s=300))
        stop(first)
        for number in range(rounds):
            asyncio.run(asyncio.wait_for(from_zero(running.config, running.file, times), 120))
            print(f"  from zero, round {number + 1}: {times['from zero: first answer, s'][-1]:.2f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/cold_start.json"))
    arguments = parser.parse_args()
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
    times: Times = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="modelless-") as folder:
        weights = Path(folder) / "cold.safetensors"
        safetensors.torch.save_file(perceptron().state_dict(), weights)
        for number in range(arguments.rounds):
            plain(weights, times)
            asyncio.run(ours(weights, times))
            print(
                f"  round {number + 1}: " + ", ".join(f"{name} {of[-1]:.2f}" for name, of in times.items()), flush=True
            )
        system(weights, arguments.rounds, times)
    print(f"\n{'':<34}{'median':>9}{'least':>9}{'most':>9}")
    for name, of in times.items():
        print(f"{name:<34}{np.median(of):>9.2f}{min(of):>9.2f}{max(of):>9.2f}")
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    machine = {"platform": platform.platform(), "python": platform.python_version(), "cores": os.cpu_count()}
    arguments.json.write_text(json.dumps({"machine": machine, "rounds": arguments.rounds, "times": times}, indent=1))


if __name__ == "__main__":
    main()
