"""No policy beats the bound: not simple ones on random worlds, nor the best order of batches on tiny ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import combinations

import numpy as np
import pytest

from simulator.bound import bound
from simulator.facts import INF, GroupSpec, Placement, Portfolio, SimulatedQuery, VariantProfile, sorted_queries
from simulator.rivals.static import Plan, Static, StaticFirstTenth, StaticHindsight
from simulator.world import Device, Running, World


def profile(name: str, accuracy: float, one_ms: float, more_ms: float, *, task: str = "t", group: str = "g",
            sizes: tuple[int, ...] = (1, 2, 4), memory_mb: float = 400.0) -> VariantProfile:  # fmt: skip
    times = tuple(one_ms + more_ms * (size - 1) for size in sizes)
    return VariantProfile(task, name, name, group, accuracy, 200.0, memory_mb, sizes, times, times)


FAST, GOOD = profile("fast", 0.6, 10.0, 2.0), profile("good", 0.9, 25.0, 10.0)
ONE = (GroupSpec("g", 1, 1000.0, 1.0),)


def asked(*arrivals_ms: float, latency_ms: float = 50.0, **more: object) -> list[SimulatedQuery]:
    return sorted_queries(
        SimulatedQuery(0, "t", each, latency_ms, **({"accuracy_min": 0.0} | more))  # type: ignore[arg-type]
        for each in arrivals_ms
    )


def test_one_query_gets_the_best_variant_that_is_fast_enough() -> None:
    portfolio = Portfolio((FAST, GOOD))
    for latency_ms, best in ((9.9, 0.0), (10.0, 0.6), (24.9, 0.6), (25.0, 0.9), (INF, 0.9)):
        found = bound(ONE, portfolio, asked(3.0, latency_ms=latency_ms))
        assert found.goodness == pytest.approx(best, rel=1e-4)
        assert found.in_time == pytest.approx(float(best > 0), rel=1e-4)


def test_a_floor_binds_unless_the_query_degrades() -> None:
    portfolio = Portfolio((FAST, GOOD))
    assert bound(ONE, portfolio, asked(0.0, latency_ms=20.0, accuracy_min=0.7)).in_time == 0.0
    assert bound(ONE, portfolio, asked(0.0, latency_ms=20.0, accuracy_min=0.7, on_miss="degrade")).in_time > 0.99
    assert bound(ONE, portfolio, asked(0.0, latency_ms=20.0, accuracy_min=None)).in_time == 0.0, "the default floor"
    assert bound(ONE, portfolio, asked(0.0, accuracy_min=None)).goodness == pytest.approx(0.9, rel=1e-4)


def test_what_no_worker_has_room_for_does_not_count() -> None:
    assert bound((GroupSpec("g", 1, 300.0, 1.0),), Portfolio((FAST,)), asked(0.0)).in_time == 0.0
    assert bound((GroupSpec("g", 0, 900.0, 1.0),), Portfolio((FAST,)), asked(0.0)).in_time == 0.0
    assert bound(ONE, Portfolio((FAST,)), []).goodness == 0.0


def test_who_is_alone_has_a_batch_alone() -> None:
    """Ten queries, each 10 ms, spaced by 8: nobody can share, for the other's deadline passes before."""
    single = Portfolio((profile("only", 1.0, 10.0, 0.0),))
    apart = asked(*np.arange(0.0, 80.0, 8.0), latency_ms=11.0)
    found = bound(ONE, single, apart, bin_ms=1.0)
    assert found.in_time == pytest.approx((72 + 11) / 10 / 10, abs=0.05)


def test_overload_is_bounded_by_perfect_batches() -> None:
    """4 in 16 ms, 1000 arrivals in a second: a quarter of them."""
    portfolio = Portfolio((FAST,))
    found = bound(ONE, portfolio, asked(*np.arange(0.0, 1000.0, 1.0)))
    assert found.in_time == pytest.approx(1050 / 16 * 4 / 1000, rel=0.1)
    assert found.goodness == pytest.approx(0.6 * found.in_time, rel=1e-6)


def test_a_class_is_as_quick_as_its_quickest() -> None:
    """Of two in one bin, only one has company: a batch of two and one alone are all that fits."""
    queries = sorted_queries(
        SimulatedQuery(0, "t", at, latency_ms, 0.0) for at, latency_ms in ((0.0, 10.5), (0.0, 10.5), (9.0, 10.5))
    )
    single = Portfolio((profile("only", 1.0, 10.0, 0.0, sizes=(1, 2)),))
    assert bound(ONE, single, queries, bin_ms=20.0).in_time > 0.999


def test_parts_bound_too_and_are_not_much_worse() -> None:
    queries = asked(*np.sort(np.random.default_rng(1).uniform(0, 20_000.0, 6000)))
    whole = bound(ONE, Portfolio((FAST, GOOD)), queries, variables_max=10**9)
    cut = bound(ONE, Portfolio((FAST, GOOD)), queries, variables_max=1000)
    assert whole.goodness <= cut.goodness + 1e-6
    assert cut.goodness <= 1.1 * whole.goodness


# --- tiny worlds: every order of batches -----------------------------------------------------------------------------


