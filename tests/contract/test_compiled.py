"""Compiled modules decide as their source does: one load, played with both, has the same outcomes query by query."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import broker.core

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = ROOT / "examples" / "simulate"
SOURCE_FIRST = """
import importlib.machinery as m, sys
sys.path_hooks[:] = [hook for hook in sys.path_hooks if "zipimporter" in repr(hook)] + [
    m.FileFinder.path_hook((m.SourceFileLoader, m.SOURCE_SUFFIXES), (m.ExtensionFileLoader, m.EXTENSION_SUFFIXES))
]
sys.path_importer_cache.clear()
"""
PLAY = """
import broker.core, sys
from modelless.commands import main
print(broker.core.__file__)
main()
"""


def play(tmp_path: Path, name: str, before: str, load: str) -> tuple[str, str]:
    """(the file that decided, the log of all queries)."""
    log = tmp_path / f"{name}.csv"
    done = subprocess.run(
        [
            sys.executable, "-c", before + PLAY, "simulate", "--brokers", "2", "--seed", "3", "--log", str(log),
            "--generate", load, "--profiles", str(EXAMPLE / "profiles.csv"), "--fleet", str(EXAMPLE / "fleet.csv"),
        ],
        capture_output=True, text=True, timeout=120, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[0], log.read_text()


@pytest.mark.skipif(broker.core.__file__.endswith(".py"), reason="nothing is compiled: no C compiler was there")
def test_compiled_modules_decide_as_their_source_does(tmp_path: Path) -> None:
    task = (EXAMPLE / "profiles.csv").read_text().splitlines()[1].partition(",")[0]
    load = f"bursts:rate=150,times=4,burst_s=1,calm_s=3,seconds=8,task={task},latency_ms_max=100|400"
    load += ",on_miss=degrade|late"
    compiled, outcomes = play(tmp_path, "compiled", "", load)
    source, expected = play(tmp_path, "source", SOURCE_FIRST, load)
    assert not compiled.endswith(".py")
    assert source.endswith(".py")
    assert len(expected.splitlines()) > 1000
    assert outcomes == expected
