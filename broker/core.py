"""The broker's decisions, without I/O and without a clock.

Events come in as method calls, each with ``now_ms`` (Kafka time) where time matters; what is to be done comes out
of :meth:`Core.poll` as instructions, which the shell carries out and reports back::

    admit, cancel                         a record was read; somebody no longer wants it
    joined, frame, lost                   a worker's link opened, spoke, ended
    poll(now_ms) -> [Instruction, ...]    whatever is due by now
    wake_at_ms()                          call poll again by then, or after the next event
    replied, buried                       Kafka acknowledged our reply, or our dead letter

Every entry that was admitted leaves by exactly one of: a worker's outcome, ``replied``, ``buried``, or the loss of
its partition.
"""

from __future__ import annotations

from bisect import insort
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, cycle, repeat
from typing import Final

from broker.alike import Alike
from broker.batcher import NEVER, OfflineQueue, VariantQueue, batch_rows, concatenated, order_ms
from broker.calls import joining
from broker.canary import Counts
from broker.catalog import Candidate, Catalog, Target
from broker.conditions import Conditions
from broker.demand import DemandMeter
from broker.devices import Sent, Worker
from broker.explain import HEADER_CANDIDATES_MAX, explain, header_value
from broker.fairness import Account, Fairness
from broker.gathering import Cut, best_cut, gathered
from broker.groups import Group
from broker.jobs import Jobs
from broker.ledger import Entry, Ledger, State
from broker.prices import Prices
from broker.quotas import Bucket, Quotas
from broker.ranking import Teams
from broker.scaler import Scaling
from broker.selector import Choice, Chosen, Parked, Refused, Selector
from broker.shadows import Shadows
from broker.situation import PlannedWorker, Situation
from broker.statistics import Shed, ShedReason, Statistics
from broker.stragglers import Hedge, Stragglers
from broker.usage import Meter
from broker.versions import Loaded, canary_for
from broker.wants import Wants
from modelless import frames
from modelless.fields import shown
from modelless.headers import EXPLAIN
from modelless.messages import Cancel, Demanded, Labels, RecordId

CANCELS_MAX: Final = 10_000
LATE_TURN_MS: Final = 10_000.0
"""A late query that has waited in vain until it was the most urgent gives way once more for as long."""
RANK_INTERVAL_MS: Final = 250.0
"""So often candidates are ranked by what their tables have learned."""
WANT_TURNS: Final = 4
"""One in so many that have a choice is asked what would be better if it were loaded, and stands for the rest."""


@dataclass(frozen=True, slots=True)
class Send:
    """Give a batch to a worker."""

    worker: Worker
    batch: frames.Batch


@dataclass(frozen=True, slots=True)
class CancelSent:
    """Tell a worker that it need not answer what it was sent."""

    worker: Worker
    cancel: frames.CancelItems | frames.Recall


@dataclass(frozen=True, slots=True)
class Reply:
    """Answer an entry ourselves; then :meth:`Core.replied`."""

    entry: Entry
    status: str
    message: str
    retry_after_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Bury:
    """Write an entry to the dead letters; then :meth:`Core.buried`."""

    entry: Entry
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class TellDemand:
    """Tell a worker how urgent our waiting work for its group is."""

    worker: Worker
    demand: frames.Demand


Instruction = Send | CancelSent | Reply | Bury | TellDemand


