"""The rules of physics hold, and break those who break them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from simulator.facts import GroupSpec, Portfolio, SimulatedQuery, VariantProfile, sorted_queries
from simulator.world import Device, Fault, PolicyError, Running, World, seen_ms

FAST = VariantProfile("t", "m", "fast", "gpu", 0.7, 100.0, 400.0, (1, 4), (10.0, 20.0), (10.0, 20.0))
GOOD = VariantProfile("t", "m", "good", "gpu", 0.9, 50.0, 700.0, (1, 4), (40.0, 80.0), (40.0, 80.0))
FLEET = (GroupSpec("gpu", 2, 1000.0, 3.6),)


class Script:
    """Does what it is told, when it is told."""

    name = "script"

    def __init__(self, on_arrival: Callable[[World, SimulatedQuery], None] | None = None) -> None:
        self.on_arrival = on_arrival
        self.heard: list[tuple[float, str]] = []

    def start(self, world: World) -> None:
        self.world = world

    def arrived(self, query: SimulatedQuery) -> None:
        if self.on_arrival is not None:
            self.on_arrival(self.world, query)

    def ran(self, device: Device, batch: Running) -> None:
        self.heard.append((self.world.now_ms, f"ran {device.name}"))

    def loaded(self, device: Device, variant: str) -> None:
        self.heard.append((self.world.now_ms, f"loaded {variant}"))

    def lost(self, device: Device, queries: Sequence[SimulatedQuery]) -> None:
        self.heard.append((self.world.now_ms, f"lost {len(queries)}"))
        for query in queries:
            self.world.expire(query)

    def back(self, device: Device) -> None:
        self.heard.append((self.world.now_ms, f"back {device.name}"))


def world(queries: Sequence[SimulatedQuery] = (), *, placement: bool = True, **more: object) -> World:
    loaded = {"gpu-0": ["fast"], "gpu-1": ["fast"]} if placement else None
    return World(FLEET, Portfolio((FAST, GOOD)), queries, placement=loaded, **more)  # type: ignore[arg-type]


def queries(*arrivals_ms: float, latency_ms_max: float = 50.0) -> list[SimulatedQuery]:
    return sorted_queries(SimulatedQuery(0, "t", each, latency_ms_max) for each in arrivals_ms)


def run_at_once(on: World, query: SimulatedQuery) -> None:
    on.run(on.devices["gpu-0"], "fast", [query])


def test_a_batch_takes_the_time_of_the_next_larger_profiled_size() -> None:
    asked = queries(5.0, 6.0, 7.0)

    def together(on: World, query: SimulatedQuery) -> None:
        if query.index == 2:
            on.run(on.devices["gpu-1"], "fast", asked)

    played = world(asked)
    played.play(Script(together))
    assert [(q.start_ms, q.end_ms, q.batch, q.outcome) for q in asked] == [(7.0, 27.0, 3, "in_time")] * 3
    assert played.devices["gpu-1"].busy_ms == 20.0


def test_late_is_who_is_out_after_the_deadline() -> None:
    asked = queries(0.0, latency_ms_max=10.5)
    world(asked, reply_ms=1.0).play(Script(run_at_once))
    assert asked[0].outcome == "late"
    asked = queries(0.0, latency_ms_max=10.5)
    world(asked, reply_ms=0.5).play(Script(run_at_once))
    assert asked[0].outcome == "in_time"


def test_who_is_never_run_has_expired() -> None:
    asked = queries(1.0)
    world(asked).play(Script())
    assert asked[0].outcome == "expired"


@pytest.mark.parametrize(
    ("variant", "rows", "why"),
    [("good", 1, "not loaded"), ("nothing", 1, "not loaded"), ("fast", 5, "1 to 4 are profiled"), ("fast", 0, "1 to")],
)
def test_what_no_device_can_do_raises(variant: str, rows: int, why: str) -> None:
    asked = queries(*[0.0] * 5)
    played = world(asked)
    with pytest.raises(PolicyError, match=why):
        played.run(played.devices["gpu-0"], variant, asked[:rows])


def test_a_variant_runs_its_own_task_only() -> None:
    asked = sorted_queries([SimulatedQuery(0, "t", 0.0), SimulatedQuery(0, "other", 0.0)])
    played = world(asked)
    with pytest.raises(PolicyError, match="fast is of task t, query 1 of other"):
        played.run(played.devices["gpu-0"], "fast", asked)


def test_nobody_has_two_outcomes() -> None:
    def both(on: World, query: SimulatedQuery) -> None:
        if query.index == 0:
            run_at_once(on, query)
            on.refuse(query)

    with pytest.raises(PolicyError, match="query 0 ran, and has an outcome already: refused"):
        world(queries(0.0, 500.0)).play(Script(both))


def test_a_device_runs_one_batch_at_a_time() -> None:
    with pytest.raises(PolicyError, match="not idle"):
        world(queries(0.0, 1.0)).play(Script(run_at_once))


def test_memory_counts_what_is_being_loaded() -> None:
    played = world(placement=False)
    device = played.devices["gpu-0"]
    played.load(device, "good")
    with pytest.raises(PolicyError, match="does not fit"):
        played.load(device, "fast")


def test_loads_come_one_after_another_beside_what_runs() -> None:
    big = (GroupSpec("gpu", 1, 2000.0, 3.6),)
    asked = queries(0.0, 500.0)
    played = World(big, Portfolio((FAST, GOOD)), asked)

    def load(on: World, query: SimulatedQuery) -> None:
        on.load(on.devices["gpu-0"], "fast")
        on.load(on.devices["gpu-0"], "good")

    script = Script(load)
    played.play(script)
    assert script.heard == [(100.0, "loaded fast"), (150.0, "loaded good")]
    assert [(each.start_ms, each.end_ms) for each in played.loads] == [(0.0, 100.0), (100.0, 150.0)]


def test_what_is_lost_comes_back_empty_and_its_old_loads_are_void() -> None:
    asked = queries(0.0, 60.0, 300.0)
    faults = [Fault(50.0, "lost", "gpu-0"), Fault(55.0, "back", "gpu-0")]
    played = world(asked, placement=False, faults=faults)
    script = Script(lambda on, query: on.load(on.devices["gpu-0"], "fast"))
    played.play(script)
    assert script.heard == [(50.0, "lost 0"), (55.0, "back gpu-0"), (160.0, "loaded fast")]


def test_what_ran_on_a_lost_device_is_given_back() -> None:
    asked = queries(0.0)
    script = Script(run_at_once)
    world(asked, faults=[Fault(5.0, "lost", "gpu-0")]).play(script)
    assert script.heard == [(5.0, "lost 1")]
    assert asked[0].outcome == "expired"


def test_batches_with_a_tail_have_the_median_and_the_p99_of_the_profile() -> None:
    tailed = VariantProfile("t", "m", "tailed", "gpu", 0.9, 0.0, 1.0, (1,), (10.0,), (30.0,))
    asked = queries(*[1000.0 * index for index in range(4000)])
    played = World(FLEET, Portfolio((tailed,)), asked, placement={"gpu-0": ["tailed"]}, seed=3)
    played.play(Script(lambda on, query: on.run(on.devices["gpu-0"], "tailed", [query]) and None))
    times = np.array([query.end_ms - query.start_ms for query in asked])
    assert times.min() >= 10.0 - 1e-9
    assert np.median(times) == pytest.approx(10.0, rel=0.02)
    assert np.quantile(times, 0.99) == pytest.approx(30.0, rel=0.1)


def test_late_timers_are_late() -> None:
    played = world(queries(10_000.0), timer_late_ms=5.0)
    heard: list[float] = []

    class Timers(Script):
        def start(self, world: World) -> None:
            super().start(world)
            for _ in range(50):
                world.at(100.0, lambda: heard.append(world.now_ms))

    played.play(Timers())
    assert min(heard) >= 100.0
    assert 102.0 < max(heard) <= 105.0


# --- groups that scale ------------------------------------------------------------------------------------------------

SCALING = (GroupSpec("gpu", 1, 1000.0, 3.6, workers_min=1, workers_max=2, start_ms=30.0, bill_s_min=60.0),)


def scaling(asked: Sequence[SimulatedQuery], **more: object) -> World:
    return World(SCALING, Portfolio((FAST, GOOD)), asked, placement={"gpu-0": ["fast"]}, **more)  # type: ignore[arg-type]


def lives(played: World) -> list[tuple[str, float, float, float]]:
    return [(each.worker, each.start_ms, each.ready_ms, each.end_ms) for each in played.rentals]


def test_a_rented_worker_is_there_after_its_start_and_a_released_one_ends_what_runs() -> None:
    asked = queries(5.0, 40.0, 45.0, 200.0)

    def on_arrival(on: World, query: SimulatedQuery) -> None:
        if query.index == 0:
            assert on.rent("gpu") == "gpu-1"
            assert not on.devices["gpu-1"].idle
            run_at_once(on, query)
        elif query.index == 1:
            run_at_once(on, query)
            on.release("gpu-0")
        elif query.index == 2:
            assert not on.devices["gpu-0"].idle, "nothing new begins there"
            on.expire(query)
        else:
            assert on.rent("gpu") == "gpu-0", "a name that is free again"
            on.expire(query)

    script, played = Script(on_arrival), scaling(asked)
    played.play(script)
    assert script.heard == [(15.0, "ran gpu-0"), (35.0, "back gpu-1"), (50.0, "ran gpu-0"), (50.0, "lost 0")]
    inf = float("inf")
    assert lives(played) == [("gpu-0", 0.0, 0.0, 50.0), ("gpu-1", 5.0, 35.0, inf), ("gpu-0", 200.0, 230.0, inf)]
    assert played.devices["gpu-0"].life == 1, "another one of that name"


def test_a_worker_that_is_released_before_it_is_ready_never_comes() -> None:
    def on_arrival(on: World, query: SimulatedQuery) -> None:
        if query.index == 0:
            on.release(on.rent("gpu"))
        else:
            run_at_once(on, query)

    script, played = Script(on_arrival), scaling(queries(5.0, 100.0))
    played.play(script)
    assert script.heard == [(5.0, "lost 0"), (110.0, "ran gpu-0")]
    assert lives(played)[1] == ("gpu-1", 5.0, 35.0, 5.0)


def test_a_lost_worker_that_was_rented_is_rented_no_more() -> None:
    played = scaling(queries(0.0, 100.0), faults=[Fault(5.0, "lost", "gpu-0"), Fault(50.0, "lost", "gpu-1")])
    script = Script(lambda on, query: run_at_once(on, query) if query.index == 0 else on.expire(query))
    played.play(script)
    assert script.heard == [(5.0, "lost 1")]
    assert lives(played) == [("gpu-0", 0.0, 0.0, 5.0)]
    assert not played.devices


def test_groups_have_a_most_and_a_least() -> None:
    def more(on: World, query: SimulatedQuery) -> None:
        on.rent("gpu")
        assert on.room("gpu") == 0
        with pytest.raises(PolicyError, match="no more workers of gpu"):
            on.rent("gpu")
        on.release("gpu-1")
        with pytest.raises(PolicyError, match="no fewer than 1"):
            on.release("gpu-0")
        on.expire(query)

    scaling(queries(0.0)).play(Script(more))


def test_a_group_of_a_fixed_number_neither_rents_nor_releases() -> None:
    def try_both(on: World, query: SimulatedQuery) -> None:
        assert on.room("gpu") == 0
        with pytest.raises(PolicyError, match="no more workers"):
            on.rent("gpu")
        with pytest.raises(PolicyError, match="does not scale"):
            on.release("gpu-0")
        on.expire(query)

    world(queries(0.0)).play(Script(try_both))


def test_queries_are_seen_after_times_that_were_measured_and_in_the_order_of_their_log() -> None:
    asked = queries(*range(0, 3000, 3))
    seen = np.array(seen_ms(asked, [1.0, 2.0, 9.0], np.random.default_rng(1)))
    assert (np.diff(seen) >= 0).all()
    taken_ms = seen - [query.arrival_ms for query in asked]
    assert set(taken_ms.tolist()) == {1.0, 2.0, 3.0, 6.0, 9.0}, "one of them, or what was left of the last one's"
    assert seen_ms(asked[:2], 2.0, np.random.default_rng(1)) == [2.0, 5.0]
    later: list[float] = []
    world(asked, intake_ms=[4.0]).play(Script(lambda on, query: later.append(on.now_ms) or on.refuse(query)))  # type: ignore[func-returns-value]
    assert later == [query.arrival_ms + 4.0 for query in asked]
