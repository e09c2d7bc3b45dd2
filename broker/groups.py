"""A group as a broker sees it: the workers of one class of hardware, what waits for them, and what follows from both.

Asked at every event: how long would an entry wait here, from when on may a batch leave, when has somebody waited too
long. The answers are worked out when they are asked for, and kept until a worker or a queue says that it changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from broker.batcher import BEHIND_MS, NEVER, OfflineQueue, Tightness, VariantQueue
from broker.catalog import Candidate, Signature
from broker.devices import Worker
from broker.ledger import Entry
from modelless.frames import Demand

DEMAND_INTERVAL_MS: Final = 10.0
DEMAND_ENDS_MS: Final = 500.0
"""Demand is told at once when it begins and taken back only after so long: it comes in waves."""
OFFLINE_SHARE: Final = 0.5
OFFLINE_SHARE_MAX: Final = 0.8
"""Of the time that the most urgent query has to spare, an offline batch may take, and one query alone; the rest is for
whoever else comes meanwhile, and for the ways there and back."""
OFFLINE_LONG_SHARE: Final = 0.005
"""Of each device's time, for what takes longer than that: so large a share of who comes by chance may wait for it."""
SLACK_PERIOD_MS: Final = 15_000.0
DEMAND_SHARED_MS: Final = 5.0
"""Likewise both where other brokers send to the same workers: they wait for whoever is the most urgent."""


class _Team(NamedTuple):
    """Of those that have some variant ready, who is there."""

    crews: list[int]
    workers: int


