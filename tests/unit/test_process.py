"""How old a process is: from its own start, before its interpreter and its imports."""

from __future__ import annotations

import subprocess
import sys
import time

from modelless.process import age_ms


def test_age_passes_as_time_does() -> None:
    before_ms = age_ms()
    time.sleep(0.1)
    assert 90 <= age_ms() - before_ms <= 5_000


def test_age_counts_what_came_before_our_own_code() -> None:
    code = "import time; time.sleep(0.3)\nfrom modelless.process import age_ms; print(age_ms())"
    started_s = time.monotonic()
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert 290 <= float(said.stdout) <= (time.monotonic() - started_s) * 1000 + 20  # it counts in ticks of 10 ms
