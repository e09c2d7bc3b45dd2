"""Credit: how much predicted work each broker may have outstanding at this worker. Pure.

One **cap** for the device: just enough that it never waits, the batch that runs and ``lead_ms`` behind it. More would
only make small batches of what could still become large ones. A broker counts a batch until its replies are in Kafka,
so what has left the device and waits for that is added to the window of the broker that sent it.

The cap is divided by **urgency**: a broker's queued milliseconds over the slack to its earliest deadline; work without
a deadline counts only where nobody has any other. Every
broker keeps a floor, so that one that announces nothing yet can start at once.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Final, TypeVar

from modelless.frames import Demand

Link = TypeVar("Link", bound=Hashable)

FLOOR_SHARE: Final = 0.1
"""Of the cap, divided equally among all brokers before urgency decides about the rest."""
SLACK_MS_MIN: Final = 1.0
SLACK_MS_DEFAULT: Final = 30_000.0
"""Slack of work without a deadline."""


class Cap:
    """Follows what the device needs in flight: the largest batches of late, and the lead."""

    def __init__(self, lead_ms: float) -> None:
        self._lead_ms = lead_ms
        self._cost_ms = 0.0

    def observe_cost(self, cost_ms: float) -> None:
        """A batch arrived; large ones count at once, and are forgotten slowly."""
        self._cost_ms = max(cost_ms, 0.95 * self._cost_ms + 0.05 * cost_ms)

    @property
    def cap_ms(self) -> float:
        return self._cost_ms + self._lead_ms


def divide(cap_ms: float, demands: Mapping[Link, Demand | None], now_ms: float) -> dict[Link, float]:
    """Windows that add up to ``cap_ms``. ``now_ms`` is Kafka time, as the deadlines in ``demands`` are."""
    if len(demands) < 2:
        return dict.fromkeys(demands, cap_ms)
    floor_ms = cap_ms * FLOOR_SHARE / len(demands)
    urgencies = {link: _urgency(demand, now_ms) for link, demand in demands.items() if not _is_offline(demand)}
    if not any(urgencies.values()):
        urgencies = {link: _urgency(demand, now_ms) for link, demand in demands.items()}
    total = sum(urgencies.values())
    if total <= 0.0:
        return dict.fromkeys(demands, cap_ms / len(demands))
    rest_ms = cap_ms * (1.0 - FLOOR_SHARE)
    return {link: floor_ms + rest_ms * (urgencies.get(link, 0.0) / total) for link in demands}


def _is_offline(demand: Demand | None) -> bool:
    return demand is not None and demand.deadline_ms is None


def _urgency(demand: Demand | None, now_ms: float) -> float:
    if demand is None or demand.backlog_ms <= 0.0:
        return 0.0
    slack_ms = SLACK_MS_DEFAULT if demand.deadline_ms is None else demand.deadline_ms - now_ms
    return demand.backlog_ms / max(slack_ms, SLACK_MS_MIN)
