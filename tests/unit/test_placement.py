"""What is loaded where, and which share of the demand it gets: beside all placements there are, on tiny instances."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace
from itertools import chain, combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from broker import sizing
from broker.placement import Allocation, Choice, Demand, Group, Options, greedy, merged, place, route, row_ms
from broker.sizing import Limits, size

INF = float("inf")
PLAIN = Options(load_gain_min=0.0, gap=1e-6, time_limit_s=10.0)


def choice(variant: str, accuracy: float, ms: float, *, task: str = "t", group: str = "g", memory_mb: float = 400.0,
           load_ms: float = 0.0) -> Choice:  # fmt: skip
    """A batch of 4 takes as long as two rows alone."""
    return Choice(variant, task, group, accuracy, (1, 4), (ms, 2 * ms), (ms, 2 * ms), memory_mb, load_ms)


def group(name: str = "g", workers: int = 1, memory_mb: float = 1000.0, price: float = 0.0, **loaded: str) -> Group:
    return Group(
        name, memory_mb, price, {f"{name}{i}": frozenset(loaded.get(f"{name}{i}", "").split()) for i in range(workers)}
    )


def demand(rows_per_s: float, task: str = "t", **more: object) -> Demand:
    return Demand(task, **({"latency_ms": INF, "accuracy_min": 0.0, "rows_per_s": rows_per_s} | more))  # type: ignore[arg-type]


FAST, GOOD = choice("fast", 0.7, 10.0), choice("good", 0.9, 40.0)


# --- device time per row ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("latency_ms", "rows_per_s", "runs", "expected"),
    [
        (INF, 1.0, 2.0, 5.0),  # 4 in 20 ms
        (100.0, 1000.0, 2.0, 5.0),
        (40.0, 1000.0, 2.0, 5.0),  # 2 * 20 ms just fit
        (39.0, 1000.0, 2.0, 10.0),  # one by one
        (19.0, 1000.0, 2.0, 20.0),  # one run fits, but nobody may be before it
        (19.0, 1000.0, 1.0, 10.0),
        (9.0, 1000.0, 1.0, INF),
        (100.0, 25.0, 2.0, 10.0),  # 2 rows come together in 80 ms: 20 ms for 2 are no better than 10 for 1
        (100.0, 37.5, 2.0, 20 / 3),
    ],
)
def test_batches_keep_the_latency_and_fill_with_what_comes(
    latency_ms: float, rows_per_s: float, runs: float, expected: float
) -> None:
    assert row_ms(FAST, latency_ms, rows_per_s, runs) == pytest.approx(expected)


def test_the_last_run_counts_with_its_p99() -> None:
    tailed = replace(FAST, p99_ms=(15.0, 60.0))
    assert row_ms(tailed, 79.0, 1000.0) == 10.0
    assert row_ms(tailed, 80.0, 1000.0) == 5.0


# --- classes ---------------------------------------------------------------------------------------------------------


def test_alike_demand_is_one_class_that_asks_for_the_most_of_them() -> None:
    asked = [(1.0, 101.0, 0.5), (2.0, 100.0, 0.65), (4.0, 100.0, 0.8), (8.0, 900.0, 0.6)]
    demands = [demand(rate, latency_ms=latency, accuracy_min=floor) for rate, latency, floor in asked]
    found = merged(demands, [FAST, GOOD])
    assert [(each.latency_ms, each.accuracy_min, each.rows_per_s) for each in found] == [
        (100.0, 0.7, 3.0), (100.0, 0.9, 4.0), (900.0, 0.7, 8.0)]  # fmt: skip


def test_there_are_no_more_classes_than_allowed() -> None:
    draw = random.Random(1)
    asked = [demand(1.0, latency_ms=10 ** draw.uniform(0, 4), accuracy_min=draw.random()) for _ in range(500)]
    for most in (50, 10, 3):
        found = merged(asked, [FAST, GOOD], most)
        assert len(found) <= most
        assert sum(each.rows_per_s for each in found) == pytest.approx(500)


# --- the best --------------------------------------------------------------------------------------------------------


def placements(choices: Sequence[Choice], groups: Sequence[Group]) -> Iterator[dict[str, Set[str]]]:
    """Everything that fits and to which nothing can be added: to have more does no harm."""
    names, fits = [], []
    for each in groups:
        own = {c.variant: c.memory_mb for c in choices if c.group == each.name}
        subsets = chain.from_iterable(combinations(sorted(own), n) for n in range(len(own) + 1))
        fitting = [frozenset(s) for s in subsets if sum(own[v] for v in s) <= each.memory_mb]
        fitting = [s for s in fitting if not any(s < other for other in fitting)]
        names += list(each.loaded)
        fits += [fitting] * len(each.loaded)
    for picked in product(*fits):
        yield dict(zip(names, picked, strict=True))


def worth_of(load: Mapping[str, Set[str]], demands: Sequence[Demand], choices: Sequence[Choice], groups: Sequence[Group]
             ) -> float:  # fmt: skip
    """The most goodness a second that a placement gives, worker by worker and level by level."""
    workers = {worker: each.name for each in groups for worker in each.loaded}
    rates: Counter[tuple[str, int]] = Counter()
    for each in demands:
        rates[each.task, each.level] += each.rows_per_s  # type: ignore[assignment]
    flows = []
    for d, asked in enumerate(demands):
        for w, (worker, own_group) in enumerate(workers.items()):
            for c in choices:
                ms = row_ms(c, asked.latency_ms, rates[c.task, asked.level])
                may = asked.degrades or c.accuracy >= asked.accuracy_min
                if c.task == asked.task and c.group == own_group and c.variant in load[worker] and may and ms < INF:
                    by_accuracy = asked.degrades or asked.prefer == "accuracy"
                    worth = asked.share * asked.weight * (c.accuracy if by_accuracy else 1.0)
                    flows.append((d, 2 * w + asked.level, ms, worth))
    if not flows:
        return 0.0
    matrix = np.zeros((len(demands) + 2 * len(workers), len(flows)))
    for column, (d, time, ms, _) in enumerate(flows):
        matrix[d, column], matrix[len(demands) + time, column] = 1.0, ms
    ceiling = [d.rows_per_s for d in demands] + [1000 * PLAIN.utilisation_max] * 2 * len(workers)
    return -float(linprog([-value for *_, value in flows], A_ub=matrix, b_ub=ceiling).fun)


@st.composite
def instances(draw: st.DrawFn) -> tuple[list[Demand], list[Choice], list[Group]]:
    groups = [group(name, draw(st.integers(1, 2))) for name in "ab"[: draw(st.integers(1, 2))]]
    choices = [
        choice(f"{task}{number}", draw(st.sampled_from((0.5, 0.6, 0.75, 0.9))), draw(st.sampled_from((2.0, 5.0, 20.0))),
               task=task, group=each.name, memory_mb=draw(st.sampled_from((300.0, 400.0, 600.0, 1000.0))))
        for task in "tu" for number in range(draw(st.integers(1, 2))) for each in groups
    ]  # fmt: skip
    demands = [
        Demand(draw(st.sampled_from("tu")), latency, draw(st.sampled_from((0.0, 0.55, 0.8))),
               draw(st.sampled_from((10.0, 100.0, 400.0))), draw(st.sampled_from(("cost", "accuracy"))),
               draw(st.booleans()), draw(st.sampled_from((1.0, 3.0))), level, share)
        for level, share in ((0, 0.75), (1, 0.25))[: draw(st.integers(1, 2))]
        for latency in (30.0, 300.0)[: draw(st.integers(1, 2))]
    ]  # fmt: skip
    return demands, choices, groups


def check_fits(found: Allocation, choices: Sequence[Choice], groups: Sequence[Group]) -> None:
    for each in groups:
        memory_mb = {c.variant: c.memory_mb for c in choices if c.group == each.name}
        for worker in each.loaded:
            assert sum(memory_mb[variant] for variant in found.load[worker]) <= each.memory_mb + 1e-6
    for shares in found.shares:
        assert sum(shares.values()) <= 1 + 1e-6


@settings(max_examples=60, deadline=None)
@given(instances())
def test_no_placement_at_all_is_better(instance: tuple[list[Demand], list[Choice], list[Group]]) -> None:
    demands, choices, groups = instance
    found = place(demands, choices, groups, PLAIN)
    check_fits(found, choices, groups)
    best = max(worth_of(load, demands, choices, groups) for load in placements(choices, groups))
    assert found.goodness_per_s == pytest.approx(best, rel=1e-4, abs=1e-6)
    assert found.bound >= best * (1 - 1e-6)
    mine = worth_of({w: set(v) for w, v in found.load.items()}, demands, choices, groups)
    assert mine == pytest.approx(found.goodness_per_s, rel=1e-6, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(instances())
def test_greedy_is_at_least_half_as_good(instance: tuple[list[Demand], list[Choice], list[Group]]) -> None:
    demands, choices, groups = instance
    found = greedy(demands, choices, groups, PLAIN)
    check_fits(found, choices, groups)
    assert found.goodness_per_s >= 0.5 * place(demands, choices, groups, PLAIN).goodness_per_s - 1e-6


def larger(seed: int, load: float = 1.0) -> tuple[list[Demand], list[Choice], list[Group]]:
    """6 tasks of 5 variants, on 3 groups of 4 workers."""
    draw = random.Random(seed)
    groups = [group(name, 4, price=price) for name, price in (("a", 0.34), ("b", 1.0), ("c", 1.86))]
    choices, demands = [], []
    for task in "tuvwxy":
        for number in range(5):
            size = draw.random()
            for each, speed in zip(groups, (0.3, 1.0, 1.5), strict=True):
                ms = 3 * 10**size / speed * draw.uniform(0.7, 1.3)
                choices.append(choice(f"{task}{number}", 0.6 + 0.35 * size, ms, task=task, group=each.name,
                                      memory_mb=100 + 600 * size, load_ms=200 + 2000 * size))  # fmt: skip
        demands += [
            Demand(task, draw.choice((60.0, 120.0, 500.0)), draw.choice((0.0, 0.7)), load * draw.uniform(5, 250),
                   draw.choice(("cost", "accuracy")), draw.random() < 0.3)
            for _ in range(2)
        ]  # fmt: skip
    return demands, choices, groups


@pytest.mark.parametrize("seed", range(6))
def test_many_workers_get_what_fits_and_greedy_is_not_far_behind(seed: int) -> None:
    """Seen: greedy 0.95 to 1 of the MILP's objective, and that 0.90 to 0.98 of its bound."""
    options = Options(time_limit_s=1.0)
    demands, choices, groups = larger(seed)
    found, quick = place(demands, choices, groups, options), greedy(demands, choices, groups, options)
    check_fits(found, choices, groups)
    check_fits(quick, choices, groups)
    assert found.objective >= quick.objective >= 0.8 * found.objective
    assert found.objective >= 0.9 * found.bound


