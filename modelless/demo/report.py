"""Figures and a verdict from what was written down about each query. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from modelless.demo.scenario import Policy, QueryClass

OK = "OK"
NO_REPLY = "NO_REPLY"
"""Status of a query that the client gave up waiting for."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One query and its outcome, by the client's clock."""

    policy: str
    kind: str
    at_s: float
    """When it was sent, since the load began."""
    latency_ms: float
    status: str
    label: int
    predicted: int | None = None
    variant: str | None = None
    accuracy: float | None = None
    """Of what answered, as it was chosen by: the lower end of what was measured."""
    batch_size: int | None = None
    """Rows of the batch that it ran in."""
    cost: float | None = None
    """USD."""
    missed: tuple[str, ...] = ()

    def is_in_time(self, kind: QueryClass) -> bool:
        return self.status == OK and self.latency_ms <= kind.latency_ms_max

    def is_as_asked(self, kind: QueryClass) -> bool:
        return self.is_in_time(kind) and (self.accuracy or 0.0) >= kind.accuracy_min

    @property
    def is_right(self) -> bool:
        return self.predicted == self.label


@dataclass(frozen=True, slots=True)
class Figures:
    """One class under one policy. Shares are of all queries asked, 0 to 1."""

    policy: str
    kind: str
    queries: int
    in_time: float
    """Answered within its latency."""
    as_asked: float
    """In time, by something as accurate as was asked."""
    right_in_time: float
    """In time, and the label is right."""
    p50_ms: float | None
    p99_ms: float | None
    accuracy: float | None
    """Against the labels, of the answered."""
    cost_per_1000: float | None
    """USD, of the answered."""
    not_ok: dict[str, int]
    """Queries without an answer, by status."""
    batch_rows: float | None
    """Of the batches that the answered ran in, the mean over queries."""
    variants: dict[str, float]
    """Shares of the answered, the most frequent first."""


def figures(answers: Iterable[Answer], classes: Sequence[QueryClass], policies: Sequence[Policy]) -> list[Figures]:
    """For every policy each class, then ``all``."""
    everything = list(answers)
    by_name = {kind.name: kind for kind in classes}
    rows = []
    for policy in policies:
        mine = [answer for answer in everything if answer.policy == policy.name]
        rows += [_row(policy.name, name, [a for a in mine if a.kind == name], by_name) for name in by_name]
        rows.append(_row(policy.name, "all", mine, by_name))
    return rows


def _row(policy: str, name: str, answers: Sequence[Answer], by_name: dict[str, QueryClass]) -> Figures:
    answered = [answer for answer in answers if answer.status == OK]
    in_time = [answer for answer in answers if answer.is_in_time(by_name[answer.kind])]
    as_asked = sum(answer.is_as_asked(by_name[answer.kind]) for answer in answers)
    latencies = [answer.latency_ms for answer in answered]
    costs = [answer.cost for answer in answered if answer.cost is not None]
    chosen = Counter(answer.variant or "?" for answer in answered)
    batches = [answer.batch_size for answer in answered if answer.batch_size is not None]
    return Figures(
        policy=policy,
        kind=name,
        queries=len(answers),
        in_time=_share(len(in_time), len(answers)),
        as_asked=_share(as_asked, len(answers)),
        right_in_time=_share(sum(answer.is_right for answer in in_time), len(answers)),
        p50_ms=_percentile(latencies, 50),
        p99_ms=_percentile(latencies, 99),
        accuracy=_share(sum(answer.is_right for answer in answered), len(answered)) if answered else None,
        cost_per_1000=1000 * sum(costs) / len(costs) if costs else None,
        not_ok=dict(Counter(answer.status for answer in answers if answer.status != OK).most_common()),
        batch_rows=sum(batches) / len(batches) if batches else None,
        variants={variant: count / len(answered) for variant, count in chosen.most_common()},
    )


def verdict(rows: Sequence[Figures]) -> str:
    """What the numbers say, for better or worse, in a few sentences. The first policy is ours."""
    ours, *others = [row for row in rows if row.kind == "all"]
    words = [f"{ours.policy}: {_percent(ours.as_asked)} of {ours.queries} queries were answered as asked."]
    for other in others:
        ahead = ours.as_asked - other.as_asked
        if abs(ahead) < 0.005:
            comparison = "as many"
        else:
            comparison = f"{abs(ahead) * 100:.1f} points {'fewer' if ahead > 0 else 'more'}"
        words.append(f"{other.policy}: {_percent(other.as_asked)}, {comparison}{_cost_ratio(other, ours)}.")
    return " ".join(words)


@dataclass(frozen=True, slots=True)
class CostRatios:
    """Mean cost of an answer, model-less, over that of ..."""

    to_oracle: float | None
    """... one who knows the table and the load; the aim is at most 1.15."""
    to_single: float | None
    """... the best single variant for all classes."""


def cost_ratios(rows: Sequence[Figures], ours: str, oracle: str, single: str) -> CostRatios:
    """Each class weighs by its queries under all policies alike, so that refusing dear ones makes nobody cheap."""
    return CostRatios(_ratio(rows, ours, oracle), _ratio(rows, ours, single))


def _ratio(rows: Sequence[Figures], policy: str, other: str) -> float | None:
    ours = {row.kind: row for row in rows if row.policy == policy and row.kind != "all"}
    theirs = {row.kind: row for row in rows if row.policy == other and row.kind != "all"}
    mine = other_cost = 0.0
    for kind, row in ours.items():
        cost, cost_other = row.cost_per_1000, theirs[kind].cost_per_1000 if kind in theirs else None
        if cost is None or cost_other is None:
            return None
        mine += row.queries * cost
        other_cost += row.queries * cost_other
    return mine / other_cost if other_cost else None


def as_dict(rows: Sequence[Figures]) -> list[dict[str, Any]]:
    return [asdict(row) for row in rows]


def _cost_ratio(other: Figures, ours: Figures) -> str:
    if not other.cost_per_1000 or not ours.cost_per_1000:
        return ""
    return f", at {other.cost_per_1000 / ours.cost_per_1000:.2g} times the cost per answer"


def _percent(share: float) -> str:
    """One decimal, and never a rounded-up 100."""
    return f"{int(share * 1000) / 10:.1f} %" if share < 1 else "100 %"


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _percentile(values: Sequence[float], which: float) -> float | None:
    return float(np.percentile(values, which)) if values else None
