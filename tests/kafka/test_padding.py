"""Rows of varying length through a whole system: padded, shared in batches, answered as if alone."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import tiny_networks
from confluent_kafka import Consumer, Producer, TopicPartition

from benchmarks.system import System, running_up
from modelless import Client
from modelless.catalog import CatalogView
from modelless.client_core import Result
from modelless.embedded import EmbeddedKafka
from modelless.errors import InvalidArgumentError
from modelless.registration import register

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(300)]

SECTIONS = """
[[groups]]
name = "cpu"
device = "cpu"
threads = 1
workers = 1
price_per_hour = 0.17
builders = ["torch-fp32", "onnx-fp32"]
[worker]
factories_allowed = ["tiny_networks"]
batch_size_max = 32
measure_s = 1
"""
SPECIFICATION = """
name = "masked"
task = "words"
artifact = "masked.safetensors"
factory = "tiny_networks:masked"
[inputs.tokens]
datatype = "INT64"
shape = [-1, -1]
padding = { lengths = [4, 8, 16], value = 7, mask = "mask" }
[inputs.mask]
datatype = "FP32"
shape = [-1, -1]
[outputs.pooled]
datatype = "FP32"
shape = [-1, 3]
[outputs.each]
datatype = "FP32"
shape = [-1, -1, 3]
padding = { axis = 1, follows = "tokens" }
[evaluation]
accuracy = 0.9
"""
LENGTHS = range(1, 17)


@pytest.fixture(scope="module")
def system(kafka: EmbeddedKafka) -> Iterator[System]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "support"))
        with running_up(SECTIONS, servers=kafka.bootstrap_servers) as running:
            folder = running.file.parent
            tiny_networks.write("masked", folder / "masked.safetensors")
            (folder / "model.toml").write_text(SPECIFICATION)
            asyncio.run(register(running.config, folder / "model.toml", wait_all=True))
            yield running


@pytest.fixture(scope="module")
def weights(system: System) -> dict[str, Any]:
    return safetensors.numpy.load_file(system.file.parent / "masked.safetensors")


def expected(weights: dict[str, Any], tokens: Any) -> tuple[Any, Any]:
    """The network in numpy, of rows that are not padded."""
    embedded = weights["table.weight"][tokens]
    head = weights["head.weight"].T
    return embedded.mean(axis=1) @ head + weights["head.bias"], embedded @ head + weights["head.bias"]


def client(system: System) -> Client:
    kafka = system.config.kafka
    return Client(kafka.servers, topic_prefix=kafka.topic_prefix)


async def test_rows_of_mixed_lengths_share_batches_and_are_answered_as_if_alone(
    system: System, weights: dict[str, Any]
) -> None:
    rng = np.random.default_rng(0)
    queries = [rng.integers(0, 50, (1 + index % 3, length)) for index, length in enumerate([*LENGTHS] * 12)]
    async with client(system) as asking:

        async def ask(tokens: Any) -> Result:
            return await asking.infer({"tokens": tokens}, task="words", latency_ms_max=60_000)

        results = await asyncio.gather(*[ask(tokens) for tokens in queries])
    for tokens, result in zip(queries, results, strict=True):
        pooled, each = expected(weights, tokens)
        assert result.outputs["each"].shape == (*tokens.shape, 3)
        assert np.allclose(result.outputs["pooled"], pooled, atol=1e-5)
        assert np.allclose(result.outputs["each"], each, atol=1e-5)
    shared = sum(result.batch_size > len(tokens) for tokens, result in zip(queries, results, strict=True))
    assert shared > len(queries) / 2
    assert max(result.batch_size for result in results) >= 8


async def test_in_json_and_with_a_mask_of_the_senders_own(system: System, weights: dict[str, Any]) -> None:
    tokens, mask = np.array([[3, 4, 5, 9, 9]]), np.array([[1, 1, 1, 0, 0]], "f4")
    async with client(system) as asking:
        result = await asking.infer({"tokens": tokens, "mask": mask}, task="words", latency_ms_max=60_000)
        assert np.allclose(result.outputs["pooled"], expected(weights, tokens[:, :3])[0], atol=1e-5)
        with pytest.raises(InvalidArgumentError, match="'tokens' has length 17 in dimension 1; at most 16 is taken"):
            await asking.infer({"tokens": np.ones((1, 17), "i8")}, task="words", latency_ms_max=60_000)
        with pytest.raises(InvalidArgumentError, match="'mask' has length 4 in dimension 1, but 'tokens'"):
            await asking.infer({"tokens": tokens, "mask": mask[:, :4]}, task="words", latency_ms_max=60_000)
    shape = {"name": "tokens", "datatype": "INT64", "shape": [1, 3], "data": [3, 4, 5]}
    reply = await asyncio.to_thread(ask_in_json, system, shape)
    each = next(output for output in reply["outputs"] if output["name"] == "each")
    assert each["shape"] == [1, 3, 3]
    assert np.allclose(np.reshape(each["data"], each["shape"]), expected(weights, tokens[:, :3])[1], atol=1e-5)


def ask_in_json(system: System, tensor: dict[str, Any]) -> Any:
    """As a program without our library does."""
    prefix, servers = system.config.kafka.topic_prefix, system.config.kafka.servers
    consumer = Consumer({"bootstrap.servers": servers, "group.id": f"json-{time.time_ns()}"})
    at = TopicPartition(f"{prefix}.replies", 0)
    at.offset = consumer.get_watermark_offsets(at)[1]
    consumer.assign([at])
    producer = Producer({"bootstrap.servers": servers})
    asked = {"task": "words", "latency_ms_max": 60_000, "reply_partition": 0}
    body = {"id": "json-1", "inputs": [tensor], "parameters": asked}
    producer.produce(f"{prefix}.queries", json.dumps(body).encode())
    producer.flush(10)
    try:
        end_s = time.monotonic() + 30
        while time.monotonic() < end_s:
            message = consumer.poll(1)
            if message is not None and not message.error():
                reply = json.loads(message.value())
                if reply.get("id") == "json-1":
                    return reply
    finally:
        consumer.close()
    raise AssertionError("no reply in 30 s")


async def test_every_length_was_measured(system: System) -> None:
    view = CatalogView(system.config)
    await view.start()
    await view.stop()
    (model,) = [each for each in view.catalog.models() if each.name == "masked"]
    profiles = view.catalog.profiles(model)
    assert [profile.status for profile in profiles] == ["ready", "ready"]
    for profile in profiles:
        assert {each.length for each in profile.lengths} <= {4, 8}
        assert profile.batches
