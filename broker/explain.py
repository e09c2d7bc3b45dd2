"""Why a choice was made: every candidate with its numbers, and what speaks against it. Pure.

The decision is the selector's own; this only looks at each candidate by itself and says what the contract's limits
make of it, in the same numbers. It is made on request: by ``modelless explain``, or for a query with the header
``modelless-explain``, whose reply carries it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from broker.catalog import Candidate, Catalog, Target
from broker.ledger import Address, Entry, Source
from broker.prices import Prices
from broker.ranking import Teams
from broker.selector import Choice, Chosen, Parked, Refused, Selector, Waits
from broker.usual import Usual
from broker.versions import Loaded
from broker.view import NEVER
from modelless.messages import (
    Condition,
    Correction,
    Demanded,
    Labels,
    Member,
    ModelVersion,
    Plan,
    Profile,
    Query,
    RecordId,
)

HEADER_CANDIDATES_MAX = 16
"""In a reply's header: the best by what is preferred, and the chosen one."""


class Judged(NamedTuple):
    """One candidate before one query."""

    variant: str
    group: str
    accuracy: float
    """Measured, or corrected by labels."""
    accuracy_low: float
    """What is chosen by."""
    lat_ms: float
    """For the query's rows, with nothing before them."""
    finish_ms: float | None
    """Predicted, from now; None when nobody has it loaded."""
    cost: float
    """USD per 1,000 rows."""
    workers: int
    """That have it ready."""
    chosen: bool
    why: str


@dataclass(frozen=True, slots=True)
class Explanation:
    decision: str
    """In words."""
    accuracy_min: float
    """Asked for, or the target's default."""
    latency_ms: float | None
    cost_max: float | None
    rows: int
    candidates: tuple[Judged, ...]
    """The best by what is preferred first."""
    left_out: int
    """Further ones, when only some were asked for."""


def explain(
    entry: Entry, target: Target, choice: Choice, floor: float, now_ms: float, waits: Waits, most: int | None = None
) -> Explanation:
    """Say why ``choice`` was made of ``target`` for ``entry``; of ``most`` candidates only, all by default."""
    query, ranking = entry.query, target.ranking
    shown = ranking.ordered(query.prefer, entry.rows, most)
    left_out = len(ranking) - len(shown)
    chosen = choice.candidate if isinstance(choice, Chosen) else None
    if chosen is not None and chosen not in shown:
        shown.append(chosen)
    deadline_ms, arrival_ms = entry.latency_deadline_ms, entry.source.arrival_ms
    slack_ms = NEVER if deadline_ms is None else deadline_ms - max(now_ms, arrival_ms)
    judged, stretch = [], target.stretch(query.inputs, entry.rows)
    for candidate in shown:
        wait_ms = None
        if candidate.team:
            (wait_ms,) = waits([Teams(candidate.group, (candidate.team,))], entry, now_ms)
        lat_ms = candidate.lat_ms(entry.rows) / stretch
        against = _against(candidate, entry, floor, lat_ms, slack_ms, wait_ms)
        if candidate is chosen:
            why = "chosen" + (f", although {'; '.join(against)}" if against else "")
        elif candidate is choice.wanted:
            why = "wanted: " + ("; ".join(against) or "not loaded")
        else:
            why = "; ".join(against) or _behind(candidate, choice, query)
        finish_ms = None if wait_ms is None else wait_ms + lat_ms
        judged.append(
            Judged(
                candidate.variant,
                candidate.group,
                candidate.accuracy,
                candidate.accuracy_low,
                lat_ms,
                finish_ms,
                candidate.cost_per_1000_usual,
                candidate.workers,
                candidate is chosen,
                why,
            )
        )
    return Explanation(
        _words(choice, query),
        floor,
        None if deadline_ms is None else deadline_ms - arrival_ms,
        query.cost_max,
        entry.rows,
        tuple(judged),
        left_out,
    )


def _against(
    candidate: Candidate, entry: Entry, floor: float, lat_ms: float, slack_ms: float, wait_ms: float | None
) -> list[str]:
    """What speaks against a candidate, in the order of the two questions: could it, and would it now."""
    found = []
    if candidate.accuracy_low < floor:
        found.append(f"accuracy {candidate.accuracy_low:.4f} < {floor:.4g}")
    if entry.query.cost_max is not None and candidate.cost_per_1000_usual > entry.query.cost_max:
        found.append(f"costs {candidate.cost_per_1000_usual:.3g} > {entry.query.cost_max:.3g}")
    if lat_ms > slack_ms:
        found.append(f"needs {lat_ms:.3g} ms > {slack_ms:.3g}")
    if wait_ms is None:
        found.append("not loaded")
    elif lat_ms <= slack_ms < wait_ms + lat_ms:
        found.append(f"{wait_ms:.3g} ms of work before it make it late")
    if candidate in entry.refused_by:
        found.append("its turn came too late")
    return found


