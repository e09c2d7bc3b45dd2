"""Who used what, and what that cost: a broker's counts, and the books that the leader keeps of all of them. Pure.

**Counts** (:class:`Meter`). A run's device time is shared by the rows that were in it, as in a reply's ``cost``. A
broker announces its counts since it started with everything else that it announces.

**Books** (:class:`Books`) are a fold over the announcements in ``<prefix>.fleet``, by their log times and nothing else,
so that every leader makes the same books of the same log: one that takes over reads it again and goes on behind the
last period that was written. Nothing can be counted twice, whoever dies.

* The **bill** of a group in a period is the sum over its workers of price times the time that they were alive: between
  two announcements of one incarnation that are at most :data:`~modelless.fleet.ALIVE_MS` apart.
* What a broker counted between two announcements belongs to the period of the later one. Its first announcement that
  the log still holds is where counting begins.
* A tenant's part of the bill is its busy time times the group's price, and beside that its part of what is left of the
  bill (idle devices, loading, measuring, copies for a shadow) in proportion to its busy time. So a group's bill is
  shared as its busy time is, and the parts sum up to it. A run counts when it ends: a period with the end of long runs
  may have more busy time than there was, and then what is left is negative. A group that nobody used is billed to
  :data:`IDLE`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from broker.ledger import Entry
from modelless.messages import MS_PER_HOUR, Member, Usage, Used
from modelless.planned import PRICE_PER_HOUR

COUNTED_MAX = 128
"""Of a broker, by tenant, task and group; 100 bytes each. What comes later is counted for :data:`OTHERS`."""
OTHERS = "others"
"""Tenants that are too many to be told apart."""
IDLE = "idle"
"""Nobody. Its task is empty."""


class Key(NamedTuple):
    tenant: str
    task: str
    group: str


@dataclass(slots=True)
class _Count:
    queries: int = 0
    rows: int = 0
    busy_ms: float = 0.0

    def add(self, queries: int, rows: int, busy_ms: float) -> None:
        self.queries += queries
        self.rows += rows
        self.busy_ms += busy_ms


class Meter:
    """One broker's counts since it started."""

    def __init__(self) -> None:
        self._counts: dict[Key, _Count] = {}

    def ran(
        self,
        task: str,
        group: str,
        entries: Iterable[Entry],
        answered: Iterable[Entry] | None,
        execute_ms: float,
        rows: int,
    ) -> None:
        """A device ran queries of ours, maybe beside others.

        Args:
            entries: ours that were not settled before.
            answered: of these, what is now; None: all of them.
            rows: of the whole run, if it went well.
        """
        ours = _summed(entries)
        row_ms = execute_ms / max(rows, sum([own.rows for own in ours.values()]), 1)
        for tenant, own in ours.items():
            self._count(tenant, task, group).busy_ms += row_ms * own.rows
        for tenant, own in (ours if answered is None else _summed(answered)).items():
            self._count(tenant, task, group).add(own.queries, own.rows, 0.0)

    def used(self) -> tuple[Used, ...]:
        """What is to be announced."""
        return tuple(Used(*key, count.queries, count.rows, count.busy_ms) for key, count in self._counts.items())

    def _count(self, tenant: str, task: str, group: str) -> _Count:
        key = Key(tenant, task, group)
        if key not in self._counts and len(self._counts) >= COUNTED_MAX:
            key = Key(OTHERS, "", group)
        return self._counts.setdefault(key, _Count())


def _summed(entries: Iterable[Entry]) -> dict[str, _Count]:
    """By tenant. It looks at every query that is answered."""
    found: dict[str, _Count] = {}
    for entry in entries:
        tenant = entry.query.tenant or entry.source.record.topic
        count = found.get(tenant)
        if count is None:
            count = found[tenant] = _Count()
        count.queries += 1
        count.rows += entry.rows
    return found


def tenant_of(entry: Entry) -> str:
    """Whom a query is counted for: the tenant that it names, else its topic."""
    return entry.query.tenant or entry.source.record.topic


@dataclass(slots=True)
class _Period:
    alive_ms: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """By group, of all workers together; likewise the next."""
    bill_usd: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    counts: dict[Key, _Count] = field(default_factory=lambda: defaultdict(_Count))


