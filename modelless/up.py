"""The supervisor behind ``modelless up``: starts the parts, restarts what dies, takes all down in the right order.

Parts are kept in **tiers**. They start first tier first (Kafka, then everybody else at once) and stop last tier
first: brokers drain what they hold while their workers are still there, then the workers, then Kafka. What has not
gone within its time is killed; a second signal kills everything at once.

A part that dies is restarted: at once the first time, with a growing delay while it keeps dying young.
Child processes die with this one (``PR_SET_PDEATHSIG``), whatever ends it.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import structlog

from modelless.clock import KafkaClock
from modelless.config import Config
from modelless.embedded import EmbeddedKafka
from modelless.errors import ModellessError
from modelless.fleet import FleetView
from modelless.messages import Member
from modelless.topic_settings import create_missing

YOUNG_MS = 10_000.0
DELAY_MS_MIN = 500.0
DELAY_MS_MAX = 30_000.0
KILL_AFTER_S = 5.0
"""More than a part's own drain takes: then it is killed."""
REMIND_S = 60.0
KILLED = "killed by SIGKILL"
"""How a part ended that somebody else ended: an operator, or the kernel when memory is short."""
_PR_SET_PDEATHSIG = 1


class RestartPolicy:
    """When to start a part that died. Pure.

    The first death, and every death after ``YOUNG_MS`` of life, is answered at once; further young deaths in a row
    with a delay that doubles from ``DELAY_MS_MIN`` to ``DELAY_MS_MAX``. A part that was killed from outside has done
    nothing wrong: it is never kept waiting for longer than ``DELAY_MS_MIN``, however often that happens.
    """

    def __init__(self) -> None:
        self._started_ms = 0.0
        self._young_deaths = 0

    def started(self, now_ms: float) -> None:
        self._started_ms = now_ms

    def died(self, now_ms: float, *, was_killed: bool = False) -> float:
        """The delay in ms before it is started again."""
        if was_killed:
            return 0.0 if now_ms - self._started_ms >= DELAY_MS_MIN else DELAY_MS_MIN
        if now_ms - self._started_ms >= YOUNG_MS:
            self._young_deaths = 0
            return 0.0
        self._young_deaths += 1
        if self._young_deaths == 1:
            return 0.0
        return float(min(DELAY_MS_MIN * 2 ** min(self._young_deaths - 2, 20), DELAY_MS_MAX))


class Part(Protocol):
    """Something that the supervisor keeps alive."""

    @property
    def name(self) -> str: ...
    @property
    def drain_s(self) -> float:
        """How long it may take to leave after :meth:`ask_to_leave`."""

    async def start(self) -> None:
        """Raises ModellessError or OSError when it cannot."""

    async def ended(self) -> str:
        """Wait for its end; how it ended, in words. Returns at once when it does not run."""

    def ask_to_leave(self) -> None: ...
    def kill(self) -> None: ...


@dataclass(slots=True)
class Child:
    """A child process; its output goes where ours goes."""

    name: str
    argv: tuple[str, ...]
    drain_s: float
    _process: asyncio.subprocess.Process | None = field(default=None, repr=False)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    async def start(self) -> None:
        # A session of its own: Ctrl-C in a terminal reaches only the supervisor, which knows the order.
        self._process = await asyncio.create_subprocess_exec(
            *self.argv,
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_die_with(os.getpid()),
        )

    async def ended(self) -> str:
        if self._process is None:
            return "it does not run"
        code = await self._process.wait()
        return f"exit status {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"

    def ask_to_leave(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)


class KafkaPart:
    """The embedded Kafka as a part."""

    name = "kafka"
    drain_s = 20.0

    def __init__(self, node: EmbeddedKafka) -> None:
        self._node = node

    async def start(self) -> None:
        await asyncio.to_thread(self._node.start)

    async def ended(self) -> str:
        while not await asyncio.to_thread(self._node.wait, 1.0):
            pass
        return f"see {self._node.data / 'kafka.log'}"

    def ask_to_leave(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._node.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self._node.pid, number)


