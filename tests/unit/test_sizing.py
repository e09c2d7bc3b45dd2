"""How many workers: beside all fleets and placements that there are, on tiny instances; packed, on larger ones."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import chain, combinations, product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from broker import headroom
from broker.placement_model import Choice, Demand, row_ms
from broker.sizing import Limits, Options, Sizing, greedy, size

INF = float("inf")
PLAIN = Options(headroom=0.0, utilisation_max=1.0, gap=1e-6, time_limit_s=10.0)
PACKED = Options(headroom=0.0, utilisation_max=1.0, exact_integers_max=0)


def choice(variant: str, accuracy: float = 0.9, ms: float = 10.0, *, task: str = "t", group: str = "g",
           memory_mb: float = 400.0) -> Choice:  # fmt: skip
    """A batch of 4 takes as long as two rows alone."""
    return Choice(variant, task, group, accuracy, (1, 4), (ms, 2 * ms), (ms, 2 * ms), memory_mb, 0.0)


def limits(name: str = "g", price: float = 1.0, least: int = 0, most: int = 10, memory_mb: float = 1000.0) -> Limits:
    return Limits(name, memory_mb, price, least, most)


def demand(rows_per_s: float, task: str = "t", **more: object) -> Demand:
    return Demand(task, **({"latency_ms": INF, "accuracy_min": 0.0, "rows_per_s": rows_per_s} | more))  # type: ignore[arg-type]


# --- the cheapest ----------------------------------------------------------------------------------------------------


def serves(fleet: Sequence[Limits], placed: Sequence[frozenset[str]], demands: Sequence[Demand],
           choices: Sequence[Choice]) -> bool:  # fmt: skip
    """Whether these workers, with these variants each, have time for all that is asked."""
    rates: dict[str, float] = {}
    for asked in demands:
        rates[asked.task] = rates.get(asked.task, 0.0) + asked.rows_per_s
    flows = [
        (d, w, ms)
        for d, asked in enumerate(demands)
        for w, (group, variants) in enumerate(zip(fleet, placed, strict=True))
        for c in choices
        if c.group == group.name and c.variant in variants and c.task == asked.task
        and c.accuracy >= asked.accuracy_min
        and (ms := row_ms(c, asked.latency_ms, rates[c.task])) < INF
    ]  # fmt: skip
    if not flows:
        return not demands
    time, served = np.zeros((len(fleet), len(flows))), np.zeros((len(demands), len(flows)))
    for column, (d, w, ms) in enumerate(flows):
        time[w, column], served[d, column] = ms, 1.0
    asked_rates = [asked.rows_per_s for asked in demands]
    done = linprog(np.zeros(len(flows)), A_ub=time, b_ub=np.full(len(fleet), 1000.0), A_eq=served, b_eq=asked_rates)
    return bool(done.status == 0)


def fitting(group: Limits, choices: Sequence[Choice]) -> list[frozenset[str]]:
    own = {c.variant: c.memory_mb for c in choices if c.group == group.name}
    subsets = chain.from_iterable(combinations(sorted(own), n) for n in range(len(own) + 1))
    found = [frozenset(s) for s in subsets if sum(own[v] for v in s) <= group.memory_mb]
    return [s for s in found if not any(s < other for other in found)]


def fleets(groups: Sequence[Limits]) -> Iterator[tuple[float, tuple[int, ...]]]:
    numbers = product(*(range(group.workers_min, group.workers_max + 1) for group in groups))
    return iter(
        sorted((sum(g.price_per_hour * n for g, n in zip(groups, each, strict=True)), each) for each in numbers)
    )


def cheapest(demands: Sequence[Demand], choices: Sequence[Choice], groups: Sequence[Limits]) -> float | None:
    for usd, numbers in fleets(groups):
        fleet = [group for group, number in zip(groups, numbers, strict=True) for _ in range(number)]
        if any(serves(fleet, placed, demands, choices) for placed in product(*(fitting(g, choices) for g in fleet))):
            return usd
    return None


@st.composite
def tiny(draw: st.DrawFn) -> tuple[list[Demand], list[Choice], list[Limits]]:
    names = ["g", "h"][: draw(st.integers(1, 2))]
    groups = [limits(name, draw(st.sampled_from((1.0, 1.5, 3.0))), draw(st.integers(0, 1)), 2) for name in names]
    choices = [
        choice(
            f"{task}{number}", draw(st.sampled_from((0.7, 0.9))), draw(st.sampled_from((5.0, 20.0, 60.0))),
            task=task, group=name, memory_mb=draw(st.sampled_from((300.0, 550.0, 900.0))),
        )
        for name in names
        for task, number in (("t", 0), ("t", 1), ("u", 0))
    ]  # fmt: skip
    demands = [
        demand(
            draw(st.sampled_from((1.0, 20.0, 90.0, 250.0))), task,
            latency_ms=draw(st.sampled_from((45.0, 300.0, INF))), accuracy_min=draw(st.sampled_from((0.0, 0.8))),
        )
        for task in draw(st.sampled_from((["t"], ["t", "u"], ["t", "t"], ["u"])))
    ]  # fmt: skip
    return demands, choices, groups


@given(tiny())
@settings(max_examples=60, deadline=None)
def test_the_cheapest_fleet_that_serves_is_found_and_none_is_cheaper_than_the_bound(
    instance: tuple[list[Demand], list[Choice], list[Limits]],
) -> None:
    demands, choices, groups = instance
    assume(len({(asked.task, asked.accuracy_min, asked.latency_ms) for asked in demands}) == len(demands))
    able = [
        asked
        for asked in demands
        if any(c.task == asked.task and c.accuracy >= asked.accuracy_min and row_ms(c, asked.latency_ms, 1e9) < INF
               for c in choices)
    ]  # fmt: skip
    expected = cheapest(able, choices, groups)
    found = size(demands, choices, groups, PLAIN)
    assert found.serves == (expected is not None)
    assert set(found.hopeless) == {asked.task for asked in demands if asked not in able}
    if expected is not None:
        assert found.usd_per_hour == pytest.approx(expected)
        assert found.bound_usd_per_hour <= expected + 1e-6


@given(tiny())
@settings(max_examples=60, deadline=None)
def test_what_is_packed_serves_within_the_limits(instance: tuple[list[Demand], list[Choice], list[Limits]]) -> None:
    demands, choices, groups = instance
    exact = size(demands, choices, groups, PLAIN)
    for found in (size(demands, choices, groups, PACKED), greedy(demands, choices, groups, PACKED)):
        for group in groups:
            assert group.workers_min <= found.workers[group.name] <= group.workers_max
        assert has_room(found, choices, groups)
        if found.serves:
            assert exact.serves
            assert found.usd_per_hour >= exact.usd_per_hour - 1e-6


def family(tasks: int, draw: random.Random) -> list[Choice]:
    return [
        choice(f"{task}.{number}", 0.6 + number / 20, draw.uniform(2, 60), task=f"t{task}", group=name,
               memory_mb=draw.uniform(50, 400))
        for task in range(tasks)
        for number in range(6)
        for name in ("g", "h", "i")
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_a_large_fleet_is_near_the_bound_and_has_room_for_everything(seed: int) -> None:
    draw = random.Random(seed)
    choices = family(20, draw)
    demands = [
        demand(draw.expovariate(1 / 200), f"t{task}", latency_ms=draw.uniform(150, 900), accuracy_min=0.65)
        for task in range(20)
    ]
    groups = [limits("g", 1.0, most=200), limits("h", 0.7, most=200), limits("i", 2.0, most=200)]
    found = size(demands, choices, groups, PACKED)
    assert found.serves and not found.hopeless
    assert found.usd_per_hour <= 1.05 * found.bound_usd_per_hour + 0.7
    assert has_room(found, choices, groups)


def has_room(found: Sizing, choices: Sequence[Choice], groups: Sequence[Limits]) -> bool:
    memory = {c.key: c.memory_mb for c in choices}
    used = {g.name: sum(memory[key] * n for key, n in found.copies.items() if key[1] == g.name) for g in groups}
    return all(used[g.name] <= g.memory_mb * found.workers[g.name] + 1e-6 for g in groups)


# --- what it goes by -------------------------------------------------------------------------------------------------

FAST, GOOD = choice("fast", 0.7, 10.0), choice("good", 0.9, 40.0)
"""5 and 20 ms a row in batches of 4: a worker does 200, or 50 rows a second."""


def workers(found: Sizing) -> int:
    return sum(found.workers.values())


def test_a_floor_takes_the_workers_that_it_needs() -> None:
    assert workers(size([demand(200.0)], [FAST, GOOD], [limits()], PLAIN)) == 1
    assert workers(size([demand(200.0, accuracy_min=0.8)], [FAST, GOOD], [limits()], PLAIN)) == 4


def test_who_would_be_degraded_is_planned_for_as_asked_while_that_can_be_done() -> None:
    assert workers(size([demand(200.0, accuracy_min=0.8, degrades=True)], [FAST, GOOD], [limits()], PLAIN)) == 4
    assert workers(size([demand(200.0, accuracy_min=0.95, degrades=True)], [FAST, GOOD], [limits()], PLAIN)) == 1


def test_what_nothing_can_do_needs_nobody() -> None:
    found = size([demand(200.0, accuracy_min=0.95), demand(1.0, "v")], [FAST, GOOD], [limits()], PLAIN)
    assert found.hopeless == ("t", "v")
    assert found.serves and workers(found) == 0


def test_memory_takes_workers_too() -> None:
    choices = [choice(f"v{task}", task=f"t{task}") for task in range(5)]
    demands = [demand(1.0, f"t{task}") for task in range(5)]
    assert workers(size(demands, choices, [limits()], PLAIN)) == 3  # two of 400 MB each
    assert workers(size(demands, choices, [limits()], PACKED)) == 3
    assert workers(size(demands, choices, [limits(most=2)], PLAIN)) == 2
    assert len(size(demands, choices, [limits(most=2)], PLAIN).unserved) == 1


@pytest.mark.parametrize("options", [PLAIN, PACKED])
def test_what_does_not_fit_together_takes_two(options: Options) -> None:
    choices = [choice("v", task="t", memory_mb=300.0), choice("w", task="u", memory_mb=900.0)]
    assert workers(size([demand(1.0), demand(1.0, "u")], choices, [limits()], options)) == 2
    assert size([demand(1.0), demand(1.0, "u")], choices, [limits(most=1)], options).unserved


def test_cheap_workers_are_taken_while_there_are_any() -> None:
    choices = [choice("v", group="g"), choice("v", group="h")]
    groups = [limits("g", 1.0, most=2), limits("h", 1.2)]
    found = size([demand(700.0)], choices, groups, PLAIN)
    assert found.workers == {"g": 2, "h": 2}
    assert found.usd_per_hour == pytest.approx(4.4)
    assert found.bound_usd_per_hour == pytest.approx(2 + 1.5 * 1.2, rel=1e-3)


def test_where_nothing_has_a_price_few_workers_are_better_than_many() -> None:
    found = size([demand(300.0)], [FAST], [limits(price=0.0)], PLAIN)
    assert found.workers == {"g": 2}
    assert found.usd_per_hour == found.bound_usd_per_hour == 0.0


def test_there_are_never_fewer_than_the_least_nor_more_than_the_most() -> None:
    assert size([], [FAST], [limits(least=2)]).workers == {"g": 2}
    found = size([demand(9000.0)], [FAST], [limits(most=3)], PLAIN)
    assert found.workers == {"g": 3}
    assert found.missing == pytest.approx(1 - 600 / 9000)
    assert found.unserved == ("t",)


def test_head_room_follows_from_what_may_be_lost() -> None:
    options = Options(missed_max=0.002)

    def spare(*demands: Demand) -> float:
        """The deviation, a share of the mean, of a load that needs as much head-room."""
        choices = [choice(f"v{of.task}", task=of.task, memory_mb=100.0) for of in demands]
        return headroom.deviation(size(demands, choices, [limits()], options).headroom, 0.002)

    alone = spare(demand(100.0, latency_ms=1000.0))
    assert alone == pytest.approx(100 ** 0.5 / 100)  # fmt: skip
    assert spare(demand(100.0, latency_ms=1000.0, burst=4.0)) == pytest.approx(2 * alone)
    assert spare(demand(100.0, latency_ms=250.0)) == pytest.approx(2 * alone)
    shared = spare(*[demand(100.0, f"t{task}", latency_ms=1000.0) for task in range(4)])
    assert shared == pytest.approx(alone / 2)  # devices are shared: bursts make up for each other
    assert size([demand(100.0)], [FAST], [limits()], options).headroom == 0.0  # nobody is in a hurry


def test_what_nobody_can_serve_makes_nothing_else_dearer() -> None:
    groups = [limits("g", 1.0, most=50), limits("h", 0.7, most=50), limits("i", 2.0, most=50)]
    for seed in range(6):
        choices = family(12, random.Random(seed))
        demands = [demand(40.0, f"t{task}", latency_ms=500.0) for task in range(12)]
        hopeless = [demand(1.0, f"t{task}", accuracy_min=0.9999) for task in range(3)]
        alone, beside = (size(each, choices, groups, Options()) for each in (demands, [*demands, *hopeless]))
        assert beside.hopeless == ("t0", "t1", "t2")
        assert alone.serves and beside.serves
        assert beside.usd_per_hour == pytest.approx(alone.usd_per_hour)


def test_no_time_at_all_still_gives_an_answer() -> None:
    draw = random.Random(7)
    demands = [demand(100.0, f"t{task}", latency_ms=500.0) for task in range(20)]
    groups = [limits("g", 1.0, most=200), limits("h", 0.7, most=200), limits("i", 2.0, most=200)]
    found = size(demands, family(20, draw), groups, Options(time_limit_s=0.0))
    assert found.serves
