"""The programs of docs/clients.md, in languages that know nothing of us, ask a running system."""

from __future__ import annotations

import contextlib
import json
import re
import runpy
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.system import LAYERS, TASK, System, running_system
from modelless.codec import decode_query
from modelless.embedded import KAFKA_VERSION, EmbeddedKafka, class_path
from modelless.headers import read_headers

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
EXAMPLES, PAGE = ROOT / "examples/clients", ROOT / "docs/clients.md"


@pytest.fixture(scope="module")
def system(kafka: EmbeddedKafka) -> Iterator[System]:
    with running_system(servers=kafka.bootstrap_servers) as running:
        yield running


def prefix(system: System) -> str:
    return system.config.kafka.topic_prefix


def query(seed: int, task: str = TASK) -> str:
    values = np.random.default_rng(seed).normal(size=LAYERS[0]).round(3).tolist()
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, LAYERS[0]], "data": values}
    return json.dumps({"inputs": [tensor], "parameters": {"task": task, "latency_ms_max": 10_000}})


def check(system: System, command: list[str], folder: Path) -> None:
    """Everything is answered once, an error among it, and the program says so."""
    asked = [query(seed) for seed in range(20)] + [query(20, task="nobody's")]
    arguments = [*command, system.config.kafka.servers, prefix(system)]
    done = subprocess.run(
        arguments, input="\n".join(asked) + "\n", capture_output=True, text=True, cwd=folder, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    replies: list[tuple[str, dict[str, Any]]] = [(status, json.loads(value)) for status, _, value in lines]
    assert len({reply["id"] for _, reply in replies}) == len(replies) == len(asked)
    answered = [reply for status, reply in replies if status == "OK"]
    assert len(answered) == 20
    assert {reply["outputs"][0]["shape"][-1] for reply in answered} == {LAYERS[-1]}
    assert [reply["error"] for status, reply in replies if status == "NOT_FOUND"] == ['no such task: "nobody\'s"']


@pytest.mark.skipif(shutil.which("go") is None, reason="no Go")
def test_go(system: System, tmp_path: Path) -> None:
    program = tmp_path / "ask"
    built = subprocess.run(
        ["go", "build", "-o", str(program), "."], cwd=EXAMPLES / "go", capture_output=True, text=True, check=False
    )
    if "dial tcp" in built.stderr or "no such host" in built.stderr:
        pytest.skip(f"its modules cannot be fetched: {built.stderr.splitlines()[-1]}")
    assert built.returncode == 0, built.stderr
    check(system, [str(program)], tmp_path)


@pytest.mark.skipif(shutil.which("javac") is None, reason="no JDK")
def test_java(system: System, tmp_path: Path) -> None:
    """With the Kafka client that the embedded Kafka has anyway, not by Maven."""
    jars = class_path()
    sources = [str(path) for path in (EXAMPLES / "java").rglob("*.java")]
    built = subprocess.run(
        ["javac", "-cp", jars, "-d", str(tmp_path), *sources], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    check(system, ["java", "-cp", f"{jars}:{tmp_path}", "Ask"], tmp_path)


def test_the_java_example_has_the_client_of_the_embedded_kafka() -> None:
    pom = (EXAMPLES / "java/pom.xml").read_text()
    assert f"<artifactId>kafka-clients</artifactId>\n      <version>{KAFKA_VERSION}</version>" in pom


def test_python(system: System, tmp_path: Path) -> None:
    """As the page shows it."""
    (block,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    program = tmp_path / "ask.py"
    ours = {"127.0.0.1:9092": system.config.kafka.servers, '"modelless.': f'"{prefix(system)}.'}
    program.write_text(re.sub("|".join(map(re.escape, ours)), lambda found: ours[found.group()], block))
    shown = runpy.run_path(str(program))
    asked = json.loads(query(1))
    with contextlib.closing(shown["consumer"]):
        reply = shown["ask"](asked["inputs"], asked["parameters"])
    assert reply["parameters"]["status"] == "OK"
    assert reply["outputs"][0]["shape"] == [1, LAYERS[-1]]


def test_what_the_page_asks_is_a_query() -> None:
    for line in (EXAMPLES / "queries.jsonl").read_text().splitlines():
        asked, _ = decode_query(line.encode(), read_headers([("modelless-id", b"q-1")]))
        assert asked.task == "digits"


@pytest.mark.skipif(shutil.which("kcat") is None, reason="no kcat")
def test_kcat(system: System) -> None:
    """A record for each line."""
    at = ["-b", system.config.kafka.servers]
    lines = [json.dumps(json.loads(query(number)) | {"id": f"kcat-{number}"}) for number in range(3)]
    asking = ["kcat", "-P", *at, "-t", f"{prefix(system)}.queries", "-H", "modelless-reply-partition=1"]
    subprocess.run(asking, input="\n".join(lines), text=True, check=True)
    read = ["kcat", "-C", *at, "-t", f"{prefix(system)}.replies", "-p", "1", "-o", "beginning", "-f", "%h\t%s\n", "-u"]
    found: set[str] = set()
    with subprocess.Popen(read, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as reading:
        assert reading.stdout is not None
        for line in reading.stdout:
            headers = dict(each.split("=", 1) for each in line.partition("\t")[0].split(","))
            if headers["modelless-id"].startswith("kcat-") and headers["modelless-status"] == "OK":
                found.add(headers["modelless-id"])
            if len(found) == len(lines):
                break
        reading.terminate()
    assert found == {"kcat-0", "kcat-1", "kcat-2"}