class Supervisor:
    """Keeps the parts of all tiers alive until it is told to stop."""

    def __init__(self) -> None:
        self._tiers: list[tuple[Sequence[Part], list[asyncio.Task[None]]]] = []
        self._leaving: set[str] = set()
        self._hurry = asyncio.Event()
        self._log = structlog.get_logger()

    async def start(self, tier: Sequence[Part]) -> None:
        """Start a tier and keep it. What cannot be started the first time is an error.

        Raises:
            ModellessError: a part cannot be started; says why.
        """
        keepers: list[asyncio.Task[None]] = []
        self._tiers.append((tier, keepers))  # first: what is half started is taken down too
        for part in tier:
            await part.start()
            keepers.append(asyncio.create_task(self._keep(part), name=f"keep {part.name}"))

    async def stop(self) -> None:
        """Take everything down, the last tier first."""
        while self._tiers:
            await self._stop_tier(*self._tiers.pop())

    def hurry(self) -> None:
        """Kill what does not leave by itself, now."""
        self._hurry.set()

    async def _keep(self, part: Part) -> None:
        policy = RestartPolicy()
        policy.started(_now_ms())
        while True:
            how = await part.ended()
            if part.name in self._leaving:
                return
            delay_ms = policy.died(_now_ms(), was_killed=how == KILLED)
            self._log.warning(f"{part.name} died, starting it again", how=how, delay_s=delay_ms / 1000)
            await asyncio.sleep(delay_ms / 1000)
            policy.started(_now_ms())
            try:
                await part.start()
            except (ModellessError, OSError) as error:
                self._log.error(f"{part.name} cannot be started", error=str(error))

    async def _stop_tier(self, tier: Sequence[Part], keepers: Sequence[asyncio.Task[None]]) -> None:
        self._leaving.update(part.name for part in tier)
        for part in tier:
            part.ask_to_leave()
        endings: dict[asyncio.Task[Any], Part] = {asyncio.create_task(part.ended()): part for part in tier}
        hurry: asyncio.Task[Any] = asyncio.create_task(self._hurry.wait())
        until_s = _now_ms() / 1000 + max((part.drain_s for part in tier), default=0) + KILL_AFTER_S
        pending = set(endings)
        while pending and not hurry.done() and (left_s := until_s - _now_ms() / 1000) > 0:
            await asyncio.wait({*pending, hurry}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            pending = {task for task in pending if not task.done()}
        for task in pending:
            self._log.warning(f"{endings[task].name} does not leave in time, killing it")
            endings[task].kill()
        for task in (*keepers, hurry):
            task.cancel()
        await asyncio.gather(*endings, *keepers, hurry, return_exceptions=True)
        for part in tier:  # one that a keeper had just started again
            part.kill()
            await part.ended()


def children(config: Config, file: Path | None) -> tuple[list[Child], list[Child]]:
    """The workers and the brokers that the configuration asks for, as child processes."""
    command = (sys.executable, "-m", "modelless")
    options = ("--config", str(file)) if file is not None else ()
    workers = [
        Child(
            f"{group.name}-{n}",
            (*command, "worker", "--group", group.name, "--name", f"{group.name}-{n}", *options),
            config.worker.drain_s,
        )
        for group in config.groups
        for n in range(group.workers)
    ]
    brokers = [
        Child(f"broker-{n}", (*command, "broker", "--name", f"broker-{n}", *options), config.broker.drain_s)
        for n in range(config.broker.brokers)
    ]
    return workers, brokers


async def run(
    config: Config,
    file: Path | None = None,
    *,
    on_ready: Callable[[str], None],
    stop: asyncio.Event | None = None,
) -> None:
    """Run the whole system until SIGINT or SIGTERM (or ``stop``); a second signal ends it at once.

    Args:
        file: the configuration's file, for the children.
        on_ready: called once, with a sentence, when every part announces that it is ready.

    Raises:
        ModellessError: something cannot be started at all; says what to change.
    """
    stop = stop or asyncio.Event()
    supervisor = Supervisor()
    _on_signals(stop, supervisor)
    starting = asyncio.create_task(_start(supervisor, config, file, on_ready))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not stopping.done():
            starting.result()
            await stopping
    finally:
        for task in (starting, stopping):
            task.cancel()
        await asyncio.gather(starting, stopping, return_exceptions=True)
        structlog.get_logger().info("stopping: brokers, workers, Kafka (again to kill them)")
        await supervisor.stop()


async def _start(supervisor: Supervisor, config: Config, file: Path | None, on_ready: Callable[[str], None]) -> None:
    log = structlog.get_logger()
    if config.kafka.bootstrap_servers is None:
        node = EmbeddedKafka(
            config.kafka.embedded_port,
            config.kafka.embedded_data,
            config.kafka.embedded_heap_mb,
            progress=lambda sentence: log.info(sentence),
        )
        await supervisor.start([KafkaPart(node)])
    created = await create_missing(config)
    if created:
        log.info("created topics", topics=" ".join(created))
    workers, brokers = children(config, file)
    changed = asyncio.Event()
    view = FleetView(config, KafkaClock(), changed.set)
    await view.start()
    try:
        before = {member.incarnation for member in view.members()}
        await supervisor.start(workers)
        await supervisor.start(brokers)
        expected = {part.name for part in (*workers, *brokers)}
        await _until_ready(view, changed, expected, before)
    finally:
        await view.stop()
    on_ready(f"ready: Kafka at {config.kafka.servers}, {_count(brokers, 'broker')}, {_count(workers, 'worker')}")


async def _until_ready(view: FleetView, changed: asyncio.Event, expected: set[str], before: set[str]) -> None:
    while missing := not_ready(view.members(), expected, before):
        changed.clear()
        try:
            async with asyncio.timeout(REMIND_S):
                await changed.wait()
        except TimeoutError:
            structlog.get_logger().warning("still waiting", for_=" ".join(sorted(missing)))


def not_ready(members: Sequence[Member], expected: set[str], before: set[str]) -> set[str]:
    """Which of the ``expected`` do not announce that they are ready; incarnations from ``before`` do not count."""
    return expected - {
        member.name for member in members if member.state == "ready" and member.incarnation not in before
    }


def _count(parts: Sequence[Part], noun: str) -> str:
    return f"{len(parts)} {noun}{'' if len(parts) == 1 else 's'}"


def _on_signals(stop: asyncio.Event, supervisor: Supervisor) -> None:
    def leave() -> None:
        if stop.is_set():
            supervisor.hurry()
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, leave)


def _now_ms() -> float:
    return asyncio.get_running_loop().time() * 1000


_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def _die_with(parent: int) -> Callable[[], None]:
    """What a child does before it becomes its program: die with ``parent``, also if that is dead by now."""

    def prepare() -> None:
        if _libc is not None:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)

    return prepare