class Core:
    """One broker's state. The shell owns the one instance and is its only caller."""

    def __init__(
        self,
        *,
        accuracy_slack: float = 0.02,
        attempts_max: int = 3,
        hedge_share_max: float = 0.01,
        topic_weights: Mapping[str, float] | None = None,
        quotas: Quotas | None = None,
    ) -> None:
        self.catalog = Catalog()
        self.ledger = Ledger(self._withdraw)
        self.groups: dict[str, Group] = {}
        self.statistics = Statistics()
        self.conditions = Conditions()
        self.counts = Counts()
        self.meter = Meter()
        self.quotas = quotas or Quotas()
        self._prices = Prices()
        self._selector = Selector(accuracy_slack, self._prices)
        self._attempts_max = attempts_max
        self._fairness = Fairness(topic_weights)
        self._jobs = Jobs()
        self._parked: list[tuple[float, int, Entry]] = []
        self._parks = True
        self._ready: dict[tuple[str, str], list[Worker]] = {}
        self._wanted: Mapping[str, frozenset[str]] | None = None
        self._cancelled: dict[str, float] = {}
        self._instructions: list[Instruction] = []
        self._batches = count(1)
        self._shadows = Shadows(self.catalog, self.counts, self._batches)
        self._stragglers = Stragglers(hedge_share_max, self.statistics, self.ledger.is_leaving)
        self._sequence = count()
        self._rank_ms = -NEVER
        self._wants = Wants()
        self._demand = DemandMeter()
        self._turn = cycle([True] + [False] * (WANT_TURNS - 1))
        self._polled_ms = -NEVER
        self._due_ms: float | None = None
        """When to do more in a poll than to hand out instructions, and when to be polled: until something changes."""
        self._wake_ms: float | None = None

    # --- queries --------------------------------------------------------------------------------------------------

    def admit(self, entry: Entry, now_ms: float, alike: Alike | None = None) -> None:
        """A decoded query enters; its record was accepted by the ledger.

        Args:
            alike: the same for all that enter at this instant.
        """
        self.ledger.open(entry)
        if entry.latency_deadline_ms is not None:
            entry.account = self._fairness.account(entry.source.record.topic)
        else:  # it waits behind everybody as it is
            entry.job = self._jobs.of(entry.source.record.topic, entry.query.metadata)
        if self._cancelled and self._was_cancelled(entry):
            self._reply(entry, "CANCELLED", "cancelled before it started")
        else:
            self._place(entry, now_ms, first=True, alike=alike)

    def refuse(self, entry: Entry, status: str, message: str) -> None:
        """A record that is no valid query, but has an address: its outcome is an error reply."""
        self.ledger.open(entry)
        self._reply(entry, status, message)

    def dead(self, entry: Entry, code: str, reason: str) -> None:
        """A record that nobody can be told about: its outcome is a dead letter."""
        self.ledger.open(entry)
        self._bury(entry, code, reason)

    def cancel(self, cancel: Cancel, logged_ms: float = NEVER) -> None:
        """Drop a query that has not started, or one that is still to be read (remembered for the last 10,000).

        ``logged_ms`` is the cancel's log time: a query that was logged later, under the same id, is not meant.
        """
        name = cancel.query or cancel.id or ""
        found = [entry for entry in self._named(cancel) if entry.source.arrival_ms <= logged_ms]
        for entry in found:
            if entry.state is State.WAITING:
                self._withdraw(entry)
                self._reply(entry, "CANCELLED", "cancelled before it started")
            elif entry.state is State.SENT and isinstance(entry.place, Sent):
                entry.cancelled = True
                if entry.place.elsewhere(entry.record) is None:  # or one would say so, and the other one answer
                    frame = frames.CancelItems(entry.place.batch, (entry.record,))
                    self._instructions.append(CancelSent(entry.place.worker, frame))
        if not found:
            self._cancelled[name] = logged_ms
            if len(self._cancelled) > CANCELS_MAX:
                del self._cancelled[next(iter(self._cancelled))]

    def replied(self, entry: Entry, status: str) -> None:
        """Kafka acknowledged our reply."""
        if self.ledger.finish(entry):
            self._count([entry], status)

    def undeliverable(self, entry: Entry, reason: str) -> None:
        """Our reply cannot be written: the outcome becomes a dead letter."""
        if entry.state is not State.DONE:
            self._bury(entry, "UNDELIVERABLE", reason)

    def buried(self, entry: Entry) -> None:
        """Kafka acknowledged our dead letter."""
        self.statistics.dead_letters += 1
        self.ledger.finish(entry)

    def withdraw(self, partitions: Iterable[tuple[str, int]]) -> None:
        """These partitions are about to be lost: nothing of them that still waits will be sent."""
        for entry in self.ledger.leave(partitions):
            if entry.state is State.WAITING:
                self._withdraw(entry)

    def withdraw_parked(self) -> None:
        """We are leaving: what no worker can run, now or later, is left for the next owner."""
        self._parks = False
        for _, _, entry in self._parked:
            entry.place = None
        self._parked.clear()
        self.quotas.drop()

    # --- workers --------------------------------------------------------------------------------------------------

    def joined(self, worker: Worker) -> None:
        if worker.group not in self.groups:
            self.groups[worker.group] = Group(worker.group, self._changed)
        self.groups[worker.group].join(worker)
        self._present(worker)

    def labels(self, name: str, labels: Labels | None, now_ms: float) -> None:
        """Labels of a model changed, or (None) went: what waits for one of its versions is placed anew."""
        self.catalog.put_labels(name, labels)
        self.counts.relabel(name, labels)
        self._shadows.relabel(name)
        waiting: list[Entry] = []
        for group in self.groups.values():
            for queue in group.queues.values():
                if queue.candidate.model.name == name:
                    waiting += queue.take_all()
        self._place_all(waiting, now_ms)
        self._unpark(now_ms)

    def planned(self, wanted: Mapping[str, frozenset[str]], now_ms: float) -> None:
        """A plan was read: what is wanted on which worker (by name). A version takes over when it is there."""
        self._wanted = wanted
        for worker in self.workers():
            self._present(worker)
        self._unpark(now_ms)

    def _present(self, worker: Worker) -> None:
        """Who answers for a model depends on what is loaded."""
        wanted = None if self._wanted is None else self._wanted.get(worker.name, frozenset()) - worker.failed
        loaded = None if worker.draining else Loaded(worker.group, worker.ready, wanted)
        self.catalog.put_worker(worker.incarnation, loaded)

    def frame(self, worker: Worker, frame: frames.Frame, now_ms: float) -> None:
        """A worker spoke."""
        match frame:
            case frames.Outcome():
                self._outcome(worker, frame, now_ms)
            case frames.Credit():
                worker.credit(frame.window_ms)
            case frames.Backlog():
                worker.told(frame, now_ms)
                self._stragglers.expect(worker)
            case frames.Call():
                self._called(worker, frame, now_ms)
            case frames.State():
                self._state(worker, frame, now_ms)
            case frames.Answered():
                self._answered_before(frame)
            case frames.Drain():
                worker.draining = True
                self._count_ready(worker.group, worker.ready)
                self._present(worker)
                self._replace_stranded(now_ms)

    def lost(self, worker: Worker, now_ms: float) -> None:
        """A link ended: what it had and did not settle goes elsewhere at once."""
        group = self.groups[worker.group]
        if group.workers.get(worker.incarnation) is worker:
            group.leave(worker)
            self.catalog.put_worker(worker.incarnation, None)
            self._shadows.lost(worker)
        self._count_ready(worker.group, worker.ready)
        self._instructions = [each for each in self._instructions if getattr(each, "worker", None) is not worker]
        if not worker.draining:
            self.statistics.lost_workers += 1
        for order, sent in enumerate(worker.sent.values()):
            for entry in sent.entries.values():
                if entry.state is State.SENT:
                    self._again(sent, entry, now_ms, attempted=order == 0)  # the oldest is what it ran, most probably
        worker.sent.clear()
        self._replace_stranded(now_ms)

    def catalog_changed(self, now_ms: float) -> None:
        """Models or profiles changed: whoever waits for what is no longer current, or for anything, is placed anew."""
        outdated: list[Entry] = []
        for group in self.groups.values():
            for key, queue in list(group.queues.items()):
                if self.catalog.candidate(queue.candidate.variant, queue.candidate.group) is not queue.candidate:
                    del group.queues[key]
                    outdated += queue.take_all()
        self._place_all(outdated, now_ms)
        self._unpark(now_ms)

    def restore(self) -> None:
        """Begin with what the last brokers had learned of how variants live; the topics have been read."""
        self.conditions.restore(self.catalog.candidate, self.catalog.profiles)
        for candidate in self.catalog.candidates():
            self.catalog.observed(candidate)

    def judge(self, now_ms: float) -> None:
        """How what is loaded lives now; to be called a few times a second."""
        self.conditions.judge(self.catalog.candidate, self.groups, now_ms)

    # --- time -----------------------------------------------------------------------------------------------------

    def poll(self, now_ms: float) -> list[Instruction]:
        """Everything that is due: expired entries are answered, batches leave."""
        self._polled_ms = now_ms
        if self._due_ms is None:
            self._due_ms = self._next_ms(now_ms)
        if now_ms >= self._due_ms or self._fairness.several:
            self._act(now_ms)
        instructions, self._instructions = self._instructions, []
        return instructions

    def wake_at_ms(self) -> float:
        """When ``poll`` has something to do without a further event; inf for never."""
        if self._wake_ms is None:
            wake_ms = min(self._parked_ms, self._stragglers.wake_ms)
            if self.quotas:
                wake_ms = min(wake_ms, self.quotas.wake_ms(self._polled_ms))
            for group in self.groups.values():
                wake_ms = min(wake_ms, group.wake_ms(self._polled_ms))
            self._wake_ms = wake_ms
        return self._wake_ms

    @property
    def _parked_ms(self) -> float:
        """When the first of those that are parked is given up."""
        return self._parked[0][0] if self._parked else NEVER

    def _changed(self) -> None:
        """Something may be due sooner, or later, than it was."""
        self._due_ms = self._wake_ms = None

    def _next_ms(self, now_ms: float) -> float:
        """From when on something is due, unless something changes before; minus inf: whatever may be is looked for."""
        if self._shadows or self._stragglers.wake_ms < NEVER:
            return -NEVER
        next_ms = min(self._rank_ms, self._parked_ms)
        if self.quotas:
            next_ms = min(next_ms, self.quotas.wake_ms(now_ms))
        for group in self.groups.values():
            group.drop_empty()
            next_ms = min(next_ms, group.due_ms)
        return next_ms

    def _act(self, now_ms: float) -> None:
        """Something is due, or may be."""
        if now_ms >= self._rank_ms:
            self._rank_ms = now_ms + RANK_INTERVAL_MS
            self.catalog.rank_observed(now_ms)
            self._prices.put_ranges(self.catalog.price_ranges())
        if self._fairness.several:
            self._order_by_shares(now_ms)
        self._expire(now_ms)
        if self.quotas:
            for entry in self.quotas.released(now_ms):
                self._place(entry, now_ms, first=True)
        self._instructions += [CancelSent(*each) for each in self._stragglers.recalls(self.groups.values(), now_ms)]
        for hedge in self._stragglers.hedges(self.groups.values(), now_ms):
            self._hedge(hedge, now_ms)
        while refused := self._dispatch_all(now_ms):
            self._place_all(refused, now_ms)  # ends, since nobody is refused by the same candidate twice
        if self._shadows:
            self._send_copies(now_ms)
        self._announce_demand(now_ms)
        self._changed()

    # --- for those who look ---------------------------------------------------------------------------------------

    def waiting(self, group: str | None = None) -> tuple[int, float, float]:
        """(entries, predicted ms of work, earliest deadline) of what waits, of one group or of all."""
        groups = [each for each in self.groups.values() if group is None or each.name == group]
        entries = sum([len(queue) for each in groups for queue in each.queues.values()])
        entries += len(self._parked) + self.quotas.held if group is None else 0
        return entries, sum([each.backlog_ms for each in groups]), min([each.head_ms for each in groups], default=NEVER)

    def wants(self, now_ms: float) -> dict[str, float]:
        """Rows a second that ``variant@group``, which nobody has loaded, would serve better than what is chosen."""
        return self._wants.rates(now_ms)

    def demand(self, now_ms: float) -> tuple[Demanded, ...]:
        """What this broker is asked for; from now on it chooses by that, too."""
        told = self._demand.rates(now_ms)
        self.catalog.expect(told)
        return told

    def surges(self, now_ms: float) -> bool:
        """It is asked for much more than it told last."""
        return self._demand.surges(now_ms)

    def pressure(self, now_ms: float) -> dict[str, tuple[float, float]]:
        """By group, :meth:`broker.groups.Group.pressure`."""
        return {name: group.pressure(now_ms) for name, group in self.groups.items()}

    def situation(
        self,
        now_ms: float,
        wants: Mapping[str, float],
        demand: Sequence[Demanded],
        scaling: Mapping[str, Scaling] | None = None,
    ) -> Situation:
        """What there is to plan for, as copies: the planner works beside the loop.

        Args:
            wants, demand: of all brokers together.
            scaling: groups whose number of workers is the planner's choice.
        """
        catalog = self.catalog
        names = {model.name for model in catalog.models.values()}
        return Situation(
            dict(catalog.models),
            dict(catalog.profiles),
            [
                PlannedWorker(
                    worker.name, worker.group, worker.memory_bytes_max, worker.builders, worker.ready, worker.draining
                )
                for worker in self.workers()
            ],
            labels=dict(catalog.labels),
            served={name: of.key for name in names if (of := catalog.served(name)) is not None},
            corrections=dict(catalog.corrections),
            rates=self.conditions.rows_per_second(now_ms),
            wants=wants,
            drifted=self.conditions.drifted(now_ms),
            demand=demand,
            prices_per_hour={worker.group: worker.price_per_hour for worker in self.workers()},
            scaling=scaling or {},
            slowness={group: usual.slowness for group, usual in catalog.usual(now_ms).items()},
        )

    def workers(self) -> list[Worker]:
        return [worker for group in self.groups.values() for worker in group.workers.values()]

    # --- placing --------------------------------------------------------------------------------------------------

    def _place(self, entry: Entry, now_ms: float, *, first: bool = False, alike: Alike | None = None) -> None:
        """Choose for an entry that waits nowhere; what would be better is counted once, at ``first``."""
        if entry.deadline_ms is not None and entry.deadline_ms <= now_ms:
            return self._expired(entry)
        target = self.catalog.resolve(entry.query)
        if target is None:
            return self._reply(entry, "NOT_FOUND", f"no such {_kind(entry)}: {shown(_asked(entry))}")
        bucket = None if entry.within_quota else self.quotas.of(entry)
        if bucket is not None and (wait_ms := bucket.wait_ms(now_ms)):
            return self._over_quota(entry, bucket, wait_ms)
        if not len(target.ranking):
            return self._park(entry)
        floor = entry.accuracy_floor = self._selector.accuracy_floor(entry, target)
        if first and entry.query.task is not None:
            deadline_ms = entry.latency_deadline_ms
            latency_ms = NEVER if deadline_ms is None else deadline_ms - entry.source.arrival_ms
            self._demand.add(entry.query, latency_ms, floor, entry.rows)
        wanting = first and next(self._turn)
        asks = entry.explains or (wanting and target.ranking.unloaded > 0)
        choice: Choice | None = None if alike is None or asks else alike.find(entry, target, floor)
        if choice is None:
            choice = self._selector.choose(entry, target, now_ms, self._waits_ms, floor, wanting=wanting)
            if alike is not None:
                alike.learn(entry, target, floor, choice)
        if first and choice.wanted is not None:
            times = WANT_TURNS if isinstance(choice, Chosen) else 1
            self._wants.add(choice.wanted.key, times * entry.rows)
        if self.catalog.labels and isinstance(choice, Chosen):
            choice = self._canarys(entry, choice, now_ms)
        if entry.explains:
            self._explain(entry, target, choice, now_ms)
        match choice:
            case Chosen(candidate=candidate, missed=missed):
                entry.missed, entry.within_quota = missed, True
                if bucket is not None:
                    bucket.take(candidate.row_ms * entry.rows * candidate.price_per_ms, now_ms)
                self._enqueue(entry, candidate, target, now_ms)
                if alike is not None:
                    alike.gave(candidate.group, candidate.row_ms * entry.rows)
            case Refused(status=status, message=message, retry_after_ms=retry_after_ms):
                if status in ("RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"):
                    ahead = entry.account is not None and entry.account.is_ahead_somewhere
                    self._count_shed(entry, "share" if ahead else "load")
                    message += "; its topic is ahead of its fair share of the devices" if ahead else ""
                self._reply(entry, status, message, retry_after_ms)
            case Parked():
                self._park(entry)
        return None

    def _over_quota(self, entry: Entry, bucket: Bucket, wait_ms: float) -> None:
        """Its tenant has used up what it may for now; who has no deadline waits."""
        if entry.latency_deadline_ms is not None:
            self.statistics.shed[Shed(_asked(entry), bucket.tenant, "quota")] += 1
            words = f"{bucket.tenant} has used up its quota of {bucket.usd_per_hour:g} USD an hour for the moment"
            self._reply(entry, "RESOURCE_EXHAUSTED", words, wait_ms)
        elif self._parks:
            bucket.held[entry.record] = entry
            entry.place = bucket
            self._changed()

    def _explain(self, entry: Entry, target: Target, choice: Choice, now_ms: float) -> None:
        """Why this choice, as a header of whatever reply it comes to."""
        said = explain(entry, target, choice, entry.accuracy_floor, now_ms, self._waits_ms, HEADER_CANDIDATES_MAX)
        echo = [header for header in entry.address.echo if header[0] != EXPLAIN]
        entry.address.echo = (*echo, (EXPLAIN, header_value(said)))

    def _canarys(self, entry: Entry, choice: Chosen, now_ms: float) -> Chosen:
        """What the canary of the chosen model would be run with, when it is its turn and it can; else ``choice``."""
        query = entry.query
        names_version = query.variant is not None or ":" in (query.model or "")
        labels = self.catalog.labels.get(choice.candidate.model.name)
        canary = None if names_version else canary_for(labels, entry.source.record)
        target = self.catalog.of_version(canary) if canary is not None else None
        if target is None or not len(target.ranking):
            return choice
        other = self._selector.choose(entry, target, now_ms, self._waits_ms, entry.accuracy_floor, wanting=False)
        if isinstance(other, Chosen) and not isinstance(other.candidate.match(query.inputs), str):
            return other
        return choice

    def _waits_ms(self, teams: Sequence[Teams], entry: Entry, now_ms: float) -> list[float]:
        """Predicted time until the first worker of each team has run what comes before an entry."""
        waits_ms: list[float] = []
        for group, own in teams:
            waits_ms += self.groups[group].waits_ms(own, order_ms(entry, group), now_ms)
        return waits_ms

    def _enqueue(self, entry: Entry, candidate: Candidate, target: Target, now_ms: float) -> None:
        matched = candidate.match(entry.query.inputs)
        if isinstance(matched, str):
            return self._reply(entry, "INVALID_ARGUMENT", f"{target.name}: {matched}")
        entry.inputs, signature = matched
        group = self.groups[candidate.group]
        queue = group.queue_of(candidate, signature, offline=entry.job is not None)
        queue.add(entry)
        if entry.latency_deadline_ms is not None:
            latency_ms = entry.latency_deadline_ms - entry.source.arrival_ms
            group.tightness.observe(latency_ms, now_ms)
            slack_ms = latency_ms - queue.table.sure_ms(entry.rows)
            if slack_ms > 0:
                group.slack.observe(slack_ms, now_ms)
            if entry.account is not None:
                entry.account.at(group.name).tightness.observe(latency_ms, now_ms)
        return None

    def _place_all(self, entries: Iterable[Entry], now_ms: float) -> None:
        for entry in entries:
            self._place(entry, now_ms)

    def _park(self, entry: Entry) -> None:
        if not self._parks:
            return
        give_up_ms = NEVER if entry.give_up_ms is None else entry.give_up_ms
        entry.sort_key = (give_up_ms, next(self._sequence))
        entry.place = self._parked
        insort(self._parked, (*entry.sort_key, entry))
        if self._parked[0][2] is entry:
            self._changed()

    def _unpark(self, now_ms: float) -> None:
        parked, self._parked = self._parked, []
        self._changed()
        self._place_all((entry for _, _, entry in parked), now_ms)

    def _withdraw(self, entry: Entry) -> None:
        """Out of whatever it waits in, if it waits."""
        if isinstance(entry.place, VariantQueue):
            entry.place.remove(entry)
        elif entry.place is self._parked:
            self._parked.remove((*entry.sort_key, entry))
            entry.place = None
        elif isinstance(entry.place, Bucket):
            del entry.place.held[entry.record]
            entry.place = None

    def _again(self, sent: Sent, entry: Entry, now_ms: float, *, attempted: bool) -> None:
        """A worker had it and will not answer it; nor does anybody else have it."""
        entry.attempts += attempted
        if (other := sent.elsewhere(entry.record)) is not None:
            entry.place = other
            return
        entry.state, entry.place, entry.refused_by = State.WAITING, None, ()
        self.statistics.retried += attempted
        if entry.cancelled:
            self._reply(entry, "CANCELLED", "cancelled before it was sent again")
        elif entry.attempts >= self._attempts_max:
            self._bury(entry, "INTERNAL", f"{entry.attempts} workers were lost while they ran it")
        elif not self.ledger.is_leaving(entry.record):
            self._place(entry, now_ms)

    # --- leaving --------------------------------------------------------------------------------------------------

    def _expire(self, now_ms: float) -> None:
        while self._parked and self._parked[0][0] <= now_ms:
            _, _, entry = self._parked.pop(0)
            entry.place = None
            self._reply(entry, "UNAVAILABLE", "no worker that could run it was there in time")
        for group in self.groups.values():
            if group.head_ms > now_ms:
                continue
            for queue in group.queues.values():
                if queue.head_deadline_ms <= now_ms:
                    for entry in queue.due(now_ms):
                        self._overdue(queue, entry, now_ms)

    def _overdue(self, queue: VariantQueue, entry: Entry, now_ms: float) -> None:
        """Its latency is missed: answered, or (``late``) behind those in time, and again when that was not enough."""
        if entry.deadline_ms is not None:
            self._expired(entry)
        else:
            queue.add(entry, max(entry.give_up_ms or 0.0, now_ms + LATE_TURN_MS))

    def _dispatch_all(self, now_ms: float) -> list[Entry]:
        """Send what there is room for; returns heads that cannot be in time any more where they waited."""
        refused: list[Entry] = []
        for group in self.groups.values():
            if group.send_ms <= now_ms:
                self._dispatch(group, refused, now_ms)
            group.drop_empty()
        return refused

    def _dispatch(self, group: Group, refused: list[Entry], now_ms: float) -> None:
        """The most urgent queue first, while a worker has room for it."""
        queues = list(group.queues.values())
        free = [worker for worker in group.workers.values() if worker.has_room(now_ms)]
        while free and (queues := [queue for queue in queues if queue]):
            queue = _most_urgent(queues)
            able = [worker for worker in free if queue.candidate.variant in worker.ready]
            if isinstance(queue, OfflineQueue):
                able = [worker for worker in able if worker.has_room(now_ms, offline=True)]
            if not able:
                queues.remove(queue)
                continue
            worker = _least_busy(able, now_ms)
            if isinstance(queue, OfflineQueue):
                entries = queue.take_within(*group.offline_ms(now_ms)) or group.take_long(queue, now_ms)
                if entries:
                    self._send(worker, queue, entries, NEVER, now_ms)
                else:
                    queues.remove(queue)
                if not worker.has_room(now_ms):
                    free.remove(worker)
                continue
            start_ms, block_ms = worker.start_ms(now_ms), self._block_ms(group, queue, now_ms)
            if len(queues) > 1 and not self.catalog.labels:
                dated = [each for each in queues if not each.is_offline]
                queue = gathered(queue, dated, worker, start_ms, block_ms, self.catalog, self._prices)
            cut = self._cut(queue, worker, start_ms, block_ms)
            if cut.late:
                late = queue.take_heads(cut.late)
                for entry in late:
                    entry.refused_by += (queue.candidate,)
                refused += late
            if not cut.rows:
                continue
            entries = queue.take(cut.rows, start_ms, cut.heads)
            self._send(worker, queue, entries + _beside(group, queue, entries), block_ms, now_ms)
            if not worker.has_room(now_ms):
                free.remove(worker)

    def _block_ms(self, group: Group, queue: VariantQueue, now_ms: float) -> float:
        """How long a batch may block a device.

        The longer it will be in demand, the more of those that would have to wait for it would be given up anyway.
        """
        of = queue.candidate
        plenty = 1.0 - self._prices.scarcity(of.group, of.team, queue.head.account)
        return group.block_ms(now_ms) / plenty if plenty > 0.0 else NEVER

    def _cut(self, queue: VariantQueue, worker: Worker, start_ms: float, block_ms: float) -> Cut:
        """What of a queue a worker runs next."""
        of = queue.candidate
        others_ms = [peer.ends_ms for peer in self._ready_workers(of.variant, of.group) if peer is not worker]
        price = self._prices.of(of.group, of.team, queue.head.account)
        return best_cut(queue, start_ms, block_ms, min(others_ms, default=NEVER), price)

    def _called(self, worker: Worker, call: frames.Call, now_ms: float) -> None:
        """Another broker's batch waits at the worker: what waits here and may run with it does."""
        group, candidate = self.groups[worker.group], self.catalog.candidate(call.variant, worker.group)
        if candidate is None or worker.draining or call.variant not in worker.ready:
            return
        queue = joining(group, candidate, call, self.catalog)
        if queue is None:
            return
        start_ms, block_ms = worker.start_ms(now_ms), self._block_ms(group, queue, now_ms)
        rows = min(batch_rows(queue, start_ms, block_ms), call.rows)
        if rows:
            self._send(worker, queue, queue.take(rows, start_ms), block_ms, now_ms)

    def _send(self, worker: Worker, queue: VariantQueue, entries: list[Entry], block_ms: float, now_ms: float) -> None:
        candidate = queue.candidate
        sent = self._sent(worker, candidate, queue.length, entries, now_ms)
        if candidate.model.name in self.counts:
            sent.predicts = self._shadows.samples(candidate, entries)
        self._stragglers.earn(len(entries))
        for entry in entries:
            entry.state, entry.place, entry.sent_ms = State.SENT, sent, now_ms
        self.statistics.queue_seconds.observe_all([(now_ms - entry.source.arrival_ms) / 1000 for entry in entries])
        self.statistics.batch_rows.observe(sent.rows)
        times = queue.table.times(sent.rows, block_ms) if worker.is_shared and not sent.is_offline else ()
        self._instructions.append(Send(worker, _batch(sent, entries, times)))

    def _charge(self, sent: Sent) -> None:
        """A batch's time counts for the topics in it, and as served to all that could have had it."""
        costs_ms: dict[Account, float] = defaultdict(float)
        for entry in sent.entries.values():
            if entry.account is not None:
                costs_ms[entry.account] += sent.cost_ms * entry.rows / sent.rows
        group, ready = self.groups[sent.worker.group], sent.worker.ready
        here, elsewhere = set(costs_ms), set[Account]()
        for queue in group.queues.values():
            (here if queue.candidate.variant in ready else elsewhere).update(queue.accounts)
        self._fairness.sent(group.name, costs_ms, elsewhere - here)
        for account, cost_ms in costs_ms.items():
            self.statistics.topic_seconds[account.topic] += cost_ms / 1000

    def _order_by_shares(self, now_ms: float) -> None:
        """Topics that have got ahead of their shares go behind the others, and the other way round."""
        for name, group in self.groups.items():
            for account in self._fairness.turned(name, len(group.workers), now_ms):
                for queue in group.queues.values():
                    queue.reorder(account)

    def _hedge(self, hedge: Hedge, now_ms: float) -> None:
        """The second worker has them too from now on; whoever is first answers."""
        first, worker, entries = hedge
        sent = self._sent(worker, first.candidate, first.length, entries, now_ms)
        for record in sent.entries:
            sent.others[record], first.others[record] = first, sent
        self._instructions.append(Send(worker, _batch(sent, entries, ())))

    def _sent(self, worker: Worker, candidate: Candidate, length: int, entries: list[Entry], now_ms: float) -> Sent:
        """A worker is given a batch."""
        rows, table = sum([entry.rows for entry in entries]), candidate.table_of(length)
        cost_ms = table.p50_ms(rows)
        sent = Sent(next(self._batches), candidate, {e.source.record: e for e in entries}, cost_ms, rows, worker)
        sent.length, sent.margin_ms = length, table.sure_ms(rows) - cost_ms
        sent.tail_ms = max(table.p99_ms(rows), cost_ms)
        sent.is_offline = all(entry.latency_deadline_ms is None for entry in entries)
        for entry in entries:
            if entry.job is not None:
                entry.job.ran(cost_ms * entry.rows / rows)
        worker.give(sent, now_ms)
        self._stragglers.expect(worker)
        if self._fairness.several:
            self._charge(sent)
        self.statistics.cost_usd[candidate.model.task] += cost_ms * candidate.price_per_ms
        return sent

    def _reply(self, entry: Entry, status: str, message: str, retry_after_ms: float | None = None) -> None:
        entry.state = State.ANSWERING
        self._instructions.append(Reply(entry, status, message, retry_after_ms))

    def _expired(self, entry: Entry) -> None:
        if self.catalog.resolve(entry.query) is not None:
            self._count_shed(entry, "expired")
        self._reply(entry, "DEADLINE_EXCEEDED", "the deadline passed before it started")

    def _count_shed(self, entry: Entry, reason: ShedReason) -> None:
        self.statistics.shed[Shed(_asked(entry), entry.source.record.topic, reason)] += 1

    def _bury(self, entry: Entry, code: str, reason: str) -> None:
        entry.state = State.ANSWERING
        self._instructions.append(Bury(entry, code, reason))

    def _count(self, entries: list[Entry], status: str) -> None:
        outcomes = self.statistics.outcomes
        for entry in entries:
            outcomes[status, _asked(entry)] += 1

    def _send_copies(self, now_ms: float) -> None:
        """For shadows, where nothing else waits."""
        idle = [group for group in self.groups.values() if not any(group.queues.values())]
        batches = self._shadows.due(idle, lambda group: group.block_ms(now_ms), now_ms)
        self._instructions += [Send(worker, batch) for worker, batch in batches]

    def _announce_demand(self, now_ms: float) -> None:
        """To each group's workers, when it changed."""
        for group in self.groups.values():
            demand = group.demand(now_ms)
            if demand is not None:
                self._instructions += [TellDemand(worker, demand) for worker in group.workers.values()]

    # --- what workers say -----------------------------------------------------------------------------------------

    def _outcome(self, worker: Worker, frame: frames.Outcome, now_ms: float) -> None:
        sent = worker.sent.get(frame.batch)
        if sent is None:
            self._shadows.outcome(worker, frame)
            return
        self._stragglers.outcome(worker, sent, frame, now_ms)
        if frame.execute_ms:
            self._meter(sent, frame)
        if sent.candidate.model.name in self.counts:
            self._count_versions(sent, frame)
            if sent.predicts and frame.rest_ok and frame.predictions:
                self._shadows.answered(sent.candidate, sent.entries.values(), frame.predictions, now_ms)
        for item in frame.items:
            entry = sent.entries.pop(item.record, None)
            if entry is not None and entry.state is State.SENT:
                self._settle(sent, entry, item, now_ms)
        if frame.final:
            worker.settle(frame.batch, frame.execute_ms, now_ms)
            if frame.rest_ok:
                self._settle_ok(sent, now_ms)
            else:
                for entry in sent.entries.values():  # a worker that forgets is a worker that gave back
                    if entry.state is State.SENT:
                        self._again(sent, entry, now_ms, attempted=True)
        self._stragglers.expect(worker)
        if sent.others:
            self._instructions += [CancelSent(*recall) for recall in self._stragglers.unwanted(sent)]

    def _meter(self, sent: Sent, frame: frames.Outcome) -> None:
        """Who had the device; what settles now is still among the batch's entries."""
        entries = sent.entries
        answered = (
            None
            if frame.rest_ok
            else [entries[i.record] for i in frame.items if i.disposition == "answered" and i.record in entries]
        )
        task, group = sent.candidate.model.task, sent.candidate.group
        self.meter.ran(task, group, entries.values(), answered, frame.execute_ms, frame.rows)

    def _count_versions(self, sent: Sent, frame: frames.Outcome) -> None:
        """Of a model with a canary or a shadow; what settles now is still among the batch's entries."""
        model, counts = sent.candidate.model, self.counts
        row_ms = frame.execute_ms / frame.rows if frame.rows else 0.0
        named = [item for item in frame.items if item.record in sent.entries]
        answered = sum(item.status == "OK" and item.disposition == "answered" for item in named)
        if frame.rest_ok:
            answered += len(sent.entries) - len(named)
        if answered:
            counts.answered(model.name, model.key, answered, row_ms)
        for item in named:
            if item.status == "INTERNAL" and item.disposition in ("answered", "poisoned"):
                counts.failed(model.name, model.key)
        stable = self.catalog.served(model.name)
        if frame.rest_ok and frame.rows == sent.rows and stable is not None:
            like = self.catalog.comparable(sent.candidate, stable.key, sent.rows)
            if like is not None:
                counts.batch(model.name, model.key, frame.execute_ms, like.table_of(sent.length).p50_ms(sent.rows))

    def _settle_ok(self, sent: Sent, now_ms: float) -> None:
        """Everything that is left of the batch was answered OK."""
        answered = [each for each in sent.entries.values() if each.state is State.SENT and self.ledger.finish(each)]
        self._answered(answered, "OK", now_ms)

    def _settle(self, sent: Sent, entry: Entry, item: frames.ItemOutcome, now_ms: float) -> None:
        if item.disposition == "returned":
            self._again(sent, entry, now_ms, attempted=False)
        elif item.disposition == "undeliverable":
            self._bury(entry, "UNDELIVERABLE", item.message or "the reply could not be written")
        elif item.disposition == "poisoned":
            self._bury(entry, item.status, item.message or "it brings the executor down")
        elif self.ledger.finish(entry):
            if item.status == "DEADLINE_EXCEEDED":
                self._count_shed(entry, "expired")
            self._answered([entry], item.status, now_ms)

    def _answered(self, entries: list[Entry], status: str, now_ms: float) -> None:
        """A worker answered these of one batch; for the statistics."""
        if not entries:
            return
        self._count(entries, status)
        self.statistics.worker_seconds.observe((now_ms - entries[0].sent_ms) / 1000, len(entries))
        if status == "OK":
            in_time = self.statistics.in_time
            for entry in entries:
                if entry.latency_deadline_ms is None or now_ms <= entry.latency_deadline_ms:
                    in_time[entry.query.task or ""] += 1

    def _state(self, worker: Worker, frame: frames.State, now_ms: float) -> None:
        ready = frozenset(v.variant for v in frame.variants if v.state == "ready")
        worker.loading = frozenset(v.variant for v in frame.variants if v.state == "loading")
        for variant in frame.variants:
            candidate = self.catalog.candidate(variant.variant, worker.group)
            if candidate is not None:
                for (rows, execute_ms), length in zip(variant.batches, variant.lengths or repeat(0), strict=False):
                    candidate.table_of(length).observe(rows, execute_ms, now_ms)
                    self.catalog.ran(candidate, rows, now_ms)
                if variant.rows:
                    self.conditions.ran(worker, candidate, variant.rows, variant.busy_ms, now_ms)
        failed = frozenset(v.variant for v in frame.variants if v.state == "failed")
        if (ready, failed) != (worker.ready, worker.failed):
            changed, worker.ready, worker.failed = ready ^ worker.ready, ready, failed
            self._count_ready(worker.group, changed)
            self._present(worker)
            self._replace_stranded(now_ms)
            self._unpark(now_ms)

    def _answered_before(self, frame: frames.Answered) -> None:
        """A worker answered these for a broker that is gone: they are finished, and need no second run."""
        for topic, partition, offsets in frame.records:
            self.ledger.answered_before(topic, partition, offsets)
            for offset in offsets:
                entry = self.ledger.find(RecordId(topic, partition, offset))
                if entry is not None and entry.state is State.WAITING:
                    self._withdraw(entry)
                    self.ledger.finish(entry)
                    self.statistics.skipped += 1

    def _count_ready(self, group: str, variants: Iterable[str]) -> None:
        """Other workers of the group have these ready now."""
        self._ready.clear()
        for variant in variants:
            team = frozenset([worker.incarnation for worker in self._ready_workers(variant, group)])
            self.catalog.set_ready(variant, group, team)
        self.groups[group].regroup()

    def _ready_workers(self, variant: str, group: str) -> list[Worker]:
        workers = self._ready.get((variant, group))
        if workers is None:
            workers = self.groups[group].ready(variant) if group in self.groups else []
            self._ready[variant, group] = workers
        return workers

    def _replace_stranded(self, now_ms: float) -> None:
        """Whoever waits for a variant that no worker has any more is placed anew."""
        stranded: list[Entry] = []
        for name, group in self.groups.items():
            for queue in group.queues.values():
                if queue and not self._ready_workers(queue.candidate.variant, name):
                    stranded += queue.take_all()
        self._place_all(stranded, now_ms)

    def _was_cancelled(self, entry: Entry) -> bool:
        """Before it was read, and after it was logged."""
        logged_ms = max(self._cancelled.get(entry.address.id, -NEVER), self._cancelled.get(str(entry.record), -NEVER))
        return entry.source.arrival_ms <= logged_ms

    def _named(self, cancel: Cancel) -> list[Entry]:
        if cancel.id is not None:
            return self.ledger.with_id(cancel.id)
        topic, _, rest = (cancel.query or "").partition("/")
        partition, _, offset = rest.partition("/")
        if not (partition.isdigit() and offset.isdigit()):
            return []
        entry = self.ledger.find(RecordId(topic, int(partition), int(offset)))
        return [entry] if entry is not None else []


