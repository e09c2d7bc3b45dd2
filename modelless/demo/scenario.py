"""Who asks for what, and when. Pure: a seed and what was measured decide everything.

Queries arrive at their own times whatever becomes of earlier ones (open loop), as a Poisson process whose rate rises
in a line from a sixth of ``rate`` to ``rate``, times ``BURST_FACTOR`` in three bursts. Each query belongs to one of
three classes of constraints, and asks about one held-out image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from modelless.messages import OnMiss, Prefer

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
    """What registration found out about one model."""

    model: str
    accuracy: float
    row_ms: float
    """Per row at its best batch."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How models are chosen: by the system (``model`` is None), or one for all."""

    name: str
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Scenario:
    classes: tuple[QueryClass, ...]
    policies: tuple[Policy, ...]
    measured: tuple[Measured, ...] = field(default=())

    def kind(self, name: str) -> QueryClass:
        return next(kind for kind in self.classes if kind.name == name)


def make_scenario(measured: Sequence[Measured]) -> Scenario:
    """Constraints that bite for these models, and the two fixed choices.

    * ``accurate`` asks for more than the second best model has, within half a second;
    * ``tight`` asks for the middle of the field within 50 ms, and would rather have less accuracy than a late answer;
    * ``cheap`` takes whatever is least expensive above 0.9 (or the least accurate model, if that is lower).
    """
    by_accuracy = sorted(measured, key=lambda model: (model.accuracy, -model.row_ms))
    best, second = by_accuracy[-1], by_accuracy[max(0, len(by_accuracy) - 2)]
    middle = by_accuracy[len(by_accuracy) // 2]
    cheapest = min(measured, key=lambda model: model.row_ms)
    classes = (
        QueryClass("tight", 0.4, 50, _floor(middle.accuracy), on_miss="degrade"),
        QueryClass("accurate", 0.25, 500, _between(second.accuracy, best.accuracy)),
        QueryClass("cheap", 0.35, 2000, min(0.9, _floor(by_accuracy[0].accuracy))),
    )
    policies = (
        Policy("model-less"),
        Policy(f"always {best.model.removeprefix('digits-')}", best.model),
        Policy(f"always {cheapest.model.removeprefix('digits-')}", cheapest.model),
    )
    return Scenario(classes, policies, tuple(by_accuracy))


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


def _floor(accuracy: float) -> float:
    """Two decimals, rounded down: what a person would ask for who knows that this model is good enough."""
    return int(accuracy * 100) / 100


def _between(lower: float, upper: float) -> float:
    """A floor that ``upper`` passes and ``lower`` does not, if they differ."""
    return round((lower + upper) / 2, 4) if lower < upper else upper
