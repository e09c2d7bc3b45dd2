"""`modelless simulate` from files to figures, with policies that need no thought in the place of those of others."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
import typer
from click.testing import Result
from rich.console import Console
from simulator_builders import Greedy, write_files
from typer.testing import CliRunner

from modelless.commands.simulate import register
from modelless.errors import ConfigurationError
from simulator import run, verifier
from simulator.facts import Placement

ARRIVALS = "arrival_ms,task,latency_ms_max\n" + "".join(f"{500 + 2 * n},digits,{80 + n % 3}\n" for n in range(1500))


class Single(Greedy):
    def __init__(self) -> None:
        super().__init__("single", rows_max=1)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(run, "RIVALS", {"greedy": Greedy, "single": Single})
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path)
    (tmp_path / "arrivals.csv").write_text(ARRIVALS)
    return tmp_path


def invoke(*arguments: str) -> Result:
    app = typer.Typer(rich_markup_mode="markdown")
    app.callback()(lambda: None)
    register(app)
    files = ["--profiles", "profiles.csv", "--fleet", "fleet.csv"]
    return CliRunner().invoke(app, ["simulate", *files, *arguments])


def simulated(*arguments: str) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def said(*arguments: str) -> str:
    error = invoke(*arguments).exception
    assert isinstance(error, ConfigurationError), error
    return error.message


def test_policies_are_compared(folder: Path) -> None:
    output = simulated("--arrivals", "arrivals.csv", "--policy", "greedy", "--policy", "single", "--json", "x.json")
    lines = [line.split() for line in output.splitlines() if line.strip()]
    assert [line[0] for line in lines[2:4]] == ["greedy", "single"]
    found = json.loads((folder / "x.json").read_text())
    assert lines[2][1] == f"{found['greedy']['in_time']:.2%}"
    assert lines[3][5] == f"{found['single']['goodness']:.4f}"
    assert found["single"]["mean_batch_size"] == 1.0 < found["greedy"]["mean_batch_size"]
    summary = r"1,500 queries of 1 task in 3\.5 s on 3 workers; seed 0;\s+played in [\d.]+ s, [\d,]+ queries/s"
    assert re.search(summary, output)


def test_a_terminal_sees_how_far_it_is(folder: Path) -> None:
    seen = io.StringIO()
    asked = {name: folder / f"{name}.csv" for name in ("profiles", "fleet", "arrivals")}
    run.run(run.Options(**asked, policies=("greedy",)), Console(file=seen, force_terminal=True, width=120))  # type: ignore[arg-type]
    assert "greedy" in seen.getvalue()
    assert "100%" in seen.getvalue()


def test_what_is_written_stands_before_the_verifier(folder: Path) -> None:
    faults = ["--fault", "lost:gpu-0@1500", "--fault", "back:gpu-0@2000", "--fault", "price:gpu=5@1000"]
    simulated(
        "--arrivals", "arrivals.csv", "--generate", "poisson:rate=40,seconds=4,task=faces,latency_ms_max=50",
        "--policy", "greedy", "--log", "out/run.csv", "--json", "out/run.json", "--save-arrivals", "out/all.csv",
        "--reply-ms", "1", "--intake-ms", "0.5", "--timer-late-ms", "2", *faults,
    )  # fmt: skip
    judged = ["out/run.csv", "--profiles", "profiles.csv", "--fleet", "fleet.csv", "--arrivals", "out/all.csv"]
    told = ["--json", "out/run.json", "--policy", "greedy", "--reply-ms", "1", "--intake-ms", "0.5", *faults]
    assert verifier.main([*judged, *told]) == 0
    assert set(json.loads(Path("out/run.json").read_text())["greedy"]["tasks"]) == {"digits", "faces"}


def test_topics_have_figures_of_their_own(folder: Path) -> None:
    asked = "poisson:rate=1500,seconds=1.5,task=digits,latency_ms_max=100,topic="
    output = simulated(
        "--generate", f"{asked}first", "--generate", f"{asked}second", "--policy", "ours", "--policy", "greedy",
        "--topic-weight", "second=3", "--log", "run.csv", "--json", "run.json", "--save-arrivals", "all.csv",
    )  # fmt: skip
    assert output.count("second") == 2
    found = json.loads((folder / "run.json").read_text())
    ours = found["ours"]["topics"]
    assert ours["second"]["attributed_cost_usd"] > 2 * ours["first"]["attributed_cost_usd"]
    assert sum(each["queries"] for each in ours.values()) == found["ours"]["queries"]
    judged = ["run.ours.csv", "--profiles", "profiles.csv", "--fleet", "fleet.csv", "--arrivals", "all.csv"]
    assert verifier.main([*judged, "--json", "run.json", "--policy", "ours"]) == 0
    ours["first"]["in_time"] += 0.01
    (folder / "run.json").write_text(json.dumps(found))
    assert verifier.main([*judged, "--json", "run.json", "--policy", "ours"]) == 1
    simulated("--arrivals", "all.csv", "--policy", "greedy", "--log", "again.csv")
    assert (folder / "again.csv").read_text() == (folder / "run.greedy.csv").read_text()


@pytest.mark.parametrize("weight", ["second", "second=", "=2", "second=0", "second=inf"])
def test_a_weight_that_is_none_is_named(folder: Path, weight: str) -> None:
    assert weight in said("--arrivals", "arrivals.csv", "--topic-weight", weight)


def test_each_of_several_policies_has_a_log_of_its_own(folder: Path) -> None:
    simulated("--arrivals", "arrivals.csv", "--policy", "greedy", "--policy", "single", "--log", "run.csv")
    assert {path.name for path in folder.glob("run*")} == {
        "run.greedy.csv", "run.greedy.loads.csv", "run.single.csv", "run.single.loads.csv",
    }  # fmt: skip


def test_the_files_of_the_example(folder: Path) -> None:
    example = Path(__file__).parents[2] / "examples" / "simulate"
    for name in ("profiles.csv", "fleet.csv"):
        (folder / name).write_text((example / name).read_text())
    drawn = ["bursts:rate=150,seconds=2,task=animals,latency_ms_max=100|400,on_miss=degrade",
             "poisson:rate=200,seconds=2,task=digits,latency_ms_max=50"]  # fmt: skip
    output = simulated(*(each for text in drawn for each in ("--generate", text)), "--policy", "greedy")
    assert "2 tasks" in output
    assert "no profile" not in output


def test_several_brokers_survive_a_worker_that_is_lost_while_they_wait_for_it_and_comes_back(folder: Path) -> None:
    """What one of them sends elsewhere then, the others hear of at once; and it hears what waits for it."""
    rows = [
        f"images,m,{variant},{group},{size},{p50_ms},{p50_ms * 1.05},{accuracy},300,40"
        for group in ("strong", "weak")
        for variant, accuracy, fixed_ms, row_ms in (("good", 0.9, 30, 10), ("quick", 0.8, 10, 3))
        for size in (1, 2, 4, 8)
        for p50_ms in [(fixed_ms + row_ms * size) * (1 if group == "strong" else 2)]
    ]
    head = "task,model,variant,group,batch_size,p50_ms,p99_ms,accuracy,load_ms,memory_mb"
    (folder / "profiles.csv").write_text("\n".join([head, *rows]))
    (folder / "fleet.csv").write_text("group,workers,memory_mb,price_per_hour\nstrong,2,100,1\nweak,2,100,0.4\n")
    asked = "latency_ms_max=300|800,on_miss=degrade|late|reject,prefer=cost|accuracy|latency"
    comings_and_goings = [
        part for ms in range(7400, 7900, 10) for what in (f"back:strong-0@{ms}", f"lost:strong-0@{ms + 5}")
        for part in ("--fault", what)
    ]  # fmt: skip
    simulated(
        "--generate", f"bursts:rate=110,times=4,burst_s=1,calm_s=4,seconds=8,task=images,{asked}",
        "--generate", "poisson:rate=30,seconds=8,task=images,latency_ms_max=600,accuracy_min=0.88,topic=other",
        "--brokers", "3", "--fault", "lost:strong-0@7000", "--seed", "1", "--json", "x.json",
        *comings_and_goings,
    )  # fmt: skip
    ours = json.loads((folder / "x.json").read_text())["ours"]
    assert sum(ours[outcome] for outcome in ("in_time", "late", "refused", "expired")) == pytest.approx(1.0)
    assert ours["in_time"] > 0


def test_a_placement_spares_the_loads(folder: Path) -> None:
    (folder / "placed.csv").write_text("worker,variant\ngpu-0,fast\ngpu-1,fast\ncpu-0,fast\ngpu-0,face\ngpu-1,face\n")
    simulated("--arrivals", "arrivals.csv", "--policy", "greedy", "--placement", "greedy=placed.csv", "--log", "x.csv")
    assert (folder / "x.loads.csv").read_text() == "worker,variant,start_ms,end_ms\n"
    judged = ["x.csv", "--profiles", "profiles.csv", "--fleet", "fleet.csv", "--arrivals", "arrivals.csv"]
    assert verifier.main([*judged, "--placement", "x.placement.csv"]) == 0
    assert verifier.main(judged) == 1


class Foreseeing(Greedy):
    def __init__(self) -> None:
        super().__init__("foreseeing")

    def placement_for(self, fleet: object, portfolio: object, queries: list[object], seed: int) -> Placement:
        assert (len(queries), seed) == (1500, 8)
        return {"gpu-0": ["fast", "face"], "gpu-1": ["good"]}


def test_a_policy_may_have_its_own_placement_for_nothing(folder: Path) -> None:
    run.RIVALS["foreseeing"] = Foreseeing
    asked = ["--arrivals", "arrivals.csv", "--policy", "foreseeing", "--seed", "8", "--log", "x.csv"]
    simulated(*asked, "--placement", "foreseeing")
    assert (folder / "x.placement.csv").read_text() == "worker,variant\ngpu-0,fast\ngpu-0,face\ngpu-1,good\n"
    assert "gpu-0" not in (folder / "x.loads.csv").read_text()
    simulated(*asked)
    assert "gpu-0" in (folder / "x.loads.csv").read_text(), "only if it is said"


def test_a_wrong_profile_makes_it_slower(folder: Path) -> None:
    drawn = "poisson:rate=5,seconds=20,task=faces"
    asked = ["--generate", drawn, "--policy", "single", "--json", "x.json"]
    simulated(*asked)
    right = json.loads((folder / "x.json").read_text())["single"]
    simulated(*asked, "--wrong-profile", "face@gpu*3")
    wrong = json.loads((folder / "x.json").read_text())["single"]
    assert wrong["p50_ms"] > 2 * right["p50_ms"]


def test_the_same_seed_gives_the_same_figures(folder: Path) -> None:
    def figures(seed: int) -> dict[str, object]:
        text = "gamma:rate=100,seconds=5,task=digits|faces,zipf=1,latency_ms_max=50"
        simulated("--generate", text, "--policy", "greedy", "--seed", str(seed), "--json", "x.json")
        found: dict[str, object] = json.loads((folder / "x.json").read_text())["greedy"]
        return {name: value for name, value in found.items() if name not in {"decide_us", "tasks"}}

    assert figures(1) == figures(1) != figures(2)


def test_a_task_that_nobody_knows_is_refused_and_told(folder: Path) -> None:
    output = simulated("--generate", "poisson:rate=9,seconds=5,task=voices", "--policy", "greedy", "--json", "x.json")
    assert "no profile of voices" in output
    assert json.loads((folder / "x.json").read_text())["greedy"]["refused"] == 1.0


def test_a_picture(folder: Path) -> None:
    pytest.importorskip("matplotlib")
    simulated("--arrivals", "arrivals.csv", "--policy", "greedy", "--policy", "single", "--plot", "x.png")
    assert (folder / "x.png").read_bytes().startswith(b"\x89PNG")
    assert "suffix" in said("--arrivals", "arrivals.csv", "--plot", "x.gif")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--policy", "gredy"], "there is no 'gredy'; known: ours, greedy, single; did you mean greedy?"),
        (["--placement", "greedy"], "it has none of its own; give greedy=FILE.csv"),
        (["--placement", "single=x.csv"], "expected POLICY=FILE.csv, or POLICY; who plays: greedy"),
        (["--placement", "greedy=x.csv"], "cannot read x.csv"),
        (["--fault", "lost:gpu-9@5"], "the fleet has no 'gpu-9'; it has gpu-0, gpu-1, cpu-0; did you mean gpu-"),
        (["--fault", "lost:gpu-0"], "expected one of the forms lost:WORKER@MS"),
        (["--fault", "slow:gpu-0*0.5@1"], "nobody is faster"),
        (["--fault", "price:cpu-0=1@1"], "the fleet has no 'cpu-0'; it has gpu, cpu; did you mean cpu?"),
        (["--wrong-profile", "fast"], "expected VARIANT@GROUP*TIMES"),
        (["--wrong-profile", "good@cpu*2"], "there is no such profile; there are fast@gpu, "),
        (["--wrong-profile", "good@gpu*0.5"], "nobody is faster"),
        (["--generate", "poisson"], "missing rate, seconds, task"),
    ],
)
def test_errors_say_what_there_is(folder: Path, arguments: list[str], why: str) -> None:
    policy = [] if "--policy" in arguments else ["--policy", "greedy"]
    assert why in said("--arrivals", "arrivals.csv", *policy, *arguments)


def test_without_queries_there_is_nothing_to_simulate(folder: Path) -> None:
    assert "give --arrivals CSV, --generate" in said("--policy", "greedy")
