"""A worker is stopped in the middle of its work for two seconds, with its link alive: nobody should notice.

Deadlines are a second, so that whatever it holds would be late. The load and the counting are an outsider's (see
benchmarks/kill_rounds.py); the rule itself is in broker/stragglers.py.
"""

from __future__ import annotations

import signal
import threading
import time

import pytest
from emulated_system import write_specification

from benchmarks.kill_rounds import Outsider, Verdict
from benchmarks.system import LAYERS, TASK, System, running_up
from broker.stragglers import BURST
from modelless.config import BrokerConfig
from modelless.embedded import EmbeddedKafka

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(180)]

GROUP = '[[groups]]\nname = "emulated"\ndevice = "emulated"\nworkers = 2\n'
RATE, SECONDS = 100.0, 8.0
STOPPED_S = 2.0
LATENCY_MS = 1000.0
HELD_S = 1.7
"""Where a query was held until its worker went on; a machine that is merely busy takes less."""


class Timed(Outsider):
    """Knows when each query was sent."""

    def __init__(self, system: System) -> None:
        super().__init__(system, LATENCY_MS)
        self.sent_s: dict[int, float] = {}

    def send(self, number: int) -> None:
        self.sent_s[number] = time.perf_counter()
        super().send(number)

    def held(self) -> int:
        """Queries that got their answer only from the worker that was stopped, when it went on."""
        took_s = [read_s - self.sent_s[int(name.rpartition("-")[2])] for name, read_s in self.read_s.items()]
        return sum(each > HELD_S for each in took_s)


def played(system: System) -> tuple[Verdict, int]:
    """Under load each worker stops once."""
    outsider = Timed(system)
    load = threading.Thread(target=outsider.load, args=(RATE, SECONDS))
    load.start()
    workers = sorted(system.processes("worker").items())
    assert len(workers) == 2
    for _, worker in workers:
        time.sleep(1)
        worker.send_signal(signal.SIGSTOP)
        try:
            time.sleep(STOPPED_S)
        finally:
            worker.send_signal(signal.SIGCONT)
    load.join()
    verdict = outsider.verdict()
    print(verdict, f"{outsider.held()} held")
    assert {name: each.pid for name, each in system.processes("worker").items()} == {n: w.pid for n, w in workers}
    return verdict, outsider.held()


def registered(system: System) -> System:
    """A model in the outsider's task that takes 10 ms for up to 8 rows."""
    path = write_specification(system.file.parent, "mlp", TASK, ms=10.0, rows=8)
    path.write_text(path.read_text().replace("[-1, 2]", f"[-1, {LAYERS[0]}]"))
    system.specification = path
    system.register()
    return system


def test_a_worker_that_stops_for_a_while_makes_nobody_late(kafka: EmbeddedKafka) -> None:
    with running_up(GROUP, servers=kafka.bootstrap_servers) as system:
        verdict, held = played(registered(system))
    assert verdict.missing == []
    assert held <= 2, "without the rule, 6 or so"
    assert verdict.ok_share >= 0.98
    assert verdict.duplicates <= BrokerConfig().hedge_share_max * verdict.sent + BURST
