"""What the labels of answered queries say of each variant's accuracy. Pure.

Words:

* **evaluation**: how often a variant was right when it was measured, and on how many rows (declared: believed as said).
* **count**: how many labelled rows a variant has, and how many of them were right. Every new row lets the weight of all
  older ones fall by 1 / ``ROWS_MAX``, so that a count never exceeds ``ROWS_MAX`` rows and follows what changes.
* **correction**: both together, which replaces the evaluation wherever a variant is chosen.

**Together** means that the evaluation counts as ``w`` more rows, 1/w = 1/(its rows) + (labelled rows)/``EVEN_ROWS``².
So the first label changes almost nothing, at ``EVEN_ROWS`` labelled rows no evaluation, however large, weighs more than
they do, and with a full count of them it weighs as 31 rows: enough labels win. The interval is Wilson's on all of it;
that old rows are worth less makes it a little wider than it had to be, never narrower.

**Drifted** is a variant whose labels say with 95 % confidence that it is less accurate than it was measured: the lower
bound of the difference (:func:`modelless.accuracy.difference_low`) is above 0. It is one no more when the labels are
back within the evaluation's own interval, so that an alarm does not flicker.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from modelless.accuracy import Interval, declared, difference_low, wilson
from modelless.messages import Correction, Feedback, ModelVersion, Profile, split_variant

ROWS_MAX = 2_000.0
EVEN_ROWS = 250.0
DRIFT_ROWS_MIN = 30.0
"""Labelled rows before anything is called drift."""
SEEN_MAX = 100_000
"""Query records that are remembered, so that each counts once."""

Dropped = Literal["malformed", "unknown", "unequal", "duplicate"]


class Evaluated(NamedTuple):
    """What a variant was measured or declared with; ``rows`` is 0 when it was declared."""

    digest: str
    accuracy: float
    rows: int

    @property
    def interval(self) -> Interval:
        return wilson(self.accuracy * self.rows, self.rows) if self.rows else declared(self.accuracy)


@dataclass(slots=True)
class Count:
    digest: str
    rows: float = 0.0
    right: float = 0.0
    drifted: bool = False

    def add(self, rows: int, right: int) -> None:
        """``rows`` more, of which ``right`` were; their order is taken to be mixed."""
        kept = (1 - 1 / ROWS_MAX) ** rows
        weight = ROWS_MAX * (1 - kept)
        self.rows = self.rows * kept + weight
        self.right = min(self.rows, self.right * kept + weight * right / rows)


@dataclass(slots=True)
class TallyStatistics:
    rows: int = 0
    """Labelled rows that were counted."""
    dropped: Counter[Dropped] = field(default_factory=Counter)


class Tally:
    """Feedback in, corrections out. Evaluations are kept always; counts from :meth:`restore` on, while one leads."""

    def __init__(self) -> None:
        self.statistics = TallyStatistics()
        self._evaluated: dict[str, dict[str, Evaluated]] = {}
        self._counts: dict[str, Count] = {}
        self._changed: set[str] = set()
        self._seen: dict[str, None] = {}

    def put_profile(self, key: str, profile: Profile | None) -> None:
        """A profile appeared, changed, or (None) was removed; ``key`` is ``variant@group``."""
        variant, _, group = key.rpartition("@")
        groups = self._evaluated.setdefault(variant, {})
        groups.pop(group, None)
        if profile is not None and profile.status == "ready" and profile.accuracy is not None:
            groups[group] = Evaluated(profile.digest, profile.accuracy, profile.accuracy_rows)
        if not groups:
            del self._evaluated[variant]
            self._counts.pop(variant, None)

    def restore(self, corrections: Iterable[Correction]) -> None:
        """Go on from what was written last; everything since is forgotten, and read again."""
        self._counts = {c.variant: Count(c.digest, c.rows, min(c.right, c.rows), c.drifted) for c in corrections}
        self._changed.clear()
        self._seen.clear()

    def take(self, feedback: Feedback, models: Mapping[str, ModelVersion]) -> Dropped | None:
        """Count it, or say why not; ``models`` by ``name:version``."""
        dropped = self._refused(feedback, models)
        if dropped is not None:
            self.statistics.dropped[dropped] += 1
            return dropped
        self._seen[feedback.query] = None
        if len(self._seen) > SEEN_MAX:
            del self._seen[next(iter(self._seen))]
        variant = feedback.variant
        digest = models[split_variant(variant)[0]].digest
        count = self._counts.get(variant)
        if count is None or count.digest != digest:
            count = self._counts[variant] = Count(digest)
        pairs = zip(feedback.predictions, feedback.labels, strict=True)
        rows = len(feedback.labels)
        count.add(rows, sum(predicted == label for predicted, label in pairs))
        self.statistics.rows += rows
        self._changed.add(variant)
        return None

    def malformed(self) -> None:
        """A record could not be decoded."""
        self.statistics.dropped["malformed"] += 1

    def corrections(self, now_ms: float) -> list[Correction]:
        """Of the variants whose count changed since the last call."""
        changed, self._changed = sorted(self._changed), set()
        found = []
        for variant in changed:
            count = self._counts.get(variant)
            evaluated = None if count is None else self._evaluation(variant, count.digest)
            if count is not None and evaluated is not None:
                count.drifted = has_drifted(count, evaluated)
                found.append(correct(variant, count, evaluated, now_ms))
        return found

    def drifted(self) -> list[str]:
        return sorted(variant for variant, count in self._counts.items() if count.drifted)

    def _refused(self, feedback: Feedback, models: Mapping[str, ModelVersion]) -> Dropped | None:
        model = models.get(split_variant(feedback.variant)[0])
        if model is None or self._evaluation(feedback.variant, model.digest) is None:
            return "unknown"
        if len(feedback.predictions) != len(feedback.labels) or not feedback.labels:
            return "unequal"
        return "duplicate" if feedback.query in self._seen else None

    def _evaluation(self, variant: str, digest: str) -> Evaluated | None:
        """The one on the most rows, since feedback does not say which group answered; of equals the least accurate."""
        groups = self._evaluated.get(variant, {}).values()
        fresh = [evaluated for evaluated in groups if evaluated.digest == digest]
        return max(fresh, key=lambda evaluated: (evaluated.rows, -evaluated.accuracy), default=None)


def correct(variant: str, count: Count, evaluated: Evaluated, now_ms: float) -> Correction:
    """Evaluation and count, which has rows, together."""
    weight = 1 / ((1 / evaluated.rows if evaluated.rows else 0.0) + count.rows / EVEN_ROWS**2)
    rows, right = weight + count.rows, weight * evaluated.accuracy + count.right
    low, high = wilson(min(right, rows), rows)
    return Correction(
        variant=variant,
        digest=count.digest,
        rows=count.rows,
        right=count.right,
        accuracy=min(1.0, right / rows),
        accuracy_low=low,
        accuracy_high=high,
        drifted=count.drifted,
        changed_ms=now_ms,
    )


def has_drifted(count: Count, evaluated: Evaluated) -> bool:
    """Whether it is now; ``count.drifted`` says whether it was."""
    if count.rows < DRIFT_ROWS_MIN:
        return False
    share = count.right / count.rows
    if count.drifted:
        return share < evaluated.interval.low
    labelled = wilson(count.right, count.rows)
    return difference_low(evaluated.accuracy, evaluated.interval, share, labelled) > 0
