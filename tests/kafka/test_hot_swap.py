"""Versions of a running system under load: one takes over from another, and a bad canary is rolled back.

The load and the verifier are an outsider's (confluent-kafka and JSON, see benchmarks/kill_rounds.py).
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from typer.testing import CliRunner, Result

from benchmarks.kill_rounds import Outsider, Verdict
from benchmarks.system import System, running_system, write_mlp
from modelless.catalog import CatalogView
from modelless.embedded import EmbeddedKafka
from modelless.messages import Labels
from modelless.registration import register

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(300)]

RATE = 150.0


@pytest.fixture(scope="module")
def system(kafka: EmbeddedKafka) -> Iterator[System]:
    """Two brokers and two workers on the session's Kafka, and version 1 of the small MLP."""
    with running_system(brokers=2, workers=2, servers=kafka.bootstrap_servers) as running:
        yield running


class Load(Outsider):
    """Queries at a steady rate until ``end``."""

    def __init__(self, system: System) -> None:
        super().__init__(system)
        self._ending = threading.Event()
        self._sender = threading.Thread(target=self._send)
        self._sender.start()

    def _send(self) -> None:
        number = 0
        while not self._ending.wait(1 / RATE):
            self.send(number)
            number += 1
        self._producer.flush(60)

    def end(self) -> Verdict:
        self._ending.set()
        self._sender.join()
        verdict = self.verdict()
        print(verdict, Counter(verdict.versions))
        return verdict


def wait_until(what: str, true: Callable[[], bool], timeout_s: float = 60) -> None:
    end_s = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end_s, f"{what} did not happen in {timeout_s} s"
        time.sleep(0.1)


def run(system: System, *arguments: str) -> Result:
    """A command, as an operator types it."""
    import importlib

    import typer

    app = typer.Typer()
    for name in ("label", "models"):
        importlib.import_module(f"modelless.commands.{name}").register(app)
    return CliRunner().invoke(app, [*arguments, "--config", str(system.file)], catch_exceptions=False)


async def labels_of(system: System) -> Labels | None:
    view = CatalogView(system.config)
    await view.start()
    await view.stop()
    return view.catalog.labels("mlp")


def test_the_next_version_takes_over_without_a_failed_or_lost_query(system: System) -> None:
    load = Load(system)
    wait_until("version 1 answers", lambda: load.versions.count("1") > 100)
    registered = asyncio.run(register(system.config, write_mlp(system.specification.parent, seed=8)))
    assert registered.model.key == "mlp:2"
    wait_until("version 2 answers", lambda: load.versions[-50:].count("2") == 50)
    verdict = load.end()
    assert verdict.missing == []
    assert verdict.ok_share == 1.0
    assert verdict.duplicates == 0
    assert set(verdict.versions) == {"1", "2"}


def test_a_canary_that_fails_is_rolled_back(system: System) -> None:
    assert "stable: mlp:2" in run(system, "label", "mlp:2", "stable").output
    broken = write_mlp(system.specification.parent, seed=9, broken=True)
    assert asyncio.run(register(system.config, broken)).is_served
    load = Load(system)
    wait_until("the stable version answers, not the newest", lambda: len(load.versions) > 200)
    assert set(load.versions) == {"2"}
    answer = run(system, "label", "mlp:3", "canary", "--weight", "0.3", "--samples-min", "50")
    assert "canary: mlp:3 answers 30.0%" in answer.output
    wait_until("roll-back", lambda: (now := asyncio.run(labels_of(system))) is not None and now.canary is None)
    rolled_back = asyncio.run(labels_of(system))
    assert rolled_back is not None
    assert rolled_back.stable == 2
    assert "mlp:3 failed" in (rolled_back.reason or "")
    failed_until_then = sum(status != "OK" for status in load.first.values())
    assert failed_until_then >= 20
    time.sleep(1)  # a broker may read it a moment later
    failed_until_then = sum(status != "OK" for status in load.first.values())
    time.sleep(2)
    assert sum(status != "OK" for status in load.first.values()) == failed_until_then
    verdict = load.end()
    assert verdict.missing == []
    assert verdict.statuses.keys() <= {"OK", "INTERNAL"}
    assert "rolled back: mlp:3 failed" in run(system, "label", "mlp").output
    assert "the canary of mlp was rolled back: mlp:3 failed" in run(system, "models").output


def test_a_shadow_gets_copies_and_answers_nobody(system: System) -> None:
    """Version 2 is shadowed by one of the same weights, whose predictions agree, and by version 1, whose do not."""
    same = write_mlp(system.specification.parent, seed=8)
    same.write_text(same.read_text().replace("accuracy = 0.9", "accuracy = 0.91"))
    assert asyncio.run(register(system.config, same)).model.key == "mlp:4"
    load = Load(system)
    agreed = {}
    for shadow in ("mlp:4", "mlp:1"):
        assert f"shadow: {shadow} gets copies of 100.0%" in run(system, "label", shadow, "shadow").output
        wait_until("copies", lambda shadow=shadow: copies(system, shadow)[0] > 50)  # type: ignore[misc]
        agreed[shadow] = copies(system, shadow)[1]
    verdict = load.end()
    assert verdict.missing == []
    assert verdict.ok_share == 1.0
    assert verdict.duplicates == 0
    assert set(verdict.versions) == {"2"}
    assert agreed["mlp:4"] == 1.0
    assert agreed["mlp:1"] < 0.5


def copies(system: System, shadow: str) -> tuple[int, float]:
    """(how many were compared, the share that agreed), as the command shows it."""
    rows = json.loads(run(system, "label", "mlp", "--json").output)["versions"]
    found = [row for row in rows if row["label"] == "shadow" and row["version"].startswith(f"{shadow}/")]
    return sum(row["shadowed"] for row in found), max([row["agreement"] or 0.0 for row in found], default=0.0)
