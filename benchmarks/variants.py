"""The variants that the system makes of one trained model: how long that takes, and how far apart they are.

    python -m benchmarks.variants [--models digits-cnn digits-deep] [--torchvision resnet18] [--rounds 1] [--json FILE]

The models are the demo's (and torchvision's architectures with random weights, see examples/torchvision), registered as
safetensors one after the other in a system of one broker and one worker (one
thread) with an embedded Kafka, all of it new. For each: the time until it is served, and until all its variants are
built and measured, and the processor time that the worker and its children took for that, which says more on a machine
that others use too; then every variant's accuracy with its 95 % interval, its times and its memory. At the end a second
worker of the group starts with an empty cache, as on another machine, and should be ready without building. With more
than one round the table is the last one's, and the times are medians.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from benchmarks.system import command_of
from modelless.catalog import CatalogView
from modelless.config import Config, WorkerConfig
from modelless.demo.family import RECIPES, prepare
from modelless.demo.system import System, write_config
from modelless.fleet import FleetView
from modelless.messages import Member, ModelVersion, Profile, split_variant
from modelless.registration import GroupProgress, register, wall_clock
from modelless.variants import best_batch

REGISTER_S_MAX = 900.0
READY_S_MAX = 300.0


@dataclass
class Made:
    """One model's variants."""

    model: str
    served_s: float
    complete_s: float
    cpu_s: float
    profiles: list[Profile]

    @property
    def ready(self) -> list[Profile]:
        return [profile for profile in self.profiles if profile.status == "ready"]


@dataclass
class Round:
    models: list[Made]
    phases_s: Mapping[str, float]
    second_worker_s: float
    """From the start of its process until it served the same models as the first one."""
    second_worker_builds: float
    first_worker_builds: float


async def make(config: Config, specification: Path) -> Made:
    started_s, cpu_before_s = time.monotonic(), worker_cpu_s()
    served_s: list[float] = []

    def on_progress(model: ModelVersion, groups: Sequence[GroupProgress]) -> None:
        if not served_s and groups and all(group.state == "ready" for group in groups):
            served_s.append(time.monotonic() - started_s)

    registered = await register(config, specification, wait_all=True, timeout_s=REGISTER_S_MAX, on_progress=on_progress)
    complete_s, cpu_s = time.monotonic() - started_s, worker_cpu_s() - cpu_before_s
    view = CatalogView(config)
    await view.start()
    await view.stop()
    return Made(registered.model.key, served_s[0], complete_s, cpu_s, view.catalog.profiles(registered.model))


def worker_cpu_s() -> float:
    """Processor time of the one worker below this process, with all its children, those that ended too."""
    total_s = 0.0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            command = command_of(process)
            if "worker" in command and "--name" in command:
                for each in (process, *process.children(recursive=True)):
                    total_s += sum(each.cpu_times()[:4])  # its own and its ended children's, user and system
    return total_s


async def start_second(config_file: Path, config: Config, group: str, cache: Path) -> tuple[float, Member, Member]:
    """A second worker with an empty cache: how long until it serves every model that the first one does."""
    changed = asyncio.Event()
    fleet = FleetView(config, wall_clock(), changed.set)
    await fleet.start()
    name = f"{group}-9"

    def workers() -> dict[str, Member]:
        return {worker.name: worker for worker in fleet.workers()}

    async def until(reached: Callable[[], bool]) -> None:
        while not reached():
            await changed.wait()
            changed.clear()

    async with asyncio.timeout(READY_S_MAX):
        await until(lambda: bool(workers()))
        (first,) = workers().values()
        command = [sys.executable, "-m", "modelless", "worker", "--config", str(config_file), "--group", group]
        environment = os.environ | {"MODELLESS_STORE__CACHE": str(cache)}
        started_s = time.monotonic()
        with (cache.parent / "second.log").open("wb") as log:
            process = subprocess.Popen([*command, "--name", name], env=environment, stdout=log, stderr=log)  # noqa: ASYNC220
        try:
            await until(lambda: name in workers() and served(first) <= served(workers()[name]))
            return time.monotonic() - started_s, workers()[first.name], workers()[name]
        finally:
            process.terminate()
            await asyncio.to_thread(process.wait)
            await fleet.stop()


def served(worker: Member) -> set[str]:
    return {split_variant(variant)[0] for variant in worker.variants}


def phases(log: Path) -> dict[str, float]:
    """Seconds that the worker's log says it was building and measuring, by builder."""
    began: dict[tuple[str, str], float] = {}
    taken: dict[str, float] = {}
    ends = {"built": "building", "variant cannot be built": "building", "measured": "measuring"}
    for line in log.read_text(errors="replace").splitlines():
        if not line.startswith("{"):
            continue
        entry = json.loads(line)
        event, variant = entry.get("event"), entry.get("variant", "")
        at_s = _seconds(entry.get("timestamp", ""))
        if event in ("building", "measuring"):
            began[event, variant] = at_s
        elif event in ends and (start_s := began.pop((ends[event], variant), None)) is not None:
            name = f"{ends[event]} {split_variant(variant)[1]}"
            taken[name] = taken.get(name, 0.0) + at_s - start_s
    return dict(sorted(taken.items(), key=lambda item: -item[1]))


