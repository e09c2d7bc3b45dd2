"""The demo's load is a function of its seed, and its constraints bite for whatever was measured."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from modelless.demo.scenario import (
    BURST_FACTOR,
    BURST_SHARE,
    BURSTS,
    Measured,
    Policy,
    QueryClass,
    Scenario,
    in_turns,
    make_arrivals,
    make_scenario,
    oracle,
    rate_at,
)


def made(model: str, accuracy: float, row_ms: float, builder: str = "onnx-fp32") -> Measured:
    """lat(b) = row_ms * (1 + b) / 2, best at 64 rows; a million USD per hour is 1 USD for 3.6 ms."""
    batches = tuple((size, row_ms * (1 + size) / 2) for size in (1, 8, 64))
    cost = batches[-1][1] / 64 / 3.6 * 1000
    return Measured(f"{model}:1/{builder}", model, accuracy, cost, batches, 1e6)


FAMILY = (
    made("linear", 0.93, 0.01),
    made("mlp", 0.955, 0.02),
    made("cnn", 0.95, 0.01, "onnx-int8"),
    made("cnn", 0.968, 0.02),
    made("deep", 0.979, 0.05),
    made("committee", 0.984, 1.2, "onnx-int8"),
    made("committee", 0.991, 1.5),
)
SCENARIO = make_scenario(FAMILY)


def arrivals(seed: int = 1, seconds: float = 20, rate: float = 300):  # type: ignore[no-untyped-def]
    return make_arrivals(SCENARIO.classes, seconds=seconds, rate=rate, images=600, seed=seed)


def test_the_same_seed_gives_the_same_load_and_another_does_not() -> None:
    assert arrivals(1) == arrivals(1)
    assert arrivals(1) != arrivals(2)


def test_arrivals_are_ordered_and_within_the_time() -> None:
    times = [arrival.at_s for arrival in arrivals()]
    assert times == sorted(times)
    assert times[0] >= 0 and times[-1] < 20


def test_the_number_of_queries_is_what_the_rate_integrates_to() -> None:
    expected = sum(rate_at(ms / 1000, 20, 300) / 1000 for ms in range(20_000))
    found = len(arrivals())
    assert abs(found - expected) < 4 * expected**0.5


def test_a_burst_is_a_burst() -> None:
    begin_s, length_s = BURSTS[1] * 20, BURST_SHARE * 20
    times = [arrival.at_s for arrival in arrivals()]
    inside = sum(begin_s <= t < begin_s + length_s for t in times)
    before = sum(begin_s - length_s <= t < begin_s for t in times)
    assert inside / before == pytest.approx(BURST_FACTOR, rel=0.25)


def test_classes_come_in_their_shares_and_every_image_is_asked_before_any_is_asked_again() -> None:
    load = arrivals()
    kinds = Counter(arrival.kind for arrival in load)
    for kind in SCENARIO.classes:
        assert kinds[kind.name] / len(load) == pytest.approx(kind.share, abs=0.03)
    assert len({arrival.image for arrival in load[:600]}) == 600


def test_nothing_arrives_in_no_time() -> None:
    assert arrivals(seconds=0.001, rate=1) == ()


def test_each_policy_has_the_whole_load_and_every_place_in_turn_once() -> None:
    policies = [Policy(name) for name in ("a", "b", "c", "d")]
    load, turns = arrivals(), list(in_turns(policies, arrivals(), 20))
    assert len(turns) == 16
    for policy in policies:
        own = [turn for turn in turns if turn.policy is policy]
        assert tuple(arrival for turn in own for arrival in turn.arrivals) == load
        assert all(turn.from_s <= turn.arrivals[0].at_s <= turn.from_s + 5 for turn in own)
        assert sorted(turns.index(turn) % 4 for turn in own) == [0, 1, 2, 3]
        assert sorted(turns.index(turn) // 4 for turn in own) == [0, 1, 2, 3]


def test_no_burst_is_cut_between_the_turns_of_four_policies() -> None:
    assert all(int(4 * begin) == int(4 * (begin + BURST_SHARE)) for begin in BURSTS)


def test_constraints_lie_between_what_the_models_have() -> None:
    tight, accurate, cheap = SCENARIO.classes
    assert 0.979 < accurate.accuracy_min < 0.991
    assert 0.955 < tight.accuracy_min <= 0.968
    assert cheap.accuracy_min == 0.9


def test_a_model_is_as_accurate_as_its_best_variant() -> None:
    worse = [*FAMILY, made("deep", 0.5, 0.01, "torch-int8")]
    assert make_scenario(worse).classes == SCENARIO.classes


def pinned(scenario: Scenario, policy: int) -> list[str]:
    pins = scenario.policies[policy].pins
    assert pins is not None
    assert set(pins) == {kind.name for kind in scenario.classes}
    return sorted(set(pins.values()))


def test_fixed_choices_are_the_best_single_one_and_the_cheapest() -> None:
    assert SCENARIO.policies[0].pins is None
    assert pinned(SCENARIO, 1) == ["committee:1/onnx-fp32"]
    assert pinned(SCENARIO, 2) == ["cnn:1/onnx-int8"]


def test_the_single_one_is_fast_enough_for_every_class_where_there_is_such_a_one() -> None:
    slow = make_scenario([*FAMILY, made("committee", 0.992, 60.0, "torch-fp32")])
    assert pinned(slow, 1) == ["committee:1/onnx-fp32"]
    assert pinned(make_scenario([made("a", 0.9, 1.0), made("b", 0.99, 60.0)]), 1) == ["b:1/onnx-fp32"]


def test_the_oracle_takes_the_cheapest_that_meets_each_class_at_its_batches() -> None:
    """A flat variant is the dearer one alone and the cheaper one in large batches."""
    flat = Measured("cnn:1/flat", "cnn", 0.965, 1.0, ((1, 0.3), (64, 0.3)), 1e6)
    scenario = make_scenario([*FAMILY, flat])
    tight, accurate, cheap = scenario.classes
    alone = oracle(scenario, {}).pins
    assert alone is not None
    assert list(map(alone.get, (tight.name, accurate.name, cheap.name))) == [
        "cnn:1/onnx-fp32",
        "committee:1/onnx-fp32",
        "cnn:1/onnx-int8",
    ]
    many = oracle(scenario, {tight.name: 60.0, cheap.name: 60.0}).pins
    assert many is not None
    assert (many[tight.name], many[cheap.name]) == ("cnn:1/flat", "cnn:1/flat")


def test_an_oracle_without_a_feasible_variant_takes_the_most_accurate() -> None:
    scenario = replace(SCENARIO, classes=(QueryClass("impossible", 1.0, 1.0, 0.999),))
    assert oracle(scenario, {}).pins == {"impossible": "committee:1/onnx-fp32"}


def test_latency_and_cost_follow_the_table() -> None:
    one = made("m", 0.9, 2.0)
    assert [one.latency_ms(rows) for rows in (1, 4.5, 8, 64, 128)] == [2.0, 5.5, 9.0, 65.0, 130.0]
    assert one.cost_at(64) == pytest.approx(one.cost)
    assert one.cost_at(1) > one.cost


def test_equally_accurate_models_leave_constraints_that_can_be_met() -> None:
    scenario = make_scenario((made("slow", 0.97, 2.0), made("fast", 0.97, 1.0)))
    assert all(kind.accuracy_min <= 0.97 for kind in scenario.classes)
    assert pinned(scenario, 1) == ["fast:1/onnx-fp32"]


def test_one_model_makes_a_scenario_too() -> None:
    scenario = make_scenario((made("only", 0.8, 1.0),))
    assert all(kind.accuracy_min <= 0.8 for kind in scenario.classes)
