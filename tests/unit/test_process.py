"""How long a process took to start: from its own start, before its interpreter and its imports, or from the wish."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from modelless.process import ASKED_S, start_ms


def test_time_passes() -> None:
    before_ms = start_ms()
    time.sleep(0.1)
    assert 90 <= start_ms() - before_ms <= 5_000


def test_what_came_before_our_own_code_counts() -> None:
    code = "import time; time.sleep(0.3)\nfrom modelless.process import start_ms; print(start_ms())"
    started_s = time.monotonic()
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert 290 <= float(said.stdout) <= (time.monotonic() - started_s) * 1000 + 20  # it counts in ticks of 10 ms


def test_what_came_before_the_process_counts_where_it_was_asked_for_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ASKED_S, str(time.time() - 3600))
    assert 3_600_000 <= start_ms() <= 3_660_000
    monkeypatch.setenv(ASKED_S, str(time.time() + 3600))
    assert 0 < start_ms() < 3_600_000, "a clock that is ahead"
