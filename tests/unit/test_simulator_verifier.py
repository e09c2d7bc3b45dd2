"""The verifier finds nothing in what the simulator plays, and every violation that is planted in its log."""

from __future__ import annotations

import ast
import csv
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from simulator_builders import SCALING_FLEET, Greedy, Restless, scenario

from simulator import verifier
from simulator.arrivals import generate
from simulator.facts import Placement, SimulatedQuery
from simulator.faults import parse_fault
from simulator.files import write_arrivals
from simulator.report import beside, report, write_json, write_loads, write_log, write_rentals
from simulator.scenario import play
from simulator.world import Running

FAULTS = ("lost:gpu-0@3000", "back:gpu-0@6000", "price:gpu=3@5000", "slow:gpu-1*1.5@7000", "price:cpu=0.1@1000")
TEXT = "bursts:rate=100,seconds=10,burst_s=0.5,calm_s=2,task=digits|faces|voices,latency_ms_max=60|300"


def run(folder: Path, *, seed: int = 1, faults: Sequence[str] = (), placement: Placement | None = None) -> Path:
    """Everything that a simulation takes and writes, in ``folder``; the log's path."""
    queries = generate([TEXT], seed)
    setting = scenario(folder, queries, seed=seed, reply_ms=1.5, intake_ms=0.5, timer_late_ms=2.0)
    struck = [parse_fault(text, setting.fleet) for text in faults]
    played = play(replace(setting, faults=struck), Greedy(), placement=placement)
    log = folder / "run.csv"
    write_log(log, played.queries)
    write_loads(beside(log, "loads"), played.loads)
    write_arrivals(folder / "arrivals.csv", queries)
    write_json(folder / "run.json", [report(played)])
    return log


def judge(folder: Path, *, faults: Sequence[str] = (), placement: Path | None = None) -> verifier.Verdict:
    inputs = verifier.read_inputs(
        folder / "profiles.csv",
        folder / "fleet.csv",
        arrivals=folder / "arrivals.csv",
        placement=placement,
        faults=faults,
        intake_ms=0.5,
        reply_ms=1.5,
    )
    return verifier.verify(inputs, folder / "run.csv", folder / "run.loads.csv")


@pytest.mark.parametrize("faults", [(), FAULTS], ids=["calm", "faults"])
@pytest.mark.parametrize("seed", range(4))
def test_what_is_played_holds_and_its_figures_are_the_same(tmp_path: Path, seed: int, faults: Sequence[str]) -> None:
    run(tmp_path, seed=seed, faults=faults)
    verdict = judge(tmp_path, faults=faults)
    assert verdict.lines() == []
    claimed = json.loads((tmp_path / "run.json").read_text())["greedy"]
    assert verifier.differences(verdict.figures, claimed) == []
    assert all(0 < claimed[share] < 1 for share in ("in_time", "late", "refused", "expired")), "all of them happened"


def test_a_placement_is_there_from_the_start(tmp_path: Path) -> None:
    run(tmp_path, placement={"gpu-0": ["fast", "face"], "gpu-1": ["good"]})
    assert "not loaded" in judge(tmp_path).violations
    placed = tmp_path / "placement.csv"
    placed.write_text("worker,variant\ngpu-0,fast\ngpu-0,face\ngpu-1,good\n")
    assert judge(tmp_path, placement=placed).lines() == []
    placed.write_text("worker,variant\ngpu-0,fast\ngpu-0,face\ngpu-1,good\ngpu-1,fast\n")
    assert "memory" in judge(tmp_path, placement=placed).violations


# --- planted violations -------------------------------------------------------------------------------------------

Rows = list[dict[str, str]]


def first_run(rows: Rows, **having: str) -> dict[str, str]:
    return next(row for row in rows if row["worker"] and all(row[name] == value for name, value in having.items()))


def whole_batch(rows: Rows, of: dict[str, str]) -> Rows:
    key = of["worker"], of["start_ms"]
    return [row for row in rows if (row["worker"], row["start_ms"]) == key]


def move(rows: Rows, of: dict[str, str], **to: str) -> None:
    for row in whole_batch(rows, of):
        row.update(to)


def plant_two_outcomes(rows: Rows, loads: Rows) -> None:
    rows.append(dict(rows[3]))


def plant_no_outcome(rows: Rows, loads: Rows) -> None:
    rows.remove(next(row for row in rows if not row["worker"]))


