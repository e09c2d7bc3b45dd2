"""Rivals behave as their sources report: the direction always, the size roughly, on a profile of the form a + c * b.

What was seen is in each test, and where it is not what a source reports, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pytest

from simulator.facts import GroupSpec, Placement, Portfolio, SimulatedQuery, VariantProfile, sorted_queries
from simulator.rivals import RIVALS
from simulator.rivals.base import Line, Rival, most_accurate_in_time, spread
from simulator.rivals.batching import Clipper, Clockwork, Nexus, ProteusBatching, Symphony
from simulator.rivals.fixed import BestTuned, Eager, FixedAccurate, FixedBatch, FixedCheapest, NoBatching, tune
from simulator.rivals.infaas import Infaas
from simulator.rivals.proteus import Proteus, solve
from simulator.world import Fault, Policy, World

SIZES = (1, 2, 4, 8, 16, 32)
FAMILY = ((2.0, 0.25, 0.60), (4.0, 0.5, 0.68), (6.0, 1.0, 0.74), (10.0, 2.0, 0.78), (16.0, 4.0, 0.81))
"""Base and slope in ms, accuracy."""


def profile(
    base_ms: float = 5.0,
    slope_ms: float = 1.0,
    *,
    variant: str = "v",
    task: str = "t",
    group: str = "gpu",
    accuracy: float = 0.8,
    load_ms: float = 1000.0,
    memory_mb: float = 400.0,
    sizes: tuple[int, ...] = SIZES,
) -> VariantProfile:
    times = tuple(base_ms + slope_ms * size for size in sizes)
    return VariantProfile(task, "m", variant, group, accuracy, load_ms, memory_mb, sizes, times, times)


def family(task: str = "t", *, slower: float = 1.0, **more: object) -> list[VariantProfile]:
    """Five variants, from fast to accurate."""
    return [
        profile(base * slower, slope * slower, variant=f"{task}-{index}", task=task, accuracy=accuracy, **more)  # type: ignore[arg-type]
        for index, (base, slope, accuracy) in enumerate(FAMILY)
    ]


def arrivals(
    kind: str, rate_qps: float, number: int, *, seed: int = 1, latency_ms: float = 100.0, task: str = "t"
) -> list[SimulatedQuery]:
    random, gap_ms = np.random.default_rng(seed), 1000.0 / rate_qps
    gaps = {
        "uniform": lambda: np.full(number, gap_ms),
        "poisson": lambda: random.exponential(gap_ms, number),
        "gamma": lambda: random.gamma(0.05, gap_ms / 0.05, number),
    }[kind]()
    return [SimulatedQuery(0, task, float(at_ms), latency_ms) for at_ms in np.cumsum(gaps)]


def rising(rates_qps: Sequence[float], step_ms: float = 10_000.0, **more: object) -> list[SimulatedQuery]:
    """Poisson arrivals at one rate after another."""
    random, found = np.random.default_rng(1), []
    for index, rate_qps in enumerate(rates_qps):
        number = random.poisson(rate_qps * step_ms / 1000.0)
        times = random.uniform(index * step_ms, (index + 1) * step_ms, number)
        found += [SimulatedQuery(0, "t", float(at_ms), 100.0, **more) for at_ms in times]  # type: ignore[arg-type]
    return found


def play(
    policy: Policy,
    queries: Iterable[SimulatedQuery],
    profiles: Sequence[VariantProfile] | None = None,
    *,
    workers: int = 1,
    memory_mb: float = 1000.0,
    loaded: bool = True,
    **more: object,
) -> tuple[list[SimulatedQuery], World]:
    """On ``workers`` devices that have all variants from the beginning, or nothing."""
    profiles = profiles or [profile()]
    fleet = (GroupSpec("gpu", workers, memory_mb, 3.6),)
    placement: Placement | None = None
    if loaded:
        placement = {name: [each.variant for each in profiles] for name in fleet[0].worker_names}
    asked = sorted_queries(queries)
    world = World(fleet, Portfolio(tuple(profiles)), asked, placement=placement, **more)  # type: ignore[arg-type]
    world.play(policy)
    return asked, world


def missed(queries: Sequence[SimulatedQuery]) -> float:
    return sum(query.outcome != "in_time" for query in queries) / len(queries)


def goodness(queries: Sequence[SimulatedQuery]) -> float:
    return sum(query.accuracy for query in queries if query.outcome == "in_time") / len(queries)


def goodput_qps(make: Callable[[], Policy], highest_qps: float, *, workers: int, latency_ms: float) -> float:
    """The highest Poisson rate with at most 1 % missed."""
    low, high = 0.0, highest_qps
    for _ in range(7):
        rate_qps = (low + high) / 2
        asked, _ = play(make(), arrivals("poisson", rate_qps, 4000, latency_ms=latency_ms), workers=workers)
        low, high = (rate_qps, high) if missed(asked) <= 0.01 else (low, rate_qps)
    return low


# --- what they share ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RIVALS)
def test_every_rival_keeps_the_contract_through_faults(name: str) -> None:
    """One outcome each, no accuracy below what was asked for, whatever is lost, late or impossible."""
    random = np.random.default_rng(5)
    profiles = [
        *family("a"),
        *family("b"),
        *family("a", slower=4.0, group="cpu"),
        *family("b", slower=4.0, group="cpu"),
    ]
    fleet = (GroupSpec("gpu", 2, 1000.0, 3.6), GroupSpec("cpu", 2, 500.0, 1.0))
    portfolio = Portfolio(tuple(profiles))
    asked = sorted_queries(
        SimulatedQuery(
            0,
            ("a", "b", "unknown")[min(2, int(random.integers(0, 40)) // 19)],
            float(random.uniform(0, 40_000)),
            float(random.choice([5.0, 50.0, 100.0, 300.0, np.inf], p=[0.05, 0.2, 0.5, 0.2, 0.05])),
            None if random.random() < 0.3 else float(random.choice([0.0, 0.65, 0.78, 0.9])),
            random.choice(["reject", "late", "degrade"]),
        )
        for _ in range(4000)
    )
    faults = [
        Fault(5000.0, "lost", "gpu-0"),
        Fault(9000.0, "back", "gpu-0"),
        Fault(12_000.0, "slow", "gpu-1", 3.0),
        *(Fault(20_000.0, "lost", worker) for worker in ("gpu-0", "gpu-1", "cpu-0", "cpu-1")),
        *(Fault(21_000.0, "back", worker) for worker in ("gpu-0", "gpu-1", "cpu-0", "cpu-1")),
    ]
    world = World(fleet, portfolio, asked, faults=faults, reply_ms=1.0, timer_late_ms=2.0)
    world.play(RIVALS[name]())
    assert all(query.outcome is not None for query in asked)
    ran = [query for query in asked if query.batch]
    assert sum(query.outcome == "in_time" for query in ran) > 0.1 * len(asked)
    assert max(query.arrival_ms for query in ran) > 35_000.0, "works again after everything was lost"
    for query in ran:
        assert query.accuracy >= portfolio.floor(query) or query.on_miss == "degrade"
    assert all(query.outcome == "refused" for query in asked if query.task == "unknown")


@pytest.mark.parametrize("name", RIVALS)
def test_what_was_lost_with_a_worker_is_run_elsewhere_or_when_it_is_back(name: str) -> None:
    """Device 0 is lost in the middle of every batch that it could run; later all are lost, and come back empty."""
    queries = [SimulatedQuery(0, "t", 10.0 * index, 9000.0, 0.0) for index in range(20)]
    faults = [Fault(8003.0 if name in ("symphony", "proteus", "proteus-batching") else 3.0, "lost", "gpu-0")]
    asked, _ = play(RIVALS[name](), queries, workers=2, faults=faults)
    assert [query.outcome for query in asked] == ["in_time"] * 20
    faults = [Fault(3.0, "lost", "gpu-0"), Fault(4.0, "lost", "gpu-1"), Fault(500.0, "back", "gpu-1")]
    later = [SimulatedQuery(0, "t", 2000.0 + 10.0 * index, 9000.0, 0.0) for index in range(20)]
    asked, world = play(RIVALS[name](), later, workers=2, faults=faults)
    assert {query.worker for query in asked if query.batch} == {"gpu-1"}
    assert sum(query.outcome == "in_time" for query in asked) >= 1
    assert [load.worker for load in world.loads] == ["gpu-1"]


def test_a_placement_and_shares_can_be_given() -> None:
    profiles = family(memory_mb=10.0)
    given = {"gpu-0": ["t-0", "t-3"], "gpu-1": ["t-3"]}
    shares = {"t": {("t-0", "gpu"): 1.0, ("t-3", "gpu"): 3.0}}
    queries = [SimulatedQuery(0, "t", 2000.0 + 20.0 * index, 100.0, 0.0) for index in range(400)]
    asked, world = play(Nexus(given, shares), queries, profiles, workers=2, loaded=False)
    assert {name: device.loaded for name, device in world.devices.items()} == {k: set(v) for k, v in given.items()}
    assert sum(query.variant == "t-0" for query in asked) == 100
    assert sum(query.variant == "t-3" for query in asked) == 300


def test_the_placement_by_default() -> None:
    """The most accurate whose lat(1) fits twice; tasks share devices where memory does not suffice for all."""
    profiles = [*family("a"), *family("b"), *family("c")]
    queries = [SimulatedQuery(0, task, 1.0, 30.0) for task in "abc"]
    world = World((GroupSpec("gpu", 3, 800.0, 1.0),), Portfolio(tuple(profiles)), sorted_queries(queries))
    placed = spread(world, most_accurate_in_time)
    assert placed == {"gpu-0": ["a-3", "b-3"], "gpu-1": ["b-3", "c-3"], "gpu-2": ["c-3", "a-3"]}


def test_a_line_is_in_order_and_lets_go_from_its_middle() -> None:
    line = Line(profile())
    queries = [SimulatedQuery(index, "t", 0.0, 100.0 - index % 7) for index in range(3000)]
    for query in queries:
        line.add(query)
    ordered = sorted(queries, key=lambda query: (query.deadline_ms, query.index))
    taken = line.take(1500)
    assert line.first_due(ordered[1600].deadline_ms) == sum(
        query.deadline_ms < ordered[1600].deadline_ms for query in ordered[1500:]
    )
    taken += line.take_from(10, 20)
    taken += line.take(3000)
    assert taken == ordered[:1500] + ordered[1510:1530] + ordered[1500:1510] + ordered[1530:]
    assert not line


# --- fixed choices ------------------------------------------------------------------------------------------------


def test_a_fixed_batch_leaves_when_it_is_full_or_old() -> None:
    queries = [SimulatedQuery(0, "t", at_ms, 100.0) for at_ms in (0.0, 1.0, 2.0, 50.0, 51.0)]
    asked, _ = play(FixedBatch(3, 10.0), queries)
    assert [(query.start_ms, query.batch) for query in asked] == [(2.0, 3)] * 3 + [(60.0, 2)] * 2


def test_preferred_sizes_leave_at_once_and_the_rest_after_the_delay() -> None:
    queries = [SimulatedQuery(0, "t", at_ms, 100.0) for at_ms in (0.0, 1.0, 40.0)]
    asked, _ = play(FixedBatch(8, 10.0, preferred=(2,)), queries)
    assert [(query.start_ms, query.batch) for query in asked] == [(1.0, 2)] * 2 + [(50.0, 1)]


def test_the_best_tuned_is_as_good_as_any_fixed_size_and_time() -> None:
    queries = arrivals("poisson", 500.0, 3000)
    best, _ = play(BestTuned(), queries)
    for size in SIZES:
        for time_ms in (0.0, 10.0, 50.0):
            other, _ = play(FixedBatch(size, time_ms), arrivals("poisson", 500.0, 3000))
            assert goodness(best) >= goodness(other) - 1e-9
    one, _ = play(NoBatching(), arrivals("poisson", 500.0, 3000))
    assert missed(best) < 0.01 and missed(one) > 0.9


def test_tuning_searches_the_arrivals_that_it_is_given() -> None:
    fleet, portfolio = (GroupSpec("gpu", 1, 1000.0, 3.6),), Portfolio((profile(),))
    few = tune(FixedBatch, fleet, portfolio, arrivals("uniform", 20.0, 500, latency_ms=7.0), placement={"gpu-0": ["v"]})
    many = tune(FixedBatch, fleet, portfolio, arrivals("uniform", 700.0, 2000), placement={"gpu-0": ["v"]})
    assert few.size == 1 or few.time_ms <= 1.0
    assert many.size >= 16
    assert [few.goodness, many.goodness] == pytest.approx([0.8, 0.8])


def test_fixed_variants_are_the_extremes_that_the_floor_allows() -> None:
    profiles = family(memory_mb=10.0)
    free = [SimulatedQuery(0, "t", 3000.0 + index, 100.0, 0.0) for index in range(10)]
    asked, _ = play(FixedAccurate(), free, profiles, loaded=False)
    assert {query.variant for query in asked} == {"t-4"}
    free = [SimulatedQuery(0, "t", 3000.0 + index, 100.0, 0.0) for index in range(10)]
    asked, _ = play(FixedCheapest(), free, profiles, loaded=False)
    assert {query.variant for query in asked} == {"t-0"}
    bound = [SimulatedQuery(0, "t", 3000.0 + index, 100.0, 0.7) for index in range(10)]
    asked, _ = play(FixedCheapest(), bound, profiles, loaded=False)
    assert {query.variant for query in asked} == {"t-2"}


# --- batching -----------------------------------------------------------------------------------------------------


def test_clipper_converges_to_the_largest_batch_within_the_objective() -> None:
    """Clipper: AIMD stays within 10 % of the batch that takes as long as the objective, and seldom above."""
    small = profile(5.0, 1.0, sizes=tuple(range(1, 65)))
    policy, sizes = Clipper(), []
    arrived = policy.arrived

    def watched(query: SimulatedQuery) -> None:
        arrived(query)
        sizes.append(policy.size.get(("gpu-0", "v"), 1.0))

    policy.arrived = watched  # type: ignore[method-assign]
    asked, _ = play(policy, arrivals("poisson", 1500.0, 20_000, latency_ms=50.0), [small])
    late = np.array([int(size) > 45 for size in sizes[5000:]])  # lat(45) = 50 ms
    assert 40.0 < np.mean(sizes[5000:]) < 46.0
    assert late.mean() < 0.35
    assert max(query.batch for query in asked) <= 47


@pytest.mark.parametrize("kind", ["poisson", "gamma"])
def test_aimd_misses_several_times_more_than_waiting_for_deadlines(kind: str) -> None:
    """Proteus, on Poisson and Gamma (0.05): AIMD 3.8 and 4 times, early drop 2 and 3 times the violations.

    Seen here, on 4 devices, AIMD: Poisson at 1.05 times their capacity 4.7 times, at 1.2 times 1.9; Gamma at 0.7 of it
    5.8 times, at 0.9 2.9; more the less there is to do. Early drop is not reproduced: 1.0 to 1.4 times as its own
    source has it, since with exact profiles both drop the same heads. The comparison's early drop counts the
    head's deadline anew from the end of each batch (``clock + first_request_deadline``), which loses queries.
    """
    load = {"poisson": 1.05, "gamma": 0.8}[kind]
    one = [profile(20.0, 2.0)]
    capacity_qps = 4 * 1000.0 * 8 / one[0].lat_ms(8)
    miss = {
        make.__name__: missed(play(make(), arrivals(kind, load * capacity_qps, 20_000), one, workers=4)[0])
        for make in (ProteusBatching, Nexus, Clipper)
    }
    assert 3.0 * miss["ProteusBatching"] < miss["Clipper"] < 6.0 * miss["ProteusBatching"]
    assert miss["Nexus"] == pytest.approx(miss["ProteusBatching"], rel=0.5)


def test_on_uniform_arrivals_all_batching_is_equal() -> None:
    """Proteus. AIMD too, but for the 1.5 % of its probes above the objective."""
    for make in (ProteusBatching, Nexus, Symphony, Clockwork, Clipper):
        asked, _ = play(make(), arrivals("uniform", 0.8 * 864.0, 10_000))
        assert missed(asked) < 0.03, make.__name__


def test_early_drop_serves_more_than_lazy_drop() -> None:
    """Nexus: lazy drop (Clipper) loses a multiple; early drop has up to 25 % more goodput.

    Seen here: 38 % on one device (851 and 619 queries per second at 1 % missed).
    """
    early = goodput_qps(Nexus, 900.0, workers=1, latency_ms=100.0)
    lazy = goodput_qps(Clipper, 900.0, workers=1, latency_ms=100.0)
    assert 1.1 * lazy < early < 1.6 * lazy


def test_early_drop_keeps_batches_large_in_overload() -> None:
    asked, _ = play(Nexus(), arrivals("poisson", 1300.0, 10_000))
    assert 0.3 < missed(asked) < 0.45  # 864 of 1300 can be served
    assert np.mean([query.batch for query in asked if query.batch]) > 28
    assert not any(query.outcome == "late" for query in asked)


@pytest.mark.parametrize("drop", ["timeout", "window"])
def test_deferred_batching_beats_eager_batching_in_goodput(drop: str) -> None:
    """Symphony: more goodput than eager schedulers, most with short latencies on several devices.

    Seen here, 8 devices, 25 ms, one model: 1.5 and 1.6 times that of eager batching.
    """
    deferred = goodput_qps(lambda: Symphony(drop=drop), 8000.0, workers=8, latency_ms=25.0)  # type: ignore[arg-type]
    eager = goodput_qps(Nexus, 8000.0, workers=8, latency_ms=25.0)
    assert 1.3 * eager < deferred < 2.0 * eager


def test_deferred_batches_leave_when_the_window_opens() -> None:
    """One query: at ``D - lat(2)``. Two: at ``D - lat(4)``, the next profiled size. A full batch at once."""
    asked, _ = play(Symphony(), [SimulatedQuery(0, "t", 0.0, 100.0)])
    assert asked[0].start_ms == pytest.approx(100.0 - 7.0)
    asked, _ = play(Symphony(), [SimulatedQuery(0, "t", at_ms, 100.0) for at_ms in (0.0, 10.0)])
    assert [query.start_ms for query in asked] == pytest.approx([100.0 - 9.0] * 2)
    asked, _ = play(Symphony(), [SimulatedQuery(0, "t", float(at_ms), 100.0) for at_ms in range(32)])
    assert [query.start_ms for query in asked] == [31.0] * 32


def test_deferred_batching_uses_only_as_many_devices_as_the_load_needs() -> None:
    """Symphony: the lowest numbers first, so that devices can be given back."""
    _, world = play(Symphony(), arrivals("poisson", 1000.0, 10_000), workers=8)
    busy = [device.busy_ms / world.now_ms for device in world.devices.values()]
    assert busy[0] > 0.6 and sum(busy[4:]) < 0.05
    _, world = play(Eager(), arrivals("poisson", 1000.0, 10_000), workers=8)
    assert sum(device.busy_ms / world.now_ms > 0.2 for device in world.devices.values()) >= 5


@pytest.mark.parametrize("kind", ["poisson", "gamma"])
def test_clockwork_never_runs_what_cannot_finish(kind: str) -> None:
    """Clockwork: what is admitted is in time; exact profiles, so 100 %."""
    asked, _ = play(Clockwork(), arrivals(kind, 1500.0, 10_000, latency_ms=60.0), workers=1)
    assert {query.outcome for query in asked} == {"in_time", "refused"}
    assert 0.3 < missed(asked) < 0.8
    eager, _ = play(Eager(), arrivals(kind, 1500.0, 10_000, latency_ms=60.0), workers=1)
    assert missed(eager) > missed(asked) and any(query.outcome == "late" for query in eager)


def test_clockwork_refuses_on_arrival_what_no_device_can_finish() -> None:
    refused_ms: list[float] = []
    queries = [SimulatedQuery(0, "t", 0.0, 100.0) for _ in range(32)] + [SimulatedQuery(0, "t", 5.0, 30.0)]
    policy = Clockwork()
    arrived = policy.arrived

    def watched(query: SimulatedQuery) -> None:
        arrived(query)
        if query.outcome == "refused":
            refused_ms.append(policy.world.now_ms)

    policy.arrived = watched  # type: ignore[method-assign]
    blocker = profile(5.0, 1.0, sizes=(32,))
    play(policy, queries, [blocker])
    assert refused_ms == [5.0]


def test_clockwork_admits_by_the_tail() -> None:
    """What the 99th percentile says cannot finish is refused, although the median says it can."""
    tailed = VariantProfile("t", "m", "v", "gpu", 0.8, 0.0, 1.0, (1, 8), (10.0, 20.0), (30.0, 40.0))
    asked, _ = play(Clockwork(), [SimulatedQuery(0, "t", 0.0, 29.0)], [tailed])
    assert asked[0].outcome == "refused"
    asked, _ = play(Clockwork(), [SimulatedQuery(0, "t", 0.0, 31.0)], [tailed])
    assert asked[0].outcome in ("in_time", "late")


# --- those that place -----------------------------------------------------------------------------------------------


def test_proteus_solves_for_the_highest_accuracy_that_serves_all() -> None:
    """Two devices: 100 qps go to the accurate variant alone, 1100 need a fast one, 1200 two."""
    fast, good = profile(2.0, 0.25, variant="fast", accuracy=0.6), profile(16.0, 4.0, variant="good", accuracy=0.8)
    variants = {("t", 0): [fast, good], ("t", 1): [good]}
    capacity_qps = {fast.key: 1000.0, good.key: 150.0}
    easy = solve({("t", 0): 100.0}, variants, capacity_qps, {"gpu": 2})
    assert easy is not None and easy.devices == {good.key: 2}
    hard = solve({("t", 0): 1100.0}, variants, capacity_qps, {"gpu": 2})
    assert hard is not None and hard.devices == {fast.key: 1, good.key: 1}
    assert hard.shares[("t", 0)][good.key] == pytest.approx(150.0, rel=0.01)
    faster = solve({("t", 0): 1200.0}, variants, capacity_qps, {"gpu": 2})
    assert faster is not None and faster.devices == {fast.key: 2}
    assert solve({("t", 0): 2001.0}, variants, capacity_qps, {"gpu": 2}) is None
    assert solve({("t", 1): 350.0}, variants, capacity_qps, {"gpu": 2}) is None
    both = solve({("t", 0): 900.0, ("t", 1): 100.0}, variants, capacity_qps, {"gpu": 2})
    assert both is not None and both.shares[("t", 1)] == {good.key: pytest.approx(100.0)}


def test_proteus_trades_accuracy_for_throughput_as_load_rises() -> None:
    """Proteus: 10 times fewer violations than without accuracy scaling, at less accuracy.

    Seen here: 10 % missed (while variants are loaded, first and after a burst) and 77 % with the most accurate fixed.
    """
    rates_qps = (100.0, 200.0, 400.0, 800.0, 1600.0)
    asked, _ = play(Proteus(), rising(rates_qps, on_miss="degrade"), family(), workers=4, loaded=False)
    fixed, _ = play(FixedAccurate(), rising(rates_qps, on_miss="degrade"), family(), workers=4, loaded=False)
    assert missed(asked) < 0.15 and missed(fixed) > 4 * missed(asked)
    served = [
        [q.accuracy for q in asked if q.batch and start <= q.arrival_ms < start + 10_000] for start in (0, 40_000)
    ]
    assert np.mean(served[0]) == pytest.approx(0.81)
    assert np.mean(served[1]) < 0.79
    assert goodness(asked) > 2 * goodness(fixed)


def test_infaas_misses_more_than_proteus_as_load_rises() -> None:
    """Proteus: greedy INFaaS has 4.3 times its violations. Seen here: 70 and 10 %, and 22 and 9 % where
    memory for only one variant per device makes INFaaS replace instead of adding."""
    rates_qps = (100.0, 200.0, 300.0, 400.0, 600.0, 800.0, 1200.0, 1600.0)
    for memory_mb, least in ((400.0, 4.0), (1000.0, 2.0)):
        miss = []
        for make in (Infaas, Proteus):
            profiles = family(memory_mb=memory_mb)
            fleet = (GroupSpec("gpu", 4, 1000.0, 3.6),)
            asked = sorted_queries(rising(rates_qps, on_miss="degrade"))
            placement = {name: ["t-4"] for name in fleet[0].worker_names}
            World(fleet, Portfolio(tuple(profiles)), asked, placement=placement).play(make())
            miss.append(missed(asked))
        assert least * miss[1] < miss[0]


def test_infaas_takes_the_running_variant_with_the_smallest_gap() -> None:
    """Of those in time at the largest b with ``2 * lat(b)`` in 60 ms, t-3 takes longest: 26 ms. If none runs: the one
    that is loaded and run soonest, t-0 with 10 ms, although there is room for all."""
    queries = [SimulatedQuery(0, "t", 100.0 * index, 60.0, 0.0) for index in range(20)]
    asked, _ = play(Infaas(), queries, family(memory_mb=10.0))
    assert {query.variant for query in asked} == {"t-3"}
    queries = [SimulatedQuery(0, "t", 100.0 * index, 60.0, 0.0) for index in range(20)]
    _, world = play(Infaas(), queries, family(memory_mb=10.0), loaded=False)
    assert [(load.variant, load.end_ms) for load in world.loads] == [("t-0", 1000.0)]


def test_infaas_adds_a_replica_when_the_rate_is_above_what_it_can_do_and_removes_it_later() -> None:
    queries = rising((100.0, 300.0, 20.0, 20.0, 20.0, 20.0), accuracy_min=0.81)
    _, world = play(Infaas(), queries, family(memory_mb=400.0), workers=3, loaded=False)
    assert {load.variant for load in world.loads} == {"t-4"}
    assert len(world.loads) == 3
    assert sum("t-4" in device.loaded for device in world.devices.values()) < 3


def test_rivals_have_their_names() -> None:
    assert {name: make().name for name, make in RIVALS.items()} == {name: name for name in RIVALS}
    assert isinstance(RIVALS["nexus"](), Rival)
