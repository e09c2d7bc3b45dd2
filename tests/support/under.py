"""A load on a running system, while a test does something to it.

The load and the verifier are an outsider's (confluent-kafka and JSON, see benchmarks/kill_rounds.py).
"""

from __future__ import annotations

import threading
import time

from benchmarks.kill_rounds import Outsider, Verdict
from benchmarks.system import System

RATE = 150.0
SECONDS = 5.0


class Under:
    """A load that runs while the block does; ``verdict`` is there afterwards."""

    verdict: Verdict

    def __init__(self, system: System, seconds: float = SECONDS) -> None:
        self._outsider = Outsider(system)
        self._load = threading.Thread(target=self._outsider.load, args=(RATE, seconds))

    def __enter__(self) -> Under:
        self._load.start()
        time.sleep(1)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._load.join()
        self.verdict = self._outsider.verdict()
        print(self.verdict)
