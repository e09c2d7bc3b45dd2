"""The demo's load is a function of its seed, and its constraints bite for whatever was measured."""

from __future__ import annotations

from collections import Counter

import pytest

from modelless.demo.scenario import (
    BURST_FACTOR,
    BURST_SHARE,
    BURSTS,
    Measured,
    make_arrivals,
    make_scenario,
    rate_at,
)

FAMILY = (
    Measured("linear", 0.93, 0.01),
    Measured("mlp", 0.955, 0.02),
    Measured("cnn", 0.968, 0.02),
    Measured("deep", 0.979, 0.05),
    Measured("committee", 0.991, 1.5),
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


def test_constraints_lie_between_what_the_models_have() -> None:
    tight, accurate, cheap = SCENARIO.classes
    assert 0.979 < accurate.accuracy_min < 0.991
    assert 0.955 < tight.accuracy_min <= 0.968
    assert cheap.accuracy_min == 0.9


def test_fixed_choices_are_the_most_accurate_and_the_cheapest() -> None:
    assert [policy.model for policy in SCENARIO.policies] == [None, "committee", "linear"]


def test_equally_accurate_models_leave_constraints_that_can_be_met() -> None:
    scenario = make_scenario((Measured("slow", 0.97, 2.0), Measured("fast", 0.97, 1.0)))
    assert all(kind.accuracy_min <= 0.97 for kind in scenario.classes)
    assert scenario.policies[1].model == "fast"


def test_one_model_makes_a_scenario_too() -> None:
    scenario = make_scenario((Measured("only", 0.8, 1.0),))
    assert all(kind.accuracy_min <= 0.8 for kind in scenario.classes)
