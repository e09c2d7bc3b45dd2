"""Who asks for what, and when. Pure: a seed and what was measured decide everything.

Queries arrive at their own times whatever becomes of earlier ones (open loop), as a Poisson process whose rate rises
in a line from a sixth of ``rate`` to ``rate``, times ``BURST_FACTOR`` in three bursts. Each query belongs to one of
three classes of constraints, and asks about one held-out image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from modelless.messages import MS_PER_HOUR, OnMiss, Prefer

RATE_FIRST = 1 / 6
BURST_FACTOR = 3.5
BURSTS = (0.3, 0.6, 0.85)
"""When bursts begin, as shares of the whole time."""
BURST_SHARE = 0.05
"""How long a burst is, likewise: a second of twenty."""


@dataclass(frozen=True, slots=True)
class QueryClass:
    """One kind of caller."""

    name: str
    share: float
    latency_ms_max: float
    accuracy_min: float
    prefer: Prefer = "cost"
    on_miss: OnMiss = "reject"


@dataclass(frozen=True, slots=True)
class Arrival:
    at_s: float
    kind: str
    """Name of its class."""
    image: int
    """Index of a held-out image."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What the system found out about one variant."""

    variant: str
    model: str
    accuracy: float
    """Lower end of the 95 % interval, which is what is chosen by."""
    cost: float
    """USD per 1,000 rows at its best batch."""
    batches: tuple[tuple[int, float], ...]
    """(rows, median ms), ascending."""
    price_per_hour: float

    def latency_ms(self, rows: float) -> float:
        """lat(b), linear between what was measured and in proportion beyond it."""
        sizes = [size for size, _ in self.batches]
        if rows > sizes[-1]:
            return self.batches[-1][1] * rows / sizes[-1]
        return float(np.interp(rows, sizes, [ms for _, ms in self.batches]))

    def cost_at(self, rows: float) -> float:
        """USD per 1,000 rows in batches of so many."""
        return self.latency_ms(rows) / rows * self.price_per_hour / MS_PER_HOUR * 1000

    def meets(self, kind: QueryClass, rows: float = 1) -> bool:
        return self.accuracy >= kind.accuracy_min and self.latency_ms(rows) <= kind.latency_ms_max


@dataclass(frozen=True, slots=True)
class Policy:
    """How variants are chosen: by the system, or by ``pins``, the name of one for each class."""

    name: str
    pins: Mapping[str, str] | None = None


class Turn(NamedTuple):
    """A part of the load, sent under one policy."""

    policy: Policy
    from_s: float
    """When the part begins."""
    arrivals: Sequence[Arrival]


@dataclass(frozen=True, slots=True)
class Scenario:
    classes: tuple[QueryClass, ...]
    policies: tuple[Policy, ...]
    measured: tuple[Measured, ...] = field(default=())

    def kind(self, name: str) -> QueryClass:
        return next(kind for kind in self.classes if kind.name == name)

    def accuracy(self, variant: str | None) -> float | None:
        """What the variant is chosen by."""
        return next((one.accuracy for one in self.measured if one.variant == variant), None)


