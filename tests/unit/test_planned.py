"""What `modelless plan` shows: the plan beside what there is."""

from __future__ import annotations

import json
from typing import Any

from modelless.commands.plan import _picture, _plain, _render
from modelless.config import Config, GroupConfig
from modelless.messages import Assignment, BatchTime, Demanded, GroupTarget, Member, Plan, Profile
from modelless.overview import Overview
from modelless.planned import group_views, prices, worker_views

A, B, C = "m:1/a", "m:1/b", "m:1/c"


def worker(name: str, *variants: str, state: Any = "ready", **statistics: float) -> Member:
    return Member("worker", name, "1", state, group=name.rpartition("-")[0], variants=variants, statistics=statistics)


PLAN = Plan(
    7,
    "broker-0",
    0.0,
    {"gpu-0": Assignment((A, B), measure=(C,)), "gpu-1": Assignment((A,)), "gpu-9": Assignment((A,))},
    ("m:1/c is not loaded on gpu: m:1/a is better",),
    {"gpu": GroupTarget(1, ("gpu-1",), "50 rows a second need 1")},
)
MEMBERS = (
    worker("gpu-0", A, C, price_per_hour=2.0),
    worker("gpu-1", A, state="draining", price_per_hour=2.0),
    worker("cpu-0"),
    Member("provisioner", "local", "1", "ready", errors={"spot": "no capacity"}),
    Member("broker", "b0", "1", "ready", demand=(Demanded("t", 50.0, 0.9, "cost", False, 3.0),)),
    Member("broker", "b1", "1", "ready", demand=(Demanded("t", 50.0, 0.9, "cost", False, 4.0),)),
)


def test_each_worker_is_shown_with_what_it_has_and_what_it_is_still_to_do() -> None:
    views = {view.name: view for view in worker_views(MEMBERS, (), PLAN)}
    assert list(views) == ["gpu-9", "cpu-0", "gpu-0", "gpu-1"]
    zero = views["gpu-0"]
    assert (zero.loaded, zero.to_load, zero.to_unload, zero.to_measure) == ((A,), (B,), (C,), (C,))
    assert (zero.leaving, views["gpu-1"].leaving, views["gpu-1"].state) == (False, True, "draining")
    assert (views["gpu-9"].state, views["gpu-9"].to_load) == ("absent", (A,))


def test_each_group_is_shown_with_what_it_costs_now_and_as_planned() -> None:
    views = {view.name: view for view in group_views(MEMBERS, {"gpu": 2.0, "cpu": 0.5}, PLAN)}
    gpu, cpu, spot = views["gpu"], views["cpu"], views["spot"]
    assert (gpu.workers, gpu.ready, gpu.target, gpu.leaving) == (2, 1, 1, ("gpu-1",))
    assert (gpu.usd_per_hour, gpu.usd_per_hour_planned) == (4.0, 2.0)
    assert (cpu.target, cpu.usd_per_hour, cpu.usd_per_hour_planned) == (None, 0.5, 0.5)
    assert (spot.workers, spot.error) == (0, "no capacity")


def test_a_price_is_what_workers_say_then_what_is_configured_then_what_was_measured() -> None:
    batches = (BatchTime(1, 1.0, 1.0),)
    old, new = (Profile(A, g, "ready", "d", batches=batches, price_per_hour=9.0, measured_ms=1.0) for g in ("gpu", "x"))
    assert prices(MEMBERS, (old, new), {"gpu": 3.0, "cpu": 0.5}) == {"gpu": 2.0, "cpu": 0.5, "x": 9.0}


def overview(plan: Plan | None) -> Overview:
    return Overview(MEMBERS, (), (), {}, {}, (), (), {}, (), (), plan)


def test_the_picture_has_the_demand_of_all_brokers_and_fits_into_json() -> None:
    picture = _picture(Config(groups=(GroupConfig(name="cpu", price_per_hour=0.5),)), overview(PLAN))
    assert picture is not None
    plain = json.loads(json.dumps(_plain(picture)))
    assert plain["demand"][0]["rows_per_second"] == 7.0
    assert (plain["usd_per_hour"], plain["usd_per_hour_planned"]) == (4.5, 2.5)


def test_what_is_shown_says_why() -> None:
    from rich.console import Console

    console = Console(width=200)
    with console.capture() as shown:
        console.print(_render(_picture(Config(), overview(PLAN))))
        console.print(_render(_picture(Config(), overview(None))))
    for words in ("50 rows a second need 1", "m:1/a is better", "spot: no capacity", "no plan was written yet"):
        assert words in shown.get()
