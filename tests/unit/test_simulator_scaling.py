"""Rivals on fleets that scale, judged from outside, and what nobody underbids."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.policy_judge import judged
from simulator.bound import least_cost
from simulator.facts import GroupSpec, Portfolio, SimulatedQuery, VariantProfile, sorted_queries
from simulator.ours import Ours
from simulator.report import report
from simulator.rivals import RIVALS
from simulator.rivals.infaas import Infaas
from simulator.rivals.keda import Keda, cheapest_usd
from simulator.scenario import Played, Scenario, play
from simulator.world import Device, Fault, Policy, Rental

FLEET = (
    GroupSpec("gpu", 1, 1000.0, 3.6, 0, 6, 5000.0, 10.0),
    GroupSpec("cpu", 1, 1000.0, 0.36, 0, 8, 2000.0, 10.0),
)


def profile(variant: str, group: str, ms: float, accuracy: float, memory_mb: float = 300.0) -> VariantProfile:
    sizes = (1, 2, 4, 8)
    p50_ms = tuple(ms * (1 + size) / 2 for size in sizes) if group == "gpu" else tuple(ms * size for size in sizes)
    return VariantProfile("t", variant, variant, group, accuracy, 200.0, memory_mb, sizes, p50_ms, p50_ms)


PORTFOLIO = Portfolio(
    (profile("small", "gpu", 10.0, 0.7), profile("large", "gpu", 20.0, 0.9), profile("small-cpu", "cpu", 40.0, 0.7))
)


def asked(rates: list[float], seconds_each: float = 60.0, seed: int = 3) -> list[SimulatedQuery]:
    """Poisson at each rate in turn; a third asks for 0.85."""
    random = np.random.default_rng(seed)
    queries = []
    for number, rate in enumerate(rates):
        for at_s in random.uniform(0, seconds_each, random.poisson(rate * seconds_each)):
            floor = 0.85 if random.random() < 0.3 else 0.6
            queries.append(SimulatedQuery(0, "t", 1000 * (number * seconds_each + at_s), 400.0, floor))
    return sorted_queries(queries)


def played(policy: Policy, queries: list[SimulatedQuery], folder: Path) -> Played:
    """Nothing that the verifier sees may be broken."""
    done = play(Scenario(FLEET, PORTFOLIO, queries, 1), policy)
    assert judged(done, None, folder) == []
    return done


def workers_at(done: Played, at_s: float) -> Counter[str]:
    return Counter(each.group for each in done.rentals if each.start_ms <= 1000 * at_s < each.end_ms)


@pytest.mark.parametrize("name", RIVALS)
def test_every_rival_plays_on_a_fleet_that_scales(name: str, tmp_path: Path) -> None:
    done = played(RIVALS[name](), asked([20.0], 10.0), tmp_path)
    assert report(done).total.in_time > 0.3


def test_keda_follows_the_lag_up_and_after_five_minutes_down(tmp_path: Path) -> None:
    done = played(Keda(2.0), asked([5.0, 150.0, 150.0, *[5.0] * 7]), tmp_path)
    few, many = workers_at(done, 50.0), workers_at(done, 175.0)
    assert sum(many.values()) > sum(few.values()) + 2
    assert workers_at(done, 400.0) == many, "five minutes after the last lag"
    assert sum(workers_at(done, 590.0).values()) < sum(many.values())
    starts = {each.start_ms % 30_000.0 for each in done.rentals if each.start_ms}
    assert starts == {0.0}, "every 30 s"


def test_keda_never_has_less_than_one_worker_for_each_deployment(tmp_path: Path) -> None:
    done = played(Keda(1000.0), asked([10.0], 400.0), tmp_path)
    assert workers_at(done, 390.0) == {"gpu": 1, "cpu": 1}
    assert report(done).total.in_time > 0.5


def test_a_manifest_takes_what_costs_least_for_what_is_asked() -> None:
    price = {"gpu": 3.6, "cpu": 0.36}
    of = PORTFOLIO.profiles
    best = cheapest_usd(of, price, ("t", 400.0, 0.6))
    assert best is not None and best.variant == "small-cpu", "0.36 * 40 ms, on the GPU 3.6 * 5.6 ms"
    best = cheapest_usd(of, price, ("t", 50.0, 0.6))
    assert best is not None and best.variant == "small", "a CPU has no time to wait"
    best = cheapest_usd(of, price, ("t", 400.0, 0.85))
    assert best is not None and best.variant == "large"
    assert cheapest_usd(of, price, ("t", 400.0, 0.95)) is None


def test_infaas_starts_a_machine_when_all_are_busy_and_stops_it_when_they_are_not(tmp_path: Path) -> None:
    done = played(Infaas(), asked([5.0, 120.0, 120.0, 120.0, *[2.0] * 5]), tmp_path)
    many = workers_at(done, 235.0)
    assert sum(many.values()) >= 4
    last = workers_at(done, 530.0)
    assert sum(last.values()) < sum(many.values())
    assert all(last[spec.name] >= spec.workers for spec in FLEET), "not those that it began with"
    for group in ("gpu", "cpu"):
        starts = sorted(each.start_ms for each in done.rentals if each.group == group and each.start_ms)
        assert all(later - first >= 30_000.0 for first, later in itertools.pairwise(starts)), "15 rounds"


@pytest.mark.parametrize("name", ["keda", "infaas"])
def test_nobody_pays_less_than_the_bound(name: str, tmp_path: Path) -> None:
    queries = asked([20.0, 60.0])
    done = play(Scenario(FLEET, PORTFOLIO, queries, 1), RIVALS[name]())
    found = report(done).total
    assert 0 < least_cost(FLEET, PORTFOLIO, queries, missed=1 - found.in_time).total_usd < found.attributed_cost_usd


def test_the_least_cost_by_hand() -> None:
    """One alone, cheapest on the CPU; four that arrive together and have the time for one batch; one in vain."""
    alone = [SimulatedQuery(0, "t", 0.0, 50.0, 0.6)]
    found = least_cost(FLEET, PORTFOLIO, alone)
    assert found.total_usd == pytest.approx(0.36 * 40 / 3_600_000)
    assert (FLEET[found.group[0]].name, found.device_ms[0]) == ("cpu", 40.0)
    four = sorted_queries(SimulatedQuery(0, "t", 0.0, 100.0, 0.85) for _ in range(4))
    assert least_cost(FLEET, PORTFOLIO, four).total_usd == pytest.approx(3.6 * 50 / 3_600_000)
    mixed = sorted_queries([*alone, SimulatedQuery(0, "t", 5000.0, 1.0, 0.6), SimulatedQuery(0, "t", 9000.0, 50, 0.8)])
    found = least_cost(FLEET, PORTFOLIO, mixed)
    assert found.usd == pytest.approx(np.array([0.36 * 40, 0.0, 3.6 * 20]) / 3_600_000)
    missing = least_cost(FLEET, PORTFOLIO, mixed, missed=2 / 3)
    assert missing.usd == pytest.approx(np.array([0.36 * 40, 0.0, 0.0]) / 3_600_000), "the costliest is given up"
    nowhere = least_cost(FLEET, PORTFOLIO, [SimulatedQuery(0, "unknown", 0.0)], missed=0.5)
    assert (nowhere.total_usd, nowhere.group[0]) == (0.0, -1)


def test_ours_rents_what_its_plan_says_and_lets_it_go(tmp_path: Path) -> None:
    left = []

    class Watching:
        def __init__(self) -> None:
            self.ours = Ours()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.ours, name)

        def lost(self, device: Device, queries: Sequence[SimulatedQuery]) -> None:
            if device.name in self.ours.workers:
                left.append(self.ours.workers[device.name].queue.drained and not queries)
            self.ours.lost(device, queries)

    done = played(Watching(), asked([5.0, 150.0, *[3.0] * 4]), tmp_path)
    first, many, last = (sum(workers_at(done, at_s).values()) for at_s in (55.0, 115.0, 355.0))
    assert many > first
    assert last < many
    assert left
    assert all(left), "nothing that was sent to who leaves is lost"
    found = report(done).total
    assert found.in_time > 0.95
    assert found.late < 0.01


def test_ours_lives_on_when_its_workers_are_lost(tmp_path: Path) -> None:
    queries = asked([20.0], 60.0)
    faults = [Fault(20_000.0, "lost", "gpu-0"), Fault(21_000.0, "lost", "cpu-0"), Fault(22_000.0, "lost", "cpu-1")]
    done = play(Scenario(FLEET, PORTFOLIO, queries, 1, faults), Ours())
    assert judged(done, None, tmp_path) == []
    after = [query for query in done.queries if query.arrival_ms > 40_000.0]
    assert sum(query.outcome == "in_time" for query in after) > 0.9 * len(after)


def test_the_crew_by_hand() -> None:
    rentals = [Rental("gpu-0", "gpu", 0.0, 0.0, 50.0), Rental("gpu-1", "gpu", 20.0, 5020.0)]
    queries = sorted_queries([SimulatedQuery(0, "t", 0.0), SimulatedQuery(0, "t", 100.0)])
    for query in queries:
        query.outcome = "expired"
    done = Played("x", Scenario(FLEET, PORTFOLIO, queries), queries, [], 0.0, 0.0, rentals)
    assert report(done).crew == (pytest.approx(0.5 + 0.8), 2, 2)
    fixed = (GroupSpec("gpu", 3, 1000.0, 3.6),)
    assert report(Played("x", Scenario(fixed, PORTFOLIO, queries), queries, [], 0.0, 0.0)).crew is None
