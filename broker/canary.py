"""What the versions of a labelled model answered, and whether its canary is to be rolled back. Pure.

Every broker counts for itself, for models with a canary or a shadow only, and from nothing whenever the labels change;
it announces the counts with the labels' time, and the leader adds up those that are of the present labels.

A canary is rolled back by either of two rules, the same test on two shares:

* **errors**: the share of its queries that failed (INTERNAL), against stable's, by ``errors_margin``;
* **latency**: the share of its batches that were *slow*, against stable's, by a half. A batch is slow when it took
  longer than stable's would have, at the same rows on the same group by its living lat(b), by more than
  ``latency_margin``. Times are not simply averaged: a canary's batches are smaller, and one long pause of the
  machine would be half of an average.

The test asks for more than the margin with 95 % confidence: for the lower bound of the difference of the two shares
(:func:`modelless.accuracy.difference_low`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from modelless.accuracy import declared, difference_low, wilson
from modelless.messages import Labels, Served

SLOW_SHARE_MARGIN = 0.5
"""More slow batches than stable by half of all: its median batch is slow, whatever a few of them took."""
SLOW_MS_MIN = 1.0
"""By so much at least a slow batch takes longer; less is noise."""


def verdict(labels: Labels, counts: Mapping[str, Served]) -> str | None:
    """Why the canary is to be rolled back, in words for the operator; None while there is no reason."""
    canary = counts.get(f"{labels.name}:{labels.canary}")
    if canary is None or canary.answered + canary.failed < labels.samples_min:
        return None
    stable = counts.get(f"{labels.name}:{labels.stable}") or Served("", 0, 0, 0.0)
    asked, asked_stable = canary.answered + canary.failed, stable.answered + stable.failed
    if exceeds(canary.failed, asked, stable.failed, asked_stable, labels.errors_margin):
        return (
            f"{canary.model} failed {canary.failed:,} of {asked:,} queries, stable {stable.failed:,} of "
            f"{asked_stable:,}: more than {labels.errors_margin:.1%} above it"
        )
    if exceeds(canary.slow, canary.batches, stable.slow, stable.batches, SLOW_SHARE_MARGIN):
        return (
            f"{canary.slow:,} of {canary.batches:,} batches of {canary.model} took more than "
            f"{labels.latency_margin:.0%} longer than stable's would, of stable's own {stable.slow:,} of "
            f"{stable.batches:,}"
        )
    return None


def exceeds(bad: int, of: int, bad_stable: int, of_stable: int, margin: float) -> bool:
    """Whether the first share is above the second by more than ``margin``, with 95 % confidence.

    Nothing is known against a stable version that answered nothing: its share is 0 then.
    """
    if not of:
        return False
    stable, share_stable = declared(0.0), 0.0
    if of_stable:
        stable, share_stable = wilson(bad_stable, of_stable), bad_stable / of_stable
    return difference_low(bad / of, wilson(bad, of), share_stable, stable) > margin


def is_slow(execute_ms: float, expected_ms: float, labels: Labels) -> bool:
    """Whether a batch took too long beside what stable's would have."""
    return execute_ms > max(expected_ms * (1 + labels.latency_margin), expected_ms + SLOW_MS_MIN)


@dataclass(slots=True)
class _Count:
    answered: int = 0
    failed: int = 0
    execute_ms: float = 0.0
    shadowed: int = 0
    agreed: int = 0
    batches: int = 0
    slow: int = 0


@dataclass(slots=True)
class _Model:
    labels: Labels
    counts: dict[str, _Count] = field(default_factory=dict)


class Counts:
    """This broker's, by model version; a shadow's by variant."""

    def __init__(self) -> None:
        self._models: dict[str, _Model] = {}

    def __contains__(self, name: str) -> bool:
        """Whether anything is counted for the model ``name``."""
        return name in self._models

    def relabel(self, name: str, labels: Labels | None) -> None:
        """Labels changed: what was counted under others is forgotten."""
        self._models.pop(name, None)
        if labels is not None and (labels.canary is not None or labels.shadow is not None):
            self._models[name] = _Model(labels)

    def answered(self, name: str, version: str, queries: int, row_ms: float) -> None:
        """A batch of ``version`` (``name:version``) answered so many queries, at ``row_ms`` a row."""
        count = self._count(name, version)
        count.answered += queries
        count.execute_ms += queries * row_ms

    def failed(self, name: str, version: str) -> None:
        """A query ended INTERNAL; or a copy came to nothing."""
        self._count(name, version).failed += 1

    def batch(self, name: str, version: str, execute_ms: float, expected_ms: float) -> None:
        """A batch ran, where stable's would have taken ``expected_ms``."""
        count = self._count(name, version)
        count.batches += 1
        count.slow += is_slow(execute_ms, expected_ms, self._models[name].labels)

    def compared(self, name: str, variant: str, copies: int, agreed: int, row_ms: float) -> None:
        """A shadow answered so many copies; ``agreed`` of them as the query was."""
        count = self._count(name, variant)
        count.shadowed += copies
        count.agreed += agreed
        count.answered += copies
        count.execute_ms += copies * row_ms

    def served(self) -> tuple[Served, ...]:
        """To be announced."""
        return tuple(
            Served(
                key,
                count.answered,
                count.failed,
                count.execute_ms,
                count.shadowed,
                count.agreed,
                count.batches,
                count.slow,
                model.labels.changed_ms,
            )
            for model in self._models.values()
            for key, count in model.counts.items()
        )

    def _count(self, name: str, key: str) -> _Count:
        return self._models[name].counts.setdefault(key, _Count())