# --- what it is for --------------------------------------------------------------------------------------------------


def test_demand_beyond_the_fleet_is_served_as_far_as_possible() -> None:
    found = place([demand(1000.0)], [FAST, GOOD], [group()], PLAIN)
    assert found.served_rows_per_s == pytest.approx(160.0)  # 800 ms in batches of 4 in 20 ms
    assert found.shares[0] == {("fast", "g"): pytest.approx(0.16)}


def test_what_no_variant_can_meet_gets_nothing() -> None:
    for impossible in (demand(1.0, accuracy_min=0.99), demand(1.0, latency_ms=5.0), demand(1.0, task="u")):
        found = place([impossible], [FAST, GOOD], [group()], PLAIN)
        assert found.served_rows_per_s == 0.0
        assert found.shares == ({},)


def test_what_is_loaded_suits_the_calm_and_the_bursts() -> None:
    """Alone, the calm would have the good one loaded, the burst and the mean of both the fast one."""
    one = [group(memory_mb=400.0)]
    for share, expected, served in ((0.02, "good", 0.98 * 10 + 0.02 * 40), (0.5, "fast", 0.5 * 10 + 0.5 * 150)):
        calm = demand(10.0, degrades=True, level=0, share=1 - share)
        burst = demand(150.0, degrades=True, level=1, share=share)
        found = place([calm, burst], [FAST, GOOD], one, PLAIN)
        assert found.load == {"g0": (expected,)}
        assert found.served_rows_per_s == pytest.approx(served), "the mean of all levels"
    both = place([calm, burst], [FAST, GOOD], [group()], PLAIN)
    assert set(both.load["g0"]) == {"fast", "good"}
    assert set(both.shares[0]) == {("good", "g")}
    assert both.shares[1]["fast", "g"] * 150 == pytest.approx(2200 / 15), "as fast as it must be for all to be served"