def plant_unknown_outcome(rows: Rows, loads: Rows) -> None:
    next(row for row in rows if row["outcome"] == "refused")["outcome"] = "forgotten"


def plant_answer_without_a_run(rows: Rows, loads: Rows) -> None:
    next(row for row in rows if row["outcome"] == "expired")["outcome"] = "in_time"


def plant_a_run_that_is_refused(rows: Rows, loads: Rows) -> None:
    first_run(rows, batch="1")["outcome"] = "refused"


def plant_late_as_in_time(rows: Rows, loads: Rows) -> None:
    next(row for row in rows if row["outcome"] == "late")["outcome"] = "in_time"


def plant_in_time_as_late(rows: Rows, loads: Rows) -> None:
    next(row for row in rows if row["outcome"] == "in_time")["outcome"] = "late"


def plant_in_time_but_for_the_reply(rows: Rows, loads: Rows) -> None:
    """It ends 1 ms before its deadline, and replies take 1.5 ms."""
    row = next(row for row in rows if row["outcome"] == "in_time" and row["batch"] == "1" and row["worker"] == "cpu-0")
    row["end_ms"] = str(float(row["deadline_ms"]) - 1.0)


def plant_a_longer_deadline(rows: Rows, loads: Rows) -> None:
    rows[5]["deadline_ms"] = str(float(rows[5]["deadline_ms"]) + 5)


def plant_another_task(rows: Rows, loads: Rows) -> None:
    row = first_run(rows, task="digits", batch="1")
    row["task"] = "faces"


def plant_two_batches_at_once(rows: Rows, loads: Rows) -> None:
    one = first_run(rows, worker="gpu-1")
    other = next(row for row in rows if row["worker"] == "gpu-1" and float(row["start_ms"]) > float(one["end_ms"]))
    took_ms = float(other["end_ms"]) - float(other["start_ms"])
    start_ms = float(one["end_ms"]) - 0.5
    move(rows, other, start_ms=str(start_ms), end_ms=str(start_ms + took_ms))


def plant_two_variants_at_once(rows: Rows, loads: Rows) -> None:
    """Of the rows of one batch some ran something else, at the same time."""
    row = next(row for row in rows if row["variant"] == "face" and int(row["batch"]) > 1)
    row.update(variant="fast", batch="1")


def plant_a_fast_batch(rows: Rows, loads: Rows) -> None:
    row = first_run(rows, worker="gpu-0", variant="face")
    move(rows, row, end_ms=str(float(row["end_ms"]) - 0.1))


def plant_a_batch_as_fast_as_a_smaller_one(rows: Rows, loads: Rows) -> None:
    row = next(row for row in rows if row["variant"] == "face" and int(row["batch"]) > 1)
    move(rows, row, end_ms=str(float(row["start_ms"]) + 10.0))


def plant_a_wrong_batch_size(rows: Rows, loads: Rows) -> None:
    first_run(rows, batch="1")["batch"] = "2"


def plant_a_batch_with_two_ends(rows: Rows, loads: Rows) -> None:
    row = next(row for row in rows if row["batch"] == "2")
    row["end_ms"] = str(float(row["end_ms"]) + 1)


def plant_a_batch_that_is_too_large(rows: Rows, loads: Rows) -> None:
    row = next(row for row in rows if row["worker"] == "cpu-0" and row["batch"] == "2")
    same = {name: row[name] for name in ("worker", "variant", "start_ms", "end_ms")}
    next(each for each in rows if each["outcome"] == "expired").update(same, outcome="late")
    move(rows, row, batch="3")


def plant_a_run_before_its_arrival(rows: Rows, loads: Rows) -> None:
    row = next(row for row in reversed(rows) if row["worker"])
    row["arrival_ms"] = str(float(row["start_ms"]) + 1.0)


def plant_a_run_before_intake(rows: Rows, loads: Rows) -> None:
    row = next(row for row in reversed(rows) if row["worker"] and row["batch"] == "1")
    row["start_ms"] = row["arrival_ms"]


def plant_an_unknown_worker(rows: Rows, loads: Rows) -> None:
    move(rows, first_run(rows), worker="gpu-7")


def plant_a_variant_without_a_profile(rows: Rows, loads: Rows) -> None:
    move(rows, first_run(rows, worker="cpu-0"), variant="good")


