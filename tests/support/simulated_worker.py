"""A worker of the simulated system and its links."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Any

from simulated_facts import FLEET, JUDGE_MS, TOPIC, Variant, loadable

from broker import devices
from modelless import frames
from modelless.messages import RecordId

if TYPE_CHECKING:
    from simulated_broker import Broker
    from simulated_system import World


class Link:
    """Frames both ways, in order, with a delay; sometimes twice towards the broker."""

    def __init__(self, broker: Broker, of: Worker, worker: devices.Worker) -> None:
        self.broker, self.of, self.worker = broker, of, worker
        self.alive = True
        self.window_ms = 0.0
        self.unsettled: dict[int, frames.Batch] = {}
        self.holds: set[RecordId] = set()
        """Queries whose outcome the broker has not heard from this worker."""
        self.ready: frozenset[str] = frozenset()
        self._busy_until_ms = [0.0, 0.0]

    def _delay_ms(self, way: int) -> float:
        now_ms = self.of.world.now_ms
        self._busy_until_ms[way] = max(self._busy_until_ms[way], now_ms + self.of.world.between(0.05, 0.5))
        return self._busy_until_ms[way] - now_ms

    def variants(self) -> list[tuple[Variant, int]]:
        """What the broker was told to be loaded there, with the version."""
        names = {
            f"{v.name}:{number}/onnx-fp32": (v, number) for v in FLEET for number in (1, 2) if v.group == self.of.group
        }
        return [names[variant] for variant in self.ready]

    def say(self, frame: frames.Frame) -> None:
        """Worker to broker."""
        twice = isinstance(frame, frames.Outcome) and self.of.world.chance(0.05)

        def heard() -> None:
            if not self.alive:
                return
            if isinstance(frame, frames.Credit):
                self.window_ms = frame.window_ms
            if isinstance(frame, frames.State):
                self.ready = frozenset(each.variant for each in frame.variants)
            if isinstance(frame, frames.Outcome) and frame.batch in self.unsettled:
                self.holds -= {item.record for item in frame.items}
                if frame.final:
                    self.holds -= {item.record for item in self.unsettled.pop(frame.batch).items}
            self.broker.hear(self.worker, frame)

        for _ in range(1 + twice):
            self.broker.after(self._delay_ms(0), heard)

    def give(self, frame: Any) -> None:
        """Broker to worker."""
        self.of.after(self._delay_ms(1), lambda: self.of.hear(self, frame) if self.alive else None)

    def broken(self) -> None:
        """Both sides notice."""
        if not self.alive:
            return
        self.alive = False
        broker, worker = self.broker, self.worker
        self.of.world.duplicates_max += sum(len(batch.items) for batch in self.unsettled.values())

        def lost() -> None:
            broker.links.remove(self)
            broker.core.lost(worker, self.of.world.now_ms)
            broker.kick()

        broker.after(0, lost)
        self.of.forget(self)


class Worker:
    """A device that runs one batch at a time, earliest deadline first, and publishes its replies."""

    def __init__(self, world: World, name: str, group: str) -> None:
        self.world, self.name, self.group = world, name, group
        self.links: dict[Broker, Link] = {}
        self.incarnations = count()
        self.loaded = loadable(group, swapped=False)
        self.factor, self.window_ms = 1.0, world.random.choice((0.0, 10.0, 60.0))
        self.alive = False
        self.thaw_ms = 0.0
        self.answered: set[RecordId] = set()
        self.ran: dict[str, list[tuple[int, float]]] = defaultdict(list)

    def start(self) -> None:
        self.alive, self.life = True, object()
        self.queue: list[tuple[Link, frames.Batch]] = []
        self.running: tuple[Link, frames.Batch] | None = None
        for broker in self.world.brokers:
            self.dial(broker)
        if self.world.tells:
            self.beat(self.life)

    def beat(self, life: object) -> None:
        """Every half second, to every broker: what is loaded, and how long what ran took."""
        if life is self.life and self.alive:
            state = self.state()
            self.ran.clear()
            for link in self.links.values():
                link.say(state)
            self.after(JUDGE_MS, lambda: self.beat(life))

    def dial(self, broker: Broker) -> None:
        if not self.alive or not broker.alive or broker in self.links:
            return
        name = f"{self.name}-{next(self.incarnations)}-{id(self)}"
        worker = devices.Worker(self.name, name, self.group, 1.0, 1 << 30, ())
        link = self.links[broker] = Link(broker, self, worker)
        broker.links.append(link)
        broker.core.joined(worker)
        link.say(self.state())
        records: dict[int, list[int]] = defaultdict(list)
        for record in self.answered:
            records[record.partition].append(record.offset)
        link.say(frames.Answered(tuple((TOPIC, partition, tuple(each)) for partition, each in records.items())))
        link.say(frames.Credit(self.window_ms))

    def state(self) -> frames.State:
        variants = [
            frames.VariantState(
                name, "ready", 0, tuple(ran := self.ran.get(name, [])), sum(r for r, _ in ran), sum(ms for _, ms in ran)
            )
            for name in sorted(self.loaded)
        ]
        return frames.State(tuple(variants), 0, 0.0, 1)

    # --- faults -------------------------------------------------------------------------------------------------------

    def stall(self, for_ms: float) -> None:
        """SIGSTOP, and SIGCONT later: it hears and says nothing meanwhile, its links stay."""
        self.thaw_ms = max(self.thaw_ms, self.world.now_ms + for_ms)

    def after(self, delay_ms: float, event: Callable[[], None]) -> None:
        """In the order in which they would have been, once it runs again."""

        def guarded() -> None:
            if self.world.now_ms < self.thaw_ms:
                self.world.after(self.thaw_ms - self.world.now_ms, guarded)
            else:
                event()

        self.world.after(delay_ms, guarded)

    def crash(self) -> None:
        if not self.alive:
            return
        self.alive = False
        for link in list(self.links.values()):
            link.broken()
        self.answered = set()
        self.world.after(self.world.between(20, 400), self.start)

    def cut(self, broker: Broker) -> None:
        link = self.links.get(broker)
        if link is not None:
            link.broken()
            self.world.after(self.world.between(5, 200), lambda: self.dial(broker))

    def unload(self, variant: str | None = None) -> None:
        """One variant goes, for a while unless it is named: what is queued for it is given back."""
        if not self.alive or not self.loaded:
            return
        gone = variant or self.world.random.choice(sorted(self.loaded))
        self.loaded -= {gone}
        for link in self.links.values():
            link.say(self.state())
        for link, batch in [each for each in self.queue if each[1].variant == gone]:
            self.queue.remove((link, batch))
            self.settle(link, batch, 0.0, {item.record: ("returned", "OK") for item in batch.items})
        if variant is None:
            self.world.after(self.world.between(20, 500), lambda: self.load(gone))

    def load(self, variant: str | None) -> None:
        everything = loadable(self.group, swapped=self.world.swapped)
        self.loaded |= everything if variant is None else {variant}
        for link in self.links.values() if self.alive else ():
            link.say(self.state())
            link.say(frames.Credit(self.window_ms))

    def forget(self, link: Link) -> None:
        """A link is lost: what runs is finished, the rest is the broker's again."""
        self.links.pop(link.broker, None)
        if self.alive:
            self.queue = [each for each in self.queue if each[0] is not link]

    # --- work ---------------------------------------------------------------------------------------------------------

    def hear(self, link: Link, frame: Any) -> None:
        if not self.alive:
            return
        if isinstance(frame, frames.CancelItems):
            for _, batch in [each for each in self.queue if each == (link, each[1]) and each[1].batch == frame.batch]:
                self.cancelled |= set(frame.records) & {item.record for item in batch.items}
            return
        if isinstance(frame, frames.Recall):
            self.recall(link, frame)
        if not isinstance(frame, frames.Batch):
            return
        giving_back = self.world.faults and not self.world.quiet and self.world.chance(0.03)
        if frame.variant not in self.loaded or giving_back:
            self.settle(link, frame, 0.0, {item.record: ("returned", "OK") for item in frame.items})
            return
        self.queue.append((link, frame))
        self.next()

    cancelled: frozenset[RecordId] | set[RecordId] = frozenset()

    def recall(self, link: Link, frame: frames.Recall) -> None:
        """Give back what has not started; of what runs, what somebody else has answered will not be published."""
        for queued in [each for each in self.queue if each[0] is link and each[1].batch == frame.batch]:
            batch = queued[1]
            self.queue.remove(queued)
            gone = [item for item in batch.items if item.record in frame.records]
            kept = tuple(item for item in batch.items if item.record not in frame.records)
            if kept:
                self.queue.append((link, replace(batch, items=kept)))
            if gone:
                self.settle(link, batch, 0.0, {item.record: ("returned", "OK") for item in gone}, final=not kept)
        if frame.answered and self.running is not None and self.running == (link, self.running[1]):
            self.unwanted |= set(frame.records) if self.running[1].batch == frame.batch else set()

    def next(self) -> None:
        if self.running is not None or not self.queue:
            return
        self.running = link, batch = min(self.queue, key=_urgency)
        self.queue.remove(self.running)
        now_ms, life = self.world.now_ms, self.life
        if batch.shadow:
            self.after(batch.cost_ms * self.factor, lambda: self.copied(link, batch, life))
            return
        self.unwanted: set[RecordId] = set()
        how: dict[RecordId, tuple[str, str]] = {}
        for item in batch.items:
            if item.record in self.cancelled:
                how[item.record] = "answered", "CANCELLED"
            elif item.deadline_ms is not None and now_ms > item.deadline_ms:
                how[item.record] = "answered", "DEADLINE_EXCEEDED"
            elif item.id.startswith("poison"):
                how[item.record] = "poisoned", "INTERNAL"
            elif self.world.chance(0.01):
                how[item.record] = "undeliverable", "OK"
            else:
                how[item.record] = "answered", "OK"
        rows = sum(item.rows for item in batch.items)
        execute_ms = self.ms(batch.variant, rows) * self.factor * self.world.between(0.8, 1.3)

        def done() -> None:
            if life is self.life and self.alive:
                self.running = None
                how.update(dict.fromkeys(self.unwanted & how.keys(), ("returned", "OK")))
                if self.world.tells:
                    self.ran[batch.variant].append((rows, execute_ms))
                self.publish(link, batch, execute_ms, how)
                self.next()

        self.after(execute_ms, done)

    def ms(self, variant: str, rows: int) -> float:
        """What the profile says."""
        return next(v.ms(rows) for v in FLEET if (v.name, v.group) == (variant.partition(":")[0], self.group))

    def copied(self, link: Link, batch: frames.Batch, life: object) -> None:
        """Nobody is answered; sometimes it fails."""
        if life is not self.life or not self.alive:
            return
        self.running = None
        rows = sum(item.rows for item in batch.items)
        if self.world.chance(0.1):
            items = tuple(frames.ItemOutcome(item.record, "returned", "INTERNAL", "it failed") for item in batch.items)
            link.say(frames.Outcome(batch.batch, True, batch.cost_ms, 0, items))
        else:
            link.say(frames.Outcome(batch.batch, True, batch.cost_ms, 0, (), True, (1,) * rows))
        self.next()

    def publish(self, link: Link, batch: frames.Batch, execute_ms: float, how: dict[RecordId, tuple[str, str]]) -> None:
        """The device is free; the outcome is told once Kafka has the replies."""
        records = tuple(item.record for item in batch.items)
        life = self.life

        def acknowledged() -> None:
            for record in records:
                if how[record][0] not in ("undeliverable", "returned"):
                    self.world.outcome(record, how[record][1], self.name)

            def told() -> None:
                if life is self.life and self.alive:
                    self.answered |= {record for record in records if how[record][0] == "answered"}
                    self.settle(link, batch, execute_ms, how)

            self.after(0, told)

        self.world.after(self.world.between(0.2, 4), acknowledged)

    def settle(
        self,
        link: Link,
        batch: frames.Batch,
        execute_ms: float,
        how: dict[RecordId, tuple[str, Any]],
        *,
        final: bool = True,
    ) -> None:
        """Tell the broker, sometimes in two parts, and sometimes only what is not simply OK."""
        items = tuple(frames.ItemOutcome(r, disposition, status) for r, (disposition, status) in how.items())  # type: ignore[arg-type]
        cut = self.world.random.choice((0, 0, len(items) // 2))
        if cut:
            link.say(frames.Outcome(batch.batch, False, 0.0, cut, items[:cut]))
        rest = items[cut:]
        brief = final and self.world.chance(0.5)
        if brief:
            rest = tuple(item for item in rest if (item.disposition, item.status) != ("answered", "OK"))
        whole = batch.predicts and brief and not (cut or rest)
        predictions = (1,) * sum(item.rows for item in batch.items) if whole else ()
        link.say(frames.Outcome(batch.batch, final, execute_ms, len(items), rest, brief, predictions))


def _urgency(queued: tuple[Link, frames.Batch]) -> float:
    if queued[1].shadow:
        return float("inf")
    return min(item.latency_deadline_ms or float("inf") for item in queued[1].items)