def _seconds(timestamp: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(timestamp).timestamp() if timestamp else 0.0


async def one_round(specifications: Sequence[Path], folder: Path) -> Round:
    config_file = write_config(folder, None, builders=())
    async with System(config_file, folder / "up.log") as system:
        models = [await make(system.config, path) for path in specifications]
        group = system.config.groups[0].name
        second_s, first, second = await start_second(config_file, system.config, group, folder / "second-cache")
    return Round(models, phases(folder / "up.log"), second_s, second.statistics["builds"], first.statistics["builds"])


def show(made: Made) -> None:
    print(f"\n{made.model}: {_times(asdict(made))}")
    print(
        f"  {'variant':<16} {'accuracy (95 %)':<24} {'build s':>8} {'load ms':>8} {'again':>7} {'MB':>5} "
        f"{'lat(1) ms':>9} {'p99':>7} {'b':>4} {'lat(b) ms':>9} {'rows/s':>8} {'$/1,000':>8}"
    )
    for profile in sorted(made.profiles, key=lambda p: p.batches[0].p50_ms if p.batches else float("inf")):
        name = split_variant(profile.variant)[1]
        best = best_batch(profile)
        if profile.status == "failed" or best is None:
            print(f"  {name:<16} failed: {profile.reason}")
            continue
        print(
            f"  {name:<16} {_accuracy(profile):<24} {profile.build_ms / 1000:>8.1f} {profile.load_ms:>8.1f} "
            f"{profile.load_warm_ms:>7.1f} {profile.memory_bytes / 2**20:>5.1f} {profile.batches[0].p50_ms:>9.3f} "
            f"{profile.batches[0].p99_ms:>7.3f} {best.batch_size:>4} {best.p50_ms:>9.3f} {best.rows_per_second:>8,.0f} "
            f"{best.cost:>8.1e}"
        )
    print(f"  {len(made.ready)} variants; spread: {spread(made)}")


def _times(of: Mapping[str, Any]) -> str:
    return (
        f"served after {of['served_s']:.1f} s, all variants after {of['complete_s']:.1f} s "
        f"({of['cpu_s']:.0f} s of processor time)"
    )


def _accuracy(profile: Profile) -> str:
    if profile.accuracy is None:
        return "unknown"
    return f"{profile.accuracy:.4f} ({profile.accuracy_low:.4f} to {profile.accuracy_high:.4f})"


def spread(made: Made) -> str:
    ready = made.ready

    def ratio(value: Callable[[Profile], float]) -> float:
        values = [value(profile) for profile in ready]
        return max(values) / min(values)

    accuracies = [profile.accuracy for profile in ready if profile.accuracy is not None]
    return (
        f"lat(1) {ratio(lambda p: p.batches[0].p50_ms):.1f}x, "
        f"a row in its best batch {ratio(lambda p: min(b.p50_ms / b.batch_size for b in p.batches)):.1f}x, "
        f"accuracy {min(accuracies, default=0.0):.4f} to {max(accuracies, default=0.0):.4f}"
    )


def summary(rounds: Sequence[Round]) -> dict[str, Any]:
    """Medians of the times."""
    last = rounds[-1]

    def median(value: Callable[[Round], float]) -> float:
        return statistics.median(value(one) for one in rounds)

    return {
        "machine": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}",
        "rounds": len(rounds),
        "models": [
            {
                "model": made.model,
                "served_s": median(lambda one, i=index: one.models[i].served_s),  # type: ignore[misc]
                "complete_s": median(lambda one, i=index: one.models[i].complete_s),  # type: ignore[misc]
                "cpu_s": median(lambda one, i=index: one.models[i].cpu_s),  # type: ignore[misc]
                "spread": spread(made),
                "profiles": [asdict(profile) for profile in made.profiles],
            }
            for index, made in enumerate(last.models)
        ],
        "phases_s": last.phases_s,
        "second_worker_s": median(lambda one: one.second_worker_s),
        "second_worker_builds": max(one.second_worker_builds for one in rounds),
        "first_worker_builds": last.first_worker_builds,
    }


def torchvision(folder: Path, names: Sequence[str]) -> list[Path]:
    """The specifications of the examples, and what the worker needs for them."""
    if names:
        subprocess.run([sys.executable, "examples/torchvision/make.py", str(folder)], check=True)
        os.environ["MODELLESS_WORKER__FACTORIES_ALLOWED"] = '["modelless.demo.factories", "torchvision.models"]'
        os.environ["MODELLESS_WORKER__BATCH_SIZE_MAX"] = "16"
    return [folder / f"{name}.toml" for name in names]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [recipe.name for recipe in RECIPES]
    parser.add_argument("--models", nargs="+", choices=names, default=["digits-cnn", "digits-deep"])
    parser.add_argument("--torchvision", nargs="+", default=[], metavar="ARCHITECTURE")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/variants.json"))
    arguments = parser.parse_args()
    os.environ["MODELLESS_WORKER__MEASURE_S"] = str(WorkerConfig().measure_s)  # the demo's is shorter
    with tempfile.TemporaryDirectory(prefix="modelless-") as name:
        recipes = tuple(
            replace(recipe, artifact=f"{recipe.factory}.safetensors")
            for recipe in RECIPES
            if recipe.name in arguments.models
        )
        print(f"training {', '.join(recipe.name for recipe in recipes)}", flush=True)
        family = prepare(Path(name) / "family", lambda *_: None, recipes)
        specifications = [*family.specifications, *torchvision(Path(name) / "torchvision", arguments.torchvision)]
        rounds = []
        for number in range(arguments.rounds):
            rounds.append(asyncio.run(one_round(specifications, Path(name) / f"round-{number}")))
            for made in rounds[-1].models:
                show(made)
        result = summary(rounds)
    print("\nwhere the worker's time went, all models together:")
    for phase, taken_s in result["phases_s"].items():
        print(f"  {phase:<28} {taken_s:6.1f} s")
    for model in result["models"]:
        print(f"{model['model']}: {_times(model)}")
    print(
        f"the first worker built {result['first_worker_builds']:.0f} files; a second one was ready after "
        f"{result['second_worker_s']:.1f} s and built {result['second_worker_builds']:.0f}"
    )
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