class Group:
    """The linked workers of one class of hardware, and the queues that wait for them.

    The workers are cut into **crews**: who is in the same teams, as far as was asked. A crew waits for the same
    queues, so that the one of it that is idle first stands for all (what is added to each keeps their order).
    """

    def __init__(self, name: str, on_change: Callable[[], None] = lambda: None) -> None:
        """``on_change``: what follows may be something else now, other than how long an entry would wait."""
        self.name, self._on_change = name, on_change
        self.workers: dict[str, Worker] = {}
        """By incarnation."""
        self.queues: dict[tuple[str, Signature, bool], VariantQueue] = {}
        """By variant, shape of a row, and whether they have no deadline."""
        self.tightness = Tightness()
        self.slack = Tightness(SLACK_PERIOD_MS)
        """Likewise less the time that it runs alone."""
        self._withheld_ms = -NEVER
        """Until when what waits offline is too long to begin."""
        self._withheld_last = -NEVER, 0.0
        """When that was seen last, and what the next one takes."""
        self._long_ms: float | None = None
        """From when on one may be taken nevertheless; None: none was too long yet."""
        self._told_ms = self._told_backlog_ms = 0.0
        """When its workers were told how much waits for them, and how much it was."""
        self._crews: list[list[Worker]] = []
        self._teams: dict[frozenset[str], _Team] = {}
        self._crews_of: dict[tuple[frozenset[str], ...], list[list[int]]] = {}
        """Of teams that were asked for together."""
        self._ends_ms: list[float] | None = None
        """Of each crew, until something is said about a worker; so is the next one."""
        self._firsts_end_ms: dict[tuple[frozenset[str], ...], list[float]] = {}
        """When the first of each of these teams has, as long: all that counts while nothing waits here."""
        self._others_ms = 0.0
        """Each one's part of what other brokers have queued."""
        self._rooms_ms: list[tuple[float, float]] | None = None
        """Of each crew: with a deadline, and without."""
        self._overdue_ms: float | None = None
        self._is_shared: bool | None = None
        self._waiting: list[tuple[VariantQueue, _Team]] | None = None
        """What somebody waits in, until a queue has another head; so is the next one."""
        self._head_ms: float | None = None
        self._send_ms: float | None = None
        """Until either is said."""
        self._may_be_empty = False
        self._ahead_ms: list[float] | None = None
        """Of each crew, for the place and the instant asked for last, until anything is said."""
        self._ahead_of_ms = NEVER
        self._ahead_at_ms = 0.0

    # --- who is there, and what waits -----------------------------------------------------------------------------

    def join(self, worker: Worker) -> None:
        self.workers[worker.incarnation] = worker
        worker.on_change = self._worker_changed
        self.regroup()

    def leave(self, worker: Worker) -> None:
        del self.workers[worker.incarnation]
        self.regroup()

    def regroup(self) -> None:
        """Teams are others now."""
        self._crews = [list(self.workers.values())]
        self._teams.clear()
        self._crews_of.clear()
        self._waiting = None
        self._worker_changed()

    def ready(self, variant: str) -> list[Worker]:
        return [w for w in self.workers.values() if variant in w.ready and not w.draining]

    def queue_of(self, candidate: Candidate, signature: Signature, *, offline: bool = False) -> VariantQueue:
        """Where an entry waits for a candidate of this group."""
        key = candidate.variant, signature, offline
        queue = self.queues.get(key)
        if queue is None:
            made = OfflineQueue if offline else VariantQueue
            queue = self.queues[key] = made(candidate, signature, self._queue_changed)
        return queue

    def drop_empty(self) -> None:
        """Shapes of rows are the senders' choice: a queue is there while somebody waits in it."""
        if self._may_be_empty:
            self._may_be_empty = False
            if all(self.queues.values()):
                return
            self.queues = {key: queue for key, queue in self.queues.items() if queue}

    def _worker_changed(self) -> None:
        self._ends_ms = self._rooms_ms = self._overdue_ms = self._is_shared = self._send_ms = self._ahead_ms = None
        self._withheld_ms = -NEVER
        self._firsts_end_ms.clear()
        self._on_change()

    def _queue_changed(self, *, head: bool) -> None:
        self._ahead_ms = None
        if head:
            self._waiting = self._head_ms = self._send_ms = None
            self._withheld_ms = -NEVER
            self._may_be_empty = True
            self._on_change()

    # --- what follows ---------------------------------------------------------------------------------------------

    def block_ms(self, now_ms: float) -> float:
        """How long a batch may block a device.

        Who is in a hurry waits for the first of the devices that is free, then runs in as large a batch. Of n devices
        that one has 1 / (n + 1) of a batch left, in the mean, so that both take its latency.
        """
        devices = len(self.workers)
        return (devices + 1) / (devices + 2) * self.tightness.latency_ms(now_ms)

    def offline_ms(self, now_ms: float) -> tuple[float, float]:
        """How long an offline batch, and one query alone, may take: who comes just after it began waits for its end."""
        slack_ms = self.slack.latency_ms(now_ms)
        return OFFLINE_SHARE * slack_ms, OFFLINE_SHARE_MAX * slack_ms

    def take_long(self, queue: OfflineQueue, now_ms: float) -> list[Entry]:
        """One that takes longer than that, if it is time for it; otherwise nobody, until then or until nobody hurries.

        Jobs do not stand still, however much of a hurry others are in.
        """
        takes_ms = queue.table.sure_ms(queue.head.rows)
        next_ms = now_ms + takes_ms / (OFFLINE_LONG_SHARE * len(self.workers))
        if self._long_ms is None:
            self._long_ms = next_ms
        if now_ms >= self._long_ms:
            self._long_ms = next_ms
            return queue.take(queue.head.rows)
        self._withheld_ms, self._send_ms = min(self.slack.turns_ms, self._long_ms), None
        self._withheld_last = now_ms, takes_ms
        return []

    def withheld_ms(self, now_ms: float) -> tuple[float, float]:
        """(what the next one takes of those that wait offline and are too long to begin, what it may take); 0: none."""
        seen_ms, takes_ms = self._withheld_last
        if now_ms - seen_ms > SLACK_PERIOD_MS or not any(queue.is_offline for queue in self.queues.values()):
            return 0.0, 0.0
        return takes_ms, self.offline_ms(now_ms)[1]

    @property
    def head_ms(self) -> float:
        """The earliest deadline of all that waits; inf: none."""
        if self._head_ms is None:
            self._head_ms = min([queue.head_deadline_ms for queue in self.queues.values()], default=NEVER)
        return self._head_ms

    @property
    def send_ms(self) -> float:
        """From when on a worker has room for something that waits; inf: not before one of them says something."""
        if self._send_ms is None:
            waiting = self._queues_waiting()
            if waiting and self._rooms_ms is None:
                self._rooms_ms = [_rooms_ms(crew) for crew in self._crews]
            rooms_ms, send_ms = self._rooms_ms or [], NEVER
            for queue, team in waiting:
                for crew in team.crews:
                    room_ms, offline_ms = rooms_ms[crew]
                    send_ms = min(send_ms, max(offline_ms, self._withheld_ms) if queue.is_offline else room_ms)
            self._send_ms = send_ms
        return self._send_ms

    @property
    def overdue_ms(self) -> float:
        """From when on a worker is overdue with what another one could run as well; inf: there is none."""
        if self._overdue_ms is None:
            overdue_ms = NEVER
            for worker in self.workers.values():
                if worker.overdue_ms < overdue_ms and worker.sent and len(worker.front.candidate.team) > 1:
                    overdue_ms = worker.overdue_ms
            self._overdue_ms = overdue_ms
        return self._overdue_ms

    @property
    def due_ms(self) -> float:
        """From when on there may be something to do, unless something is said before."""
        return min(min(self.head_ms, self.send_ms), min(self.overdue_ms, self._tell_ms))

    def wake_ms(self, polled_ms: float) -> float:
        """When there is something to do that could not be done at ``polled_ms``."""
        wake_ms = self.head_ms
        for at_ms in (self.send_ms, self.overdue_ms):
            if polled_ms < at_ms < wake_ms:
                wake_ms = at_ms
        return wake_ms

    @property
    def _tell_ms(self) -> float:
        """From when on its workers are to be told of what waits."""
        if not self.workers or not (self.queues or self._told_backlog_ms):
            return NEVER
        patience_ms = DEMAND_INTERVAL_MS if self.queues else DEMAND_ENDS_MS
        if self.is_shared:
            patience_ms = DEMAND_SHARED_MS
        return self._told_ms + patience_ms if self._told_backlog_ms else -NEVER

    def demand(self, now_ms: float) -> Demand | None:
        """What its workers are to be told now of what waits for them; None: nothing new."""
        if now_ms < self._tell_ms:
            return None
        backlog_ms = self._backlog_ms(offline=False) or self._backlog_ms(offline=True)
        if backlog_ms == self._told_backlog_ms:
            return None
        self._told_ms, self._told_backlog_ms = now_ms, backlog_ms
        return Demand(backlog_ms, None if self.head_ms == NEVER else self.head_ms)

    @property
    def backlog_ms(self) -> float:
        """Predicted work that waits."""
        return self._backlog_ms(offline=False) + self._backlog_ms(offline=True)

    def _backlog_ms(self, *, offline: bool) -> float:
        queues = [queue for queue in self.queues.values() if queue and queue.is_offline == offline]
        return sum([queue.table.queue_ms(queue.rows) for queue in queues])

    def pressure(self, now_ms: float) -> tuple[float, float]:
        """(predicted ms of work that waits and has a deadline, for how long the most urgent of it has waited, ms)."""
        urgent = [queue for queue in self.queues.values() if queue.head_order_ms < NEVER]
        backlog_ms = sum([queue.ahead_ms(2 * BEHIND_MS, self.block_ms(now_ms)) for queue in urgent])
        return backlog_ms, max([now_ms - queue.head.source.arrival_ms for queue in urgent], default=0.0)

    @property
    def is_shared(self) -> bool:
        """Other brokers send to its workers too."""
        if self._is_shared is None:
            self._is_shared = any(worker.is_shared for worker in self.workers.values())
        return self._is_shared

    def waits_ms(self, teams: tuple[frozenset[str], ...], order_ms: float, now_ms: float) -> list[float]:
        """Predicted time until the first worker of each team has run what comes before an entry at that place."""
        if not self._queues_waiting():
            ends_ms = self._firsts_end_ms.get(teams)
            if ends_ms is None:
                crews_of = self._crews_in(teams)
                ends_ms = self._firsts_end_ms[teams] = _of_firsts(crews_of, self._crews_end_ms())
            return self._running_ms(ends_ms, now_ms)
        crews_of = self._crews_in(teams)
        ahead_ms = self._ahead_ms
        if ahead_ms is None or order_ms != self._ahead_of_ms or now_ms != self._ahead_at_ms:
            ahead_ms = self._ahead_ms = self._ahead(order_ms, now_ms)
            self._ahead_of_ms, self._ahead_at_ms = order_ms, now_ms
        return _of_firsts(crews_of, ahead_ms)

    def _crews_in(self, teams: tuple[frozenset[str], ...]) -> list[list[int]]:
        """Of each team those that it is made of."""
        crews_of = self._crews_of.get(teams)
        if crews_of is None:
            crews_of = self._crews_of[teams] = [self._team(team).crews for team in teams]
        return crews_of

    def _running_ms(self, ends_ms: list[float], now_ms: float) -> list[float]:
        """What is left of what ends then, behind what other brokers have queued."""
        others_ms = self._others_ms
        return [others_ms + (end_ms - now_ms if end_ms > now_ms else 0.0) for end_ms in ends_ms]

    def _crews_end_ms(self) -> list[float]:
        """When the first of each crew has run what it has; works out what other brokers have, too."""
        if self._ends_ms is None:
            self._ends_ms = [min([worker.ends_ms for worker in crew], default=NEVER) for crew in self._crews]
            others_ms = max([worker.others_ms for worker in self.workers.values()], default=0.0)
            self._others_ms = others_ms / max(1, len(self.workers))
        return self._ends_ms

    def _ahead(self, order_ms: float, now_ms: float) -> list[float]:
        """Predicted ms of each crew: what its first one has, and its part of what waits before that place.

        An entry that goes before others must leave them their time too: of all that waits, what cannot be run until the
        last deadline counts as if it came before (the condition of earliest deadline first, at that deadline). It need
        not leave any to those that are ahead of their share if it is not.
        """
        waiting = self._queues_waiting()
        ahead_ms = self._running_ms(self._crews_end_ms(), now_ms)
        block_ms = self.block_ms(now_ms)
        end_ms = NEVER if order_ms >= BEHIND_MS else BEHIND_MS
        last_ms = max([queue.tail_ms(end_ms) for queue, _ in waiting])
        spare_ms = last_ms - order_ms
        all_ms = ahead_ms.copy() if spare_ms > 0 else ahead_ms
        for queue, (crews, workers) in waiting:
            queue_ms = queue.ahead_ms(order_ms, block_ms)
            if queue_ms:
                share_ms = queue_ms / workers
                for crew in crews:
                    ahead_ms[crew] += share_ms
            if spare_ms > 0:
                share_ms = queue.ahead_ms(last_ms, block_ms) / workers
                for crew in crews:
                    all_ms[crew] += share_ms
        if spare_ms > 0:
            for crew, own_ms in enumerate(all_ms):
                if own_ms - spare_ms > ahead_ms[crew]:
                    ahead_ms[crew] = own_ms - spare_ms
        return ahead_ms

    def _queues_waiting(self) -> list[tuple[VariantQueue, _Team]]:
        """Those that somebody waits in, with who is there of their teams (of an outdated candidate's maybe nobody)."""
        if self._waiting is None:
            teams = [(queue, self._team(queue.candidate.team)) for queue in self.queues.values() if queue]
            self._waiting = [(queue, team) for queue, team in teams if team.workers]
        return self._waiting

    def _team(self, team: frozenset[str]) -> _Team:
        known = self._teams.get(team)
        if known is None:
            self._cut(team)
            crews = [crew for crew, workers in enumerate(self._crews) if workers and workers[0].incarnation in team]
            known = self._teams[team] = _Team(crews, sum([len(self._crews[crew]) for crew in crews]))
        return known

    def _cut(self, team: frozenset[str]) -> None:
        """Have each crew in the team as a whole, or not at all."""
        for crew, workers in enumerate(list(self._crews)):
            inside = [worker for worker in workers if worker.incarnation in team]
            if 0 < len(inside) < len(workers):
                others = len(self._crews)
                self._crews[crew] = inside
                self._crews.append([worker for worker in workers if worker.incarnation not in team])
                for known in self._teams.values():
                    if crew in known.crews:
                        known.crews.append(others)
                self._worker_changed()


def _rooms_ms(crew: list[Worker]) -> tuple[float, float]:
    """From when on one of these workers has room: with a deadline, and without."""
    room_ms = offline_ms = NEVER
    for worker in crew:
        if not worker.draining:
            room_ms, offline_ms = min(room_ms, worker.room_ms), min(offline_ms, worker.room_offline_ms)
    return room_ms, offline_ms


def _of_firsts(crews_of: list[list[int]], ms: list[float]) -> list[float]:
    """Of each team the least that a crew of it has."""
    return [ms[crews[0]] if len(crews) == 1 else min([ms[crew] for crew in crews]) for crews in crews_of]
