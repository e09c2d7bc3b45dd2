"""Which variant, on which group, answers a query; or why none can.

Two questions, in this order. *Could it be met at all?* is answered by the profiles alone: accuracy, lat(b) at the
query's own rows, cost at the best batch. *Would it be met now?* adds the predicted finish time behind what is queued
ahead of its deadline. Among what answers yes to both, the query's ``prefer`` decides. What happens otherwise is the
contract's table of ``on_miss``; ``cost_max`` is never given up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from broker.catalog import Candidate, Target
from broker.ledger import Entry

Finish = Callable[[Candidate, Entry], float]
"""Predicted finish in Kafka time (ms) of an entry on a candidate; inf when no worker there has it loaded."""

NEVER = float("inf")


class Chosen(NamedTuple):
    candidate: Candidate
    missed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Refused:
    status: str
    message: str
    retry_after_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Parked:
    """Feasible, but nobody is there that could run it."""


Choice = Chosen | Refused | Parked


class Selector:
    """Stateless but for its two settings."""

    def __init__(self, accuracy_slack: float) -> None:
        self._accuracy_slack = accuracy_slack

    def choose(self, entry: Entry, target: Target, finish: Finish) -> Choice:
        """Decide for one query; the whole table of ``on_miss``."""
        floor = self.accuracy_floor(entry, target)
        deadline_ms = entry.latency_deadline_ms
        if deadline_ms is None:
            deadline_ms = NEVER
        latency_ms = deadline_ms - entry.source.arrival_ms
        chosen = _preferred(target.candidates, entry, floor, latency_ms, deadline_ms, finish)
        return chosen or self._missed(entry, target, floor, finish)

    def _missed(self, entry: Entry, target: Target, floor: float, finish: Finish) -> Choice:
        """Nothing that meets the constraints answers in time now."""
        affordable = _affordable(target.candidates, entry)
        accurate = [c for c in affordable if c.accuracy_low >= floor]
        feasible = _fast_enough(accurate, entry)
        on_miss = entry.query.on_miss
        if feasible:
            return self._loaded(entry, feasible, affordable, floor, finish)
        if on_miss == "late" and accurate:
            return _preferred(accurate, entry, floor, NEVER, NEVER, finish) or Parked()
        if on_miss == "degrade":
            fast = _fast_enough(affordable, entry)
            if fast:
                return self._degrade(entry, sorted(fast, key=lambda c: -c.accuracy_low), floor, finish)
        return Refused("FAILED_PRECONDITION", _nearest(entry, target, floor))

    def accuracy_floor(self, entry: Entry, target: Target) -> float:
        """What was asked for, or the best of what was named minus the slack."""
        wanted = entry.query.accuracy_min
        return wanted if wanted is not None else target.accuracy_best - self._accuracy_slack

    def _loaded(
        self,
        entry: Entry,
        feasible: Sequence[Candidate],
        affordable: Sequence[Candidate],
        floor: float,
        finish: Finish,
    ) -> Choice:
        if entry.query.on_miss == "late":
            return _earliest([c for c in affordable if c.accuracy_low >= floor], entry, finish)
        if entry.query.on_miss == "degrade":
            below = sorted((c for c in affordable if c.accuracy_low < floor), key=lambda c: -c.accuracy_low)
            return self._degrade(entry, [*feasible, *below], floor, finish)
        soonest_ms = min(finish(candidate, entry) for candidate in feasible)
        if soonest_ms == NEVER or entry.latency_deadline_ms is None:
            return Parked()
        late_ms = soonest_ms - entry.latency_deadline_ms
        return Refused("RESOURCE_EXHAUSTED", f"load would make it {late_ms:.0f} ms late; retry later", late_ms)

    def _degrade(self, entry: Entry, candidates: Sequence[Candidate], floor: float, finish: Finish) -> Choice:
        """The first of ``candidates`` that will be in time."""
        alive = False
        for candidate in candidates:
            finish_ms = finish(candidate, entry)
            alive = alive or finish_ms < NEVER
            if finish_ms < NEVER and finish_ms <= (entry.latency_deadline_ms or NEVER):
                return Chosen(candidate, ("accuracy",) if candidate.accuracy_low < floor else ())
        if alive:
            return Refused("DEADLINE_EXCEEDED", "under the present load no variant would answer in time")
        return Parked()


def _preferred(
    candidates: Sequence[Candidate],
    entry: Entry,
    floor: float,
    latency_ms: float,
    deadline_ms: float,
    finish: Finish,
) -> Chosen | None:
    """The best by ``prefer`` of those that answer yes to both questions; then the cheaper, then the sooner.

    One pass, since it is made for every query: what is dear to find out is asked last.
    """
    query, rows = entry.query, entry.rows
    prefer = query.prefer
    cost_max = NEVER if query.cost_max is None else query.cost_max
    best: Candidate | None = None
    best_rank: tuple[float, ...] = ()
    for candidate in candidates:
        accuracy = candidate.accuracy_low
        if accuracy < floor:
            continue
        cost = candidate.cost_per_1000_least
        if cost > cost_max:
            continue
        rank = (-accuracy, cost) if prefer == "accuracy" else (cost, -accuracy)
        if best is not None and prefer != "latency" and rank > best_rank[:2]:
            continue  # whenever it finishes
        if candidate.table.p50_ms(rows) > latency_ms:
            continue
        finish_ms = finish(candidate, entry)
        if finish_ms > deadline_ms or finish_ms == NEVER:
            continue
        whole_rank = (finish_ms, *rank) if prefer == "latency" else (*rank, finish_ms)
        if best is None or whole_rank < best_rank:
            best, best_rank = candidate, whole_rank
    return Chosen(best) if best is not None else None


def _earliest(candidates: Sequence[Candidate], entry: Entry, finish: Finish) -> Choice:
    finish_ms, _, candidate = min(((finish(c, entry), i, c) for i, c in enumerate(candidates)), key=lambda t: t[:2])
    return Parked() if finish_ms == NEVER else Chosen(candidate)


def _affordable(candidates: Sequence[Candidate], entry: Entry) -> Sequence[Candidate]:
    cost_max = entry.query.cost_max
    return candidates if cost_max is None else [c for c in candidates if c.cost_per_1000_least <= cost_max]


def _fast_enough(candidates: Sequence[Candidate], entry: Entry) -> Sequence[Candidate]:
    if entry.latency_deadline_ms is None:
        return candidates
    latency_ms, rows = entry.latency_deadline_ms - entry.source.arrival_ms, entry.rows
    return [c for c in candidates if c.table.p50_ms(rows) <= latency_ms]


def _nearest(entry: Entry, target: Target, floor: float) -> str:
    """Why nothing is feasible, and the nearest constraints that are."""
    query, candidates = entry.query, target.candidates
    if not candidates:
        return f"{target.name} is registered, but no variant of it could be measured yet; see `modelless models`"
    accurate = [c for c in candidates if c.accuracy_low >= floor]
    if not accurate:
        best = max(candidates, key=lambda c: c.accuracy_low)
        return f"no variant has accuracy >= {floor:.4g}; the most accurate, {best.variant}, has {best.accuracy_low:.4f}"
    affordable = _affordable(accurate, entry)
    if not affordable:
        least = min(accurate, key=lambda c: c.cost_per_1000_least)
        return (
            f"no variant with accuracy >= {floor:.4g} costs at most {query.cost_max:.3g} USD per 1,000; "
            f"the cheapest, {least.variant}, costs {least.cost_per_1000_least:.3g}"
        )
    fastest = min(affordable, key=lambda c: c.table.p50_ms(entry.rows))
    limit = f" and cost <= {query.cost_max:.3g}" if query.cost_max is not None else ""
    return (
        f"the fastest variant with accuracy >= {floor:.4g}{limit}, {fastest.variant}, "
        f"needs {fastest.table.p50_ms(entry.rows):.3g} ms for {entry.rows} row(s)"
    )