def make_scenario(measured: Sequence[Measured]) -> Scenario:
    """Constraints that bite for these models, and two fixed choices.

    * ``accurate`` asks for more than the second best model has, within half a second;
    * ``tight`` asks for the middle of the field within 50 ms, and would rather have less accuracy than a late answer;
    * ``cheap`` takes whatever is least expensive above 0.9 (or the least accurate model, if that is lower).

    A model is as accurate as its best variant. The fixed choices are the best single variant for all (the cheapest
    that meets every class's constraints; the most accurate, if none does), and the cheapest of all.
    """
    best_of: dict[str, float] = {}
    for one in measured:
        best_of[one.model] = max(one.accuracy, best_of.get(one.model, 0.0))
    accuracies = sorted(best_of.values())
    classes = (
        QueryClass("tight", 0.4, 50, _floor(accuracies[len(accuracies) // 2]), on_miss="degrade"),
        QueryClass("accurate", 0.25, 500, _between(accuracies[max(0, len(accuracies) - 2)], accuracies[-1])),
        QueryClass("cheap", 0.35, 2000, min(0.9, _floor(accuracies[0]))),
    )
    able = [one for one in measured if all(one.meets(kind) for kind in classes)]
    single = min(able, key=_by_cost) if able else max(measured, key=lambda one: (one.accuracy, -one.cost))
    policies = (
        Policy("model-less"),
        Policy("one for all", {kind.name: single.variant for kind in classes}),
        Policy("cheapest", {kind.name: min(measured, key=_by_cost).variant for kind in classes}),
    )
    return Scenario(classes, policies, tuple(measured))


def oracle(scenario: Scenario, batch_rows: Mapping[str, float]) -> Policy:
    """What one would pin who knew the table and the load: of what meets each class's constraints, the cheapest.

    Args:
        batch_rows: how large the batches are that each class's queries run in under this load, by class.
    """
    pins = {}
    for kind in scenario.classes:
        rows = max(1.0, batch_rows.get(kind.name, 1.0))
        able = [one for one in scenario.measured if one.meets(kind, rows)]
        if able:
            pins[kind.name] = min(able, key=lambda one: (one.cost_at(rows), one.variant)).variant
        else:
            pins[kind.name] = max(scenario.measured, key=lambda one: (one.accuracy, -one.cost)).variant
    return Policy("oracle", pins)


def _by_cost(one: Measured) -> tuple[float, str]:
    return one.cost, one.variant


def rate_at(at_s: float, seconds: float, rate: float) -> float:
    """Queries per second that the scenario calls for at one moment."""
    share = at_s / seconds
    is_burst = any(begin <= share < begin + BURST_SHARE for begin in BURSTS)
    return rate * (RATE_FIRST + (1 - RATE_FIRST) * share) * (BURST_FACTOR if is_burst else 1.0)


def make_arrivals(
    classes: Sequence[QueryClass], *, seconds: float, rate: float, images: int, seed: int
) -> tuple[Arrival, ...]:
    """One seeded draw, in order of time (thinning: Lewis and Shedler 1979).

    Args:
        rate: queries per second at the end, outside bursts.
        images: how many there are to ask about; each is asked once before any is asked again.
    """
    draw = np.random.default_rng(seed)
    ceiling = rate * BURST_FACTOR
    candidates = np.cumsum(draw.exponential(1 / ceiling, size=int(ceiling * seconds * 1.5) + 100))
    keep = draw.random(len(candidates)) * ceiling
    times = [
        float(at_s)
        for at_s, level in zip(candidates, keep, strict=True)
        if at_s < seconds and level < rate_at(float(at_s), seconds, rate)
    ]
    kinds = draw.choice([kind.name for kind in classes], size=len(times), p=[kind.share for kind in classes])
    rounds = -(-len(times) // images)
    order = np.concatenate([draw.permutation(images) for _ in range(rounds)]) if rounds else np.empty(0, int)
    return tuple(Arrival(at_s, str(kind), int(image)) for at_s, kind, image in zip(times, kinds, order, strict=False))


def in_turns(policies: Sequence[Policy], arrivals: Sequence[Arrival], seconds: float) -> Iterator[Turn]:
    """As many parts of the load as there are policies, each part under all of them before the next one.

    A cost is a time on a device, and depends on what else the machine does, which changes within a minute: Kafka's
    Java compiles itself, variants are loaded, neighbours come and go. Here each policy has its part of all that, and
    is once the first, once the second and so on (a Latin square).
    """
    for place in range(len(policies)):
        from_s, to_s = (seconds * (place + end) / len(policies) for end in (0, 1))
        part = [arrival for arrival in arrivals if from_s <= arrival.at_s < to_s]
        for policy in (*policies[place:], *policies[:place]):
            yield Turn(policy, from_s, part)


def _floor(accuracy: float) -> float:
    """Two decimals, rounded down: what a person would ask for who knows that this model is good enough."""
    return int(accuracy * 100) / 100


def _between(lower: float, upper: float) -> float:
    """A floor that ``upper`` passes and ``lower`` does not, if they differ."""
    return round((lower + upper) / 2, 4) if lower < upper else upper
