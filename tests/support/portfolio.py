"""A catalog like that of a real system: five models of one task, seven builders each, and some that failed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from modelless.accuracy import wilson
from modelless.catalog import Catalog, digest_of
from modelless.codec import encode_record
from modelless.messages import (
    BatchTime,
    Condition,
    Correction,
    Evaluation,
    Labels,
    ModelVersion,
    Profile,
)
from modelless.tensors import TensorSpec
from modelless.topics import Topics

MODELS = {
    "digits-linear": (0.905, 0.16),
    "digits-mlp": (0.945, 0.18),
    "digits-cnn": (0.968, 0.25),
    "digits-deep": (0.981, 0.6),
    "digits-committee": (0.992, 9.0),
}
"""Accuracy, and milliseconds of one row as torch-fp32."""
BUILDERS = {
    "torch-fp32": (0.0, 1.0),
    "torch-bf16": (-0.004, 1.4),
    "torch-int8": (-0.006, 1.25),
    "torch-compile": (0.0, 0.75),
    "onnx-fp32": (0.0, 0.55),
    "onnx-int8": (-0.008, 0.45),
    "openvino-fp32": (0.0, 0.6),
}
"""What it costs in accuracy, and the factor on the time."""
ROWS = 349
TOPICS = Topics()


class _Record(NamedTuple):
    topic: str
    key: bytes
    value: bytes


def put(catalog: Catalog, message: ModelVersion | Labels | Profile | Condition | Correction) -> None:
    registry = isinstance(message, ModelVersion | Labels)
    key = f"model/{message.key}" if isinstance(message, ModelVersion) else message.key
    alarm = catalog.apply(
        _Record(TOPICS.registry if registry else TOPICS.profiles, key.encode(), encode_record(message))
    )
    assert alarm is None, alarm


def model(name: str, version: int = 1, task: str = "digits", exits: int = 1) -> ModelVersion:
    inputs, outputs = (TensorSpec("pixels", "FP32", (-1, 64)),), (TensorSpec("logits", "FP32", (-1, 10)),)
    plain = ModelVersion(
        name, version, task, "safetensors", f"file:///{name}", "0" * 64, 1, inputs, outputs, Evaluation(), "",
        exits=exits,
    )  # fmt: skip
    return ModelVersion(**{field: getattr(plain, field) for field in plain.__slots__} | {"digest": digest_of(plain)})


def profile(of: ModelVersion, builder: str, accuracy: float, row_ms: float, group: str = "cpu-small") -> Profile:
    right = round(accuracy * ROWS)
    low, high = wilson(right, ROWS)
    sizes = [(size, row_ms * (0.4 + 0.6 * size**0.7) if row_ms < 5 else row_ms * size**0.97) for size in (1, 4, 16, 64)]
    return Profile(
        f"{of.key}/{builder}",
        group,
        "ready",
        of.digest,
        load_ms=900.0,
        load_warm_ms=40.0,
        memory_bytes=30 << 20,
        accuracy=right / ROWS,
        accuracy_low=low,
        accuracy_high=high,
        accuracy_rows=ROWS,
        batches=tuple(BatchTime(size, ms, 1.3 * ms) for size, ms in sizes),
        price_per_hour=0.17,
    )


def failed(of: ModelVersion, builder: str, reason: str, group: str = "cpu-small") -> Profile:
    return Profile(f"{of.key}/{builder}", group, "failed", of.digest, reason=reason)


def portfolio() -> Catalog:
    draw = np.random.default_rng(3)
    catalog = Catalog(TOPICS)
    for name, (accuracy, row_ms) in MODELS.items():
        of = model(name)
        put(catalog, of)
        for builder, (loss, factor) in BUILDERS.items():
            jitter = 1 + 0.1 * float(draw.random())
            put(catalog, profile(of, builder, accuracy + loss, row_ms * factor * jitter))
        put(catalog, failed(of, "tensorrt-fp16", "no CUDA device"))
    return catalog
