"""Prices: from the hull of what is loaded, rising with the queue, from the most accurate to the most for its time;
the same for all tasks of a group; learned until queries wait as long as they should."""

from __future__ import annotations

from itertools import pairwise
from math import e

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from broker.prices import FREE, LEARN_MS, TARGET, TEAMS_MAX, Prices, price_range, widest
from broker.ranking import Teams

FAST, MIDDLE, SLOW = (0.6, 2.0), (0.8, 10.0), (0.9, 30.0)
"""(accuracy, ms a row): 0.3 a ms from nothing, then 0.025 and 0.005 for each further one."""
PORTFOLIO = (FAST, MIDDLE, SLOW)

options = st.lists(st.tuples(st.floats(0.05, 1.0), st.floats(0.1, 1000.0)), min_size=1, max_size=8)


def best(among: tuple[tuple[float, float], ...] | list[tuple[float, float]], price: float) -> tuple[float, float]:
    """(accuracy, ms) of what is the most worth."""
    return max(among, key=lambda option: option[0] - price * option[1])


def test_the_range_is_from_the_least_gain_to_the_most() -> None:
    prices = price_range(PORTFOLIO)
    assert prices.least == pytest.approx(0.005)
    assert prices.most == prices.at(1.0) == pytest.approx(0.3)
    assert prices.at(0.0) == 0.0


def test_what_others_dominate_does_not_matter() -> None:
    slower, worse, between = (0.6, 3.0), (0.5, 2.0), (0.62, 9.0)  # the last is below the line from FAST to MIDDLE
    assert price_range((*PORTFOLIO, slower, worse, between)) == price_range(PORTFOLIO)
    assert price_range((SLOW, between, FAST, MIDDLE)) == price_range(PORTFOLIO), "the order is none"


def test_one_variant_alone_costs_its_accuracy_when_the_queue_is_full() -> None:
    assert price_range([FAST]).at(1.0) == pytest.approx(0.3)
    assert price_range([FAST]).at(0.5) == pytest.approx(0.3 * (e**0.5 - 1) / (e - 1))
    assert price_range([]) == FREE
    assert FREE.at(1.0) == 0.0


def test_with_the_queue_the_choice_moves_to_what_is_faster() -> None:
    prices = price_range(PORTFOLIO)
    chosen = [best(PORTFOLIO, prices.at(step / 20)) for step in range(21)]
    assert chosen[0] == SLOW
    assert chosen[-1] == FAST
    assert [ms for _, ms in chosen] == sorted((ms for _, ms in chosen), reverse=True)
    assert MIDDLE in chosen
    assert FAST[0] - prices.at(1.01) * FAST[1] < 0, "and beyond its deadline nothing is worth its time"


@given(options)
def test_the_price_rises_with_the_queue(among: list[tuple[float, float]]) -> None:
    prices = price_range(among)
    at = [prices.at(step / 10) for step in range(21)]
    assert all(0 <= low < high for low, high in pairwise(at))


@given(options)
def test_an_empty_queue_takes_the_most_accurate(among: list[tuple[float, float]]) -> None:
    accuracies = sorted({accuracy for accuracy, _ in among}, reverse=True)
    assume(len(accuracies) < 2 or accuracies[0] - accuracies[1] > 1e-6)  # else the difference is rounding
    assert best(among, price_range(among).at(0.0))[0] == accuracies[0]


@given(options)
def test_a_full_one_takes_only_what_has_the_most_accuracy_for_its_time(among: list[tuple[float, float]]) -> None:
    price, most = price_range(among).at(1.0), max(accuracy / ms for accuracy, ms in among)
    for accuracy, ms in among:
        worth = accuracy - price * ms
        if accuracy / ms == most:
            assert worth == pytest.approx(0.0, abs=1e-9 * max(1.0, price * ms))
        else:
            assert worth <= 1e-9 * max(1.0, price * ms)


