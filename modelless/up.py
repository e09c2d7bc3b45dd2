"""The supervisor behind ``modelless up``: starts the parts, restarts what dies, takes all down in the right order.

Parts are kept in **tiers**. They start first tier first (what brokers are forked from, Kafka, then everybody else at
once) and stop last tier first: brokers drain what they hold while their workers are still there, then the workers, then
Kafka. What has not gone within its time is killed; a second signal kills everything at once. Workers are a part
together: the provisioner, which keeps as many as the plan says (:mod:`modelless.provision`).

A part that dies is restarted: at once the first time, with a growing delay while it keeps dying young.
Child processes die with this one (``PR_SET_PDEATHSIG``), whatever ends it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Sequence, Set
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import structlog

from modelless import provision
from modelless.child import KILLED
from modelless.clock import KafkaClock
from modelless.config import Config
from modelless.embedded import EmbeddedKafka
from modelless.errors import ConfigurationError, ModellessError
from modelless.fleet import FleetView
from modelless.forking import Forked, ForkServer, fork_server_command
from modelless.messages import Member
from modelless.provision.service import Provisioning
from modelless.restarts import RestartPolicy
from modelless.topic_settings import create_missing

KILL_AFTER_S = 5.0
"""More than a part's own drain takes: then it is killed."""
REMIND_S = 60.0


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


def brokers_of(config: Config, file: Path | None, server: ForkServer) -> list[Forked]:
    """The brokers that the configuration asks for, as forks of that."""
    options = ("--config", str(file)) if file is not None else ()

    def broker(name: str) -> Forked:
        line = sys.executable, "-m", "modelless", "broker", "--name", name, *options
        asked = {"name": name, "file": None if file is None else str(file)}
        return Forked(name, server, line, asked, config.broker.drain_s)

    return [broker(f"broker-{n}") for n in range(config.broker.brokers)]


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
    if config.provisioner.kind == "kubernetes":
        raise ConfigurationError(
            'provisioner.kind = "kubernetes": the cluster runs brokers and workers (compose/kubernetes/), and '
            "`modelless provisioner` in a pod scales them; `modelless up` is for local processes and Ray"
        )
    forks = ForkServer(fork_server_command("broker"))
    await supervisor.start([forks])  # it imports while Kafka starts
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
    provisioning, brokers = Provisioning(config, provision.make(config, file)), brokers_of(config, file, forks)
    names = {part.name for part in brokers}
    changed = asyncio.Event()
    view = FleetView(config, KafkaClock(), changed.set)
    await view.start()
    try:
        stale = view.brokers() if provisioning.outlived else view.members()
        before = {member.incarnation for member in stale}
        await supervisor.start([provisioning])
        await supervisor.start(brokers)
        await _until_ready(view, changed, lambda: names | provisioning.wanted, before)
    finally:
        await view.stop()
    workers = _count(len(provisioning.wanted), "worker")
    on_ready(f"ready: Kafka at {config.kafka.servers}, {_count(len(brokers), 'broker')}, {workers}")


async def _until_ready(
    view: FleetView, changed: asyncio.Event, expected: Callable[[], Set[str]], before: set[str]
) -> None:
    since_s = _now_ms() / 1000
    while missing := not_ready(view.members(), expected(), before):
        changed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(1.0):  # nobody tells when others are expected
                await changed.wait()
        if _now_ms() / 1000 - since_s >= REMIND_S:
            since_s += REMIND_S
            structlog.get_logger().warning("still waiting", for_=" ".join(sorted(missing)))


def not_ready(members: Sequence[Member], expected: Set[str], before: Set[str]) -> Set[str]:
    """Which of the ``expected`` do not announce that they are ready; incarnations from ``before`` do not count."""
    return expected - {
        member.name for member in members if member.state == "ready" and member.incarnation not in before
    }


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


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
