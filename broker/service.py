"""A broker process: the core, and everything around it that talks.

The core decides; this carries out. Whatever happens (a record, a frame, an acknowledgement, a timer) tells the core
and then *kicks* one pump for this turn of the event loop, so that batches fall out of whatever came in together.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

import structlog
from aiokafka.errors import KafkaError
from aiokafka.structs import ConsumerRecord

from broker.accountant import Accountant
from broker.alike import Alike
from broker.core import Bury, CancelSent, Core, Reply, Send, TellDemand
from broker.dead_letters import dead_letter
from broker.devices import Worker
from broker.feedback import Corrector
from broker.groups import Group
from broker.intake import Dead, Intake, Refusal, unreadable
from broker.leader import Leader
from broker.ledger import Entry, Source
from broker.metrics import Outside, registry
from broker.outbox import Outbox, Outgoing
from broker.quotas import Quotas, shares
from broker.reader import QueryReader
from broker.rollback import RollBack
from broker.statistics import Statistics
from modelless import frames, messages
from modelless.catalog import read_condition, read_correction, read_labels, read_model, read_profile
from modelless.clock import KafkaClock
from modelless.codec import decode_cancel, decode_record, encode_reply
from modelless.config import Config
from modelless.errors import ModellessError
from modelless.fleet import Announcer
from modelless.frames import LINK_VERSION, Frame, Hello
from modelless.headers import reply_headers
from modelless.link import Link, LinkServer, serve
from modelless.messages import Member, Plan, RecordId
from modelless.metrics import serve_metrics
from modelless.process import settle
from modelless.tables import Follower
from modelless.topics import ReplyTopicRule, Topics

_log = structlog.get_logger(__name__)

METADATA_INTERVAL_S = 5.0
METADATA_RETRY_S = 1.0
LOOP_LAG_INTERVAL_S = 0.25
JUDGE_INTERVAL_S = 0.1
TIMER_SLACK_MS = 0.2
CANCEL_HISTORY_MS = 60_000.0
HELD_MAX = 1_000
"""Records that wait to see whether their reply topic exists."""


class Broker:
    """One broker. ``run`` returns the process's exit status."""

    def __init__(self, config: Config, name: str) -> None:
        self._config = config
        self._name = name
        self._incarnation = f"{name}-{os.getpid()}-{time.time_ns():x}"
        self._topics = Topics(config.kafka.topic_prefix)
        self._clock = KafkaClock()
        self._core = Core(
            accuracy_slack=config.broker.accuracy_slack,
            attempts_max=config.broker.attempts_max,
            topic_weights=config.broker.topic_weights,
            hedge_share_max=config.broker.hedge_share_max,
            quotas=Quotas(config.broker.quotas, config.broker.quota_burst_s),
        )
        self._outbox = Outbox(config)
        self._partitions: dict[str, int] = {}
        rule = ReplyTopicRule(self._topics, config.broker.reply_topics_allowed)
        self._intake = Intake(
            self._topics,
            rule,
            lambda topic: self._partitions.get(topic, 0),
            latency_ms_default=config.broker.latency_ms_default,
            request_bytes_max=config.kafka.request_bytes_max,
            tenant_topics=config.broker.tenant_topics,
        )
        self._reader = QueryReader(config, self._core.ledger, self, f"{self._topics.prefix}.brokers", name)
        self._leader = Leader(
            config,
            name,
            self._clock,
            self._core.catalog,
            self._core.conditions,
            lambda wants, demand, scaling: self._core.situation(self._clock.now_ms(), wants, demand, scaling),
            lambda: self._plan,
        )
        self._corrector = Corrector(config, self._clock, lambda: self._leader.leads, lambda: self._core.catalog.models)
        self._accountant = Accountant(config, self._clock, lambda: self._leader.leads)
        self._roll_back = RollBack(config, self._clock, lambda: self._core.catalog.labels, lambda: self._leader.leads)
        self._announcer = Announcer(config, self._clock, self._member)
        self._plan: Plan | None = None
        self._links: dict[str, Link] = {}
        self._workers: dict[Link, Worker] = {}
        self._server: LinkServer | None = None
        self._held: list[Source] = []
        self._metadata_wanted = asyncio.Event()
        self._pumping = False
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._loop_lag_s = 0.0
        self._state: str = "starting"
        self._metrics: str | None = None
        self._stop = asyncio.Event()

    # --- life -----------------------------------------------------------------------------------------------------

    async def run(self) -> int:
        """Serve until a signal, or until something that cannot be repaired in place fails (exit status 1)."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._signalled)
        announcer = self._announcer
        tasks: list[asyncio.Task[None]] = []
        async with contextlib.AsyncExitStack() as stack:
            self._server = await serve(self._config, self._hello(), self._on_open, self._on_frame, self._on_lost)
            stack.callback(self._server.close)
            stack.push_async_callback(self._outbox.stop)
            stack.push_async_callback(announcer.stop)
            await asyncio.gather(self._outbox.start(), announcer.start())  # workers begin to dial
            since_ms = self._clock.now_ms() - CANCEL_HISTORY_MS
            followers = (
                Follower(self._config, [self._topics.registry], self._on_registry),
                Follower(self._config, [self._topics.profiles], self._on_profile),
                Follower(self._config, [self._topics.plan], self._on_plan),
                Follower(self._config, [self._topics.cancel], self._on_cancel, since_ms),
            )
            for follower in followers:
                stack.push_async_callback(follower.stop)
            await asyncio.gather(self._refresh_metadata(), *[follower.start() for follower in followers])
            self._core.restore()
            tasks = [
                asyncio.create_task(self._watch_metadata()),
                asyncio.create_task(self._watch_loop()),
                asyncio.create_task(self._judge()),
                asyncio.create_task(self._roll_back.run()),
            ]
            stack.callback(lambda: [task.cancel() for task in tasks])
            self._metrics = serve_metrics(self._config.metrics, _index(self._name), registry(self._core, self._outside))
            for part in (self._reader, self._leader, self._corrector, self._accountant):
                stack.push_async_callback(part.stop)
            for office in (self._leader, self._corrector, self._accountant):
                await office.start()
            await self._reader.start(self._query_topics())
            settle()
            self._state = "ready"
            announcer.announce()
            _log.info("ready", endpoint=self._server.endpoint, metrics=self._metrics)
            status = await self._until_stopped(tasks)
            self._state = "draining"
            announcer.announce()
            await self._drain()
            for link in list(self._workers):
                link.send(frames.Drain("the broker stops"))
        for link in list(self._workers):
            link.close("the broker stops")
        _log.info("stopped", unfinished=self._core.ledger.queries)
        return status

    async def _until_stopped(self, tasks: list[asyncio.Task[None]]) -> int:
        """0 when asked to stop; 1 when a part failed."""
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._stop.wait()
            failures = [self._reader.failed, self._outbox.failed]
            failures += [task.exception() for task in tasks if task.done() and not task.cancelled()]
            for error in filter(None, failures):
                _log.error("a part failed, stopping", error=repr(error), exc_info=error)
                return 1
        return 0

    async def _drain(self) -> None:
        """Read nothing more; finish what is held, within the bound."""
        self._reader.stop_reading()
        self._core.withdraw_parked()
        partitions = self._core.ledger.owned()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.broker.drain_s):
                while self._core.waiting()[0] or self._core.ledger.unsettled(partitions):
                    await self._reader.settled()
        self._core.withdraw(partitions)

    def _signalled(self) -> None:
        if self._stop.is_set():
            _log.warning("second signal, leaving at once")
            os._exit(1)
        self._stop.set()

    # --- records in -----------------------------------------------------------------------------------------------

    def read(self, records: Iterable[ConsumerRecord]) -> float:
        """The reader has records of one partition, in order."""
        now_ms, slack_ms = self._clock.now_ms(), float("inf")
        alike = Alike(now_ms)
        for record in records:
            source = self._arrived(record, now_ms)
            if source is not None:
                slack_ms = min(slack_ms, self._take(source, now_ms, alike))
        self.kick()
        return slack_ms

    def _arrived(self, record: ConsumerRecord, now_ms: float) -> Source | None:
        """None for a record that needs no work."""
        name = RecordId(record.topic, record.partition, record.offset)
        self._core.statistics.read += 1
        if not self._core.ledger.arrived(name):
            self._core.statistics.skipped += 1
            return None
        arrival_ms = float(record.timestamp)
        if arrival_ms < 0 or record.timestamp_type != 1:  # not the log's own time: believed only about the past
            arrival_ms = min(arrival_ms, now_ms) if arrival_ms >= 0 else now_ms
        return Source(name, record.key, record.value, record.headers, arrival_ms)

    def _take(self, source: Source, now_ms: float, alike: Alike | None = None, *, final: bool = False) -> float:
        """Returns how long after its arrival it has to be answered, ms."""
        result = self._intake.read(source)
        match result:
            case Entry(latency_deadline_ms=deadline_ms):
                self._core.admit(result, now_ms, alike)
                return float("inf") if deadline_ms is None else deadline_ms - source.arrival_ms
            case Dead(code="NOT_FOUND") if (
                not final and len(self._held) < HELD_MAX
            ):  # a reply topic that we have not heard of yet, perhaps
                self._held.append(source)
                self._metadata_wanted.set()
            case _:
                self._carry_out(result)
        return float("inf")

    def _carry_out(self, refused: Dead | Refusal) -> None:
        self._core.statistics.malformed += 1
        match refused:
            case Dead(entry=entry, code=code, reason=reason):
                self._core.dead(entry, code, reason)
            case Refusal(entry=entry, status=status, message=message):
                self._core.refuse(entry, status, message)

    def withdraw(self, partitions: list[tuple[str, int]]) -> None:
        """The reader is about to lose these."""
        self._core.withdraw(partitions)
        lost = set(partitions)
        self._held = [s for s in self._held if (s.record.topic, s.record.partition) not in lost]

    def unreadable(self, record: ConsumerRecord, reason: str) -> None:
        """The reader has bytes that are no record."""
        source = self._arrived(record, self._clock.now_ms())
        if source is not None:
            self._carry_out(unreadable(source, reason))
        self.kick()

    async def _watch_metadata(self) -> None:
        """Which topics exist, with how many partitions."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(METADATA_INTERVAL_S):
                    await self._metadata_wanted.wait()
            self._metadata_wanted.clear()
            with contextlib.suppress(KafkaError, TimeoutError, OSError):
                await self._refresh_metadata()
                held, self._held = self._held, []
                for source in held:
                    self._take(source, self._clock.now_ms(), final=True)
                if held:
                    self.kick()
                self._reader.subscribe(self._query_topics())
            await asyncio.sleep(METADATA_RETRY_S)

    async def _refresh_metadata(self) -> None:
        self._partitions = await self._outbox.partitions()

    def _query_topics(self) -> set[str]:
        """Query topics that exist: ours, those bound to registered tasks, and the configured ones."""
        names = {self._topics.queries, self._topics.offline, *self._config.broker.topics}
        names |= {self._topics.task_queries(task) for task in self._core.catalog.tasks()}
        return {name for name in names if name in self._partitions}

    # --- what the system knows ------------------------------------------------------------------------------------

    def _on_registry(self, record: ConsumerRecord) -> None:
        key = (record.key or b"").decode(errors="replace")
        with self._alarm(key):
            if key.startswith("model/"):
                name = key.removeprefix("model/")
                self._core.catalog.put_model(name, read_model(name, record.value))
                self._core.catalog_changed(self._clock.now_ms())
                self._metadata_wanted.set()
            elif key.startswith("labels/"):
                self._core.labels(key.removeprefix("labels/"), read_labels(key, record.value), self._clock.now_ms())
            self.kick()

    def _on_profile(self, record: ConsumerRecord) -> None:
        key = (record.key or b"").decode(errors="replace")
        with self._alarm(key):
            if key.startswith("condition/"):
                self._core.conditions.heard(key.removeprefix("condition/"), read_condition(key, record.value))
                return
            if key.startswith("correction/"):
                correction = read_correction(key, record.value)
                self._core.catalog.put_correction(key.removeprefix("correction/"), correction)
            else:
                profile = read_profile(key, record.value)
                self._core.catalog.put_profile(key, profile)
                self._corrector.put_profile(key, profile)
            self._core.catalog_changed(self._clock.now_ms())
            self.kick()

    def _on_plan(self, record: ConsumerRecord) -> None:
        with self._alarm("plan"):
            plan = decode_record(Plan, record.value)
            if self._plan is None or plan.epoch >= self._plan.epoch:
                self._plan = plan
                wanted = {name: frozenset(assignment.load) for name, assignment in plan.workers.items()}
                self._core.planned(wanted, self._clock.now_ms())
                self.kick()

    def _on_cancel(self, record: ConsumerRecord) -> None:
        with self._alarm("cancel"):
            self._core.cancel(decode_cancel(record.value), float(record.timestamp))
            self.kick()

    @contextlib.contextmanager
    def _alarm(self, what: str) -> Any:
        """A record that does not decode is ignored, the last good one kept."""
        try:
            yield
        except ModellessError as error:
            _log.warning("ignored a malformed record", what=what, error=error.message)

    # --- workers --------------------------------------------------------------------------------------------------

    def _hello(self) -> Hello:
        return Hello(LINK_VERSION, self._name, self._incarnation)

    def _on_open(self, link: Link) -> None:
        peer = link.peer
        if peer is None or peer.group is None:
            link.close("only workers dial a broker")
            return
        worker = Worker(
            peer.name, peer.incarnation, peer.group, peer.price_per_hour, peer.memory_bytes_max, peer.builders
        )
        self._workers[link] = worker
        self._links[worker.incarnation] = link
        self._core.joined(worker)
        _log.info("worker linked", worker=worker.name, group=worker.group)

    def _on_frame(self, link: Link, frame: Frame) -> None:
        worker = self._workers.get(link)
        if worker is not None:
            self._core.frame(worker, frame, self._clock.now_ms())
            self._reader.progress()
            self.kick()

    def _on_lost(self, link: Link, reason: str) -> None:
        worker = self._workers.pop(link, None)
        if worker is not None:
            if self._links.get(worker.incarnation) is link:
                del self._links[worker.incarnation]
            self._core.lost(worker, self._clock.now_ms())
            _log.warning("worker lost", worker=worker.name, reason=reason)
            self.kick()

    # --- the pump -------------------------------------------------------------------------------------------------

    def kick(self) -> None:
        """Something changed: pump once in this turn of the loop."""
        if not self._pumping:
            self._pumping = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pumping = False
        now_ms = self._clock.now_ms()
        for instruction in self._core.poll(now_ms):
            match instruction:
                case Send(worker=worker, batch=batch):
                    self._links[worker.incarnation].send(batch)
                case CancelSent(worker=worker, cancel=cancel):
                    self._links[worker.incarnation].send(cancel)
                case TellDemand(worker=worker, demand=demand):
                    self._links[worker.incarnation].send(demand)
                case Reply():
                    self._send_reply(instruction)
                case Bury():
                    self._send_dead_letter(instruction)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        wake_ms = self._core.wake_at_ms()
        if wake_ms != float("inf"):
            delay_s = min(max(wake_ms - now_ms, TIMER_SLACK_MS), 60_000) / 1000
            self._timer = self._loop.call_later(delay_s, self._pump)

    def _send_reply(self, reply: Reply) -> None:
        entry, address = reply.entry, reply.entry.address
        record = str(entry.record)
        message = messages.Reply(
            id=address.id,
            query=record,
            status=reply.status,
            message=reply.message,
            retry_after_ms=reply.retry_after_ms,
            metadata=entry.query.metadata,
        )
        headers = tuple(reply_headers(address.id, reply.status, record, address.echo))
        self._outbox.put(
            Outgoing(
                topic=address.topic,
                partition=address.partition,
                partition_key=entry.source.key or address.id.encode(),
                key=entry.source.key,
                value=encode_reply(message, address.form),
                headers=headers,
                done=functools.partial(self._replied, reply),
            )
        )

    def _replied(self, reply: Reply, failure: str | None) -> None:
        if failure is None:
            self._core.replied(reply.entry, reply.status)
            self._reader.progress()
        else:
            self._core.undeliverable(reply.entry, failure)
            self.kick()

    def _send_dead_letter(self, bury: Bury) -> None:
        self._outbox.put(dead_letter(self._topics.dead_letter, bury, functools.partial(self._buried, bury)))

    def _buried(self, bury: Bury, _: str | None) -> None:
        _log.warning("dead letter", query=str(bury.entry.record), code=bury.code, reason=bury.reason)
        self._core.buried(bury.entry)
        self._reader.progress()

    # --- seen from outside ----------------------------------------------------------------------------------------

    async def _watch_loop(self) -> None:
        while True:
            before_s = self._loop.time()
            await asyncio.sleep(LOOP_LAG_INTERVAL_S)
            self._loop_lag_s = max(0.0, self._loop.time() - before_s - LOOP_LAG_INTERVAL_S)

    async def _judge(self) -> None:
        while True:
            await asyncio.sleep(JUDGE_INTERVAL_S)
            now_ms = self._clock.now_ms()
            self._core.judge(now_ms)
            if self._core.surges(now_ms):
                self._announcer.announce()
            if quotas := self._core.quotas:
                owned, tenant_topics = self._core.ledger.owned(), self._config.broker.tenant_topics
                quotas.put_shares(shares(quotas.tenants, owned, self._partitions, tenant_topics))

    def _outside(self) -> Outside:
        return Outside(
            now_ms=self._clock.now_ms(),
            loop_lag_seconds=self._loop_lag_s,
            paused=self._reader.paused,
            leads=self._leader.leads,
            commit_failures=self._reader.commit_failures,
            lag=self._reader.lag(),
            feedback=self._corrector.tally.statistics,
            drifted=self._corrector.drifted(),
        )

    def _member(self) -> Member:
        core, now_ms = self._core, self._clock.now_ms()
        usual_of = core.catalog.usual(now_ms)
        entries, backlog_ms, _ = core.waiting()
        statistics, pressure = core.statistics, core.pressure(now_ms)
        return Member(
            kind="broker",
            name=self._name,
            incarnation=self._incarnation,
            state=self._state,  # type: ignore[arg-type]
            endpoint=self._server.endpoint if self._server is not None else None,
            metrics=self._metrics,
            statistics={
                "read": statistics.read,
                "unfinished": core.ledger.queries,
                "waiting": entries,
                "backlog_ms": backlog_ms,
                "ok": sum(n for (status, _), n in statistics.outcomes.items() if status == "OK"),
                "outcomes": sum(statistics.outcomes.values()),
                "dead_letters": statistics.dead_letters,
                "leads": float(self._leader.leads),
                "lag": sum(self._reader.lag().values()),
                **_overload(statistics),
                **{f"{messages.USUAL_ROWS}{group}": usual.rows for group, usual in usual_of.items()},
                **{f"{messages.USUAL_SLOWNESS}{group}": usual.slowness for group, usual in usual_of.items()},
                **{f"{messages.BACKLOG_MS}{group}": backlog_ms for group, (backlog_ms, _) in pressure.items()},
                **{f"{messages.OLDEST_MS}{group}": oldest_ms for group, (_, oldest_ms) in pressure.items()},
                **_withheld(core.groups.values(), now_ms),
            },
            wants=core.wants(now_ms),
            served=core.counts.served(),
            demand=core.demand(now_ms),
            used=core.meter.used(),
        )


def _overload(statistics: Statistics) -> dict[str, float]:
    """What is shed, as brokers announce it."""
    tasks = {shed.task for shed in statistics.shed}
    asked: Counter[str] = Counter()
    for (_, task), number in statistics.outcomes.items() if tasks else ():
        if task in tasks:
            asked[task] += number
    return {
        **{f"{messages.SHED}{each.reason} {each.topic} {each.task}": n for each, n in statistics.shed.items()},
        **{f"{messages.ASKED}{task}": n for task, n in asked.items()},
    }


def _withheld(groups: Iterable[Group], now_ms: float) -> dict[str, float]:
    """What waits offline and may not begin, as brokers announce it."""
    found = {}
    for group in groups:
        takes_ms, may_ms = group.withheld_ms(now_ms)
        if takes_ms:
            found[f"{messages.WITHHELD_MS}{group.name}"] = takes_ms
            found[f"{messages.WITHHELD_MS_MAX}{group.name}"] = may_ms
    return found


def _index(name: str) -> int:
    """The number at the end of ``broker-3``; 0 when there is none."""
    digits = name.rpartition("-")[2]
    return int(digits) if digits.isdigit() else 0
