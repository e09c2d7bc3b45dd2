"""A broker of the simulated system: the shell around one real core."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import TYPE_CHECKING

from broker_builders import model, profile, put
from simulated_facts import CANARY, COMMIT_MS, FLEET, JUDGE_MS, LATE_BOUND_MS, SESSION_MS, SETTLE_MS, Variant

from broker import devices
from broker.core import Bury, CancelSent, Core, Reply, Send
from broker.intake import Dead, Intake, Refusal
from broker.ledger import Entry, Source, State
from broker.versions import share
from modelless import frames
from modelless.messages import Cancel, Labels, Query, RecordId
from modelless.topics import ReplyTopicRule, Topics

if TYPE_CHECKING:
    from simulated_system import World
    from simulated_worker import Link


class Broker:
    """The shell around one core: reads, pumps, commits, dies."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.thaw_ms = 0.0
        self.born()

    def born(self) -> None:
        """A new process: everything but the name is new."""
        self.core = Core(accuracy_slack=0.02, attempts_max=3, hedge_share_max=self.world.hedge_share_max)
        self.known: set[str] = set()
        for variant in FLEET:
            self.register(variant, 1)
            if variant.name == "small" or (variant.name == "tiny" and self.world.swapped):
                self.register(variant, 2)
        self.labelled(self.world.labels)
        self.intake = Intake(
            Topics(), ReplyTopicRule(Topics()), lambda _: 4, latency_ms_default=LATE_BOUND_MS, request_bytes_max=1 << 20
        )
        self.member, self.generation, self.rejoined, self.leaving = True, -1, -1, True
        self.finished_since_commit = 0
        self.links: list[Link] = []
        self.pumping, self.timer = False, 0
        self.alive = True
        self.life = object()
        self.after(1, self.read)
        self.after(COMMIT_MS, self.commit_often)
        self.after(JUDGE_MS, self.judge)

    def register(self, variant: Variant, version: int) -> None:
        of = model(variant.name, version)
        self.known.add(of.key)
        put(self.core.catalog, of, profile(of, variant.group, variant.curve, variant.accuracy, variant.price_per_hour))

    def labelled(self, labels: Labels | None) -> None:
        self.labels = labels
        self.core.labels("small", labels, self.world.now_ms)

    def may_use(self, name: str, version: int, query: Query, record: RecordId | None = None) -> bool:
        """Whether a version may answer a query, by what this broker was told; of a canary only for its share."""
        if query.model is not None and ":" in query.model:
            return query.model == f"{name}:{version}"
        if name == "small" and self.labels is not None and version == 2:
            return record is not None and self.labels.canary == 2 and share(record, "canary") < CANARY.canary_weight
        return f"{name}:{version}" in self.known

    def learn(self) -> None:
        """What is registered and labelled now, some time after it was."""

        def told() -> None:
            if self.world.swapped:
                self.register(next(v for v in FLEET if v.name == "tiny"), 2)
            self.core.catalog_changed(self.world.now_ms)
            self.labelled(self.world.labels)
            self.kick()

        self.after(self.world.between(0, 30), told)

    def after(self, delay_ms: float, event: Callable[[], None]) -> None:
        """In this life; later when it is frozen then."""
        life = self.life

        def guarded() -> None:
            if life is not self.life or not self.alive:
                return
            if self.world.now_ms < self.thaw_ms:
                self.world.after(self.thaw_ms - self.world.now_ms, guarded)
                return
            event()

        self.world.after(delay_ms, guarded)

    # --- life ---------------------------------------------------------------------------------------------------------

    def die(self) -> None:
        world = self.world
        if not self.alive:
            return
        self.explain_duplicates()
        self.alive = False
        self.core = Core()
        for link in list(self.links):
            link.broken()
        world.after(world.random.choice((50.0, SESSION_MS)), self.restart)

    def restart(self) -> None:
        self.born()
        for worker in self.world.workers:
            worker.dial(self)
        self.world.rebalance()

    def explain_duplicates(self) -> None:
        """What it holds, and what it finished since its last commit, may run once more."""
        self.world.duplicates_max += self.core.ledger.queries + self.finished_since_commit

    def freeze(self, for_ms: float) -> None:
        """SIGSTOP, and SIGCONT later: beyond the session timeout the group goes on without it."""
        world, life = self.world, self.life
        if not self.alive or not self.member or world.now_ms < self.thaw_ms:
            return
        self.thaw_ms = world.now_ms + for_ms

        def expelled() -> None:
            if life is self.life and self.alive:
                self.explain_duplicates()
                self.member = False
                world.rebalance()

        if for_ms > SESSION_MS:
            world.after(SESSION_MS, expelled)
            self.after(for_ms + world.between(0, 50), self.fenced)

    def fenced(self) -> None:
        """It learns that its partitions are somebody else's: without a warning, as a lost generation does."""
        self.explain_duplicates()
        self.forget(self.core.ledger.owned())
        self.member, self.generation, self.leaving = True, -1, True
        self.world.rebalance()

    def give_up(self, generation: int) -> None:
        """A rebalance: let workers finish, commit, forget."""
        world = self.world

        def withdraw() -> None:
            if generation == world.generation and self.member:
                self.leaving = True
                self.core.withdraw(self.core.ledger.owned())
                self.after(SETTLE_MS if self.core.ledger.owned() else 0, forget)

        def forget() -> None:
            if generation != world.generation or not self.member:
                return
            self.commit()
            partitions = self.core.ledger.owned()
            world.duplicates_max += self.core.ledger.unsettled(partitions) + self.finished_since_commit
            self.forget(partitions)
            self.rejoined = generation

        self.after(0, withdraw)

    def forget(self, partitions: list[tuple[str, int]]) -> None:
        """All of them; what workers have is the next owner's, which may be this broker."""
        for topic, partition in partitions:
            self.core.ledger.revoke(topic, partition)
        for link in self.links:
            link.holds.clear()

    # --- work ---------------------------------------------------------------------------------------------------------

    def read(self) -> None:
        core, now_ms = self.core, self.world.now_ms
        for topic, partition in () if self.leaving else core.ledger.owned():
            log, position = self.world.logs[partition], core.ledger.position(topic, partition)
            assert position is not None
            fresh = [log.records[offset] for offset in log.offsets[bisect_left(log.offsets, position) :][:20]]
            again = fresh[:1] if self.world.chance(0.05) else []  # read twice, after a seek
            for source in [*fresh, *again]:
                if core.ledger.arrived(source.record):
                    self.world.duplicates_max += not self.member  # read by a zombie
                    self.take(source, now_ms)
            if not fresh:
                core.ledger.passed(topic, partition, log.end)
        self.kick()
        self.after(self.world.between(*self.world.reads_ms), self.read)

    def take(self, source: Source, now_ms: float) -> None:
        match self.intake.read(source):
            case Entry() as entry:
                self.core.admit(entry, now_ms)
            case Refusal(entry=entry, status=status, message=message):
                self.core.refuse(entry, status, message)
            case Dead(entry=entry, code=code, reason=reason):
                self.core.dead(entry, code, reason)

    def cancel(self, cancel: Cancel) -> None:
        self.after(0, lambda: self.core.cancel(cancel))
        self.after(0, self.kick)

    def kick(self) -> None:
        if not self.pumping:
            self.pumping = True
            self.after(0, self.pump)

    def pump(self) -> None:
        self.pumping = False
        world, core = self.world, self.core
        now_ms = world.now_ms
        for instruction in core.poll(now_ms):
            match instruction:
                case Send(worker=worker, batch=batch):
                    link = self.link_of(worker)
                    world.check_send(self, link, batch)
                    link.give(batch)
                case CancelSent(worker=worker, cancel=cancel):
                    self.link_of(worker).give(cancel)
                case Reply(entry=entry, status=status):
                    self.acknowledged(self.reply, entry, status)
                case Bury(entry=entry, code=code):
                    self.acknowledged(self.bury, entry, code)
        waiting = [e for e in core.ledger.entries() if e.state is State.WAITING]
        self.world.check_waiting(self, [e.record for e in waiting if not core.ledger.is_leaving(e.record)])
        wake_ms = core.wake_at_ms()
        self.timer += 1
        timer = self.timer
        if wake_ms < float("inf"):
            late_ms = world.random.choice((0.0, 0.2, 2.0))
            self.after(wake_ms - now_ms + late_ms, lambda: self.pump() if timer == self.timer else None)

    def link_of(self, worker: devices.Worker) -> Link:
        return next(link for link in self.links if link.worker is worker)

    def acknowledged(self, then: Callable[[Entry, str], None], entry: Entry, status: str) -> None:
        """Kafka does its part even when the broker dies meanwhile."""
        world, life, core = self.world, self.life, self.core

        def acknowledge() -> None:
            failed = then == self.reply and world.chance(0.02)
            if not failed:
                world.outcome(entry.record, status, self.name) if then == self.reply else self.letter(entry, status)

            def told() -> None:
                if core is self.core:
                    if failed:
                        core.undeliverable(entry, "gone")
                    else:
                        then(entry, status)
                    self.kick()

            if life is self.life:
                self.after(0, told)

        world.after(world.between(0.2, 4), acknowledge)

    def reply(self, entry: Entry, status: str) -> None:
        self.finished_since_commit += 1
        self.core.replied(entry, status)

    def bury(self, entry: Entry, _: str) -> None:
        self.finished_since_commit += 1
        self.core.buried(entry)

    def letter(self, entry: Entry, code: str) -> None:
        self.world.letters[entry.record].append(code)

    def hear(self, worker: devices.Worker, frame: frames.Frame) -> None:
        if isinstance(frame, frames.Outcome):
            self.finished_since_commit += frame.rows
        self.core.frame(worker, frame, self.world.now_ms)
        self.kick()

    def judge(self) -> None:
        self.core.judge(self.world.now_ms)
        self.after(JUDGE_MS, self.judge)

    def commit_often(self) -> None:
        if not self.leaving:
            self.commit()
        self.after(COMMIT_MS, self.commit_often)

    def commit(self) -> None:
        if self.world.chance(0.1):  # Kafka does not answer in time
            return
        for each in self.core.ledger.commits():
            if self.world.commit(self, each.partition, each.offset, each.metadata):
                self.core.ledger.committed(each)
                self.finished_since_commit = 0
