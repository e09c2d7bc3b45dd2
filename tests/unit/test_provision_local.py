"""Local processes: started, listed, asked once, killed, and listed once more when they have ended."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from modelless.config import Config
from modelless.provision import local, make, worker_command
from modelless.provision.local import LocalProcesses
from modelless.provision.reconcile import Instance

# In the place of `modelless worker`: "bad" fails with a reason, "deaf" ignores SIGTERM.
SCRIPT = """
import signal, sys, time
from modelless.child import leave_word
if sys.argv[1] == "bad":
    leave_word("no such device")
    sys.exit(1)
signal.signal(signal.SIGTERM, signal.SIG_IGN if sys.argv[1] == "deaf" else lambda *_: sys.exit(0))
print("up", file=open(sys.argv[2], "w"), flush=True)
time.sleep(60)
"""


@pytest.fixture
async def processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LocalProcesses]:
    def command(group: str, name: str, file: Path | None) -> tuple[str, ...]:
        return sys.executable, "-c", SCRIPT, group, str(tmp_path / name)

    monkeypatch.setattr(local, "worker_command", command)
    found = LocalProcesses(Config(), None)
    yield found
    await found.close()


async def ended(processes: LocalProcesses) -> Instance:
    async with asyncio.timeout(20):
        await processes.changed.wait()
    processes.changed.clear()
    (instance,) = [each for each in await processes.instances() if each.ended]
    assert not [each for each in await processes.instances() if each.ended], "it is told once"
    return instance


async def up(path: Path) -> None:
    async with asyncio.timeout(20):
        while not path.exists() or not path.read_text():  # noqa: ASYNC110, ASYNC240
            await asyncio.sleep(0.01)


async def test_one_that_fails_says_why(processes: LocalProcesses) -> None:
    await processes.start("bad", "bad-0")
    assert await processes.instances() == [Instance("bad-0", "bad")]
    assert await ended(processes) == Instance("bad-0", "bad", ended="exit status 1: no such device")
    await processes.start("bad", "bad-0")
    await ended(processes)


async def test_one_that_is_asked_goes_and_one_that_does_not_is_killed(
    processes: LocalProcesses, tmp_path: Path
) -> None:
    for group in ("polite", "deaf"):
        await processes.start(group, f"{group}-0")
        await up(tmp_path / f"{group}-0")
        await processes.stop(f"{group}-0")
    assert (await ended(processes)).ended == "exit status 0"
    assert [each.name for each in await processes.instances()] == ["deaf-0"]
    await processes.stop("deaf-0", now=True)
    assert await ended(processes) == Instance("deaf-0", "deaf", ended="killed by SIGKILL", was_killed=True)
    await processes.stop("deaf-0")  # it is gone: nothing to do


async def test_nobody_is_left_behind(processes: LocalProcesses, tmp_path: Path) -> None:
    await processes.start("deaf", "deaf-0")
    await up(tmp_path / "deaf-0")
    await processes.close()
    assert [each.ended for each in await processes.instances()] == ["killed by SIGKILL"]


async def test_the_default_is_local() -> None:
    assert isinstance(make(Config()), LocalProcesses)
    line = worker_command("cpu", "cpu-1", Path("my.toml"))
    assert line[1:] == ("-m", "modelless", "worker", "--group", "cpu", "--name", "cpu-1", "--config", "my.toml")
