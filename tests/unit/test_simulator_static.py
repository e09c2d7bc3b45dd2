"""Static placements, in hindsight and from the first tenth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from simulator.facts import GroupSpec, Placement, Portfolio, SimulatedQuery, VariantProfile, sorted_queries
from simulator.rivals.static import Plan, Static, StaticFirstTenth, StaticHindsight, best_plan, planned
from simulator.world import Fault, World


def profile(name: str, accuracy: float, ms: float, *, task: str = "t", memory_mb: float = 600.0) -> VariantProfile:
    """A batch of 4 takes as long as two rows alone."""
    return VariantProfile(task, name, name, "g", accuracy, 100.0, memory_mb, (1, 4), (ms, 2 * ms), (ms, 2 * ms))


FAST, GOOD = profile("fast", 0.7, 10.0), profile("good", 0.9, 40.0)
OTHER = profile("other", 0.8, 10.0, task="u")
TWO = (GroupSpec("g", 2, 1000.0, 1.0),)


def asked(
    arrivals_ms: Sequence[float], task: str = "t", latency_ms: float = 200.0, **more: object
) -> list[SimulatedQuery]:
    return [
        SimulatedQuery(0, task, float(at), latency_ms, **({"accuracy_min": 0.0} | more))  # type: ignore[arg-type]
        for at in arrivals_ms
    ]


def goodness(queries: Sequence[SimulatedQuery]) -> float:
    return sum(query.accuracy for query in queries if query.outcome == "in_time") / len(queries)


def play(policy: Static, queries: list[SimulatedQuery], *profiles: VariantProfile, placement: Placement | None = None,
         faults: Sequence[Fault] = (), fleet: Sequence[GroupSpec] = TWO) -> World:  # fmt: skip
    world = World(fleet, Portfolio(profiles), sorted_queries(queries), placement=placement, faults=faults)
    world.play(policy)
    assert all(query.outcome for query in queries)
    return world


def hindsight(queries: list[SimulatedQuery], *profiles: VariantProfile, fleet: Sequence[GroupSpec] = TWO) -> Placement:
    policy = StaticHindsight()
    placement = policy.placement_for(fleet, Portfolio(profiles), sorted_queries(queries))
    play(policy, queries, *profiles, placement=placement, fleet=fleet)
    return placement


def test_accuracy_while_there_is_time_and_speed_when_there_is_not() -> None:
    few = asked(np.arange(0, 5000, 100.0))
    assert set(hindsight(few, FAST, GOOD)["g-0"]) == {"good"}
    assert goodness(few) == pytest.approx(0.9)
    many = asked(np.arange(0, 5000, 3.0))
    placement = hindsight(many, FAST, GOOD)
    assert {variant for variants in placement.values() for variant in variants} >= {"fast"}
    assert goodness(many) > 0.65


def test_a_burst_that_the_mean_hides_is_planned_for() -> None:
    """5 rows a second on average, but all within a twentieth of the time."""
    bursty = asked([0.0, *np.arange(10_000, 10_500, 5.0), 20_000.0])
    mean = planned(TWO, Portfolio((FAST, GOOD)), sorted_queries(bursty), 0.95, 1.0, None)
    assert all(set(variants) == {"good"} for variants in mean.placement.values() if variants)
    again = asked([query.arrival_ms for query in bursty])
    play(Static(mean), again, FAST, GOOD, placement=mean.placement)
    hindsight(bursty, FAST, GOOD)
    assert goodness(again) < 0.5
    assert goodness(bursty) > 0.65


def test_no_other_placement_of_one_variant_each_is_better() -> None:
    draw = np.random.default_rng(4)
    arrivals = np.cumsum(draw.exponential(14.0, 400))
    tasks = draw.choice(["t", "u"], 400, p=[0.7, 0.3])

    def mixed() -> list[SimulatedQuery]:
        return [q for at, task in zip(arrivals, tasks, strict=True) for q in asked([at], task=str(task))]

    queries = mixed()
    hindsight(queries, FAST, GOOD, OTHER)
    best = goodness(queries)
    for first in ("fast", "good", "other"):
        for second in ("fast", "good", "other"):
            placement = {"g-0": [first], "g-1": [second]}
            again = mixed()
            play(Static(Plan(placement, {})), again, FAST, GOOD, OTHER, placement=placement)
            assert goodness(again) <= best + 0.02, placement


def test_without_its_gift_it_loads_from_the_start() -> None:
    queries = asked(np.arange(0, 2000, 50.0), latency_ms=150.0)
    world = play(StaticHindsight(), queries, FAST, GOOD)
    assert {load.start_ms for load in world.loads} == {0.0}
    assert goodness(queries) > 0.8


def test_the_first_tenth_decides_and_is_served_as_it_comes() -> None:
    """First quiet, then busy: it stays with what the quiet time suggested."""
    queries = asked([*np.arange(0, 3000, 100.0), *np.arange(3000, 4350, 5.0)])
    world = play(StaticFirstTenth(), queries, FAST, GOOD)
    begun = min(world.loads, key=lambda load: load.start_ms)
    assert (begun.variant, begun.start_ms) == ("fast", 0.0)
    assert world.loads[-1].variant == "good"
    assert world.loads[-1].start_ms >= 2900.0
    assert all(device.loaded == {"good"} for device in world.devices.values())
    late = [query for query in queries if query.arrival_ms > 3300]
    assert {query.variant for query in late if query.outcome == "in_time"} == {"good"}
    assert goodness(late) < 0.5


def test_a_task_that_the_first_tenth_lacks_has_no_plan() -> None:
    queries = asked(np.arange(0, 1000, 10.0)) + asked(np.arange(500, 1000, 10.0), task="u")
    play(StaticFirstTenth(), queries, FAST, profile("other", 0.8, 10.0, task="u", memory_mb=1000.0))
    assert goodness([query for query in queries if query.task == "u"]) == 0.0


def test_batches_are_as_large_as_the_head_can_bear_and_who_cannot_be_in_time_is_dropped() -> None:
    plan = Plan({"g-0": ["fast"]}, {})
    one = (GroupSpec("g", 1, 1000.0, 1.0),)
    queries = asked([0.0, 1.0, 1.0, 1.0, 1.0], latency_ms=30.0)
    play(Static(plan), queries, FAST, placement=plan.placement, fleet=one)
    assert [query.batch for query in queries] == [1, 4, 4, 4, 4]
    queries = asked([0.0, 1.0, 1.0, 1.0, 1.0], latency_ms=25.0)
    play(Static(plan), queries, FAST, placement=plan.placement, fleet=one)
    assert [query.batch for query in queries] == [1, 1, 0, 0, 0]
    assert [query.outcome for query in queries] == ["in_time"] * 2 + ["expired"] * 3


def test_shares_are_kept() -> None:
    fast, slow = profile("fast", 0.7, 1.0, memory_mb=100.0), profile("slow", 0.6, 1.0, memory_mb=100.0)
    shares = {("t", 200.0, 0.0, False): {("fast", "g"): 0.25, ("slow", "g"): 0.75}}
    plan = Plan({"g-0": ["fast", "slow"]}, shares)
    queries = asked(np.arange(0, 4000, 10.0))
    play(Static(plan), queries, fast, slow, placement=plan.placement)
    assert sum(query.variant == "slow" for query in queries) == 300


def test_what_was_lost_is_run_elsewhere_and_comes_back() -> None:
    queries = asked([0.0, 1.0, 500.0, 501.0])
    plan = Plan({"g-0": ["fast"], "g-1": ["fast"]}, {})
    faults = [Fault(5.0, "lost", "g-0"), Fault(6.0, "back", "g-0")]
    world = play(Static(plan), queries, FAST, placement=plan.placement, faults=faults)
    assert [query.outcome for query in queries] == ["in_time"] * 4
    assert [load.worker for load in world.loads] == ["g-0"]
    assert {query.worker for query in queries[2:]} == {"g-0", "g-1"}


def test_nothing_arrives() -> None:
    assert best_plan(TWO, Portfolio((FAST,)), []).placement == {}
    play(StaticHindsight(), [], FAST)
    play(StaticFirstTenth(), [], FAST)
