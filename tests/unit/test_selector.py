"""The selector: the contract's table of ``on_miss`` row by row, and brute force over random tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from broker_builders import entry, model, profile
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.catalog import Candidate, Target
from broker.ledger import Entry
from broker.profiles import LatencyTable
from broker.selector import Choice, Chosen, Parked, Refused, Selector

INF = float("inf")


@dataclass
class Case:
    """Candidates with their predicted finish, in ms from the arrival of the query at 0."""

    candidates: list[Candidate]
    finish_ms: dict[str, float]

    def choose(self, **asked: Any) -> Choice:
        return self.decide(entry(0, **asked))

    def decide(self, asked: Entry) -> Choice:
        target = Target("t", self.candidates)
        return Selector(0.02).choose(asked, target, lambda c, _: self.finish_ms[c.model.name])


def case(*rows: tuple[str, float, float, float, float]) -> Case:
    """Rows of (name, accuracy, ms alone, price per hour, predicted finish)."""
    candidates = []
    for name, accuracy, ms, price, _ in rows:
        of = model(name)
        described = profile(of, curve=((1, ms), (8, ms)), accuracy=accuracy, price_per_hour=price)
        table = LatencyTable(described.batches)
        candidates.append(Candidate(described.variant, "cpu", of, accuracy, accuracy, table, price / 3_600_000))
    return Case(candidates, {row[0]: row[4] for row in rows})


def family(tiny: float = 1.0, small: float = 10.0, large: float = 100.0) -> Case:
    """tiny, small and large, each idle unless another predicted finish is given."""
    return case(("tiny", 0.80, 1, 1, tiny), ("small", 0.90, 10, 1, small), ("large", 0.95, 100, 1, large))


def name(choice: Choice) -> str:
    assert isinstance(choice, Chosen), choice
    return choice.candidate.model.name


def test_among_what_meets_the_constraints_prefer_decides() -> None:
    table = family()
    asked: dict[str, Any] = {"latency_ms_max": 50, "accuracy_min": 0.7}
    assert name(table.choose(**asked)) == "tiny"
    assert name(table.choose(**asked, prefer="accuracy")) == "small"
    assert name(table.choose(**asked, prefer="latency")) == "tiny"
    assert name(table.choose(latency_ms_max=500, accuracy_min=0.7, prefer="accuracy")) == "large"


def test_of_equals_the_cheaper_and_then_the_sooner() -> None:
    assert name(case(("a", 0.9, 10, 2, 10), ("b", 0.9, 10, 1, 20)).choose(prefer="accuracy")) == "b"
    assert name(case(("a", 0.9, 10, 1, 20), ("b", 0.9, 10, 1, 10)).choose()) == "b"
    assert name(case(("a", 0.9, 10, 1, 10), ("b", 0.95, 10, 1, 10)).choose(accuracy_min=0.5)) == "b"


def test_without_accuracy_min_the_tasks_best_minus_the_slack_counts() -> None:
    assert name(family().choose()) == "large"
    assert name(case(("a", 0.94, 10, 1, 10), ("b", 0.95, 10, 2, 10)).choose()) == "a"


def test_what_takes_too_long_by_itself_is_no_choice_whatever_its_predicted_finish() -> None:
    choice = case(("a", 0.9, 100, 1, 10)).choose(latency_ms_max=50)
    assert isinstance(choice, Refused)
    assert choice.status == "FAILED_PRECONDITION"


def test_what_is_queued_ahead_counts() -> None:
    assert name(family(tiny=60).choose(latency_ms_max=50, accuracy_min=0.7)) == "small"


# --- no variant can meet it -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "nearest"),
    [
        ({"accuracy_min": 0.99}, "no variant has accuracy >= 0.99; the most accurate, large:1/onnx-fp32, has 0.9500"),
        (
            {"accuracy_min": 0.95, "cost_max": 1e-6},
            "no variant with accuracy >= 0.95 costs at most 1e-06 USD per 1,000; the cheapest, large:1/onnx-fp32, ",
        ),
        (
            {"accuracy_min": 0.85, "latency_ms_max": 5},
            "the fastest variant with accuracy >= 0.85, small:1/onnx-fp32, needs 10 ms for 1 row(s)",
        ),
        (
            {"accuracy_min": 0.85, "latency_ms_max": 5, "cost_max": 0.001},
            "the fastest variant with accuracy >= 0.85 and cost <= 0.001, small:1/onnx-fp32, needs 10 ms for 1 row(s)",
        ),
    ],
)
def test_reject_names_the_nearest_that_is_feasible(asked: dict[str, Any], nearest: str) -> None:
    choice = family().choose(**asked)
    assert isinstance(choice, Refused)
    assert choice.status == "FAILED_PRECONDITION"
    assert choice.message.startswith(nearest)


def test_late_takes_the_best_for_the_rest() -> None:
    table = case(("fast", 0.9, 10, 2, 10), ("cheap", 0.9, 100, 0.1, 100), ("good", 0.95, 100, 5, 100))
    asked: dict[str, Any] = {"latency_ms_max": 5, "accuracy_min": 0.85, "on_miss": "late"}
    assert name(table.choose(**asked)) == "cheap"
    assert name(table.choose(**asked, prefer="accuracy")) == "good"
    assert name(table.choose(**asked, prefer="latency")) == "fast"


def test_late_gives_up_neither_accuracy_nor_cost() -> None:
    assert isinstance(family().choose(accuracy_min=0.99, on_miss="late"), Refused)
    assert isinstance(family().choose(accuracy_min=0.95, cost_max=1e-6, on_miss="late"), Refused)


def test_degrade_takes_the_most_accurate_that_meets_latency_and_cost() -> None:
    choice = family().choose(latency_ms_max=50, accuracy_min=0.95, on_miss="degrade")
    assert choice == Chosen(choice.candidate, ("accuracy",))  # type: ignore[union-attr]
    assert name(choice) == "small"
    assert name(family().choose(latency_ms_max=50, accuracy_min=0.99, on_miss="degrade")) == "small"
    assert isinstance(family().choose(latency_ms_max=0.5, accuracy_min=0.95, on_miss="degrade"), Refused)


# --- it could, but load would make it miss ----------------------------------------------------------------------------


def test_reject_is_told_when_to_come_back() -> None:
    choice = family(large=150).choose(latency_ms_max=120)
    assert isinstance(choice, Refused)
    assert (choice.status, choice.retry_after_ms) == ("RESOURCE_EXHAUSTED", 30)


def test_late_waits_its_turn_where_it_comes_soonest() -> None:
    choice = family(large=150).choose(latency_ms_max=120, on_miss="late")
    assert choice == Chosen(choice.candidate)  # type: ignore[union-attr]
    assert name(choice) == "large"
    table = case(("busy", 0.9, 10, 1, 500), ("slow", 0.9, 60, 1, 60))
    assert name(table.choose(latency_ms_max=50, on_miss="late")) == "slow"


def test_degrade_takes_a_faster_variant_below_the_floor_or_says_deadline_exceeded() -> None:
    choice = family(large=150).choose(latency_ms_max=120, on_miss="degrade")
    assert choice == Chosen(choice.candidate, ("accuracy",))  # type: ignore[union-attr]
    assert name(choice) == "small"
    refused = family(130, 140, 150).choose(latency_ms_max=120, on_miss="degrade")
    assert isinstance(refused, Refused)
    assert refused.status == "DEADLINE_EXCEEDED"


# --- no worker that could run it --------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_miss", ["reject", "late", "degrade"])
@pytest.mark.parametrize("latency_ms_max", [None, 500])
def test_without_workers_it_is_parked(on_miss: str, latency_ms_max: float | None) -> None:
    assert family(INF, INF, INF).choose(latency_ms_max=latency_ms_max, on_miss=on_miss) == Parked()


def test_late_takes_a_slow_worker_rather_than_none() -> None:
    table = case(("fast", 0.9, 10, 1, INF), ("slow", 0.9, 60, 1, 60))
    assert name(table.choose(latency_ms_max=50, on_miss="late")) == "slow"
    assert table.choose(latency_ms_max=50) == Parked()


# --- brute force ------------------------------------------------------------------------------------------------------

rows = st.tuples(
    st.sampled_from([0.5, 0.8, 0.9, 0.95]),
    st.sampled_from([1.0, 10.0, 40.0, 200.0]),
    st.sampled_from([0.1, 1.0, 10.0]),
    st.sampled_from([0.0, 5.0, 100.0, INF]),
)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(rows, min_size=1, max_size=6),
    st.sampled_from([None, 5.0, 20.0, 150.0]),
    st.sampled_from([None, 0.6, 0.85, 0.99]),
    st.sampled_from([None, 1e-5, 1e-3]),
    st.sampled_from(["cost", "accuracy", "latency"]),
    st.sampled_from(["reject", "late", "degrade"]),
)
def test_brute_force(
    drawn: list[tuple[float, float, float, float]],
    latency: float | None,
    accuracy: float | None,
    cost: float | None,
    prefer: str,
    on_miss: str,
) -> None:
    table = case(*[(f"m{i}", acc, ms, price, ms + ahead) for i, (acc, ms, price, ahead) in enumerate(drawn)])
    asked = entry(0, latency_ms_max=latency, accuracy_min=accuracy, cost_max=cost, prefer=prefer, on_miss=on_miss)
    choice = table.decide(asked)
    bound_ms = latency or 30_000
    floor = accuracy if accuracy is not None else max(row[0] for row in drawn) - 0.02
    finish = {c: table.finish_ms[c.model.name] for c in table.candidates}
    affordable = [c for c in table.candidates if cost is None or c.cost_per_1000_least <= cost]
    accurate = [c for c in affordable if c.accuracy >= floor]
    feasible = [c for c in accurate if c.table.p50_ms(1) <= bound_ms]
    in_time = [c for c in feasible if finish[c] <= bound_ms]
    if isinstance(choice, Chosen):
        chosen = choice.candidate
        assert chosen in affordable, "cost_max is never given up"
        assert finish[chosen] < INF
        assert choice.missed == (("accuracy",) if chosen.accuracy < floor else ())
        if in_time:
            assert chosen in in_time, "something feasible was there"
            best = {
                "cost": min(c.cost_per_1000_least for c in in_time) == chosen.cost_per_1000_least,
                "accuracy": max(c.accuracy for c in in_time) == chosen.accuracy,
                "latency": min(finish[c] for c in in_time) == finish[chosen],
            }
            assert best[prefer]
        elif on_miss == "late":
            assert chosen in accurate
        else:
            assert on_miss == "degrade"
            assert finish[chosen] <= bound_ms
            others = [c for c in affordable if c.table.p50_ms(1) <= bound_ms and finish[c] <= bound_ms]
            assert chosen.accuracy == max(c.accuracy for c in others)
        return
    assert not in_time
    allowed = {
        "reject": feasible,
        "late": accurate,
        "degrade": [c for c in affordable if c.table.p50_ms(1) <= bound_ms],
    }
    match choice:
        case Refused(status="FAILED_PRECONDITION"):
            assert not allowed[on_miss]
        case Refused(status="RESOURCE_EXHAUSTED", retry_after_ms=retry_after_ms):
            assert on_miss == "reject"
            assert retry_after_ms == min(finish[c] for c in feasible) - bound_ms
        case Refused(status="DEADLINE_EXCEEDED"):
            assert on_miss == "degrade"
            assert all(finish[c] > bound_ms for c in allowed["degrade"])
        case _:
            assert choice == Parked()
            assert allowed[on_miss]
            assert all(finish[c] == INF for c in feasible or allowed[on_miss])
