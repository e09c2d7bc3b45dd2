"""The worker's shell: dials every broker, follows the plan, announces itself, drains on SIGTERM.

What it holds are pure or narrow rooms: :class:`workers.device.Device` (queue, executors, replies) and
:class:`workers.loader.Loader` (what the plan says). Here they meet links, Kafka's tables and signals.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from functools import partial
from typing import Literal
from uuid import uuid4

import structlog
from aiokafka.structs import ConsumerRecord

from modelless.catalog import CatalogView
from modelless.child import leave_word
from modelless.clock import KafkaClock
from modelless.codec import decode_record
from modelless.config import Config
from modelless.errors import ConfigurationError, DecodeError
from modelless.fleet import Announcer, FleetView
from modelless.frames import LINK_VERSION, Drain, Frame, Hello, State
from modelless.link import Link, dial
from modelless.messages import START_MS, Member, Plan
from modelless.metrics import serve_metrics
from modelless.process import settle, start_ms
from modelless.tables import Follower
from modelless.topics import Topics
from workers import builders
from workers.device import Device
from workers.executor import ChildExecutor, EmulatedExecutor
from workers.executors import Spawn
from workers.loader import Loader
from workers.metrics import WorkerMetrics

STATE_INTERVAL_S = 0.5
REDIAL_S = (0.1, 0.2, 0.5, 1.0, 2.0)
HELLO_S_MAX = 5.0
METRICS_PORT_OFFSET = 100
ERRORS_MAX = 40

_log = structlog.get_logger(__name__)


class Worker:
    """One worker process of a group. ``name`` is unique and stable: the plan speaks of it.

    Raises:
        ConfigurationError: there is no such group.
    """

    def __init__(self, config: Config, group: str, name: str) -> None:
        self._config = config
        self._group = config.group(group)
        self._name = name
        self._incarnation = uuid4().hex
        self._loop = asyncio.get_running_loop()
        self._offer = builders.offer(self._group, config.worker.builders)
        self._metrics = WorkerMetrics()
        self._clock = KafkaClock()
        self._device = Device(
            config, self._group, self._clock, self._spawner(), self._metrics, self._send, self._lost_variant
        )
        self._catalog = CatalogView(config, lambda: self._loader.catalog_changed())
        self._loader = Loader(
            config,
            self._group,
            name,
            self._device,
            self._catalog.catalog,
            self._clock,
            self._metrics,
            self._on_change,
        )
        self._plan = Follower(config, [Topics(config.kafka.topic_prefix).plan], self._on_plan)
        self._fleet = FleetView(config, self._clock, self._dial_all)
        self._announcer = Announcer(config, self._clock, self._member)
        self._links: dict[int, Link] = {}
        self._numbers: dict[int, int] = {}
        self._next_link = 0
        self._dialing: dict[str, asyncio.Task[None]] = {}
        self._endpoints: dict[str, Link] = {}
        self._state: Literal["starting", "ready", "draining", "stopped"] = "starting"
        self._endpoint: str | None = None
        self._stop = asyncio.Event()
        self._start_ms: float | None = None
        """From when it was asked for to ready."""
        self._failure: BaseException | None = None

    async def run(self) -> int:
        """Work until SIGTERM or SIGINT; the exit status: 0 drained, 1 something failed."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._on_signal)
        self._loop.set_exception_handler(self._on_loop_error)
        self._endpoint = serve_metrics(
            self._config.metrics, METRICS_PORT_OFFSET + self._port_offset(), self._metrics.registry
        )
        work = asyncio.create_task(self._work())
        stopped = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait((work, stopped), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
            await self._drain()
        finally:
            for task in (work, stopped):
                task.cancel()
            await asyncio.gather(work, stopped, return_exceptions=True)
            await self._close()
        if self._failure is not None:
            _log.error("the worker failed", error=repr(self._failure))
            leave_word(repr(self._failure))
            return 1
        return 0

    async def _work(self) -> None:
        """Everything up, in the order of need; then dial and tell."""
        for name, reason in self._offer.refusals.items():
            _log.warning("builder not offered", builder=name, reason=reason)
        await self._announcer.start()
        await self._device.start()
        await self._catalog.start()
        self._loader.start()
        await self._plan.start()
        settle()
        self._state, self._start_ms = "ready", start_ms()
        await self._fleet.start()
        self._dial_all()
        self._announcer.announce()
        _log.info("worker ready", group=self._group.name, device=self._group.device, incarnation=self._incarnation)
        await self._beat()

    async def _drain(self) -> None:
        """Nothing new; what waits goes back; what runs is finished, its replies written."""
        self._state = "draining"
        self._announcer.announce()
        for link in self._links.values():
            link.send(Drain("the worker stops"))
        self._device.queue.drain()
        self._device.kick()
        try:
            async with asyncio.timeout(self._config.worker.drain_s):
                await self._device.drained.wait()
        except TimeoutError:
            left = self._device.queue.statistics().unsettled_items
            _log.warning("leaving with queries unsettled; their brokers have them again", queries=left)

    async def _close(self) -> None:
        self._state = "stopped"
        for task in self._dialing.values():
            task.cancel()
        await self._loader.stop()
        await asyncio.gather(self._fleet.stop(), self._plan.stop(), self._catalog.stop(), self._announcer.stop())
        for link in list(self._links.values()):
            link.close("the worker stops")
        await self._device.stop()

    def _on_signal(self) -> None:
        if self._stop.is_set():
            os._exit(1)  # the second one leaves at once; executors die with us
        self._stop.set()

    def _on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        """A broken invariant: leave, so that brokers have back what is here and a fresh process takes over."""
        error = context.get("exception")
        self._failure = error if isinstance(error, BaseException) else RuntimeError(str(context.get("message")))
        loop.default_exception_handler(context)
        self._stop.set()

    # --- brokers ------------------------------------------------------------------------------------------------------

    def _dial_all(self) -> None:
        """A link to every broker that is alive, one per endpoint; links to others end by themselves."""
        if self._stop.is_set() or self._state != "ready":
            return
        for broker in self._fleet.brokers():
            if broker.endpoint and broker.endpoint not in self._dialing and broker.endpoint not in self._endpoints:
                self._dialing[broker.endpoint] = asyncio.create_task(self._dial(broker.endpoint))

    async def _dial(self, endpoint: str) -> None:
        """Until it says hello, or is not announced any more."""
        attempt = 0
        try:
            while any(broker.endpoint == endpoint for broker in self._fleet.brokers()):
                if await self._dial_once(endpoint):
                    return
                await asyncio.sleep(REDIAL_S[min(attempt, len(REDIAL_S) - 1)])
                attempt += 1
        finally:
            del self._dialing[endpoint]

    async def _dial_once(self, endpoint: str) -> bool:
        """Whether there is a link now. One that connects and then says nothing (a stopped process, say) is closed."""
        opened = asyncio.Event()

        def on_open(link: Link) -> None:
            self._endpoints[endpoint] = link
            opened.set()
            self._on_open(link)

        link = None
        try:
            async with asyncio.timeout(HELLO_S_MAX):
                link = await dial(endpoint, self._config, self._hello(), on_open, self._device_frame, self._on_lost)
                await opened.wait()
        except ConfigurationError as error:
            _log.error("a broker cannot be dialed", endpoint=endpoint, error=error.message)
        except (OSError, TimeoutError) as error:
            _log.debug("a broker does not answer", endpoint=endpoint, error=repr(error))
            if link is not None:
                link.close("the broker does not say hello")
        return opened.is_set()

    def _hello(self) -> Hello:
        return Hello(
            version=LINK_VERSION,
            name=self._name,
            incarnation=self._incarnation,
            group=self._group.name,
            device=self._group.device,
            memory_bytes_max=self._group.memory_mb_max * 2**20,
            price_per_hour=self._group.price_per_hour,
            builders=self._offer.pairs,
        )

    def _on_open(self, link: Link) -> None:
        self._next_link += 1
        self._numbers[id(link)] = self._next_link
        self._links[self._next_link] = link
        link.send(self._state_frame())
        link.send(self._device.answered.frame(self._clock.now_ms()))
        self._device.queue.link_up(self._next_link)
        self._device.kick_soon()
        _log.info("linked to a broker", broker=link.name)

    def _device_frame(self, link: Link, frame: Frame) -> None:
        self._device.frame(self._numbers[id(link)], frame)

    def _on_lost(self, link: Link, reason: str) -> None:
        number = self._numbers.pop(id(link))
        del self._links[number]
        self._endpoints = {endpoint: known for endpoint, known in self._endpoints.items() if known is not link}
        self._device.queue.link_lost(number)
        self._device.kick_soon()
        _log.info("lost the link to a broker", broker=link.name, reason=reason)
        self._loop.call_later(REDIAL_S[0], self._dial_all)

    def _send(self, number: int, frame: Frame) -> None:
        link = self._links.get(number)
        if link is not None:
            link.send(frame)

    # --- what others are told -----------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        """State to every broker, and the gauges; notices a loader that ended."""
        busy_s = 0.0
        while True:
            due_s = time.monotonic() + STATE_INTERVAL_S
            await asyncio.sleep(STATE_INTERVAL_S)
            lag_s = time.monotonic() - due_s
            self._metrics.loop_lag_seconds.set(max(0.0, lag_s))
            busy_s = self._show(busy_s, STATE_INTERVAL_S + lag_s)
            self._tell_all()
            self._dial_all()
            if (error := self._loader.failed) is not None:
                self._failure = error
                self._stop.set()

    def _show(self, busy_before_s: float, interval_s: float) -> float:
        """Set the gauges; the device's busy seconds until now."""
        metrics, statistics = self._metrics, self._device.queue.statistics()
        busy_s = self._device.busy_s
        metrics.busy_ratio.set(min(1.0, (busy_s - busy_before_s) / interval_s))
        metrics.backlog_seconds.set(statistics.backlog_ms / 1000)
        metrics.unsettled.set(statistics.unsettled_items)
        metrics.memory_bytes.set(self._loader.memory_bytes)
        metrics.loaded.set(len(self._loader.ready()))
        metrics.links.set(len(self._links))
        metrics.replies_pending.set(self._device.publisher.pending)
        metrics.promotion_seconds.set(self._device.executors.statistics().promotion_ms / 1000)
        return busy_s

    def _tell_all(self) -> None:
        frame = self._state_frame()
        for link in self._links.values():
            link.send(frame)

    def _state_frame(self) -> State:
        return State(
            variants=self._loader.states(),
            memory_bytes=self._loader.memory_bytes,
            backlog_ms=self._device.queue.statistics().backlog_ms,
            plan_epoch=self._loader.epoch,
            measuring=self._loader.measuring,
        )

    def _on_change(self) -> None:
        self._tell_all()
        self._announcer.announce()

    def _lost_variant(self, variant: str, reason: str) -> None:
        self._loader.lost(variant, reason)

    def _member(self) -> Member:
        statistics = self._device.queue.statistics()
        executors = self._device.executors.statistics()
        return Member(
            kind="worker",
            name=self._name,
            incarnation=self._incarnation,
            state=self._state,
            group=self._group.name,
            metrics=self._endpoint,
            statistics={
                "backlog_ms": statistics.backlog_ms,
                "builds": float(self._loader.builds),
                "busy_s": self._device.busy_s,
                "child_deaths": float(executors.deaths),
                "links": float(len(self._links)),
                "memory_bytes": float(self._loader.memory_bytes),
                "price_per_hour": self._group.price_per_hour,
                "queued": float(statistics.queued_items),
                "settled": float(self._device.settled),
                **({} if self._start_ms is None else {START_MS: self._start_ms}),
            },
            variants=self._loader.ready(),
            errors=dict(list((self._loader.errors | dict(self._offer.refusals)).items())[:ERRORS_MAX]),
        )

    # --- what is read -------------------------------------------------------------------------------------------------

    def _on_plan(self, record: ConsumerRecord) -> None:
        try:
            self._loader.plan(decode_record(Plan, record.value))
        except DecodeError as error:
            _log.error("a plan cannot be read, the last one is kept", offset=record.offset, error=error.message)

    def _spawner(self) -> Spawn:
        if self._group.device == "emulated":
            return partial(_spawn_emulated, self._group.name)
        return partial(ChildExecutor.spawn, self._group.device, self._group.threads)

    def _port_offset(self) -> int:
        """N of ``…-N``, and the groups' workers one after another, as `modelless up` numbers them."""
        tail = self._name.rpartition("-")[2]
        before = 0
        for group in self._config.groups:
            if group.name == self._group.name:
                break
            before += group.workers_max or group.workers
        return before + (int(tail) if tail.isdigit() and len(tail) < 4 else 0)


async def _spawn_emulated(group: str, on_death: object) -> EmulatedExecutor:
    return EmulatedExecutor(group)
