"""The supervisor: when it restarts, in which order it stops, and what it kills."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from modelless import up
from modelless.child import Child
from modelless.config import BrokerConfig, Config
from modelless.forking import Forked, ForkServer, fork_server_command
from modelless.messages import Member
from modelless.restarts import DELAY_MS_MAX, DELAY_MS_MIN, YOUNG_MS, RestartPolicy
from modelless.up import Supervisor, brokers_of, not_ready

# A process that writes its name when it starts and when it leaves; "deaf" ones ignore SIGTERM.
SCRIPT = """
import pathlib, signal, sys, time
log, name, kind = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
def say(what):
    with log.open("a") as file:
        file.write(f"{name} {what}\\n")
def leave(*_):
    say("left")
    sys.exit(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN if kind == "deaf" else leave)
say("started")
if kind == "fragile":
    sys.exit(3)
time.sleep(60)
"""

# What forks such processes: the names come with what is asked.
FORKS = """
import socket, sys
from modelless.forking import serve
_, script, log, descriptor = sys.argv
asked = serve(socket.socket(fileno=int(descriptor)))
if asked is not None:
    sys.argv[1:] = [log, asked["name"], "polite"]
    exec(script)
"""


def child(log: Path, name: str, kind: str = "polite", drain_s: float = 10.0) -> Child:
    return Child(name, (sys.executable, "-c", SCRIPT, str(log), name, kind), drain_s)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  (processes and files tell nobody)
            await asyncio.sleep(0.01)


async def wait_for(log: Path, line: str, times: int = 1) -> None:
    await until(lambda: log.exists() and log.read_text().splitlines().count(line) >= times)


def test_first_death_is_answered_at_once_then_delays_grow() -> None:
    policy = RestartPolicy()
    delays = []
    for now_ms in range(0, 12_000, 1000):
        policy.started(now_ms)
        delays.append(policy.died(now_ms + 100))
    assert delays[:5] == [0.0, 500.0, 1000.0, 2000.0, 4000.0]
    assert delays[-1] == DELAY_MS_MAX


def test_what_is_killed_from_outside_is_never_kept_waiting() -> None:
    policy = RestartPolicy()
    for now_ms in range(0, 50_000, 1000):
        policy.started(now_ms)
        assert policy.died(now_ms + 900, was_killed=True) == 0.0
        policy.started(now_ms)
        assert policy.died(now_ms + 100, was_killed=True) == DELAY_MS_MIN


def test_a_long_life_is_forgiven() -> None:
    policy = RestartPolicy()
    for _ in range(5):
        policy.started(0.0)
        policy.died(1.0)
    policy.started(0.0)
    assert policy.died(YOUNG_MS) == 0.0
    policy.started(0.0)
    assert policy.died(1.0) == 0.0
    policy.started(0.0)
    assert policy.died(1.0) == 500.0


async def test_brokers_of_a_configuration() -> None:
    server = ForkServer(fork_server_command("broker"))
    brokers = brokers_of(Config(broker=BrokerConfig(brokers=2)), Path("my.toml"), server)

    assert [broker.name for broker in brokers] == ["broker-0", "broker-1"]
    assert brokers[0].line[1:] == ("-m", "modelless", "broker", "--name", "broker-0", "--config", "my.toml")
    assert brokers[0].asked == {"name": "broker-0", "file": "my.toml"}


def test_only_this_runs_incarnations_count_as_ready() -> None:
    members = (Member("broker", "broker-0", "old", "ready"), Member("worker", "cpu-0", "new", "ready"))
    assert not_ready(members, {"broker-0", "cpu-0"}, {"old"}) == {"broker-0"}
    assert not_ready((Member("worker", "cpu-0", "new", "starting"),), {"cpu-0"}, set()) == {"cpu-0"}
    assert not_ready(members, {"cpu-0"}, {"old"}) == set()


async def test_restarts_what_dies_and_stops_in_order(tmp_path: Path) -> None:
    log = tmp_path / "log"
    worker, broker = child(log, "worker"), child(log, "broker")
    supervisor = Supervisor()
    await supervisor.start([worker])
    await supervisor.start([broker])
    await wait_for(log, "worker started")
    await wait_for(log, "broker started")

    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    await wait_for(log, "worker started", times=2)
    await supervisor.stop()

    assert log.read_text().splitlines()[-2:] == ["broker left", "worker left"]


async def test_forks_are_kept_too_and_what_they_are_forked_from(tmp_path: Path) -> None:
    log = tmp_path / "log"
    server = ForkServer((sys.executable, "-c", FORKS, SCRIPT, str(log)))
    supervisor = Supervisor()
    brokers = [Forked(name, server, ("modelless", "broker"), {"name": name}, 10.0) for name in ("one", "two")]
    await supervisor.start([server])
    await supervisor.start(brokers)
    await wait_for(log, "one started")
    await wait_for(log, "two started")

    brokers[0].kill()
    await wait_for(log, "one started", times=2)
    server.kill()
    await wait_for(log, "one started", times=3)
    await wait_for(log, "two started", times=2)
    await supervisor.stop()

    assert sorted(log.read_text().splitlines()[-2:]) == ["one left", "two left"]
    assert log.read_text().splitlines().count("two started") == 2
    assert await server.ended() == "exit status 0"


async def test_who_fails_says_why(tmp_path: Path) -> None:
    words = "import sys\nfrom modelless.child import leave_word\nleave_word('no group x')\nsys.exit(1)\n"
    failing = Child("failing", (sys.executable, "-c", words), 1)
    for _ in range(2):  # of each life its own
        await failing.start()
        assert await failing.ended() == "exit status 1: no group x"
    silent = child(tmp_path / "log", "silent", "fragile")
    await silent.start()
    assert await silent.ended() == "exit status 3"


async def test_what_keeps_dying_young_is_delayed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    supervisor = Supervisor()
    await supervisor.start([child(log, "fragile", "fragile")])
    await wait_for(log, "fragile started", times=3)
    await supervisor.stop()
    assert log.read_text().splitlines().count("fragile started") == 3


async def test_kills_what_does_not_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(up, "KILL_AFTER_S", 0.1)
    log = tmp_path / "log"
    deaf = child(log, "deaf", "deaf", drain_s=0.1)
    supervisor = Supervisor()
    await supervisor.start([deaf])
    await wait_for(log, "deaf started")
    await supervisor.stop()
    assert await deaf.ended() == "killed by SIGKILL"


async def test_a_second_signal_kills_at_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    deaf = child(log, "deaf", "deaf", drain_s=60)
    supervisor = Supervisor()
    await supervisor.start([deaf])
    await wait_for(log, "deaf started")
    supervisor.hurry()
    async with asyncio.timeout(5):
        await supervisor.stop()
    assert await deaf.ended() == "killed by SIGKILL"


async def test_children_die_with_the_supervisor(tmp_path: Path) -> None:
    log = tmp_path / "log"
    keeper = (
        "import asyncio, sys\nfrom modelless.child import Child\n"
        "async def main():\n"
        "    child = Child('c', tuple(sys.argv[1:]), 1)\n"
        "    await child.start()\n    print(child.pid, flush=True)\n    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    argv = child(log, "child").argv
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", keeper, *argv, stdout=asyncio.subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    await wait_for(log, "child started")
    parent.kill()
    await parent.wait()
    await until(lambda: not _is_running(pid))


def _is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