class Books:
    """Everybody's announcements in, closed periods out.

    Args:
        period_ms: how long one is; they begin at multiples of it.
        from_ms: what lies before is in the books already.
        alive_ms: silence of a worker that is longer was its death.
    """

    def __init__(self, period_ms: float, from_ms: float, alive_ms: float) -> None:
        self._period_ms, self._from_ms, self._alive_ms = period_ms, from_ms, alive_ms
        self._periods: dict[int, _Period] = defaultdict(_Period)
        self._workers: dict[str, tuple[str, float, float]] = {}
        """Incarnation, when it was heard last, and its price then."""
        self._brokers: dict[str, tuple[float, Mapping[Key, Used]]] = {}
        """By incarnation: when it was heard last, and what it said."""
        self._now_ms = 0.0

    def hear(self, member: Member, log_ms: float) -> None:
        """One announcement, in the order of the log; an older one again changes nothing."""
        self._now_ms = max(self._now_ms, log_ms)
        if member.kind == "worker":
            self._hear_worker(member, log_ms)
        elif member.kind == "broker":
            self._hear_broker(member, log_ms)

    def _hear_worker(self, member: Member, log_ms: float) -> None:
        incarnation, heard_ms, price = self._workers.get(member.name, ("", 0.0, 0.0))
        if log_ms < heard_ms:
            return
        if incarnation == member.incarnation and log_ms - heard_ms <= self._alive_ms:
            self._alive(member.group or "", heard_ms, log_ms, price)
        self._workers[member.name] = member.incarnation, log_ms, member.statistics.get(PRICE_PER_HOUR, 0.0)
        if member.state == "stopped":
            del self._workers[member.name]

    def _alive(self, group: str, begin_ms: float, end_ms: float, price_per_hour: float) -> None:
        while begin_ms < end_ms:
            number = self._number(begin_ms)
            until_ms = min(end_ms, (number + 1) * self._period_ms)
            period = self._periods[number]
            period.alive_ms[group] += until_ms - begin_ms
            period.bill_usd[group] += price_per_hour * (until_ms - begin_ms) / MS_PER_HOUR
            begin_ms = until_ms

    def _hear_broker(self, member: Member, log_ms: float) -> None:
        counted = {Key(each.tenant, each.task, each.group): each for each in member.used}
        heard_ms, known = self._brokers.get(member.incarnation, (0.0, counted))
        if log_ms < heard_ms:
            return
        self._brokers[member.incarnation] = log_ms, counted
        for key, used in counted.items():
            before = known.get(key, Used(*key))
            more = used.queries - before.queries, used.rows - before.rows, used.busy_ms - before.busy_ms
            if any(more):
                self._periods[self._number(log_ms)].counts[key].add(*more)

    def _number(self, log_ms: float) -> int:
        return int(log_ms // self._period_ms)

    def closed(self) -> list[Usage]:
        """Of periods that nothing can be added to any more, each once, in their order."""
        found: list[Usage] = []
        for number in sorted(self._periods):
            begin_ms = number * self._period_ms
            if self._now_ms < begin_ms + self._period_ms + self._alive_ms:
                break
            period = self._periods.pop(number)
            if begin_ms >= self._from_ms:
                found += shared(period, Usage(begin_ms, self._period_ms, "", "", ""))
        oldest_ms = self._now_ms - self._period_ms - self._alive_ms
        self._brokers = {name: known for name, known in self._brokers.items() if known[0] >= oldest_ms}
        return found


def shared(period: _Period, of: Usage) -> list[Usage]:
    """A period's bill, by tenant, task and group."""
    busy_ms: dict[str, float] = defaultdict(float)
    for key, count in period.counts.items():
        busy_ms[key.group] += count.busy_ms
    found = []
    for key, count in sorted(period.counts.items()):
        alive_ms, bill_usd = period.alive_ms.get(key.group, 0.0), period.bill_usd.get(key.group, 0.0)
        part = count.busy_ms / busy_ms[key.group] if busy_ms[key.group] > 0 else 0.0
        cost_usd = bill_usd / alive_ms * count.busy_ms if alive_ms > 0 else 0.0
        found.append(
            replace(
                of,
                tenant=key.tenant,
                task=key.task,
                group=key.group,
                queries=count.queries,
                rows=count.rows,
                busy_ms=count.busy_ms,
                cost_usd=cost_usd,
                idle_usd=bill_usd * part - cost_usd,
            )
        )
    for group, bill_usd in sorted(period.bill_usd.items()):
        if busy_ms.get(group, 0.0) <= 0 and bill_usd > 0:
            found.append(replace(of, tenant=IDLE, group=group, idle_usd=bill_usd))
    return found