def best_of_all(portfolio: Portfolio, queries: Sequence[SimulatedQuery]) -> float:
    """Most accuracy in time on one device: whichever batch of those that are there, or wait for the next arrival."""
    arrivals = sorted({query.arrival_ms for query in queries})

    @cache
    def best(now_ms: float, left: frozenset[int]) -> float:
        left = frozenset(i for i in left if queries[i].deadline_ms >= now_ms)
        there = [i for i in left if queries[i].arrival_ms <= now_ms]
        later = [at for at in arrivals if at > now_ms]
        most = best(later[0], left) if later else 0.0
        for variant in portfolio.profiles:
            able = [i for i in there if variant.accuracy >= portfolio.floor(queries[i])]
            for rows in range(1, min(len(able), variant.rows_max) + 1):
                end_ms = now_ms + variant.lat_ms(rows)
                in_time = [i for i in able if queries[i].deadline_ms >= end_ms]
                for batch in combinations(in_time, rows):
                    most = max(most, rows * variant.accuracy + best(end_ms, left - set(batch)))
        return most

    return best(arrivals[0], frozenset(range(len(queries))))


@pytest.mark.parametrize("seed", range(40))
def test_the_best_order_of_batches_does_not_beat_it(seed: int) -> None:
    draw = np.random.default_rng(seed)
    portfolio = Portfolio((FAST, GOOD))
    queries = sorted_queries(
        SimulatedQuery(0, "t", at, float(draw.choice([15.0, 30.0, 60.0])), float(draw.choice([0.0, 0.8])))
        for at in draw.uniform(0, draw.choice([20.0, 80.0]), 6)
    )
    best = best_of_all(portfolio, queries) / len(queries)
    for bin_ms in (None, 5.0, 0.7):
        found = bound(ONE, portfolio, queries, bin_ms=bin_ms)
        assert found.goodness >= best - 1e-9
    assert found.goodness <= best + 0.45, "of some use"


# --- random worlds: policies -----------------------------------------------------------------------------------------


class Greedy:
    """Whatever waits, at once, first come first served, with the first variant that is loaded and allowed."""

    def __init__(self, rows: int, *, drops: bool) -> None:
        self.name, self.rows, self.drops = f"greedy {rows}", rows, drops
        self.waiting: list[SimulatedQuery] = []

    def start(self, world: World) -> None:
        self.world = world

    def arrived(self, query: SimulatedQuery) -> None:
        self.waiting.append(query)
        self.serve()

    def ran(self, device: Device, batch: Running) -> None:
        self.serve()

    def loaded(self, device: Device, variant: str) -> None: ...

    def lost(self, device: Device, queries: Sequence[SimulatedQuery]) -> None: ...

    def back(self, device: Device) -> None: ...

    def serve(self) -> None:
        world = self.world
        for device in world.devices.values():
            if self.drops:
                for query in [q for q in self.waiting if q.deadline_ms < world.now_ms]:
                    self.waiting.remove(query)
                    world.expire(query)
            for variant in sorted(device.loaded) if device.idle else ():
                of = world.portfolio.by_key[variant, device.group]
                able = [
                    q for q in self.waiting
                    if q.task == of.task and (q.on_miss == "degrade" or of.accuracy >= world.portfolio.floor(q))
                ][: min(self.rows, of.rows_max)]  # fmt: skip
                if able:
                    world.run(device, variant, able)
                    self.waiting = [q for q in self.waiting if q not in able]
                    break


def random_world(seed: int) -> tuple[tuple[GroupSpec, ...], Portfolio, list[SimulatedQuery], Placement]:
    draw = np.random.default_rng(seed)
    fleet = (GroupSpec("a", int(draw.integers(1, 3)), 1000.0, 0.3), GroupSpec("b", 1, 1000.0, 1.0))
    profiles = [
        profile(f"{task}{number}", 0.6 + 0.1 * number, draw.uniform(2, 10) * (1 + number), draw.uniform(0.5, 5),
                task=task, group=spec.name, memory_mb=240.0, sizes=(1, 4, 8))
        for task in "tu" for number in range(2) for spec in fleet
    ]  # fmt: skip
    queries = sorted_queries(
        SimulatedQuery(0, str(draw.choice(["t", "u"])), at, float(draw.choice([20.0, 60.0, 200.0, INF])),
                       float(draw.choice([0.0, 0.65])), str(draw.choice(["reject", "late", "degrade"])))  # type: ignore[arg-type]
        for at in np.cumsum(draw.gamma(0.3, draw.choice([2.0, 10.0, 40.0]) / 0.3, 300))
    )  # fmt: skip
    everything = {name: [p.variant for p in profiles if p.group == spec.name]
                  for spec in fleet for name in spec.worker_names}  # fmt: skip
    return fleet, Portfolio(tuple(profiles)), queries, everything


POLICIES: dict[str, Callable[[], object]] = {
    "one at a time": lambda: Greedy(1, drops=True),
    "batches": lambda: Greedy(8, drops=True),
    "everything late": lambda: Greedy(4, drops=False),
    "static": lambda: Static(Plan({}, {})),
    "static-first-tenth": StaticFirstTenth,
    "static-hindsight": StaticHindsight,
}


@pytest.mark.parametrize("seed", range(8))
def test_no_policy_beats_it(seed: int) -> None:
    fleet, portfolio, queries, everything = random_world(seed)
    found = bound(fleet, portfolio, queries)
    best = 0.0
    for name, make in POLICIES.items():
        again = sorted_queries(
            SimulatedQuery(0, q.task, q.arrival_ms, q.latency_ms_max, q.accuracy_min, q.on_miss) for q in queries
        )
        World(fleet, portfolio, again, placement=everything, seed=seed).play(make())  # type: ignore[arg-type]
        goodness = sum(q.accuracy for q in again if q.outcome == "in_time") / len(again)
        assert goodness <= found.goodness + 1e-9, name
        assert sum(q.outcome == "in_time" for q in again) / len(again) <= found.in_time + 1e-9, name
        best = max(best, goodness)
    assert best >= 0.6 * found.goodness, "of some use"
