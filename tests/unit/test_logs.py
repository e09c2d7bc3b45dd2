"""Logs: one JSON object per line off a terminal, readable on one, secrets never."""

from __future__ import annotations

import io
import json
import logging
import urllib.request
from collections.abc import Iterator

import pytest
import structlog
from aiokafka.errors import NoBrokersAvailable, NotLeaderForPartitionError, TopicAuthorizationFailedError
from prometheus_client import CollectorRegistry, Gauge

from modelless import logs
from modelless.config import LogConfig, MetricsConfig
from modelless.metrics import serve_metrics


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def test_json_lines_name_the_component() -> None:
    stream = io.StringIO()
    log = logs.configure(LogConfig(), "broker", "broker-0", stream=stream)
    log.info("leading", epoch=3, servers=("a", "b"))
    log.debug("not shown")
    logging.getLogger("aiokafka").warning("lost %s", "node 1")
    logging.getLogger("aiokafka").info("not shown")

    first, second = map(json.loads, stream.getvalue().splitlines())
    assert first.items() >= {"component": "broker", "name": "broker-0", "event": "leading", "epoch": 3}.items()
    assert second.items() >= {"component": "broker", "event": "lost node 1", "level": "warning"}.items()


def test_console_line_is_readable() -> None:
    stream = Terminal()
    logs.configure(LogConfig(level="debug"), "worker", "cpu-0", stream=stream).warning("slow", batch_ms=12)

    assert "cpu-0: slow" in stream.getvalue()
    assert "component" not in stream.getvalue()


@pytest.mark.parametrize("format", ["json", "console"])
def test_secrets_are_redacted(format: str) -> None:
    stream = io.StringIO()
    config = LogConfig.model_validate({"format": format})
    logs.configure(config, "up", stream=stream).info("kafka", sasl_password="hunter2", Token="hunter2")

    assert "hunter2" not in stream.getvalue()


def test_libraries_that_repeat_themselves_are_squelched() -> None:
    squelch = logs.Squelch()

    def say(at_s: float, node: int) -> str | None:
        record = logging.LogRecord("aiokafka", logging.ERROR, "", 0, "node %s is gone", (node,), None)
        record.created = at_s
        return record.getMessage() if squelch.filter(record) else None

    assert say(100.0, 1) == "node 1 is gone"
    assert [say(100.0 + n, 1) for n in range(1, 10)] == [None] * 9
    assert say(110.0, 2) == "node 2 is gone (and 9 more since)"
    assert say(120.0, 2) == "node 2 is gone"


def test_what_kafka_says_to_try_again_is_told_once_it_lasts() -> None:
    squelch = logs.Squelch()

    def said(at_s: float, error: Exception) -> bool:
        record = logging.LogRecord("aiokafka", logging.ERROR, "", 0, f"{type(error).__name__}: %s", (error,), None)
        record.created = at_s
        return squelch.filter(record)

    assert not said(100.0, NotLeaderForPartitionError())
    assert not said(101.0, NotLeaderForPartitionError())
    assert said(103.0, NotLeaderForPartitionError())
    assert not said(104.0, NotLeaderForPartitionError())
    assert not said(200.0, NotLeaderForPartitionError()), "that was another time"
    assert said(300.0, TopicAuthorizationFailedError("t"))
    assert said(400.0, NoBrokersAvailable()), "nobody answered"


def test_exceptions_become_text() -> None:
    stream = io.StringIO()
    log = logs.configure(LogConfig(), "up", stream=stream)
    try:
        raise ValueError("boom")
    except ValueError:
        log.exception("failed")

    assert "ValueError: boom" in json.loads(stream.getvalue())["exception"]


def test_metrics_take_the_next_free_port() -> None:
    registry = CollectorRegistry()
    Gauge("up", "It is.", registry=registry).set(1)
    config = MetricsConfig(port=29_464)
    with structlog.testing.capture_logs() as lines:
        first, second = serve_metrics(config, 3, registry), serve_metrics(config, 3, registry)

    assert first is not None
    assert second is not None
    assert first != second
    assert [line["event"] for line in lines][-1].startswith("metrics port is taken")
    for address in (first, second):
        with urllib.request.urlopen(f"http://{address}/metrics") as response:
            assert b"up 1.0" in response.read()
    assert serve_metrics(MetricsConfig(port=0), 3, registry) is None
