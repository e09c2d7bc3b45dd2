"""Who goes first when several query topics ask for more than the devices can do. Pure.

In one queue by deadlines, a topic that asks ten times as much gets ten times as much, and others are refused beside it.
What each should get is what a fluid server would give it that works for all who wait at once, in proportion to their
weights (generalised processor sharing: Parekh, Gallager, IEEE/ACM ToN 1993): what it asks for if that is less than its
share, the rest is the others' (max-min fairness), and nothing idles. So the backlogs of that server are kept beside
the real queues, for each group of workers: what a topic adds to the queues, in predicted device milliseconds, is added
to its backlog; a batch that is sent takes its cost from the backlogs of all who waited for such a worker, by their
weights, *whoever's it was*. There is no clock in it and nothing to estimate: the service itself tells how far the fluid
server is, as in start-time fair queueing (Goyal, Vin, Cheng, SIGCOMM 1996). A topic that asks for little has no backlog
and saves nothing up, one that had idle devices for itself owes nothing; the counters of "Fairness in serving large
language models" (Sheng et al., OSDI 2024) need a rule for that, backlogs do not.

A topic with a large backlog there, beside the latency that it asks for and beside the others', is *ahead* of its share:
all of it waits behind the others and sees their work before it when it is chosen for, so that it is who is refused or
degraded. Among those ahead, and among the others, the earliest deadline is first as ever. That is enough: a topic that
is refused anything has a backlog, or else it would go before; so the fluid server always has work of it, and what it
gives the topic in the long run is what the topic gets.

Each group is shared by itself, so that prices do not matter: within a group, device time is what costs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TypeVar

from broker.batcher import NEVER, Tightness

Key = TypeVar("Key")

AHEAD_SHARE = 0.25
"""Of the shortest latency asked for lately: what the fluid server would begin later than that is ahead."""
AHEAD_OF_MOST = 0.9
"""Of the largest backlog by weight of all topics: who has less than that is not ahead."""
BACK = 0.9
"""Of both limits: below that a topic that was ahead is not any more."""
TIMES_FREE = 8.0
"""So many times the room that is left a topic may take of the broker."""
OFFLINE_SHARE = 1 / 4
"""Of the broker's room, that queries without a deadline may take: more than devices run in a moment, so that they never
wait for Kafka, and little beside what comes with one."""


@dataclass(slots=True, eq=False)
class Standing:
    """One topic on one group of workers."""

    backlog_ms: float = 0.0
    """Device time that the fluid server owes it. Below 0: the real one owes it so much, since what waited left unserved
    that the fluid server had served."""
    credit_ms_max: float = 0.0
    """More than that is forgotten when it asks again."""
    is_ahead: bool = False
    tightness: Tightness = field(default_factory=Tightness)


@dataclass(slots=True, eq=False)
class Account:
    """One query topic."""

    topic: str
    weight: float = 1.0
    standings: dict[str, Standing] = field(default_factory=dict)
    """By group."""

    def at(self, group: str) -> Standing:
        standing = self.standings.get(group)
        if standing is None:
            standing = self.standings[group] = Standing()
        return standing

    def is_ahead(self, group: str) -> bool:
        standing = self.standings.get(group)
        return standing is not None and standing.is_ahead

    @property
    def is_ahead_somewhere(self) -> bool:
        return any(standing.is_ahead for standing in self.standings.values())

    def add(self, group: str, cost_ms: float) -> None:
        """So much more of it waits."""
        standing = self.at(group)
        standing.backlog_ms = max(standing.backlog_ms, -standing.credit_ms_max) + cost_ms

    def take(self, group: str, cost_ms: float) -> None:
        """So much of it has left, for a worker (:meth:`Fairness.sent` follows) or unserved."""
        self.at(group).backlog_ms -= cost_ms


class Fairness:
    """The accounts of all topics.

    Args:
        weights: by topic; 1 where it has none.
    """

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        self._weights = weights or {}
        self._accounts: dict[str, Account] = {}
        self.several = False
        """Whether anybody has to be fair to anybody."""

    def account(self, topic: str) -> Account | None:
        """Of a topic that asks for something; None while there is no other: it has nothing to be fair to."""
        account = self._accounts.get(topic)
        if account is None:
            account = self._accounts[topic] = Account(topic, self._weights.get(topic, 1.0))
            self.several = len(self._accounts) > 1
        return account if self.several else None

    def sent(self, group: str, costs_ms: Mapping[Account, float], excluded: Collection[Account] = ()) -> None:
        """A batch was sent that costs so much for each topic in it.

        Args:
            excluded: topics that wait, but for nothing that this worker could run: it did not choose between them.
        """
        for account, cost_ms in costs_ms.items():
            account.at(group).backlog_ms += cost_ms
        sharing = {
            account: standing.backlog_ms
            for account in self._accounts.values()
            if account not in excluded and (standing := account.standings.get(group)) and standing.backlog_ms > 0
        }
        served = share(sum(costs_ms.values()), sharing, {account: account.weight for account in sharing})
        for account, ms in served.items():
            account.at(group).backlog_ms -= ms

    def turned(self, group: str, workers: int, now_ms: float) -> list[Account]:
        """Topics that are ahead there now and were not, or the other way round: what waits of them is to be moved."""
        found = [(each, each.standings[group]) for each in self._accounts.values() if group in each.standings]
        waiting = [(account, standing) for account, standing in found if standing.backlog_ms > 0]
        weights = sum(account.weight for account, _ in waiting)
        most_ms = max((standing.backlog_ms / account.weight for account, standing in waiting), default=0.0)
        turned = []
        for account, standing in found:
            own_ms, limit = standing.backlog_ms / account.weight, BACK if standing.is_ahead else 1.0
            fair_ms = standing.tightness.latency_ms(now_ms) * workers / max(weights, account.weight)
            standing.credit_ms_max = fair_ms * account.weight if fair_ms < NEVER else 0.0
            ahead = own_ms > limit * AHEAD_SHARE * fair_ms and own_ms > limit * AHEAD_OF_MOST * most_ms
            if ahead != standing.is_ahead:
                standing.is_ahead = ahead
                turned.append(account)
        return turned


def crowding(held: Mapping[str, float]) -> set[str]:
    """Topics that are to be read no further, so that the others can be: dynamic thresholds (Choudhury, Hahne, IEEE/ACM
    ToN 1998). One topic may have eight ninths of the room, two that flood eight seventeenths each, and so on.

    Args:
        held: by topic, the part of the broker's room that it takes, 0 to 1.
    """
    free = 1.0 - sum(held.values())
    return {topic for topic, part in held.items() if part > TIMES_FREE * free}


def readable(topics: Collection[str], held: Mapping[str, float], offline: str) -> list[str]:
    """Of these topics, all but those that take most of the room, if there are others; of the offline one little waits.

    Args:
        held: as for :func:`crowding`.
    """
    crowded = crowding(held) if len(topics) > 1 else set()
    if held.get(offline, 0.0) >= OFFLINE_SHARE:
        crowded.add(offline)
    return [topic for topic in topics if topic not in crowded]


def share(amount: float, wanted: Mapping[Key, float], weights: Mapping[Key, float]) -> dict[Key, float]:
    """Max-min fair: nobody gets more than is wanted, and who gets less has as much by weight as anybody.

    Progressive filling (Bertsekas, Gallager: "Data Networks", 1992, section 6.5.2). What nobody wants is left.
    """
    order = sorted(wanted, key=lambda each: wanted[each] / weights[each])
    rest_weights = list(accumulate(weights[key] for key in reversed(order)))
    given: dict[Key, float] = {}
    for key in order:
        given[key] = min(wanted[key], amount * weights[key] / rest_weights.pop())
        amount -= given[key]
    return given
