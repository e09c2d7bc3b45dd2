"""A whole system in virtual time around the real core: Kafka, brokers that die, workers that fail, all from one seed.

What is real: :class:`broker.core.Core` with its ledger, offsets, catalog, selector and batcher, and intake.
What is simulated, with faults drawn from the seed: partitions with gaps, the consumer group with its rebalances and
fenced members, links, workers and their device, acknowledgements, late timers. The checks stand outside: they know
what was produced, what Kafka acknowledged and what was committed, and read none of the core's own accounts of it.
"""

from __future__ import annotations

import base64
import random
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from itertools import count

from broker_builders import tensor
from simulated_broker import Broker
from simulated_facts import CANARY, FLEET, GROUPS, LATE_BOUND_MS, SETTLE_MS, TOPIC, Variant, fail
from simulated_worker import Link, Worker

from broker.ledger import Source
from modelless import frames
from modelless.codec import encode_query
from modelless.messages import Cancel, Labels, Query, RecordId
from modelless.tensors import Tensor


@dataclass
class Outcome:
    at_ms: float
    status: str
    by: str


@dataclass
class Log:
    """One partition."""

    end: int = 0
    records: dict[int, Source] = field(default_factory=dict)
    offsets: list[int] = field(default_factory=list)
    """Of the records, ascending."""
    committed: tuple[int, str] = (0, "")

    def put(self, source: Source) -> None:
        """At the end."""
        self.offsets.append(source.record.offset)
        self.records[source.record.offset] = source
        self.end = source.record.offset + 1


