"""Variants for ``benchmarks.policies`` from the measurements of pytorch-image-models: accuracy, one CPU, two GPUs.

Names are joined without their weights' tag, with the same image size; of several weights the most accurate. A CPU was
measured at batch 1: ``lat(b) = b step``. A GPU at one large batch: ``lat(b) = a + 1000 b / samples per second``, with
an **assumed** ``a``. Memory is 4 bytes per parameter and 300 MB, a load 200 ms and 2 ms per million parameters. Tails
were not measured: there are none. The first task has the models that none beats in both speed and accuracy, the second
those that none beats without them, and so on.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.policy_grid import Family
from simulator.facts import Portfolio, VariantProfile

FILES = {
    "cpu": "timm_infer_cpu_i9_10940x_fp32.csv",
    "gpu-small": "timm_infer_rtx3090_amp.csv",
    "gpu-large": "timm_infer_rtx4090_amp.csv",
}
ACCURACIES = "timm_imagenet_accuracy.csv"
VARIANTS = 5
"""Of each task."""
GPU_SIZES = (1, 2, 4, 8, 16, 32, 64)
CPU_SIZES = (1, 2, 4)
SMALL_ROW_MS = (0.8, 20.0)
"""On the smaller GPU: lighter models would make thousands of queries a second, which says no more and takes longer."""
LATENCIES_MS = (100.0, 250.0, 1000.0)

Name = tuple[str, str]
"""Model without its weights' tag, image size."""


class Measured(NamedTuple):
    name: str
    accuracy: float
    parameters_m: float
    row_ms: dict[str, float]
    """By group."""


def timm(folder: Path, tasks: int, intercept_ms: float) -> Family:
    """Raises OSError, KeyError, ValueError: a file is not there, or not as published."""
    left = _joined(folder)
    profiles = []
    for task in range(tasks):
        own = _frontier(left)
        left = [each for each in left if each not in own]
        costs_ms = np.geomspace(own[0].row_ms["gpu-small"], own[-1].row_ms["gpu-small"], VARIANTS) * 1.001
        chosen = [max((m for m in own if m.row_ms["gpu-small"] <= ms), key=lambda m: m.accuracy) for ms in costs_ms]
        for each in dict.fromkeys(each.name for each in chosen):
            model = next(m for m in chosen if m.name == each)
            for group, row_ms in model.row_ms.items():
                sizes, fixed_ms = (CPU_SIZES, 0.0) if group == "cpu" else (GPU_SIZES, intercept_ms)
                p50_ms = tuple(fixed_ms + row_ms * size for size in sizes)
                profiles.append(
                    VariantProfile(f"t{task}", model.name, f"t{task}/{model.name}", group, model.accuracy,
                                   200.0 + 2.0 * model.parameters_m, 300.0 + 4.0 * model.parameters_m,
                                   sizes, p50_ms, p50_ms)
                )  # fmt: skip
    return Family(f"timm, a = {intercept_ms:g} ms", Portfolio(tuple(profiles)), LATENCIES_MS, (0.0, 0.4, 0.75))


def _joined(folder: Path) -> list[Measured]:
    """Models that were measured on all devices, of the sizes wanted."""
    accuracy: dict[Name, tuple[float, float]] = {}
    for row in _rows(folder / ACCURACIES):
        name = row["model"].rpartition(".")[0] or row["model"], row["img_size"]
        read = float(row["top1"]) / 100, float(row["param_count"].replace(",", ""))
        accuracy[name] = max(accuracy.get(name, read), read)
    steps = {group: dict(_row_ms(folder / file, group)) for group, file in FILES.items()}
    joined = [
        Measured("-".join(name), round(share, 5), parameters_m, {group: rows[name] for group, rows in steps.items()})
        for name, (share, parameters_m) in accuracy.items()
        if all(name in rows for rows in steps.values())
    ]
    least_ms, most_ms = SMALL_ROW_MS
    return [each for each in joined if least_ms <= each.row_ms["gpu-small"] <= most_ms]


def _frontier(models: Sequence[Measured]) -> list[Measured]:
    """Those than which none is faster on the smaller GPU and more accurate, from the fastest on."""
    found: list[Measured] = []
    for each in sorted(models, key=lambda each: (each.row_ms["gpu-small"], -each.accuracy)):
        if not found or each.accuracy > found[-1].accuracy:
            found.append(each)
    return found


def _row_ms(path: Path, group: str) -> Iterator[tuple[Name, float]]:
    for row in _rows(path):
        per_second, step_ms = float(row["infer_samples_per_sec"]), float(row["infer_step_time"])
        yield (row["model"], row["infer_img_size"]), step_ms if group == "cpu" else 1000.0 / per_second


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(newline="") as file:
        yield from csv.DictReader(file)