def _behind(candidate: Candidate, choice: Choice, query: Query) -> str:
    """Nothing speaks against it, but another one is better."""
    if not isinstance(choice, Chosen):
        return "would do"
    if choice.by == "price":
        return "under load not as good for its device time"
    chosen = choice.candidate
    if query.prefer == "latency":
        return "would answer later"
    cost, accuracy = candidate.cost_per_1000_usual, candidate.accuracy_low
    if query.prefer == "cost" and cost != chosen.cost_per_1000_usual:
        return (
            f"costs {cost / chosen.cost_per_1000_usual:.3g} times as much" if chosen.cost_per_1000_usual else "dearer"
        )
    if query.prefer == "accuracy" and accuracy != chosen.accuracy_low:
        return f"less accurate by {chosen.accuracy_low - accuracy:.4f}"
    return "as good, but later or not as cheap or accurate"


def _words(choice: Choice, query: Query) -> str:
    best = {"cost": "the cheapest", "accuracy": "the most accurate", "latency": "the soonest"}[query.prefer]
    match choice:
        case Chosen(candidate=candidate, missed=missed, by=by):
            text = f"{candidate.variant} on {candidate.group}: "
            text += f"gives up {' and '.join(missed)}" if missed else ""
            if by == "price":
                text += f"{', ' if missed else ''}the best for its device time under load"
            elif not missed:
                text += f"{best} that answers in time"
        case Refused(status=status, message=message):
            text = f"{status}: {message}"
        case Parked(wanted=None):
            text = "waits for a worker that has it loaded"
        case Parked():
            text = "waits until somebody has loaded what it needs"
    if choice.wanted is not None:
        text += f"; {choice.wanted.variant} on {choice.wanted.group} would be better, and is not loaded"
    return text


def header_value(explanation: Explanation) -> bytes:
    """Compact JSON (ASCII) for the header of a reply."""
    return json.dumps(plain(explanation), separators=(",", ":")).encode()


def plain(explanation: Explanation) -> dict[str, Any]:
    """For JSON; numbers to five digits."""
    return {
        "decision": explanation.decision,
        "accuracy_min": _rounded(explanation.accuracy_min),
        "latency_ms": _rounded(explanation.latency_ms),
        "cost_max": explanation.cost_max,
        "rows": explanation.rows,
        "candidates": [
            {name: _rounded(value) for name, value in judged._asdict().items()} for judged in explanation.candidates
        ],
        "left_out": explanation.left_out,
    }


def _rounded(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


# --- from outside a broker --------------------------------------------------------------------------------------------


def catalog_of(
    models: Iterable[ModelVersion],
    profiles: Iterable[Profile],
    corrections: Iterable[Correction],
    conditions: Iterable[Condition],
    labels: Iterable[Labels],
    workers: Sequence[Member],
    plan: Plan | None,
    usual: Mapping[str, tuple[float, float]] | None = None,
    demand: Iterable[Demanded] = (),
) -> Catalog:
    """What a broker knows, by the topics and by what workers and brokers announce of themselves.

    ``usual``: (rows of a batch, slowness) that are usual on a group, by its name.
    ``demand``: what it is asked for.
    """
    catalog = Catalog()
    for model in models:
        catalog.put_model(model.key, model)
    for profile in profiles:
        catalog.put_profile(profile.key, profile)
    for correction in corrections:
        catalog.put_correction(correction.variant, correction)
    for each in labels:
        catalog.put_labels(each.name, each)
    ready: dict[tuple[str, str], frozenset[str]] = {}
    for worker in workers:
        group = worker.group or ""
        wanted = None
        if plan is not None:
            assignment = plan.workers.get(worker.name)
            wanted = frozenset(assignment.load if assignment is not None else ()) - frozenset(worker.errors)
        catalog.put_worker(worker.incarnation, Loaded(group, frozenset(worker.variants), wanted))
        for variant in worker.variants:
            ready[variant, group] = ready.get((variant, group), frozenset()) | {worker.incarnation}
    for (variant, group), team in ready.items():
        catalog.set_ready(variant, group, team)
    for condition in conditions:
        candidate = catalog.candidate(condition.variant, condition.group)
        if candidate is not None and candidate.model.digest == condition.digest:
            candidate.table.restore(condition.p50_scale, condition.p99_scale, condition.changed_ms)
            catalog.observed(candidate)
    catalog.expect(demand)
    catalog.assume({group: Usual(*of) for group, of in (usual or {}).items()})
    return catalog


def asked(query: Query, rows: int, latency_ms_default: float) -> Entry:
    """An entry for a query that is only thought of; it arrives at time 0."""
    latency_ms = query.latency_ms_max if query.latency_ms_max is not None else latency_ms_default
    source = Source(RecordId("", 0, 0), None, None, (), 0.0)
    return Entry(source, query, Address("", "", None, "msgpack"), rows, 0, latency_ms, latency_ms, latency_ms)


def explain_asked(
    entry: Entry,
    target: Target,
    catalog: Catalog,
    backlog_ms: Mapping[str, float],
    accuracy_slack: float,
) -> tuple[Choice, Explanation]:
    """Choose for such an entry as a broker would, with so much work (ms) before it; the target has candidates.

    What prices have learned only the brokers know.
    """

    def waits(teams: Sequence[Teams], entry: Entry, now_ms: float) -> list[float]:
        return [backlog_ms.get(of.group, 0.0) / len(team) for of in teams for team in of.teams]

    selector = Selector(accuracy_slack, Prices(catalog.price_ranges()))
    choice = selector.choose(entry, target, 0.0, waits)
    return choice, explain(entry, target, choice, selector.accuracy_floor(entry, target), 0.0, waits)
