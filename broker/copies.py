"""Which variants get the memory that the demand leaves, so that nobody waits: how much one more copy helps. Pure.

The placement sees to it that there is time enough for what is asked for on the mean. A query also needs one of the
workers that have something for it to be free in time. Where *n* have, each busy for a share *u* of the time, and the
query can wait for *d* runs, none of them is in time with a chance of about ``q ** n``, ``q = u exp(-(1 - u) d)`` (as
waiting times of M/M/n have exponential tails; Kleinrock: "Queueing Systems I", 1975, section 3.5); what keeps several
workers busy by itself counts its copies by these. With copies of several variants, on whatever groups, the chances
multiply. So one more copy of a variant helps, of all classes of demand that it does for::

    sum over classes of  rate (1 - q) product of the q of all copies that there are

What is asked for rarely but in a hurry gets its second and third copy before what is asked for often gets its tenth,
and nothing gets one on a group for what another group does well. The copy that helps most for its memory is next; the
gain is submodular, so that this greedy choice is near the best one (Nemhauser, Wolsey, Fisher: "An analysis of
approximations for maximizing submodular set functions", 1978), and only the first of the heap is looked at anew.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heapreplace
from math import exp, log2
from typing import NamedTuple

from broker.worth import Item
from modelless.messages import Demanded

BUSY = 0.8
"""Share of the time that workers run something."""
KEEP = 4.0
"""Times a new copy's gain must exceed that of one that is loaded."""
GAIN_MIN = 1e-4
"""Rows a second: less is not worth a load."""


class Offer(NamedTuple):
    """A variant on a group that has workers."""

    item: Item
    copies: int
    """That are to be there already."""
    before: int
    """That were there."""


def spread(offers: Sequence[Offer], demand: Sequence[Demanded], put: Callable[[Item], bool]) -> None:
    """Put one copy after another where it helps most.

    Args:
        offers: what may answer for its task.
        put: load one more copy of it somewhere; False: nobody has the room.
    """
    asked: dict[str, list[tuple[int, float, float, float]]] = defaultdict(list)
    for number, each in enumerate(demand):
        rounded = 2.0 ** round(log2(max(each.rows_per_second, 1e-6)))  # small changes move nothing
        asked[each.task].append((number, *each.bounds, rounded))
    rates = [0.0] * len(demand)
    alone = [1.0] * len(demand)
    """By class, how likely it is that nobody is in time."""
    serves: list[list[tuple[int, float]]] = []
    for of in offers:
        own, (accuracy, ms, _) = [], of.item.point
        for number, floor, latency_ms, rate in asked.get(of.item.model.task, ()):
            rates[number] = rate
            if accuracy >= floor and ms <= latency_ms:
                runs = (latency_ms - ms) / max(ms, 1e-3)
                late = (BUSY * exp(-(1 - BUSY) * runs)) ** (1 / (1 + rate * ms / 1000))
                own.append((number, late))
                alone[number] *= late**of.copies
        serves.append(own)
    copies = [of.copies for of in offers]
    turns: Counter[str] = Counter()
    """By task, how many copies were put: until one more is, what others of it help stays as it is."""

    def place(at: int) -> tuple[float, float, str, int, float, int]:
        of, found = offers[at].item, 0.0
        for number, late in serves[at]:
            found += rates[number] * alone[number] * (1 - late)
        if found >= GAIN_MIN and copies[at] < offers[at].before:
            found *= KEEP
        return -found / max(1, of.memory_bytes), of.point.cost, of.key, at, found, turns[of.model.task]

    heap = [place(at) for at, own in enumerate(serves) if own]
    heapify(heap)
    while heap:
        *_, at, found, turn = heap[0]
        best = offers[at].item
        if turn != turns[best.model.task] and (now := place(at)) > heap[0]:  # it helps less than it did
            heapreplace(heap, now)
        elif found < GAIN_MIN or not put(best):
            heappop(heap)
        else:
            copies[at] += 1
            turns[best.model.task] += 1
            for number, late in serves[at]:
                alone[number] *= late
            heapreplace(heap, place(at))
