"""Figures of a simulation, by hand; what is written; what a policy's time is."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path

import numpy as np
import pytest
from simulator_builders import Greedy, scenario

from simulator.arrivals import generate
from simulator.facts import INF, SimulatedQuery, sorted_queries
from simulator.report import Rents, Report, beside, report, write_json, write_loads, write_log
from simulator.scenario import Played, Scenario, play
from simulator.world import Fault, Load

HOUR_MS = 3_600_000.0


def answered(task: str, arrival_ms: float, latency_ms_max: float, *ran: object) -> SimulatedQuery:
    """``ran``: worker, variant, accuracy, start, end, batch, outcome; or the outcome alone."""
    query = SimulatedQuery(0, task, arrival_ms, latency_ms_max)
    if len(ran) == 1:
        (query.outcome,) = ran  # type: ignore[assignment]
    else:
        (query.worker, query.variant, query.accuracy, query.start_ms, query.end_ms, query.batch, query.outcome) = ran  # type: ignore[assignment]
    return query


@pytest.fixture
def played(tmp_path: Path) -> Played:
    """Of five digits and one face, on gpu-0 (1.2 USD an hour) and cpu-0 (0.3)."""
    queries = sorted_queries(
        [
            answered("digits", 0.0, 100.0, "gpu-0", "good", 0.9, 0.0, 40.0, 2, "in_time"),
            answered("digits", 0.0, 30.0, "gpu-0", "good", 0.9, 0.0, 40.0, 2, "late"),
            answered("digits", 10.0, 90.0, "cpu-0", "fast", 0.7, 20.0, 45.0, 1, "in_time"),
            answered("digits", 11.0, 10.0, "expired"),
            answered("faces", 30.0, INF, "gpu-0", "face", 0.8, 40.0, 50.0, 1, "in_time"),
            answered("digits", 60.0, 1.0, "refused"),
        ]
    )
    loads = [Load("gpu-0", "good", 0.0, 300.0)]
    return Played("by-hand", scenario(tmp_path, queries, reply_ms=2.0), queries, loads, 7.0, 0.5)


def test_figures(played: Played) -> None:
    found = report(played)
    total = found.total
    assert (total.queries, total.in_time, total.late, total.refused, total.expired) == (6, 3 / 6, 1 / 6, 1 / 6, 1 / 6)
    assert total.goodness == pytest.approx((0.9 + 0.7 + 0.8) / 6)
    assert total.worst_task_goodness == pytest.approx((0.9 + 0.7) / 5)
    assert total.attributed_cost_usd == pytest.approx((1.2 * 50 + 0.3 * 25) / HOUR_MS)
    assert total.fleet_cost_usd == pytest.approx((1.2 + 1.2 + 0.3) * 60 / HOUR_MS), "until the last arrival"
    assert total.mean_batch_size == pytest.approx(4 / 3)
    waited = [42.0, 42.0, 37.0, 22.0]
    assert (total.p50_ms, total.p99_ms) == pytest.approx((np.quantile(waited, 0.5), np.quantile(waited, 0.99)))
    assert total.decide_us == 7.0


def test_figures_of_each_task(played: Played) -> None:
    found = report(played)
    assert list(found.tasks) == ["digits", "faces"]
    digits, faces = found.tasks.values()
    assert (digits.queries, faces.queries, faces.in_time, digits.in_time) == (5, 1, 1.0, 2 / 5)
    assert faces.goodness == faces.worst_task_goodness == 0.8
    assert faces.attributed_cost_usd == pytest.approx(1.2 * 10 / HOUR_MS)
    assert digits.attributed_cost_usd + faces.attributed_cost_usd == pytest.approx(found.total.attributed_cost_usd)
    assert digits.fleet_cost_usd + faces.fleet_cost_usd == pytest.approx(found.total.fleet_cost_usd)
    share = faces.attributed_cost_usd / found.total.attributed_cost_usd
    assert faces.fleet_cost_usd == pytest.approx(share * found.total.fleet_cost_usd)
    assert (digits.mean_batch_size, faces.mean_batch_size) == (1.5, 1.0)
    assert faces.p50_ms == faces.p99_ms == 22.0


def test_nothing_answered_has_no_latency_and_no_batch(tmp_path: Path) -> None:
    queries = sorted_queries([answered("a", 5.0, 1.0, "refused"), answered("b", 6.0, 1.0, "expired")])
    found = report(Played("x", scenario(tmp_path, queries), queries, [], 0.0, 0.0))
    assert (found.total.p50_ms, found.total.p99_ms, found.total.mean_batch_size) == (None, None, None)
    assert (found.total.goodness, found.total.attributed_cost_usd) == (0.0, 0.0)
    assert found.tasks["a"].fleet_cost_usd == pytest.approx(found.total.fleet_cost_usd / 2)


def test_prices_change_and_who_is_lost_costs_nothing(tmp_path: Path) -> None:
    fleet = scenario(tmp_path, []).fleet
    faults = [
        Fault(50.0, "price", "gpu", 2.4),
        Fault(20.0, "lost", "gpu-1"),
        Fault(25.0, "lost", "gpu-1"),
        Fault(60.0, "back", "gpu-1"),
        Fault(200.0, "lost", "cpu-0"),
    ]
    rents = Rents(fleet, faults)
    assert rents.price_usd("gpu-0", 0.0, 100.0) == pytest.approx((1.2 * 50 + 2.4 * 50) / HOUR_MS)
    assert rents.price_usd("gpu-0", 60.0, 70.0) == pytest.approx(2.4 * 10 / HOUR_MS)
    one, two, cpu = 1.2 * 50 + 2.4 * 50, 1.2 * 20 + 2.4 * 40, 0.3 * 100
    assert rents.rent_usd(100.0) == pytest.approx((one + two + cpu) / HOUR_MS)


def test_log_and_loads(played: Played, tmp_path: Path) -> None:
    log = tmp_path / "deep" / "run.csv"
    write_log(log, played.queries)
    write_loads(beside(log, "loads"), played.loads)
    rows = list(csv.reader(log.read_text().splitlines()))
    assert ",".join(rows[0]) == "query,task,arrival_ms,deadline_ms,worker,variant,start_ms,end_ms,batch,outcome"
    assert rows[1] == ["0", "digits", "0.0", "100.0", "gpu-0", "good", "0.0", "40.0", "2", "in_time"]
    assert rows[4] == ["3", "digits", "11.0", "21.0", "", "", "", "", "", "expired"]
    assert rows[5][3] == "inf"
    assert (tmp_path / "deep" / "run.loads.csv").read_text() == (
        "worker,variant,start_ms,end_ms\ngpu-0,good,0.0,300.0\n"
    )


def test_json_is_an_object_per_policy(played: Played, tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", [report(played)])
    found = json.loads((tmp_path / "x.json").read_text())
    names = {
        "queries", "in_time", "late", "refused", "expired", "goodness", "worst_task_goodness", "attributed_cost_usd",
        "fleet_cost_usd", "p50_ms", "p99_ms", "mean_batch_size", "decide_us",
    }  # fmt: skip
    assert found.keys() == {"by-hand"}
    assert found["by-hand"].keys() == names | {"tasks"}
    assert found["by-hand"]["tasks"].keys() == {"digits", "faces"}
    assert all(figures.keys() == names for figures in found["by-hand"]["tasks"].values())


def test_the_series_adds_up(tmp_path: Path) -> None:
    queries = generate(["bursts:rate=80,seconds=20,task=digits|faces,latency_ms_max=80"], 4)
    found = report(play(scenario(tmp_path, queries), Greedy()))
    series, total = found.series, found.total
    assert sum(series.queries) == total.queries
    in_time = np.nansum(np.multiply(series.in_time, series.queries)) / total.queries
    goodness = np.nansum(np.multiply(series.goodness, series.queries)) / total.queries
    assert (in_time, goodness) == pytest.approx((total.in_time, total.goodness))
    assert 0 < total.in_time < 1


def test_a_play_leaves_the_scenario_as_it_is_and_can_be_repeated(tmp_path: Path) -> None:
    setting = scenario(tmp_path, generate(["poisson:rate=80,seconds=5,task=digits,latency_ms_max=80"], 4), seed=3)

    def figures(of: Scenario) -> Report:
        return report(play(of, Greedy()))

    first, second = figures(setting), figures(setting)
    assert all(query.outcome is None for query in setting.queries)
    assert first.total._replace(decide_us=0) == second.total._replace(decide_us=0)


class Slow(Greedy):
    """Thinks for half a second before it begins, 2 ms about every query, and 5 ms when a timer tells it to."""

    def start(self, world: object) -> None:
        time.sleep(0.5)
        super().start(world)  # type: ignore[arg-type]
        self.world.at(500.0, lambda: time.sleep(0.005))

    def arrived(self, query: SimulatedQuery) -> None:
        time.sleep(0.002)
        super().arrived(query)


def test_progress_is_told_every_few_hundred_queries(tmp_path: Path) -> None:
    told: list[int] = []
    queries = sorted_queries(SimulatedQuery(0, "faces", 5.0 * number) for number in range(1000))
    play(scenario(tmp_path, queries), Greedy(), on_progress=told.append)
    assert told == [1, 257, 513, 769]


def test_a_policys_time_is_that_of_its_methods_and_timers_without_its_start(tmp_path: Path) -> None:
    told: list[int] = []
    queries = sorted_queries(SimulatedQuery(0, "faces", 1000.0 + 100 * number) for number in range(10))
    played = play(scenario(tmp_path, queries), Slow(), on_progress=told.append)
    assert played.decide_us >= 2500, "2 ms and a tenth of 5 ms"
    assert played.decide_us * 10 / 1e6 < played.wall_s
    assert played.wall_s >= 0.5
    assert played.decide_us < 50_000, "what start takes is not in it"
    assert told == [1]


def test_a_picture_is_drawn_of_many_policies(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from simulator.picture import draw

    setting = scenario(tmp_path, generate(["gamma:rate=50,seconds=5,task=digits,latency_ms_max=80"], 4))
    names = ["ours", *(f"rival-{number}" for number in range(11))]
    reports = [report(play(setting, Greedy(name))) for name in names]
    drawn = draw(tmp_path / "new" / "x.svg", reports)
    text = drawn.read_text()
    assert len(text) > 10_000
    assert all(name in text for name in names)
