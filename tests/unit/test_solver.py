"""What takes long is worked out in another process, which ends with us; what fails there is worked out here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean

import pytest

from broker.placement_model import Choice, Demand
from broker.sizing import Limits, size
from broker.solver import Solver


def test_what_is_quick_is_worked_out_here() -> None:
    solver = Solver(here_s_max=10.0)
    assert [solver(os.getpid)() for _ in range(3)] == [os.getpid()] * 3
    solver.stop()


def test_what_took_long_is_worked_out_elsewhere_and_says_the_same() -> None:
    solver = Solver(here_s_max=0.0)
    try:
        assert solver(os.getpid)() == os.getpid()
        there = solver(os.getpid)()
        assert there != os.getpid()
        assert solver(os.getpid)() == there, "one process for all"
        asked = (
            [Demand("t", 500.0, 0.0, 100.0)],
            [Choice("v", "t", "g", 0.9, (1,), (10.0,), (10.0,), 100.0, 0.0)],
            [Limits("g", 1000.0, 1.0, 0, 5)],
        )
        assert solver(size)(*asked) == size(*asked) == solver(size)(*asked)
        with pytest.raises(TypeError):
            [solver(mean)(data) for data in ([1.0], None)]  # type: ignore[arg-type]
    finally:
        solver.stop()


def test_a_process_that_dies_costs_no_answer() -> None:
    solver = Solver(here_s_max=0.0)
    try:
        solver(os.getpid)()
        os.kill(solver(os.getpid)(), signal.SIGKILL)
        assert solver(os.getpid)() == os.getpid()
        assert solver(os.getpid)() != os.getpid()
    finally:
        solver.stop()


def test_the_process_ends_when_whoever_asks_is_killed() -> None:
    code = (
        "import os, time; from broker.solver import Solver\n"
        "if __name__ == '__main__':\n"
        "    solver = Solver(0.0); solver(os.getpid)(); print(solver(os.getpid)(), flush=True); time.sleep(60)"
    )
    asks = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert asks.stdout is not None
    there = int(asks.stdout.readline())
    asks.kill()
    asks.communicate()
    until_s = time.monotonic() + 10
    while time.monotonic() < until_s and _is_alive(there):
        time.sleep(0.05)
    assert not _is_alive(there)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