def plant_a_run_without_a_load(rows: Rows, loads: Rows) -> None:
    loads.remove(next(load for load in loads if load["worker"] == "cpu-0"))


def plant_a_run_before_its_load_ended(rows: Rows, loads: Rows) -> None:
    load = next(load for load in loads if load["worker"] == "cpu-0")
    load["end_ms"] = str(float(first_run(rows, worker="cpu-0")["start_ms"]) + 1)


def plant_a_short_load(rows: Rows, loads: Rows) -> None:
    loads[-1]["start_ms"] = str(float(loads[-1]["end_ms"]) - 10)


def plant_two_loads_at_once(rows: Rows, loads: Rows) -> None:
    for load in (load for load in loads if load["worker"] == "gpu-1"):
        load.update(start_ms="0.0")


def plant_a_load_of_what_runs(rows: Rows, loads: Rows) -> None:
    row = next(row for row in rows if row["worker"] == "cpu-0" and float(row["start_ms"]) > 4000)
    start_ms = float(row["start_ms"]) - 50
    loads.append({"worker": "cpu-0", "variant": "fast", "start_ms": str(start_ms), "end_ms": str(start_ms + 100)})


def plant_a_variant_that_does_not_fit(rows: Rows, loads: Rows) -> None:
    """300 MB and 400 MB are in use on gpu-1 before and after it is loaded there, of 1,000 MB."""
    loads.append({"worker": "gpu-1", "variant": "good", "start_ms": "4000.0", "end_ms": "4300.0"})


PLANTED: dict[Callable[[Rows, Rows], None], str] = {
    plant_two_outcomes: "one outcome",
    plant_no_outcome: "one outcome",
    plant_unknown_outcome: "outcome",
    plant_answer_without_a_run: "ran",
    plant_a_run_that_is_refused: "ran",
    plant_late_as_in_time: "in time",
    plant_in_time_as_late: "in time",
    plant_in_time_but_for_the_reply: "in time",
    plant_a_longer_deadline: "asked",
    plant_another_task: "task",
    plant_two_batches_at_once: "two at once",
    plant_two_variants_at_once: "two at once",
    plant_a_fast_batch: "faster",
    plant_a_batch_as_fast_as_a_smaller_one: "faster",
    plant_a_wrong_batch_size: "batch",
    plant_a_batch_with_two_ends: "batch",
    plant_a_batch_that_is_too_large: "size",
    plant_a_run_before_its_arrival: "arrival",
    plant_a_run_before_intake: "arrival",
    plant_an_unknown_worker: "fleet",
    plant_a_variant_without_a_profile: "profile",
    plant_a_run_without_a_load: "not loaded",
    plant_a_run_before_its_load_ended: "not loaded",
    plant_a_short_load: "load",
    plant_two_loads_at_once: "two loads at once",
    plant_a_load_of_what_runs: "loaded anew",
    plant_a_variant_that_does_not_fit: "memory",
}


@pytest.mark.parametrize(("plant", "kind"), PLANTED.items(), ids=[plant.__name__ for plant in PLANTED])
def test_a_planted_violation_is_found(tmp_path: Path, plant: Callable[[Rows, Rows], None], kind: str) -> None:
    log = run(tmp_path)
    tables = {path: list(csv.DictReader(path.read_text().splitlines())) for path in (log, beside(log, "loads"))}
    plant(*tables.values())
    for path, rows in tables.items():
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
    verdict = judge(tmp_path)
    assert kind in verdict.violations, verdict.lines()


def test_what_runs_on_a_lost_worker_is_found(tmp_path: Path) -> None:
    run(tmp_path)
    verdict = judge(tmp_path, faults=["lost:gpu-0@3000", "back:gpu-0@6000"])
    assert verdict.violations.keys() == {"lost", "not loaded"}, "nor is anything loaded after it is back"