def test_accuracy_gives_way_to_demand_only_where_it_is_allowed_to() -> None:
    small = [group(memory_mb=400.0)]
    for rate, expected in ((10.0, "good"), (150.0, "fast")):
        found = place([demand(rate, accuracy_min=0.9, degrades=True)], [FAST, GOOD], small, PLAIN)
        assert found.load == {"g0": (expected,)}
        found = place([demand(rate, accuracy_min=0.9)], [FAST, GOOD], small, PLAIN)
        assert found.load == {"g0": ("good",)}


def test_of_two_that_serve_as_much_the_cheaper_one_is_used() -> None:
    dear, cheap = choice("fast", 0.7, 10.0, group="dear"), choice("fast", 0.7, 10.0, group="cheap")
    found = place([demand(50.0)], [dear, cheap], [group("dear", price=2.0), group("cheap", price=1.0)], PLAIN)
    assert found.shares == ({("fast", "cheap"): pytest.approx(1.0)},)
    assert found.usd_per_s == pytest.approx(50 * 5 / 3.6e6)


def test_prices_are_nothing_where_there_is_room_and_rise_with_load() -> None:
    prices = []
    for rate in (10.0, 60.0, 100.0, 150.0, 400.0):
        asked = [demand(rate, prefer="accuracy"), demand(rate, task="u", weight=2.0)]
        choices = [FAST, GOOD, choice("other", 0.8, 10.0, task="u", memory_mb=100.0)]
        found = place(asked, choices, [group()], PLAIN)
        prices.append(found.prices["g"])
    assert prices[0] == 0.0
    assert prices == sorted(prices)
    assert prices[-1] == pytest.approx(2 / 5)  # one more millisecond is a fifth of a row, which is worth 2