@given(options, st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_a_longer_queue_never_chooses_what_is_slower(
    among: list[tuple[float, float]], one: float, other: float
) -> None:
    prices, low, high = price_range(among), min(one, other), max(one, other)
    assume(low < high)
    assert best(among, prices.at(high))[1] <= best(among, prices.at(low))[1] + 1e-9


def test_tasks_of_a_group_share_one_range() -> None:
    small, large = price_range(PORTFOLIO), price_range([(0.5, 100.0), (0.9, 1000.0)])
    both = widest([small, FREE, large])
    assert both.least == pytest.approx(large.least), "the least that anybody gains"
    assert both.most == pytest.approx(small.most), "the most that anybody gains"
    assert widest([FREE]) == widest([]) == FREE


# --- levels -----------------------------------------------------------------------------------------------------------

TEAM = frozenset({"w-0"})
RANGE = price_range(PORTFOLIO)


def see(prices: Prices, share: float, now_ms: float, payer: str | None = None, team: frozenset[str] = TEAM) -> float:
    """The price for a query that would have to wait for so much of its slack."""
    return sum(level.price for level in prices.see((Teams("g", (team,)),), (share,), 1.0, now_ms, payer))


def seen(*shares: float, every_ms: float = 100.0, prices: Prices | None = None) -> float:
    """The price that the last of queries finds that would have to wait for so much of their slack."""
    prices, price = prices or Prices({"g": RANGE}), 0.0
    for number, share in enumerate(shares):
        price = see(prices, share, number * every_ms)
    assert prices.of("g", TEAM) == price
    return price


def test_idle_devices_cost_nothing() -> None:
    assert seen(0.0, 0.0, 0.0) == 0.0
    assert Prices({"g": RANGE}).of("g", TEAM) == 0.0


def test_the_queue_is_the_price_at_first() -> None:
    assert seen(0.5) == pytest.approx(RANGE.at(0.5))


def test_it_is_learned_what_keeps_the_wait_at_its_target() -> None:
    rounds = 20 * round(LEARN_MS / 100)
    longer, shorter = [TARGET + 0.1] * rounds, [TARGET - 0.1] * rounds
    assert seen(*longer) == pytest.approx(RANGE.at(1.0 + TARGET + 0.1)), "as far as prices make sense"
    assert seen(*shorter) == pytest.approx(RANGE.at(TARGET - 0.1)), "nor below nothing"
    steady = seen(*longer[:20], *[TARGET] * rounds)
    assert steady == pytest.approx(seen(*longer[:20], TARGET))
    assert steady > seen(TARGET)


def test_devices_are_scarce_by_what_is_learned_and_not_by_the_queue_of_the_moment() -> None:
    prices = Prices({"g": RANGE})
    assert prices.scarcity("g", TEAM) == 0.0
    see(prices, 1.0, 0.0)
    assert prices.scarcity("g", TEAM) == 0.0 < prices.of("g", TEAM)
    see(prices, 1.0, LEARN_MS / 2)
    assert prices.scarcity("g", TEAM) == pytest.approx(RANGE.at((1.0 - TARGET) / 2) / RANGE.most)
    for number in range(4):
        see(prices, 1.0, (number + 2) * LEARN_MS)
    assert prices.scarcity("g", TEAM) == pytest.approx(1.0)
    prices.put_ranges({})
    assert prices.scarcity("g", TEAM) == 0.0, "nothing is loaded"


def test_it_does_not_matter_how_many_ask() -> None:
    assert seen(*[0.6] * 11) == pytest.approx(seen(*[0.6] * 101, every_ms=10.0))


def test_what_one_topic_waits_for_another_does_not_pay() -> None:
    prices = Prices({"g": RANGE})
    for number in range(10):
        see(prices, 1.0, number * 100.0, "ahead")
        see(prices, 0.0, number * 100.0, "within")
    assert prices.of("g", TEAM, "ahead") > 0.0
    assert prices.of("g", TEAM, "within") == 0.0


def test_a_clock_that_is_set_back_teaches_nothing() -> None:
    prices = Prices({"g": RANGE})
    see(prices, 1.0, 1e6)
    assert see(prices, 0.5, 0.0) == pytest.approx(RANGE.at(0.5))


def test_after_a_pause_one_query_does_not_teach_it_all() -> None:
    prices = Prices({"g": RANGE})
    see(prices, 0.5, 0.0)
    see(prices, TARGET + 0.3, 1e9)
    assert prices.of("g", TEAM) == pytest.approx(RANGE.at(0.3 + TARGET + 0.3))


def test_a_full_queue_never_overflows() -> None:
    assert seen(float("inf")) < float("inf")
    assert seen(1e300, 1e300) < float("inf")


def test_teams_that_went_are_forgotten() -> None:
    prices = Prices({"g": RANGE})
    for number in range(TEAMS_MAX + 100):
        see(prices, 0.5, number, team=frozenset({f"w-{number}"}))
    assert len(prices._levels) == TEAMS_MAX
    assert prices.of("g", frozenset({f"w-{TEAMS_MAX + 99}"})) > 0.0
    assert prices.of("g", frozenset({"w-0"})) == 0.0


def test_teams_that_are_asked_for_together_have_what_one_of_them_learned_alone() -> None:
    prices, both = Prices({"g": RANGE}), (Teams("g", (TEAM, frozenset({"w-1"}))),)
    for _ in range(2):
        assert [level.price > 0 for level in prices.see(both, (0.0, 0.5), 1.0, 0.0)] == [False, True]
    see(prices, 1.0, 0.0)
    see(prices, 1.0, 100.0)
    first, _ = prices.see(both, (0.5, 0.5), 1.0, 100.0)
    assert first.price == prices.of("g", TEAM) > RANGE.at(0.5)


def test_levels_stay_when_what_device_time_is_worth_is_something_else() -> None:
    prices = Prices()
    assert see(prices, 0.5, 0.0) == 0.0
    prices.put_ranges({"g": RANGE})
    assert prices.of("g", TEAM) == see(prices, 0.5, 0.0) == pytest.approx(RANGE.at(0.5))
    prices.put_ranges({})
    assert prices.of("g", TEAM) == 0.0