def _most_urgent(queues: Sequence[VariantQueue]) -> VariantQueue:
    """The first one by its turn."""
    first, first_turn = queues[0], queues[0].turn
    for queue in queues[1:]:
        if (turn := queue.turn) < first_turn:
            first, first_turn = queue, turn
    return first


def _least_busy(workers: Sequence[Worker], now_ms: float) -> Worker:
    """Whose device has run all that it has first."""
    least, least_ms = workers[0], workers[0].outstanding_ms(now_ms)
    for worker in workers[1:]:
        if (own_ms := worker.outstanding_ms(now_ms)) < least_ms:
            least, least_ms = worker, own_ms
    return least


def _beside(group: Group, queue: VariantQueue, entries: list[Entry]) -> list[Entry]:
    """Who waits for the same without a deadline, and fits into their batch without making it longer."""
    offline = group.queues.get((queue.candidate.variant, queue.signature, True))
    if not isinstance(offline, OfflineQueue) or offline.candidate is not queue.candidate:
        return []
    return offline.take_beside(sum([entry.rows for entry in entries]))


def _asked(entry: Entry) -> str:
    """The task, or whatever else the query names."""
    query = entry.query
    return query.task or query.model or query.variant or ""


def _kind(entry: Entry) -> str:
    """Of what :func:`_asked` is."""
    return "task" if entry.query.task is not None else "model" if entry.query.model is not None else "variant"


def _batch(sent: Sent, entries: list[Entry], times: tuple[tuple[int, float], ...]) -> frames.Batch:
    of = sent.candidate
    layout = of.layout
    items: list[frames.Item] = []
    for entry in entries:
        source, address = entry.source, entry.address
        item = frames.Item(
            source.record,
            address.id,
            entry.rows,
            source.arrival_ms,
            entry.deadline_ms,
            entry.latency_deadline_ms,
            address.topic,
            address.partition,
            source.key,
            address.form,
            address.echo,
            entry.query.metadata,
            entry.missed,
            entry.attempts,
            0 if layout is None else layout.own_length(entry.inputs),
        )
        items.append(item)
    return frames.Batch(
        sent.batch,
        of.variant,
        of.accuracy,
        sent.cost_ms,
        tuple(items),
        concatenated([entry.inputs for entry in entries], sent.rows, layout, sent.length),
        sent.predicts,
        times=times,
        length=sent.length,
        cuts=() if layout is None else layout.cuts,
    )