def test_a_price_is_what_one_more_millisecond_adds() -> None:
    asked = [demand(60.0, prefer="accuracy"), demand(300.0, prefer="accuracy", latency_ms=30.0)]
    groups, load = [group()], {"g0": {"fast", "good"}}
    before, after = (
        route(asked, [FAST, GOOD], groups, load, replace(PLAIN, utilisation_max=share)) for share in (0.9, 0.901)
    )
    assert before.prices["g"] > 0
    assert after.objective - before.objective == pytest.approx(before.prices["g"], rel=1e-3)
    assert before.variant_prices == {("fast", "g"): before.prices["g"], ("good", "g"): before.prices["g"]}


def loaded_as(found: Allocation, groups: Sequence[Group]) -> list[Group]:
    return [replace(each, loaded={w: frozenset(found.load[w]) for w in each.loaded}) for each in groups]


@pytest.mark.parametrize("seed", range(3))
def test_under_the_same_demand_loading_comes_to_rest(seed: int) -> None:
    """A little better may be found again from what is loaded by then, but not for ever."""
    options = Options(gap=0.03, time_limit_s=30.0)  # so that the clock decides nothing
    demands, choices, groups = larger(seed)
    moved = []
    for _ in range(4):
        found = place(demands, choices, groups, options)
        moved.append(len(found.new_loads))
        groups = loaded_as(found, groups)
    assert moved[-1] == 0, moved
    assert sum(moved[1:]) <= 0.3 * moved[0], moved


@settings(max_examples=30, deadline=None)
@given(instances())
def test_what_is_best_already_is_left_alone(instance: tuple[list[Demand], list[Choice], list[Group]]) -> None:
    demands, choices, groups = instance
    found = place(demands, choices, groups, PLAIN)
    assert place(demands, choices, loaded_as(found, groups), PLAIN).new_loads == ()


