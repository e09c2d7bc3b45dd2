"""Local processes: started, listed, asked once, killed, and listed once more when they have ended."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from benchmarks.system import command_of
from modelless.config import Config
from modelless.provision import local, make, worker_command
from modelless.provision.local import LocalProcesses
from modelless.provision.reconcile import Instance

# In the place of `modelless forks`: "bad" fails with a reason, "deaf" ignores SIGTERM, "plain" leaves it as it is.
SCRIPT = """
import os, signal, socket, sys, time
from modelless.child import leave_word
from modelless.forking import serve
asked = serve(socket.socket(fileno=int(sys.argv[2])))
if asked is None:
    sys.exit(0)
if asked["group"] == "bad":
    leave_word("no such device")
    sys.exit(1)
if asked["group"] != "plain":
    signal.signal(signal.SIGTERM, signal.SIG_IGN if asked["group"] == "deaf" else lambda *_: sys.exit(0))
with open(os.path.join(sys.argv[1], asked["name"]), "w") as file:
    print(os.getpid(), file=file, flush=True)
time.sleep(60)
"""


@pytest.fixture
async def processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LocalProcesses]:
    monkeypatch.setattr(local, "fork_server_command", lambda _: (sys.executable, "-c", SCRIPT, str(tmp_path)))
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


async def started(path: Path) -> psutil.Process:
    await up(path)
    return psutil.Process(int(path.read_text()))  # noqa: ASYNC240


def server_of(folder: Path) -> psutil.Process:
    (found,) = [each for each in psutil.Process().children() if str(folder) in each.cmdline()]
    return found


async def test_one_that_fails_says_why(processes: LocalProcesses) -> None:
    await processes.start("bad", "bad-0")
    assert await processes.instances() == [Instance("bad-0", "bad")]
    assert await ended(processes) == Instance("bad-0", "bad", ended="exit status 1: no such device")
    await processes.start("bad", "bad-0")
    await ended(processes)


async def test_one_that_is_asked_goes_and_one_that_does_not_is_killed(
    processes: LocalProcesses, tmp_path: Path
) -> None:
    for group, how in (("plain", "killed by SIGTERM"), ("polite", "exit status 0"), ("deaf", "")):
        await processes.start(group, f"{group}-0")
        await up(tmp_path / f"{group}-0")
        await processes.stop(f"{group}-0")
        assert not how or (await ended(processes)).ended == how
    assert [each.name for each in await processes.instances()] == ["deaf-0"]
    await processes.stop("deaf-0", now=True)
    assert await ended(processes) == Instance("deaf-0", "deaf", ended="killed by SIGKILL", was_killed=True)
    await processes.stop("deaf-0")  # it is gone: nothing to do


async def test_nobody_is_left_behind(processes: LocalProcesses, tmp_path: Path) -> None:
    await processes.start("deaf", "deaf-0")
    await up(tmp_path / "deaf-0")
    await processes.close()
    assert [each.ended for each in await processes.instances()] == ["killed by SIGKILL"]


async def test_a_worker_looks_like_one_and_has_a_session_of_its_own(processes: LocalProcesses, tmp_path: Path) -> None:
    await processes.start("plain", "plain-0")
    process = await started(tmp_path / "plain-0")
    line = command_of(process)
    assert line[line.index("worker") :][:5] == ["worker", "--group", "plain", "--name", "plain-0"]
    assert os.getsid(process.pid) == process.pid
    assert "worker" not in command_of(server_of(tmp_path))


async def test_whoever_ends_all_at_once_does_not_end_what_they_die_with(
    processes: LocalProcesses, tmp_path: Path
) -> None:
    await processes.start("polite", "polite-0")
    process = await started(tmp_path / "polite-0")
    server = server_of(tmp_path)
    for number in (signal.SIGTERM, signal.SIGINT):
        server.send_signal(number)
    await processes.start("polite", "polite-1")
    await up(tmp_path / "polite-1")
    process.terminate()
    assert (await ended(processes)).ended == "exit status 0"


async def test_workers_die_with_what_they_were_forked_from_and_others_follow(
    processes: LocalProcesses, tmp_path: Path
) -> None:
    await processes.start("deaf", "deaf-0")
    process = await started(tmp_path / "deaf-0")
    server = server_of(tmp_path)
    server.kill()
    assert await ended(processes) == Instance("deaf-0", "deaf", ended="killed by SIGKILL", was_killed=True)
    process.wait(5)
    (tmp_path / "deaf-0").unlink()
    await processes.start("deaf", "deaf-0")
    assert (await started(tmp_path / "deaf-0")).is_running()


async def test_the_default_is_local() -> None:
    assert isinstance(make(Config()), LocalProcesses)
    line = worker_command("cpu", "cpu-1", Path("my.toml"))
    assert line[1:] == ("-m", "modelless", "worker", "--group", "cpu", "--name", "cpu-1", "--config", "my.toml")
