"""The selector: the contract's table of ``on_miss`` row by row; ``test_oracle.py`` compares it with brute force."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from broker_builders import entry, model, profile

from broker.catalog import Candidate, Target
from broker.ledger import Entry
from broker.prices import Prices, price_range
from broker.profiles import LatencyTable
from broker.selector import Choice, Chosen, Parked, Refused, Selector

INF = float("inf")


@dataclass
class Case:
    """Candidates with their predicted finish, in ms from the arrival of the query at 0."""

    candidates: list[Candidate]
    backlog_ms: dict[str, float]

    def choose(self, **asked: Any) -> Choice:
        return self.decide(entry(0, **asked))

    def decide(self, asked: Entry) -> Choice:
        target, selector = Target("t", self.candidates), Selector(0.02, Prices())
        waits = lambda teams, *_: [self.backlog_ms[of.group] for of in teams for _ in of.teams]  # noqa: E731
        return selector.choose(asked, target, 0, waits)


def case(*rows: tuple[str, float, float, float, float]) -> Case:
    """Rows of (name, accuracy, ms alone, price per hour, predicted finish), each on a group of its own."""
    candidates = []
    for name, accuracy, ms, price, finish_ms in rows:
        of = model(name)
        described = profile(of, curve=((1, ms), (8, ms)), accuracy=accuracy, price_per_hour=price)
        table = LatencyTable(described.batches)
        team = frozenset({f"{name}-1"} if finish_ms < INF else ())
        candidates.append(Candidate(described.variant, name, of, accuracy, accuracy, table, price / 3_600_000, team))
    return Case(candidates, {row[0]: row[4] - row[2] for row in rows})


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
    for prefer in ("cost", "accuracy"):
        assert name(case(("a", 0.9, 10, 1, 20), ("b", 0.9, 10, 1, 10)).choose(prefer=prefer)) == "b"
        assert name(case(("a", 0.9, 10, 1, 10), ("b", 0.9, 10, 1, 20)).choose(prefer=prefer)) == "a"
    assert name(case(("a", 0.9, 10, 1, 10), ("b", 0.95, 10, 1, 10)).choose(accuracy_min=0.5)) == "b"


def test_without_accuracy_min_the_tasks_best_minus_the_slack_counts() -> None:
    assert name(family().choose()) == "large"
    assert name(case(("a", 0.94, 10, 1, 10), ("b", 0.95, 10, 2, 10)).choose()) == "a"


def test_who_has_not_been_heard_of_before_its_log_time_has_no_more_time_than_it_asked_for() -> None:
    early = entry(0, arrival_ms=1000, latency_ms_max=50, accuracy_min=0.85)
    assert name(family(small=49).decide(early)) == "small"
    assert isinstance(family(small=51).decide(early), Refused)


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
        (
            {"accuracy_min": 0.99, "latency_ms_max": 0.5, "on_miss": "degrade"},
            "the fastest variant, tiny:1/onnx-fp32, needs 1 ms for 1 row(s)",
        ),
        (
            {"cost_max": 1e-6, "on_miss": "degrade"},
            "no variant costs at most 1e-06 USD per 1,000; the cheapest, tiny:1/onnx-fp32, costs 3.47e-05",
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


# --- the price of device time -----------------------------------------------------------------------------------------


def shared(*waits_ms: float, prefer: str = "accuracy") -> list[Choice]:
    """Of a query that degrades, above 0.9 if it can be, on one worker that has three variants; one choice per wait."""
    rows = (("tiny", 0.80, 1.0), ("small", 0.90, 10.0), ("large", 0.95, 100.0))
    candidates = []
    for name, accuracy, ms in rows:
        of = model(name)
        table = LatencyTable(profile(of, curve=((1, ms), (8, ms))).batches)
        candidates.append(Candidate(f"{name}:1/o", "cpu", of, accuracy, accuracy, table, 1e-6, frozenset({"w-1"})))
    asked = entry(0, latency_ms_max=1000, accuracy_min=0.9, on_miss="degrade", prefer=prefer)
    target = Target("t", candidates)
    prices = {"cpu": price_range((each.accuracy_low, each.row_ms) for each in candidates)}
    return [Selector(0.02, Prices(prices)).choose(asked, target, 0, lambda *_, ms=ms: [ms]) for ms in waits_ms]


def test_what_prefers_accuracy_and_degrades_goes_below_its_floor_the_longer_it_waits() -> None:
    choices = shared(0, 10, 300, 750, 850, 880)
    assert [name(choice) for choice in choices] == ["large", "large", "small", "tiny", "tiny", "tiny"]
    for choice in choices:
        below = name(choice) == "tiny"
        assert isinstance(choice, Chosen)
        assert choice.missed == (("accuracy",) if below else ())
    assert [choice.by for choice in choices if isinstance(choice, Chosen)] == ["prefer"] + ["price"] * 5


def test_what_prefers_the_cheapest_and_degrades_keeps_its_floor_while_it_is_worth_its_time() -> None:
    choices = shared(0, 300, 600, 880, 995, prefer="cost")
    assert [name(choice) for choice in choices] == ["small", "small", "small", "tiny", "tiny"]
    assert [choice.missed for choice in choices if isinstance(choice, Chosen)] == [(), (), ()] + [("accuracy",)] * 2


def groups(*rows: tuple[str, float, float, float], on_miss: str = "reject", prefer: str = "cost") -> Choice:
    """What is chosen of rows of (name, ms of a row, USD per hour, wait in ms), each alone on a group, within 1 s."""
    table = case(*[(name, 0.9, ms, price, wait_ms + ms) for name, ms, price, wait_ms in rows])
    ranges = {name: price_range([(0.9, 10.0), (0.5, 1.0)]) for name, *_ in rows}
    asked = entry(0, latency_ms_max=1000, accuracy_min=0.85, on_miss=on_miss, prefer=prefer)
    selector, backlog_ms = Selector(0.02, Prices(ranges)), table.backlog_ms
    waits = lambda teams, *_: [backlog_ms[of.group] for of in teams for _ in of.teams]  # noqa: E731
    return selector.choose(asked, Target("t", table.candidates), 0, waits)


def test_what_prefers_the_cheapest_goes_where_device_time_is_worth_the_least() -> None:
    assert name(groups(("cheap", 40, 1, 0), ("dear", 80, 9, 0))) == "cheap"
    assert name(groups(("cheap", 40, 1, 20), ("dear", 80, 9, 20))) == "cheap", "hardly scarce"
    choice = groups(("cheap", 40, 1, 400), ("dear", 80, 9, 0))
    assert isinstance(choice, Chosen)
    assert (name(choice), choice.by, choice.missed) == ("dear", "price", ())


def test_nobody_who_would_be_in_time_is_refused_for_the_price() -> None:
    for on_miss in ("reject", "degrade", "late"):
        for prefer in ("cost", "accuracy", "latency"):
            assert name(groups(("slow", 600, 1, 390), on_miss=on_miss, prefer=prefer)) == "slow"


def test_what_waits_for_nobody_pays_nothing() -> None:
    for on_miss in ("reject", "late", "degrade"):
        choice = groups(("slow", 900, 1, 0), on_miss=on_miss)
        assert isinstance(choice, Chosen)
        assert (name(choice), choice.by) == ("slow", "prefer")


def test_whoever_pays_is_answered_if_anybody_is_in_time() -> None:
    """The batch that it would join may take so long that nothing is worth its price."""
    assert name(family(INF, 998, INF).choose(latency_ms_max=1000, accuracy_min=0.95, on_miss="degrade")) == "small"


def test_whom_it_must_not_get_hides_nobody() -> None:
    table = family()
    small, large = table.candidates[1:]
    large.team, small.team = frozenset({"w"}), frozenset({"w"})
    large.group = small.group = "large"
    large.lat_sampled_ms = small.lat_sampled_ms
    asked = entry(0, latency_ms_max=500, accuracy_min=0.85, on_miss="degrade")
    asked.refused_by = (large,)
    assert name(table.decide(asked)) == "small"


# --- no worker that could run it --------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_miss", ["reject", "late", "degrade"])
@pytest.mark.parametrize("latency_ms_max", [None, 500])
def test_without_workers_it_is_parked(on_miss: str, latency_ms_max: float | None) -> None:
    choice = family(INF, INF, INF).choose(latency_ms_max=latency_ms_max, on_miss=on_miss)
    assert isinstance(choice, Parked)
    assert choice.wanted is not None
    assert choice.wanted.model.name == "large"


def test_late_takes_a_slow_worker_rather_than_none() -> None:
    table = case(("fast", 0.9, 10, 1, INF), ("slow", 0.9, 60, 1, 60))
    assert name(table.choose(latency_ms_max=50, on_miss="late")) == "slow"
    assert isinstance(table.choose(latency_ms_max=50), Parked)


# --- what nobody has loaded -------------------------------------------------------------------------------------------


def wanted(choice: Choice) -> str | None:
    return choice.wanted and choice.wanted.model.name


def test_what_is_loaded_is_chosen_and_what_would_be_better_is_wanted() -> None:
    table = case(("cheap", 0.9, 10, 1, INF), ("dear", 0.92, 10, 2, 10), ("dearer", 0.95, 20, 3, INF))
    asked: dict[str, Any] = {"accuracy_min": 0.85}
    for prefer, best in {"cost": "cheap", "accuracy": "dearer", "latency": "cheap"}.items():
        choice = table.choose(prefer=prefer, **asked)
        assert (name(choice), wanted(choice)) == ("dear", best)
    assert wanted(table.choose(latency_ms_max=5, **asked)) is None
    assert wanted(table.choose(prefer="accuracy", latency_ms_max=15, **asked)) is None


def test_what_only_an_unloaded_variant_can_meet_waits_for_it() -> None:
    table = case(("good", 0.95, 10, 1, INF), ("bad", 0.5, 10, 1, 10))
    for on_miss in ("reject", "late"):
        choice = table.choose(accuracy_min=0.9, on_miss=on_miss)
        assert isinstance(choice, Parked)
        assert wanted(choice) == "good"
    degraded = table.choose(accuracy_min=0.9, on_miss="degrade")
    assert (name(degraded), wanted(degraded)) == ("bad", "good")


def test_what_is_late_anyhow_wants_the_best_for_the_rest() -> None:
    table = case(("cheap", 0.9, 100, 0.1, INF), ("dear", 0.9, 100, 1, 100), ("quick", 0.5, 1, 1, INF))
    late = table.choose(accuracy_min=0.85, latency_ms_max=5, on_miss="late")
    assert (name(late), wanted(late)) == ("dear", "cheap")
    degraded = table.choose(accuracy_min=0.85, latency_ms_max=5, on_miss="degrade")
    assert isinstance(degraded, Parked)
    assert wanted(degraded) == "quick"


def test_what_is_refused_under_load_wants_what_could_help() -> None:
    choice = case(("busy", 0.9, 10, 1, 500), ("idle", 0.9, 10, 9, INF)).choose(latency_ms_max=50)
    assert isinstance(choice, Refused)
    assert (choice.status, wanted(choice)) == ("RESOURCE_EXHAUSTED", "idle")


def test_what_was_measured_is_told_beside_what_is_sure() -> None:
    table = family()
    for candidate in table.candidates:
        candidate.accuracy_low -= 0.05
    choice = table.choose(accuracy_min=0.94)
    assert isinstance(choice, Refused)
    assert choice.message.endswith("large:1/onnx-fp32, has 0.9000 at least (0.9500 measured)")