def test_a_little_more_does_not_move_what_is_loaded() -> None:
    choices = [replace(FAST, load_ms=3000.0), replace(GOOD, load_ms=3000.0)]
    at = [group(memory_mb=400.0, g0="good")]
    barely = [demand(91.0, prefer="accuracy")]  # 45 rows a second of the good one, 91 of 180 of the fast one
    options = Options(load_gain_min=0.5)
    assert place(barely, choices, at, options).new_loads == ()
    assert place([demand(150.0, prefer="accuracy")], choices, at, Options()).new_loads == (("g0", "fast"),)


def test_what_is_of_no_use_stays_while_there_is_room() -> None:
    other = choice("other", 0.7, 10.0, task="u", memory_mb=300.0)
    found = place([demand(10.0)], [FAST, other], [group(g0="other unheard")], PLAIN)
    assert set(found.load["g0"]) == {"fast", "other"}
    found = place([demand(10.0)], [FAST, other], [group(memory_mb=600.0, g0="other")], PLAIN)
    assert found.load == {"g0": ("fast",)}


def test_copies_are_packed_where_memory_is_and_what_is_loaded_stays_where_it_is() -> None:
    choices = [choice(name, 0.7, 10.0, task=name, memory_mb=mb) for name, mb in (("x", 700.0), ("y", 600.0),
                                                                              ("z", 400.0), ("q", 300.0))]  # fmt: skip
    found = place([demand(50.0, task=name) for name in "xyzq"], choices, [group(workers=2, g1="z")], Options())
    assert {worker: set(variants) for worker, variants in found.load.items()} == {"g0": {"x", "q"}, "g1": {"y", "z"}}


def test_a_share_is_found_for_who_asks_for_no_less() -> None:
    found = place([demand(10.0, latency_ms=100.0, accuracy_min=0.8)], [FAST, GOOD], [group()], PLAIN)
    assert found.shares_for("t", 120.0, 0.85, by_accuracy=False) == {("good", "g"): pytest.approx(1.0)}
    assert found.shares_for("t", 90.0, 0.85, by_accuracy=False) == {}
    assert found.shares_for("u", 120.0, 0.85, by_accuracy=False) == {}


def test_nobody_there_and_nothing_asked() -> None:
    assert place([], [FAST], [group()], PLAIN).load == {"g0": ()}
    found = place([demand(10.0)], [FAST], [Group("g", 1000.0, 1.0, {})], PLAIN)
    assert (found.load, found.served_rows_per_s) == ({}, 0.0)


def test_a_hint_goes_to_those_who_have_most_of_it_and_one_of_no_use_does_no_harm() -> None:
    choices = [choice(f"v{i}", 0.9, 10.0, task=f"t{i}", memory_mb=500.0) for i in range(4)]
    demands = [demand(1.0, f"t{i}") for i in range(4)]
    hint = {"g": [{"v0", "v1"}, {"v2", "v3"}]}
    options = replace(PLAIN, load_gain_min=0.05)
    found = place(demands, choices, [group(workers=2, g0="v3", g1="v0")], options, hint)
    assert found.served_rows_per_s == pytest.approx(4.0)
    assert len(found.new_loads) == 2
    useless = {"g": [{"nobody knows this"}], "another": [{"v0"}]}
    assert place(demands, choices, [group(workers=2)], PLAIN, useless).served_rows_per_s == pytest.approx(4.0)


def test_a_hint_alone_serves_what_no_search_is_made_for() -> None:
    draw = random.Random(3)
    choices = [
        choice(f"t{t}v{v}", 0.6 + v / 10, draw.uniform(5, 40), task=f"t{t}", memory_mb=draw.uniform(100, 480))
        for t in range(20)
        for v in range(3)
    ]
    demands = [demand(draw.uniform(0.5, 20), f"t{t}", accuracy_min=draw.choice((0.0, 0.75))) for t in range(20)]
    sized = size(demands, choices, [Limits("g", 1000.0, 1.0, 0, 50)], sizing.Options(headroom=0.0))
    fleet = group(workers=sized.workers["g"])
    options = replace(PLAIN, time_limit_s=0.0, utilisation_max=0.9, candidates_max=64)
    asked = sum(each.rows_per_s for each in demands)
    assert place(demands, choices, [fleet], options, sized.placed).served_rows_per_s == pytest.approx(asked)
