"""The number of workers follows the demand: up at once, down slowly, nothing ordered twice, nobody sent too early."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from broker.placement_model import Choice, Demand
from broker.scaler import BARRED_MS, ScaledGroup, ScaledWorker, Scaler, Scaling
from broker.sizing import Limits, Sizing, size
from modelless.messages import GroupTarget

TICK_MS = 500.0
START_MS = 4_000.0
V = "v"


def choice(variant: str = V, ms: float = 10.0, group: str = "g", task: str = "t", accuracy: float = 0.9) -> Choice:
    """A worker does 90 rows a second at the planned share of its time, one by one."""
    return Choice(variant, task, group, accuracy, (1,), (ms,), (ms,), 400.0, 0.0)


def scaling(least: int = 0, most: int = 20, price: float = 1.0, **more: object) -> Scaling:
    return Scaling(least, most, 1000.0, price, START_MS, **more)  # type: ignore[arg-type]


class Fleet:
    """Does what the scaler says: workers come after their start time, whoever is to go is gone at the next tick."""

    def __init__(self, choices: list[Choice] | None = None, scaler: Scaler | None = None, **groups: Scaling) -> None:
        self.choices = choices if choices is not None else [choice()]
        self.scaler = scaler or Scaler(60_000.0, 300_000.0)
        self.groups = groups or {"g": scaling()}
        self.fixed: dict[str, int] = {}
        self.unmeasured: dict[str, str] = {}
        self.workers: dict[str, dict[str, frozenset[str]]] = {name: {} for name in self.groups}
        self.starting: dict[str, list[float]] = {name: [] for name in self.groups}
        self.asked: list[Demand] = []
        self.targets: dict[str, GroupTarget] = {}
        self.comes = True
        self.now_ms = 0.0
        self.started = 0

    def ask(self, rows_per_s: float, task: str = "t", latency_ms: float = 1000.0, **more: object) -> None:
        self.asked = [each for each in self.asked if each.task != task]
        if rows_per_s:
            self.asked.append(Demand(task, latency_ms, 0.0, rows_per_s, **more))  # type: ignore[arg-type]

    def seen(self) -> list[ScaledGroup]:
        found = [
            ScaledGroup(
                name, of, [ScaledWorker(*each) for each in self.workers[name].items()], self.unmeasured.get(name, "")
            )
            for name, of in self.groups.items()
        ]
        for name, number in self.fixed.items():
            own = [ScaledWorker(f"{name}-{i}", frozenset({V})) for i in range(number)]
            found.append(ScaledGroup(name, Scaling(0, number, 1000.0, 1.0), own, is_fixed=True))
        return found

    def tick(self) -> None:
        for name, due in self.starting.items():
            for at_ms in [at_ms for at_ms in due if at_ms <= self.now_ms and self.comes]:
                due.remove(at_ms)
                self.workers[name][f"{name}-{self.started}"] = frozenset({V})
                self.started += 1
        seen = self.seen()
        self.scaler.decide(self.asked, self.choices, seen, self.now_ms)
        self.targets = self.scaler.targets(seen)
        for name, target in self.targets.items():
            for gone in target.leaving:
                self.workers[name].pop(gone, None)
            missing = target.workers - len(self.workers[name])
            self.starting[name] = self.starting[name][: max(0, missing)]
            self.starting[name] += [self.now_ms + START_MS] * (missing - len(self.starting[name]))
        self.now_ms += TICK_MS

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds * 1000 / TICK_MS)):
            self.tick()

    def run_in_bursts(self, times: int, calm_s: float) -> None:
        for _ in range(times):
            for rows_per_s, seconds in ((200.0, calm_s), (320.0, 10)):
                self.ask(rows_per_s)
                self.run(seconds)

    def wanted(self, group: str = "g") -> int:
        return self.targets[group].workers


# --- up --------------------------------------------------------------------------------------------------------------


def test_a_rise_is_answered_at_the_next_look() -> None:
    fleet = Fleet()
    fleet.ask(80.0)
    fleet.run(30)
    before = fleet.wanted()
    fleet.ask(4 * 80.0)
    fleet.tick()
    assert fleet.wanted() >= 4 > before


def test_what_is_on_its_way_is_not_ordered_again() -> None:
    fleet = Fleet()
    fleet.ask(80.0)
    fleet.run(30)
    there = len(fleet.workers["g"])
    fleet.ask(300.0)
    fleet.tick()
    first = fleet.wanted()
    assert first > there > 0
    for _ in range(round(START_MS / TICK_MS) - 1):
        fleet.groups["g"] = scaling(backlog_ms=50_000.0, oldest_ms=900.0)  # of course work waits meanwhile
        fleet.tick()
        assert fleet.wanted() == first
    assert len(fleet.workers["g"]) == there


def test_more_come_when_work_waits_though_the_rate_says_that_all_is_well() -> None:
    fleet = Fleet()
    fleet.ask(100.0)
    fleet.run(20)
    before = fleet.wanted()
    fleet.groups["g"] = scaling(backlog_ms=2_000.0 * before, oldest_ms=700.0)
    fleet.tick()
    assert fleet.wanted() > before
    assert "since queries wait" in fleet.targets["g"].reason


def test_work_that_waits_as_batches_do_orders_nobody() -> None:
    fleet = Fleet()
    fleet.ask(100.0)
    fleet.run(20)
    before = fleet.wanted()
    fleet.groups["g"] = scaling(backlog_ms=100.0 * before, oldest_ms=80.0)
    fleet.run(20)
    assert fleet.wanted() == before


def test_noise_orders_nobody() -> None:
    fleet = Fleet()
    for second in range(300):
        fleet.ask(400.0 + 12 * (-1) ** second)
        fleet.run(1)
        if second == 100:
            before = fleet.wanted()
        if second > 100:
            assert fleet.wanted() == before


def test_from_zero_at_once() -> None:
    fleet = Fleet()
    fleet.tick()
    assert fleet.wanted() == 0
    fleet.ask(0.2)
    fleet.tick()
    assert fleet.wanted() == 1


def test_what_others_serve_starts_nobody() -> None:
    fleet = Fleet([choice(), choice(group="fixed")])
    fleet.fixed = {"fixed": 1}
    fleet.ask(50.0)
    fleet.run(3)
    assert fleet.wanted() == 0
    fleet.ask(120.0)
    fleet.tick()
    assert fleet.wanted() >= 1


def test_something_that_is_not_measured_needs_one_worker_that_does_it() -> None:
    fleet = Fleet([])
    fleet.unmeasured = {"g": "m:1/onnx-fp32"}
    fleet.tick()
    assert fleet.wanted() == 1
    assert "measure m:1/onnx-fp32" in fleet.targets["g"].reason
    fleet.run(10)
    fleet.unmeasured = {}
    fleet.run(310)
    assert fleet.wanted() == 0


def test_no_more_than_the_most_and_it_says_so() -> None:
    fleet = Fleet(g=scaling(1, 3))
    fleet.ask(1000.0)
    fleet.tick()
    assert fleet.wanted() == 3
    assert "no more may be had" in fleet.targets["g"].reason


# --- down ------------------------------------------------------------------------------------------------------------


def test_less_must_be_needed_for_a_while_before_anybody_goes() -> None:
    fleet = Fleet()
    fleet.ask(400.0)
    fleet.run(70)
    most = fleet.wanted()
    fleet.ask(80.0)
    fleet.run(55)
    assert fleet.wanted() == most
    fleet.run(15)
    assert fleet.wanted() < most / 2
    assert len(fleet.workers["g"]) == fleet.wanted()


def test_one_more_peak_within_the_while_keeps_all() -> None:
    fleet = Fleet()
    for _ in range(8):
        fleet.ask(400.0)
        fleet.run(20)
        most = fleet.wanted()
        fleet.ask(80.0)
        fleet.run(35)
        assert fleet.wanted() == most


def test_bursts_that_are_soon_over_order_nobody_once_they_are_known() -> None:
    fleet = Fleet()
    orders = set()
    for number in range(8):
        for rows_per_s, seconds in ((200.0, 110), (320.0, 10)):
            fleet.ask(rows_per_s)
            for _ in range(seconds):
                fleet.run(1)
                orders |= {fleet.wanted()} if number > 3 else set()
    assert len(orders) == 1, "the same number, burst or not"
    assert 320 / 90 < orders.pop() <= 6, "which has room for them"


def test_a_rise_beyond_the_usual_bursts_is_answered_at_once() -> None:
    fleet = Fleet()
    fleet.run_in_bursts(6, 60)
    fleet.ask(800.0)
    fleet.tick()
    assert fleet.wanted() >= 800 / 90


def test_a_rise_within_the_usual_bursts_is_answered_when_it_lasts() -> None:
    fleet = Fleet()
    fleet.run_in_bursts(6, 110)
    fleet.run(110)
    fleet.ask(340.0)
    fleet.run(150)
    assert fleet.wanted() >= 5


def test_what_was_asked_for_before_the_first_look_is_known_at_it() -> None:
    scaler = Scaler(60_000.0, 300_000.0)
    fleet = Fleet(scaler=scaler)
    fleet.now_ms = 300_000.0
    for second in range(300):
        rows_per_s = 320.0 if second % 60 < 10 else 200.0
        scaler.remember([Demand("t", 1000.0, 0.0, rows_per_s)], [choice()], {"g": 1.0}, 1000.0 * second)
    fleet.ask(200.0)
    fleet.tick()
    assert fleet.wanted() > 320 / 90


def test_to_zero_only_when_nobody_has_asked_for_long() -> None:
    fleet = Fleet()
    fleet.ask(80.0)
    fleet.run(20)
    fleet.ask(0.0)
    fleet.run(290)
    assert fleet.wanted() == 1
    assert "not long ago" in fleet.targets["g"].reason
    fleet.run(30)
    assert fleet.wanted() == 0
    assert not fleet.workers["g"]


def test_never_below_the_least() -> None:
    fleet = Fleet(g=scaling(2))
    fleet.run(400)
    assert fleet.wanted() == 2


def test_a_new_leader_sends_nobody_away_before_it_knows_what_is_asked_for() -> None:
    fleet = Fleet()
    fleet.workers["g"] = {f"g-{i}": frozenset({V}) for i in range(3)}
    fleet.scaler.resume({"g": GroupTarget(4, ("g-2",), "because")})
    seen = fleet.seen()
    fleet.scaler.decide([], fleet.choices, [replace(seen[0], workers=())], 0.0)  # no worker is linked yet
    assert fleet.scaler.targets([replace(seen[0], workers=())])["g"].workers == 4
    fleet.run(50)
    assert fleet.wanted() == 4


# --- who -------------------------------------------------------------------------------------------------------------


def leaves(*workers: ScaledWorker, **given: object) -> GroupTarget:
    """One of them has to go."""
    scaler, group = Scaler(), ScaledGroup("g", scaling(), workers)
    scaler.resume({"g": GroupTarget(len(workers) - 1)})
    for second in range(3):
        scaler.decide([Demand("t", 1000.0, 0.0, 60.0 * (len(workers) - 1))], [choice()], [group], 1000.0 * second)
    return scaler.targets([group], **given)["g"]  # type: ignore[arg-type]


def test_whoever_alone_has_the_least_goes() -> None:
    alone = ScaledWorker("a", frozenset({"w"}))
    shared = ScaledWorker("b", frozenset({V, "u"}))
    other = ScaledWorker("c", frozenset({V, "u"}))
    found = leaves(alone, shared, other)
    assert found.workers == 2
    assert found.leaving in (("b",), ("c",))
    assert leaves(ScaledWorker("a", frozenset({V})), ScaledWorker("b", frozenset({V, "u"}))).leaving == ("a",)


def test_the_newest_goes_where_there_is_no_other_difference() -> None:
    scaler, old = Scaler(), ScaledWorker("z", frozenset({V}))
    scaler.resume({"g": GroupTarget(1)})
    asked = [Demand("t", 1000.0, 0.0, 50.0)]
    scaler.decide(asked, [choice()], [ScaledGroup("g", scaling(), [old])], 0.0)
    both = ScaledGroup("g", scaling(), [ScaledWorker("a", frozenset({V})), old])
    assert scaler.decide(asked, [choice()], [both], 1000.0) == {"a"}


def test_who_measures_goes_last() -> None:
    busy = ScaledWorker("a", frozenset(), measures=True)
    assert leaves(busy, ScaledWorker("b", frozenset({V, "u"}))).leaving == ("b",)


def test_nobody_goes_with_what_it_alone_has_and_somebody_uses() -> None:
    workers = ScaledWorker("a", frozenset({V, "named"})), ScaledWorker("b", frozenset({V, "w", "x"}))
    found = leaves(*workers, used={"named@g"})
    assert found == GroupTarget(2, (), found.reason)
    assert "a waits to go: it alone has named" in found.reason
    assert leaves(*workers, used={f"{V}@g"}).leaving == ("a",)


def test_what_another_variant_does_instead_keeps_nobody_once_that_is_loaded() -> None:
    workers = ScaledWorker("a", frozenset({"old"})), ScaledWorker("b", frozenset({V, "w"}))
    given = {"used": {"old@g"}, "by_task": {"old"}}
    assert leaves(*workers, **given, needed={"b": ["new"]}).leaving == ()
    assert leaves(*workers, **given, needed={"b": [V]}).leaving == ("a",)


def test_who_was_to_go_stays_when_it_is_needed_again() -> None:
    scaler = Scaler()
    group = ScaledGroup("g", scaling(), [ScaledWorker(n, frozenset({V, n})) for n in ("a", "b")])
    scaler.resume({"g": GroupTarget(1)})
    scaler.decide([Demand("t", 1000.0, 0.0, 50.0)], [choice()], [group], 0.0)
    assert scaler.targets([group], {"a@g", "b@g"})["g"].workers == 2  # it waits
    assert not scaler.decide([Demand("t", 1000.0, 0.0, 150.0)], [choice()], [group], 1000.0)


def test_who_was_told_to_go_is_not_counted_and_is_forgotten_when_gone() -> None:
    scaler = Scaler()
    scaler.resume({"g": GroupTarget(1, ("a",))})
    asked = [Demand("t", 1000.0, 0.0, 50.0)]
    there = [ScaledWorker("a", frozenset({V}), draining=True), ScaledWorker("b", frozenset({V}))]
    for group, leaving in ((ScaledGroup("g", scaling(), there), ("a",)), (ScaledGroup("g", scaling(), there[1:]), ())):
        scaler.decide(asked, [choice()], [group], 0.0)
        found = scaler.targets([group])["g"]
        assert (found.workers, found.leaving) == (1, leaving)


# --- what changes ----------------------------------------------------------------------------------------------------


def test_workers_that_vanish_are_replaced() -> None:
    fleet = Fleet()
    fleet.ask(300.0)
    fleet.run(20)
    number = fleet.wanted()
    fleet.workers["g"].pop(next(iter(fleet.workers["g"])))
    fleet.run(1)
    assert fleet.wanted() == number
    fleet.run(10)
    assert len(fleet.workers["g"]) == number


@pytest.mark.parametrize("says_why", [False, True])
def test_what_cannot_be_had_is_had_elsewhere(says_why: bool) -> None:
    fleet = Fleet([choice(), choice(group="h")], g=scaling(price=1.0), h=scaling(price=1.5))
    fleet.comes = False
    fleet.ask(160.0)
    fleet.tick()
    assert fleet.wanted("g") >= 2 and fleet.wanted("h") == 0
    if says_why:
        fleet.groups["g"] = scaling(failing="no such machine is left")
    fleet.run(16 if says_why else 25)
    assert fleet.wanted("h") >= 2
    if says_why:
        assert "no such machine is left" in fleet.targets["g"].reason
    fleet.comes = True
    fleet.groups["g"] = scaling()
    fleet.run(BARRED_MS / 1000 + 120)
    assert fleet.wanted("g") >= 2 and fleet.wanted("h") == 0  # cheaper again


def test_a_group_whose_price_changes_gives_way_once_the_other_is_there() -> None:
    fleet = Fleet([choice(), choice(group="h")], g=scaling(price=1.0), h=scaling(price=1.5))
    fleet.ask(300.0)
    fleet.run(70)
    number = fleet.wanted("g")
    assert fleet.wanted("h") == 0
    fleet.groups["g"] = scaling(price=5.0)
    fleet.tick()
    assert fleet.wanted("h") >= 4 and fleet.wanted("g") == number
    for _ in range(400):
        fleet.tick()
        assert len(fleet.workers["g"]) + len(fleet.workers["h"]) >= 4  # never without
    assert fleet.wanted("g") == 0


def test_what_waits_at_a_usual_peak_orders_nobody() -> None:
    fleet = Fleet()
    bursts = [(2000.0, 110), (3200.0, 3)]
    fleet.groups = {"g": scaling(most=200)}
    for _ in range(5):
        for rows_per_s, seconds in bursts:
            fleet.ask(rows_per_s)
            fleet.run(seconds)
    fleet.ask(2000.0)
    fleet.run(100)
    before = fleet.wanted()
    fleet.ask(3200.0)
    fleet.groups["g"] = scaling(most=200, backlog_ms=1_500.0 * before, oldest_ms=900.0)
    fleet.run(3)
    assert fleet.wanted() == before
    fleet.ask(2000.0)
    fleet.run(1)
    assert fleet.wanted() > before, "it should be over"


def test_nobody_is_ordered_while_those_who_are_there_serve() -> None:
    def wasteful(demands: Sequence[Demand], choices: Sequence[Choice], groups: Sequence[Limits], *args: Any) -> Sizing:
        found = size(demands, choices, groups, *args)
        more = {of.name: min(of.workers_max, found.workers[of.name] + 2) for of in groups}
        return replace(found, workers=more)

    fleet = Fleet(scaler=Scaler(60_000.0, 300_000.0, size=wasteful))
    fleet.ask(400.0)
    fleet.tick()
    ordered = fleet.wanted()
    for rows_per_s in (390.0, 400.0) * 20:
        fleet.ask(rows_per_s)
        fleet.run(5)
        assert fleet.wanted() <= ordered


def test_a_new_leader_that_knows_what_was_asked_for_keeps_nobody_else() -> None:
    fleet = Fleet([choice(), choice(group="h")], g=scaling(price=1.0), h=scaling(price=5.0))
    fleet.workers = {"g": {"g-0": frozenset({V})}, "h": {"h-0": frozenset({V})}}
    fleet.scaler.resume({"g": GroupTarget(1, (), "because"), "h": GroupTarget(1, (), "because")})
    for second in range(400):
        fleet.scaler.remember([Demand("t", 1000.0, 0.0, 40.0)], fleet.choices, {"g": 1.0, "h": 5.0}, 1000.0 * second)
    fleet.now_ms = 400_000.0
    fleet.ask(40.0)
    fleet.run(70)
    assert (fleet.wanted("g"), fleet.wanted("h")) == (1, 0)