class World:
    """Time, Kafka, and everybody; ``run`` plays one seed to its end."""

    def __init__(self, seed: int, *, queries: int = 60, faults: int = 6) -> None:
        self.random = random.Random(seed)
        self.now_ms = 0.0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.sequence = count()
        self.logs = [Log() for _ in range(self.random.choice((1, 3)))]
        self.asked: dict[RecordId, Query] = {}
        self.outcomes: dict[RecordId, list[Outcome]] = defaultdict(list)
        self.letters: dict[RecordId, list[str]] = defaultdict(list)
        self.duplicates_max = 0
        self.generation = self.dealt = 0
        self.brokers: list[Broker] = []
        self.workers: list[Worker] = []
        self.quiet = False
        self.queries, self.faults = queries, faults
        self.reads_ms = 1.0, 8.0
        """Between two reads of a broker."""
        self.tells = False
        """Whether workers tell how long their batches took; then what brokers expect is not what profiles say."""
        self.hedge_share_max = self.random.choice((0.0, 0.01, 0.5))
        self.hedged = 0
        self.swapped = False
        self.labels: Labels | None = CANARY if self.chance(0.7) else None
        self.answered_by: Counter[str] = Counter()

    def after(self, delay_ms: float, event: Callable[[], None]) -> None:
        heappush(self.events, (self.now_ms + delay_ms, next(self.sequence), event))

    def between(self, low: float, high: float) -> float:
        return self.random.uniform(low, high)

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def run(self) -> None:
        for index in range(self.random.choice((1, 2, 3))):
            worker = Worker(self, f"worker-{index}", GROUPS[index % 2])
            self.workers.append(worker)
            self.after(self.between(0, 50), worker.start)
        for index in range(self.random.choice((1, 2))):
            self.start_broker(f"broker-{index}")
        span_ms = self.random.choice((50.0, 400.0, 1500.0))
        for _ in range(self.queries):
            self.after(self.between(0, span_ms), self.produce)
        for _ in range(self.faults):
            self.after(self.between(0, span_ms * 1.2), self.fault)
        for change in (self.swap, self.roll_back):
            if self.chance(0.5):
                self.after(self.between(0, span_ms), change)
        self.after(span_ms * 1.2 + 50, self.calm)
        self.play()
        self.check_end()

    def play(self) -> None:
        """Until everything is settled after the last fault."""
        ends_ms = 60_000.0
        while self.events and self.now_ms < ends_ms:
            self.now_ms, _, event = heappop(self.events)
            event()
            if not self.quiet:
                ends_ms = self.now_ms + 60_000
            elif self.settled():
                break

    # --- what happens -------------------------------------------------------------------------------------------------

    def produce(self) -> None:
        draw = self.random
        partition = draw.randrange(len(self.logs))
        log = self.logs[partition]
        log.end += draw.choice((0, 0, 0, 1, 3))  # markers and aborted records
        record = RecordId(TOPIC, partition, log.end)
        query = Query(
            id=f"{'poison' if draw.random() < 0.03 else 'q'}{record.partition}-{record.offset}",
            inputs=self.rows(),
            task=draw.choice(("t", "t", "t", "none")) if draw.random() < 0.9 else None,
            latency_ms_max=draw.choice((None, 3.0, 10.0, 40.0, 40.0, 150.0, 600.0)),
            accuracy_min=draw.choice((None, None, 0.5, 0.85, 0.94, 0.99)),
            cost_max=draw.choice((None, None, None, 0.0005, 0.01)),
            prefer=draw.choice(("cost", "accuracy", "latency")),
            on_miss=draw.choice(("reject", "late", "degrade")),
        )
        if query.task is None:
            named = draw.choice(("small", "large", "tiny:1"))
            query = Query(query.id, query.inputs, model=named, on_miss=query.on_miss)
        value = encode_query(query) if draw.random() < 0.95 else draw.choice((b"\xc1", b"{}", b""))
        log.put(Source(record, None, value, (), self.now_ms))
        if value[:1] not in (b"\xc1", b"{", b""):
            self.asked[record] = query
        if draw.random() < 0.06:
            cancel = Cancel(query=str(record)) if draw.random() < 0.5 else Cancel(id=query.id)
            self.after(draw.choice((0.0, 2.0, 30.0)), lambda: self.cancel(cancel))

    def rows(self) -> tuple[Tensor, ...]:
        return (tensor(self.random.choice((1, 1, 1, 2, 5))),)

    def cancel(self, cancel: Cancel) -> None:
        for broker in self.brokers:
            broker.cancel(cancel)

    def fault(self) -> None:
        draw = self.random
        kind = draw.choice(
            ("kill broker", "freeze broker", "join", "kill worker", "cut", "slow", "stall", "unload", "credit")
        )
        broker, worker = draw.choice(self.brokers), draw.choice(self.workers)
        if kind == "kill broker":
            broker.die()
        elif kind == "freeze broker":
            broker.freeze(self.between(10, 900))
        elif kind == "join" and len(self.brokers) < 4:
            self.start_broker(f"broker-{len(self.brokers)}")
        elif kind == "kill worker":
            worker.crash()
        elif kind == "cut":
            worker.cut(broker)
        elif kind == "slow":
            worker.factor = draw.choice((0.2, 3.0, 10.0))
        elif kind == "stall":
            worker.stall(self.between(20, 600))
        elif kind == "unload":
            worker.unload()
        elif kind == "credit":
            worker.window_ms = draw.choice((0.0, 5.0, 200.0))
            for each in worker.links.values():
                each.say(frames.Credit(worker.window_ms))

    def swap(self) -> None:
        """The second version of ``tiny`` is registered, and loaded here and there; the first one goes later."""
        self.swapped = True
        for broker in self.brokers:
            broker.learn()
        for worker in self.workers:
            if worker.group == "cpu":
                self.after(self.between(0, 100), lambda worker=worker: worker.load("tiny:2/onnx-fp32"))  # type: ignore[misc]
                if self.chance(0.5):
                    self.after(self.between(100, 300), lambda worker=worker: worker.unload("tiny:1/onnx-fp32"))  # type: ignore[misc]

    def roll_back(self) -> None:
        """No canary any more."""
        if self.labels is not None:
            self.labels = None if self.chance(0.5) else replace(CANARY, canary=None, canary_weight=0.0)
        for broker in self.brokers:
            broker.learn()

    def calm(self) -> None:
        """No more faults: everybody recovers, and everything must come to an end."""
        self.quiet = True
        for worker in self.workers:
            worker.factor, worker.window_ms = 1.0, max(worker.window_ms, 5.0)
            worker.load(None)

    # --- the consumer group -------------------------------------------------------------------------------------------

    def start_broker(self, name: str) -> None:
        broker = Broker(self, name)
        self.brokers.append(broker)
        for worker in self.workers:
            worker.dial(broker)
        self.rebalance()

    def rebalance(self) -> None:
        """Eager: every member gives up everything, then partitions are dealt anew."""
        self.generation += 1
        generation = self.generation
        for broker in self.members():
            broker.give_up(generation)
        if self.faults and not self.quiet and self.chance(0.5):
            worker, broker = self.random.choice(self.workers), self.random.choice(self.brokers)
            self.after(self.between(1, SETTLE_MS), lambda: worker.cut(broker))
        self.after(10, lambda: self.deal(generation))

    def members(self) -> list[Broker]:
        return [broker for broker in self.brokers if broker.alive and broker.member]

    def deal(self, generation: int) -> None:
        members = self.members()
        if generation != self.generation:
            return
        if any(broker.rejoined != generation for broker in members):
            self.after(10, lambda: self.deal(generation))
            return
        self.dealt = generation
        for broker in members:
            broker.generation, broker.leaving = generation, False
        for index in range(len(self.logs) if members else 0):
            broker = members[(index + generation) % len(members)]
            broker.core.ledger.assign(TOPIC, index, *self.logs[index].committed)

    def commit(self, broker: Broker, partition: int, offset: int, metadata: str) -> bool:
        """Kafka takes it from members of the last generation that was dealt."""
        if not broker.member or broker.generation != self.dealt:
            return False
        done = set(range(offset)) | {offset + bit for bit in _bits(metadata)}
        for each in self.logs[partition].records.keys() & done:
            record = RecordId(TOPIC, partition, each)
            if record not in self.outcomes and record not in self.letters:
                fail(f"P2: {record} is committed as finished ({offset}) and has no outcome")
        if offset < self.logs[partition].committed[0]:
            fail(f"P9: commit of {partition} went back to {offset}")
        self.logs[partition].committed = offset, metadata
        return True

    # --- what must hold -----------------------------------------------------------------------------------------------

    def outcome(self, record: RecordId, status: str, by: str) -> None:
        """Kafka acknowledged a reply."""
        self.outcomes[record].append(Outcome(self.now_ms, status, by))
        query = self.asked.get(record)
        if query is not None and by.startswith("broker"):
            self.check_refusal(record, query, status)

    def check_refusal(self, record: RecordId, query: Query, status: str) -> None:
        """What a broker says itself is what the table of ``on_miss`` allows."""
        what = f"{record} {query} got {status} at {self.now_ms:.1f}"
        if query.on_miss == "late" and status in ("RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"):
            fail(f"late gives up latency: {what}")
        if query.on_miss == "degrade" and status == "RESOURCE_EXHAUSTED":
            fail(f"degrade is told DEADLINE_EXCEEDED: {what}")
        if status == "UNAVAILABLE" and self.now_ms < self.give_up_ms(record):
            fail(f"unavailable before its time was over: {what}")
        if status == "FAILED_PRECONDITION" and self.feasible(query):
            fail(f"what is feasible is not FAILED_PRECONDITION: {what}")
        if status == "NOT_FOUND" and query.task != "none":
            fail(f"it exists: {what}")

    def deadline_ms(self, record: RecordId) -> float:
        """By which it is answered in time."""
        arrival_ms = self.logs[record.partition].records[record.offset].arrival_ms
        return arrival_ms + (self.asked[record].latency_ms_max or LATE_BOUND_MS)

    def give_up_ms(self, record: RecordId) -> float:
        """At which it is unavailable when nobody could run it."""
        if self.asked[record].on_miss != "late":
            return self.deadline_ms(record)
        return self.logs[record.partition].records[record.offset].arrival_ms + LATE_BOUND_MS

    def check_waiting(self, broker: Broker, records: list[RecordId]) -> None:
        """Who still waits when all that was due is done: it will wake in time, and no idle device could run it."""
        wake_ms = broker.core.wake_at_ms()
        if wake_ms <= self.now_ms:
            fail("it would poll without end")
        idle = not any(link.unsettled for link in broker.links)
        for record in records:
            query, deadline_ms = self.asked[record], self.deadline_ms(record)
            if query.on_miss != "late" and deadline_ms <= self.now_ms:
                fail(f"P6: {record} still waits at {self.now_ms:.2f}, its deadline was {deadline_ms:.2f}")
            if query.on_miss != "late" and wake_ms > deadline_ms:
                fail(f"P6: sleeps until {wake_ms:.2f}, past the deadline {deadline_ms:.2f} of {record}")
            loaded = [each for link in broker.links for each in link.variants()]
            if idle and any(v in self.pool(query) and broker.may_use(v.name, n, query) for v, n in loaded):
                fail(f"{record} waits, and a device that could run it is idle")

    def candidates(self, query: Query) -> list[Variant]:
        name = query.model.partition(":")[0] if query.model else None
        return [v for v in FLEET if (query.task == "t" or v.name == name)]

    def floor(self, query: Query) -> float:
        best = max((v.accuracy for v in self.candidates(query)), default=0.0)
        return query.accuracy_min if query.accuracy_min is not None else best - 0.02

    def feasible(self, query: Query) -> bool:
        return query.task == "none" or bool(self.pool(query))

    def pool(self, query: Query) -> list[Variant]:
        """What could ever run it, by what ``on_miss`` gives up."""
        rows, latency_ms = query.inputs[0].shape[0], query.latency_ms_max or LATE_BOUND_MS
        affordable = [v for v in self.candidates(query) if query.cost_max is None or v.cost <= query.cost_max]
        fast = [v for v in affordable if v.ms(rows) < latency_ms - 1e-6]
        accurate = [v for v in affordable if v.accuracy >= self.floor(query)]
        exact = [v for v in fast if v in accurate]
        return {"reject": exact, "late": accurate, "degrade": fast}[query.on_miss]

    def check_send(self, broker: Broker, link: Link, batch: frames.Batch) -> None:
        """What a broker sends meets what was asked, in time, within the credit."""
        if batch.shadow:
            self.check_copies(link, batch)
            return
        held = [sent.cost_ms for sent in link.unsettled.values()]
        if held and sum(held) >= link.window_ms:
            fail(f"credit: {held} outstanding at a window of {link.window_ms}")
        self.check_hedge(broker, link, batch)
        link.unsettled[batch.batch] = batch
        link.holds |= {item.record for item in batch.items}
        if broker.leaving:
            fail(f"P9: {batch.items[0].record} was sent while its partition is given up")
        name, _, rest = batch.variant.partition(":")
        version = int(rest.partition("/")[0])
        self.answered_by[f"{name}:{version}"] += len(batch.items)
        variant = next(v for v in FLEET if (v.name, v.group) == (name, link.worker.group))
        for item in batch.items:
            query = self.asked[item.record]
            finish_ms = self.now_ms + (variant.ms(item.rows) if item is batch.items[0] else 0.0)
            if query.on_miss != "late" and finish_ms > self.deadline_ms(item.record) + 1e-6:
                fail(f"P6: {item.record} was sent at {self.now_ms:.2f} although it cannot be in time")
            if variant not in self.candidates(query):
                fail(f"{item.record} asked for {query.task or query.model}, sent to {variant.name}")
            if query.cost_max is not None and variant.cost > query.cost_max:
                fail(f"cost_max given up: {item.record}")
            if (variant.accuracy < self.floor(query)) != ("accuracy" in item.missed):
                fail(f"{item.record} does not say truly what it misses: {item.missed}")
            if version not in (1, 2) or not broker.may_use(name, version, query, item.record):
                fail(f"{item.record} asked for {query.task or query.model}, got version {version} of {name}")
            if item.missed and query.on_miss != "degrade":
                fail(f"accuracy given up without leave: {item.record}")

    def check_hedge(self, broker: Broker, link: Link, batch: frames.Batch) -> None:
        """A second worker gets a query that one has, no third one, and not what was tried before."""
        for item in batch.items:
            others = [other for other in broker.links if other is not link and item.record in other.holds]
            if item.record in link.holds or len(others) > 1:
                fail(f"{item.record} is sent to {link.worker.name} too, and had {len(others)} others")
            if others:
                self.hedged += 1
                self.duplicates_max += 1
                if not self.hedge_share_max:
                    fail(f"{item.record} is hedged although that is off")
                if item.attempt:
                    fail(f"{item.record} is hedged at attempt {item.attempt}")

    def check_copies(self, link: Link, batch: frames.Batch) -> None:
        """Copies go to idle devices only, of queries that were answered."""
        if link.unsettled:
            fail(f"copies were sent where {len(link.unsettled)} batches are unsettled")
        self.answered_by["copies"] += len(batch.items)
        for item in batch.items:
            if not any(outcome.status == "OK" for outcome in self.outcomes[item.record]):
                fail(f"{item.record} was copied before it was answered")

    def settled(self) -> bool:
        return all(log.committed[0] == log.end and not log.committed[1] for log in self.logs) and not any(
            broker.core.ledger.queries for broker in self.brokers
        )

    def check_end(self) -> None:
        records = [source.record for log in self.logs for source in log.records.values()]
        lost = [record for record in records if not self.outcomes[record] and not self.letters[record]]
        if lost:
            fail(f"P1: no outcome of {[str(record) for record in lost]} at {self.now_ms:.0f}")
        if not self.settled():
            fail(f"never settled: {[(log.committed, log.end) for log in self.logs]}")
        duplicates = sum(len(outcomes) - 1 for outcomes in self.outcomes.values() if outcomes)
        if duplicates > self.duplicates_max:
            fail(f"P3: {duplicates} duplicates, at most {self.duplicates_max} are explained")
        for broker in self.brokers:
            core = broker.core
            held = (core.ledger.queries, core.ledger.bytes, core.waiting()[0], sum(len(w.sent) for w in core.workers()))
            if held[:3] != (0, 0, 0):
                fail(f"P5: {broker.name} still holds {held}")


def _bits(metadata: str) -> list[int]:
    """The bitmap of a commit, read without the system's own code."""
    if not metadata:
        return []
    bitmap = int.from_bytes(zlib.decompress(base64.b64decode(metadata.split(":", 1)[1])), "little")
    return [bit for bit in range(bitmap.bit_length()) if bitmap >> bit & 1]
