"""Kill, restart and drain the parts of a running system under load; count ids in and out. None may be missing.

The load and the verifier are an outsider's (confluent-kafka and JSON, see benchmarks/kill_rounds.py).
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import psutil
import pytest
from under import RATE, Under

from benchmarks.kill_rounds import kill_rounds
from benchmarks.system import System, running_system
from modelless.embedded import EmbeddedKafka

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def system(kafka: EmbeddedKafka) -> Iterator[System]:
    """Two brokers and two workers on the session's Kafka."""
    with running_system(brokers=2, workers=2, servers=kafka.bootstrap_servers) as running:
        yield running


def wait_until(what: str, true: object, timeout_s: float = 30) -> None:
    assert callable(true)
    end_s = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end_s, f"{what} did not happen in {timeout_s} s"
        time.sleep(0.1)


def test_a_steady_load_is_answered_once(system: System) -> None:
    with Under(system) as under:
        pass
    assert under.verdict.missing == []
    assert under.verdict.ok_share == 1.0
    assert under.verdict.duplicates == 0


def test_a_killed_worker_loses_nothing(system: System) -> None:
    with Under(system) as under:
        name, victim = sorted(system.processes("worker").items())[0]
        victim.kill()
        wait_until("restart", lambda: system.processes("worker").get(name, victim).pid != victim.pid)
    assert under.verdict.missing == []
    assert under.verdict.ok_share >= 0.98


def test_a_killed_broker_loses_nothing(system: System) -> None:
    with Under(system) as under:
        name, victim = sorted(system.processes("broker").items())[0]
        victim.kill()
        wait_until("restart", lambda: system.processes("broker").get(name, victim).pid != victim.pid)
    assert under.verdict.missing == []
    assert under.verdict.ok_share >= 0.98
    assert under.verdict.duplicate_share < 0.05


@pytest.mark.parametrize("kind", ["broker", "worker"])
def test_sigterm_drains_within_its_time(system: System, kind: str) -> None:
    with Under(system) as under:
        victim = sorted(system.processes(kind).items())[0][1]
        victim.send_signal(signal.SIGTERM)
        gone, alive = psutil.wait_procs([victim], timeout=25)
        assert not alive
    assert f'"{kind}-0' in system.log.read_text() or gone
    assert under.verdict.missing == []
    assert under.verdict.ok_share == 1.0
    assert under.verdict.duplicates == 0


def test_killed_again_and_again(system: System) -> None:
    verdict = kill_rounds(system, seconds=10, rate=RATE, every_s=2.5, seed=3)
    print(verdict)
    assert verdict.missing == []
    assert verdict.ok_share >= 0.98
    assert sum(verdict.kills.values()) >= 2
