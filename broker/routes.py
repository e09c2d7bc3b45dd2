"""Where the plan wants each class of queries to go: shares of (variant, group) pairs, who is furthest behind first.

The placement says which share of a class each pair is to have (:mod:`broker.placement`). Query by query, the pair that
is furthest behind its share is the first choice, the others follow in that order: deficit round robin (Shreedhar,
Varghese, SIGCOMM 1995) with queries for bytes. Whether it would be in time there is for the selector to say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf

from modelless.messages import Query, Route

CLASSES_MAX = 4096
"""Of queries that are remembered with their route."""
BEHIND_MAX = 64.0
"""Rows; what could not be had for a while is not made up for afterwards."""


class Shares:
    """One route and what followed it."""

    def __init__(self, shares: Mapping[str, float]) -> None:
        served = sum(shares.values())
        self._parts = {key: share / served for key, share in shares.items() if share > 0}
        """Of what is served at all."""
        self._behind = dict.fromkeys(self._parts, 0.0)

    def order(self) -> list[str]:
        """Pairs as ``variant@group``, those furthest behind their share first."""
        behind, parts = self._behind, self._parts
        return sorted(parts, key=lambda key: -(behind[key] + parts[key]))

    def took(self, key: str, rows: int) -> None:
        """So many rows went to this pair; what goes elsewhere is no part of what is shared."""
        behind = self._behind
        if key not in behind:
            return
        for each, share in self._parts.items():
            behind[each] = min(behind[each] + share * rows, BEHIND_MAX)
        behind[key] = max(behind[key] - rows, -BEHIND_MAX)


class Routes:
    """Of the plan that was read last."""

    def __init__(self, routes: Sequence[Route] = ()) -> None:
        self._by_kind: dict[tuple[str, bool], list[tuple[Route, Shares]]] = {}
        for route in routes:
            kind = (route.task, route.by_accuracy)
            self._by_kind.setdefault(kind, []).append((route, Shares(route.shares)))
        self._known: dict[tuple[object, ...], Shares | None] = {}

    def of(self, query: Query, latency_ms: float, floor: float) -> Shares | None:
        """The route of the class that is most like this query and asks for no less; None if there is none.

        What prefers the least latency has none: which worker is free first changes faster than plans do.
        """
        key = (query.task, latency_ms, floor, query.prefer, query.on_miss)
        if key not in self._known:
            if len(self._known) >= CLASSES_MAX:
                del self._known[next(iter(self._known))]
            self._known[key] = self._find(query, latency_ms, floor)
        return self._known[key]

    def _find(self, query: Query, latency_ms: float, floor: float) -> Shares | None:
        if query.prefer == "latency":
            return None
        found = [
            (route, shares)
            for route, shares in self._by_kind.get((query.task or "", query.prefer == "accuracy"), ())
            if _asked_ms(route) <= latency_ms and route.accuracy_min >= floor
        ]
        if not found:
            return None
        return max(found, key=lambda each: (_asked_ms(each[0]), -each[0].accuracy_min))[1]


def _asked_ms(route: Route) -> float:
    return inf if route.latency_ms is None else route.latency_ms
