"""Workers that are suddenly slow, and what is done for the queries that they hold. Pure.

A worker **straggles** while it is overdue and another one of its group could take over. It is overdue when no run of it
has ended for longer than the longest p99 of what it was sent and the group's **slack**: what outcomes take beyond that
(the link, Kafka, other brokers' batches), its own 99th percentile, learned by steps as the p99 is
(:mod:`broker.profiles`). It is no straggler any more as soon as a run ends. Where all of a group are overdue, none
straggles: Kafka is slow, or we are.

What runs for longer than it should is expected to take as long again (as with any heavy tail). So a straggler gets no
new work, and

* what it was sent is **recalled**: the worker gives back what has not started, which cannot be answered twice;
* what is not given back, since it runs or since the worker hangs, is **hedged**: sent to a second worker as well, as
  soon as that has room. That is as late as is safe, since most stalls end by themselves: at half the time
  from the stall's beginning to the deadline, when the first one will probably be late, or sooner where the second one
  needs more time than is left then. The first outcome counts; the other worker is told to answer no more
  (:class:`modelless.frames.Recall`).

Hedges are bounded: a query gets one at most, none after an attempt or a run that ended badly (what brings executors
down must not bring down two at once), and all together no more than a share of the queries sent and ``BURST`` at once.

(Idea and the tail as the trigger: Dean and Barroso, "The Tail at Scale", CACM 56(2), 2013, "hedged requests" and "tied
requests". That sends the second one after the 95th percentile; we have deadlines, and wait for them.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import exp, inf
from typing import Final, NamedTuple

from broker.devices import Sent, Worker
from broker.groups import Group
from broker.ledger import Entry, State
from broker.statistics import Statistics
from modelless import frames
from modelless.messages import RecordId

BURST: Final = 64.0
"""Queries that may be hedged at once, when none was for a while."""
PATIENCE_MS: Final = 5.0
"""For an answer to a recall, or for outcomes that we have not read yet because we were slow ourselves."""
SLACK_MS: Final = 20.0
SLACK_MS_MIN: Final = 5.0
SLACK_MS_MAX: Final = 5_000.0
_TAIL: Final = 0.99
_TAIL_STEP: Final = 0.1


class Hedge(NamedTuple):
    """Send these queries of a batch to a second worker too."""

    first: Sent
    worker: Worker
    entries: list[Entry]


class Stragglers:
    """This broker's view of them; the core tells what happens and asks twice in each poll.

    Args:
        share_max: of the queries sent, how many may be hedged; 0: none.
        is_leaving: whether a query's partition is being given up, so that nobody new is to run it.
    """

    def __init__(self, share_max: float, statistics: Statistics, is_leaving: Callable[[RecordId], bool]) -> None:
        self._share_max, self._statistics, self._is_leaving = share_max, statistics, is_leaving
        self._tokens = BURST if share_max else 0.0
        self._slack_ms: dict[str, float] = {}
        """By group."""
        self.wake_ms = inf
        """When to ask again, without a further event."""

    # --- events -------------------------------------------------------------------------------------------------------

    def earn(self, queries: int) -> None:
        """So many were sent for the first time."""
        if self._share_max:
            self._tokens = min(self._tokens + self._share_max * queries, BURST)

    def expect(self, worker: Worker) -> None:
        """What a worker has changed; to be called whenever that is so."""
        worker.expect(_tail_ms(worker) + self._slack_ms.get(worker.group, SLACK_MS) if worker.sent else inf)

    def outcome(self, worker: Worker, sent: Sent, frame: frames.Outcome, now_ms: float) -> None:
        """A worker told what became of (a part of) a batch that it still has; then :meth:`expect`."""
        if frame.execute_ms > 0:
            slack_ms = self._slack_ms.get(worker.group, SLACK_MS)
            step = _TAIL if now_ms >= worker.overdue_ms else _TAIL - 1
            self._slack_ms[worker.group] = min(max(slack_ms * exp(_TAIL_STEP * step), SLACK_MS_MIN), SLACK_MS_MAX)
            worker.heard_ms = now_ms
            sent.failed |= not (frame.items or frame.final)
        if sent.recalled_ms is not None or sent.others:
            returned = [item.record for item in frame.items if item.disposition == "returned"]
            seconds = [r for r in sent.entries if r in sent.others and sent.entries[r].state is not State.SENT]
            avoided = sum([record in seconds for record in returned])
            self._statistics.duplicates_avoided += avoided
            self._statistics.recalled += len(returned) - avoided if sent.recalled_ms is not None else 0

    def unwanted(self, sent: Sent) -> list[tuple[Worker, frames.Recall]]:
        """Of a batch whose queries may have an outcome now: what other workers need not answer any more."""
        told: dict[int, tuple[Sent, list[RecordId]]] = {}
        for record, other in list(sent.others.items()):
            entry = other.entries.get(record)
            if entry is not None and entry.state is not State.SENT:
                told.setdefault(other.batch, (other, []))[1].append(record)
                del sent.others[record]
        return [
            (other.worker, frames.Recall(other.batch, tuple(records), answered=True))
            for other, records in told.values()
            if other.batch in other.worker.sent
        ]

    # --- decisions ----------------------------------------------------------------------------------------------------

    def recalls(self, groups: Iterable[Group], now_ms: float) -> list[tuple[Worker, frames.Recall]]:
        """To be asked before batches are sent: stragglers are predicted to be busy, and what they have is recalled."""
        recalls: list[tuple[Worker, frames.Recall]] = []
        for group in groups:
            for worker, peers in _straggling(group, now_ms):
                worker.delay(now_ms + now_ms - _since_ms(worker))
                for sent in worker.sent.values():
                    if sent.recalled_ms is None and not sent.failed:
                        records = self._servable(sent, peers, worker.ends_ms, now_ms)
                        if records:
                            sent.recalled_ms = now_ms
                            recalls.append((worker, frames.Recall(sent.batch, records)))
        return recalls

    def hedges(self, groups: Iterable[Group], now_ms: float) -> list[Hedge]:
        """To be asked before batches are sent: what is due for so long is more urgent than what waits."""
        hedges: list[Hedge] = []
        self.wake_ms = inf
        taken: set[str] = set()
        for group in groups:
            slack_ms = self._slack_ms.get(group.name, SLACK_MS)
            for worker, peers in _straggling(group, now_ms):
                for sent in worker.sent.values():
                    entries = self._due(sent, _since_ms(worker), slack_ms, now_ms)
                    if not entries:
                        continue
                    able = [peer for peer in peers if sent.candidate.variant in peer.ready]
                    free = [peer for peer in able if peer.has_room(now_ms) and peer.incarnation not in taken]
                    if free:
                        taken.add(free[0].incarnation)
                        self._tokens -= len(entries)
                        self._statistics.hedged += len(entries)
                        hedges.append(Hedge(sent, free[0], entries))
                    else:
                        rooms_ms = [peer.room_ms for peer in able if peer.room_ms > now_ms]
                        self.wake_ms = min(self.wake_ms, *rooms_ms, inf)
        return hedges

    # --- inside -------------------------------------------------------------------------------------------------------

    def _due(self, sent: Sent, since_ms: float, slack_ms: float, now_ms: float) -> list[Entry]:
        """The queries of a straggler's batch that a second worker should run now, the most urgent first."""
        if sent.recalled_ms is None or sent.failed or self._tokens < 1:
            return []
        table = sent.table
        need_ms = table.sure_ms(sent.rows)
        due: list[tuple[float, Entry]] = []
        begins_ms = inf
        for record, entry in sent.entries.items():
            deadline_ms = entry.latency_deadline_ms
            fresh = entry.state is State.SENT and not entry.attempts and not entry.cancelled
            if deadline_ms is None or not fresh or record in sent.others or self._is_leaving(record):
                continue
            at_ms = min((since_ms + deadline_ms) / 2, deadline_ms - need_ms - slack_ms)
            at_ms = max(at_ms, sent.recalled_ms + PATIENCE_MS)
            if now_ms + table.p50_ms(entry.rows) <= deadline_ms:
                begins_ms = min(begins_ms, at_ms)
                if at_ms <= now_ms + need_ms:  # or it would be due while the second worker is busy
                    due.append((deadline_ms, entry))
        if begins_ms > now_ms:
            self.wake_ms = min(self.wake_ms, begins_ms)
            return []
        due.sort(key=lambda each: each[0])
        due = due[: int(self._tokens)]
        end_ms = now_ms + table.p50_ms(sum([entry.rows for _, entry in due]))
        return [entry for deadline_ms, entry in due if end_ms <= deadline_ms]

    def _servable(self, sent: Sent, peers: list[Worker], ends_ms: float, now_ms: float) -> tuple[RecordId, ...]:
        """What another worker could answer in time, and sooner than this one, which ends at ``ends_ms``."""
        starts_ms = [peer.start_ms(now_ms) for peer in peers if sent.candidate.variant in peer.ready]
        if not starts_ms or min(starts_ms) >= ends_ms:
            return ()
        end_ms = min(starts_ms) + sent.table.p50_ms(1)
        return tuple(
            [
                record
                for record, entry in sent.entries.items()
                if entry.state is State.SENT
                and (entry.latency_deadline_ms is None or end_ms <= entry.latency_deadline_ms)
                and not self._is_leaving(record)
            ]
        )


def _straggling(group: Group, now_ms: float) -> list[tuple[Worker, list[Worker]]]:
    """Each with those that could take over what it has run for longest."""
    if now_ms < group.overdue_ms:
        return []
    late = [worker for worker in group.workers.values() if worker.overdue_ms <= now_ms]
    pairs = [(w, [p for p in group.ready(w.front.candidate.variant) if p not in late]) for w in late]
    return [(worker, peers) for worker, peers in pairs if peers]


def _since_ms(worker: Worker) -> float:
    """Since when a worker has ended no run although it had one to end."""
    return max(worker.front.sent_ms, worker.heard_ms)


def _tail_ms(worker: Worker) -> float:
    """By when a run of it should have ended, were outcomes told at once; it may run any of what it has."""
    start_ms = _since_ms(worker)
    if worker.is_shared:
        start_ms = max(start_ms, worker.ends_ms - worker.unsettled_ms)  # behind what others sent
    return start_ms + max([sent.tail_ms for sent in worker.sent.values()])
