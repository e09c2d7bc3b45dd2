"""Queries that are read together and ask for the same are given the same. Pure.

Under load a broker reads hundreds of queries at once, most of which ask for what another one asks for. What is best for
one of them is best for the next one too, as long as little has been given since to the group that was chosen, and it
has nearly as much time. (What the other groups were given only speaks for that choice.)
"""

from __future__ import annotations

from typing import Final, NamedTuple

from broker.batcher import NEVER
from broker.catalog import Target
from broker.ledger import Entry
from broker.selector import Choice, Chosen

GIVEN_MS_MAX: Final = 1.0
"""Of work that a choice may overlook."""
SLACK_SHARE: Final = 0.01
"""Of the time that a query has: by so much, or less, its wait and its slack may differ from those of the choice."""


class _Known(NamedTuple):
    choice: Chosen
    slack_ms: float
    given_ms: float
    """To its group before."""


class Alike:
    """What was chosen for queries that are admitted at one instant; nothing else happens in between."""

    def __init__(self, now_ms: float) -> None:
        self._now_ms = now_ms
        self._known: dict[tuple[object, ...], _Known] = {}
        self._given_ms: dict[str, float] = {}

    def find(self, entry: Entry, target: Target, floor: float) -> Chosen | None:
        """What one like this was given, if that holds for this one."""
        known = self._known.get(_asked(entry, target, floor))
        if known is None:
            return None
        slack_ms = self._slack_ms(entry)
        other_ms = self._given_ms.get(known.choice.candidate.group, 0.0) - known.given_ms
        if other_ms > GIVEN_MS_MAX:
            return None
        if slack_ms != known.slack_ms:
            other_ms += abs(slack_ms - known.slack_ms)
        return known.choice if other_ms <= SLACK_SHARE * slack_ms else None

    def learn(self, entry: Entry, target: Target, floor: float, choice: Choice) -> None:
        """A choice was made; only one that is in time and gives up nothing is remembered."""
        slack_ms = self._slack_ms(entry)
        if isinstance(choice, Chosen) and not choice.missed and slack_ms > 0:
            given_ms = self._given_ms.get(choice.candidate.group, 0.0)
            self._known[_asked(entry, target, floor)] = _Known(choice._replace(wanted=None), slack_ms, given_ms)

    def gave(self, group: str, work_ms: float) -> None:
        """So much work was queued for a group."""
        self._given_ms[group] = self._given_ms.get(group, 0.0) + work_ms

    def _slack_ms(self, entry: Entry) -> float:
        deadline_ms = entry.latency_deadline_ms
        return NEVER if deadline_ms is None else deadline_ms - max(self._now_ms, entry.source.arrival_ms)


def _asked(entry: Entry, target: Target, floor: float) -> tuple[object, ...]:
    """All that a choice depends on, besides the state of the system and the query's slack."""
    query, deadline_ms = entry.query, entry.latency_deadline_ms
    latency_ms = None if deadline_ms is None else deadline_ms - entry.source.arrival_ms
    shapes = tuple([tensor.shape for tensor in query.inputs])
    return target, floor, query.cost_max, query.prefer, query.on_miss, latency_ms, shapes, entry.account