def test_a_wrong_figure_is_found(tmp_path: Path) -> None:
    run(tmp_path)
    figures = judge(tmp_path).figures
    claimed = json.loads((tmp_path / "run.json").read_text())["greedy"]
    for name in claimed.keys() - {"decide_us", "tasks"}:
        wrong = claimed | {name: claimed[name] + 1e-6}
        assert [each.partition(":")[0] for each in verifier.differences(figures, wrong)] == [name]
        lacking = {key: value for key, value in claimed.items() if key != name}
        assert verifier.differences(figures, lacking), name
        faces = claimed["tasks"]["faces"]
        tasks = claimed["tasks"] | {"faces": faces | {name: (faces[name] or 0.0) + 1e-6}}
        assert len(verifier.differences(figures, claimed | {"tasks": tasks})) == 1, name
    assert verifier.differences(figures, claimed | {"more": 1.0}) == ["more: what is that?"]
    assert verifier.differences(figures, claimed | {"tasks": {}})


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = run(tmp_path, faults=FAULTS)
    files = ["--profiles", str(tmp_path / "profiles.csv"), "--fleet", str(tmp_path / "fleet.csv")]
    told = [*files, "--reply-ms", "1.5", "--intake-ms", "0.5", "--arrivals", str(tmp_path / "arrivals.csv")]
    faults = [each for text in FAULTS for each in ("--fault", text)]
    figures = ["--json", str(tmp_path / "run.json"), "--policy", "greedy"]
    assert verifier.main([str(log), *told, *faults, *figures]) == 0
    assert capsys.readouterr().out.endswith("nothing is broken\n")
    assert verifier.main([str(log), *told, *figures]) == 1, "without the faults the rent is another"
    assert "broken: figure: fleet_cost_usd" in capsys.readouterr().out
    assert verifier.main([str(log), *files, *faults]) == 1, "without the way of the replies somebody is late"
    assert "broken: in time: " in capsys.readouterr().out
    assert verifier.main([str(tmp_path / "nowhere.csv"), *files]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_it_shares_no_code() -> None:
    tree = ast.parse(Path(verifier.__file__).read_text())
    named = {
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert all(name is not None and name.partition(".")[0] in sys.stdlib_module_names for name in named), named


class Cheat(Greedy):
    """Ends its batches at once: the world does not look at them again."""

    def arrived(self, query: SimulatedQuery) -> None:
        super().arrived(query)
        for device in self.world.devices.values():
            running: Running | None = device.running
            if running is not None:
                running.end_ms = min(running.end_ms, running.start_ms + 1.0)


def test_a_policy_that_reaches_into_the_world_is_found_out(tmp_path: Path) -> None:
    queries = generate([TEXT], 1)
    played = play(scenario(tmp_path, queries, intake_ms=0.5, reply_ms=1.5), Cheat())
    write_log(tmp_path / "run.csv", played.queries)
    write_loads(tmp_path / "run.loads.csv", played.loads)
    write_arrivals(tmp_path / "arrivals.csv", queries)
    assert "faster" in judge(tmp_path).violations


# --- fleets that scale ------------------------------------------------------------------------------------------------

LOST = ("lost:gpu-0@2500", "lost:gpu-1@4000", "price:gpu=3@5000")


def run_scaling(folder: Path, *, seed: int = 1, faults: Sequence[str] = ()) -> None:
    queries = generate([TEXT], seed)
    setting = scenario(folder, queries, SCALING_FLEET, seed=seed, reply_ms=1.5, intake_ms=0.5)
    struck = [parse_fault(text, setting.fleet) for text in faults]
    played = play(replace(setting, faults=struck), Restless())
    assert len(played.rentals) > 5
    write_log(folder / "run.csv", played.queries)
    write_loads(folder / "run.loads.csv", played.loads)
    write_rentals(folder / "run.workers.csv", played.rentals)
    write_arrivals(folder / "arrivals.csv", queries)
    write_json(folder / "run.json", [report(played)])


def judge_scaling(folder: Path, *, faults: Sequence[str] = ()) -> verifier.Verdict:
    names = ("profiles", "fleet", "arrivals")
    profiles, fleet, arrivals = (folder / f"{name}.csv" for name in names)
    inputs = verifier.read_inputs(profiles, fleet, arrivals=arrivals, faults=faults, intake_ms=0.5, reply_ms=1.5)
    return verifier.verify(inputs, *(folder / f"run{part}.csv" for part in ("", ".loads", ".workers")))


@pytest.mark.parametrize("faults", [(), LOST], ids=["calm", "faults"])
@pytest.mark.parametrize("seed", range(4))
def test_a_scaling_play_holds_and_its_bill_is_the_same(tmp_path: Path, seed: int, faults: Sequence[str]) -> None:
    run_scaling(tmp_path, seed=seed, faults=faults)
    verdict = judge_scaling(tmp_path, faults=faults)
    assert verdict.lines() == []
    claimed = json.loads((tmp_path / "run.json").read_text())["restless"]
    assert verifier.differences(verdict.figures, claimed) == []
    assert claimed["in_time"] > 0.3


def last(workers: Rows, worker: str) -> dict[str, str]:
    return [row for row in workers if row["worker"] == worker][-1]


def plant_a_worker_that_is_ready_too_soon(workers: Rows) -> None:
    row = last(workers, "gpu-1")
    row["ready_ms"] = str(float(row["start_ms"]) + 399.0)


def plant_a_worker_that_is_ready_after_it_ran(workers: Rows) -> None:
    row = next(row for row in workers if row["end_ms"] != "inf" and float(row["end_ms"]) > float(row["ready_ms"]) + 500)
    row["ready_ms"] = row["end_ms"]


def plant_a_worker_that_ended_before_it_ran(workers: Rows) -> None:
    row = next(row for row in workers if row["end_ms"] != "inf" and float(row["end_ms"]) > float(row["ready_ms"]) + 500)
    row["end_ms"] = row["ready_ms"]


def plant_a_worker_too_many(workers: Rows) -> None:
    for row in workers:
        row["end_ms"] = "inf"


def plant_a_fourth_worker(workers: Rows) -> None:
    workers.append({"worker": "gpu-3", "group": "gpu", "start_ms": "0.0", "ready_ms": "400.0", "end_ms": "500.0"})


def plant_a_worker_of_a_fixed_group(workers: Rows) -> None:
    workers.append({"worker": "cpu-0", "group": "cpu", "start_ms": "0.0", "ready_ms": "0.0", "end_ms": "500.0"})


def plant_a_worker_rented_twice(workers: Rows) -> None:
    workers.append(dict(workers[0]))


def plant_no_first_worker(workers: Rows) -> None:
    workers[:] = workers[1:]


PLANTED_RENTS: dict[Callable[[Rows], None], str] = {
    plant_a_worker_that_is_ready_too_soon: "start",
    plant_a_worker_that_is_ready_after_it_ran: "lost",
    plant_a_worker_that_ended_before_it_ran: "lost",
    plant_a_worker_too_many: "too many",
    plant_a_fourth_worker: "fleet",
    plant_a_worker_of_a_fixed_group: "fleet",
    plant_a_worker_rented_twice: "rent",
    plant_no_first_worker: "rent",
}


@pytest.mark.parametrize(("plant", "kind"), PLANTED_RENTS.items(), ids=[plant.__name__ for plant in PLANTED_RENTS])
def test_a_planted_rent_is_found(tmp_path: Path, plant: Callable[[Rows], None], kind: str) -> None:
    run_scaling(tmp_path)
    path = tmp_path / "run.workers.csv"
    rows = list(csv.DictReader(path.read_text().splitlines()))
    plant(rows)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ("worker", "group", "start_ms", "ready_ms", "end_ms"))
        writer.writeheader()
        writer.writerows(rows)
    verdict = judge_scaling(tmp_path)
    assert kind in verdict.violations, verdict.lines()


def test_a_worker_that_is_lost_is_rented_no_more(tmp_path: Path) -> None:
    run_scaling(tmp_path)
    assert judge_scaling(tmp_path, faults=["lost:gpu-0@100"]).violations.keys() == {"lost"}


def test_a_rent_that_is_too_cheap_is_found(tmp_path: Path) -> None:
    """By hand: one worker from 0 to the end, one for 100 ms, of which 2 s are billed, and the fixed one."""
    run_scaling(tmp_path)
    asked = [float(row["arrival_ms"]) for row in csv.DictReader((tmp_path / "run.csv").read_text().splitlines())]
    (tmp_path / "run.workers.csv").write_text(
        "worker,group,start_ms,ready_ms,end_ms\ngpu-0,gpu,0,0,inf\ngpu-1,gpu,1000,1400,1100\n"
    )
    log = list(csv.DictReader((tmp_path / "run.csv").read_text().splitlines()))
    span_ms = max(asked + [float(row["end_ms"] or 0) for row in log])
    expected = (1.2 * (span_ms + 2000.0) + 0.3 * span_ms) / 3_600_000
    assert judge_scaling(tmp_path).figures["fleet_cost_usd"] == pytest.approx(expected)
