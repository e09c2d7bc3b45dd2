"""What a demand would cost: the solver's answer in the terms of who asked, and why something cannot be served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from broker_builders import model, profile
from rich.console import Console
from typer.testing import CliRunner

from broker.placement_model import Choice
from broker.quote import Asked, Quote, choices_of, quote
from broker.sizing import Limits
from modelless.commands import plan as command
from modelless.commands import quotes
from modelless.config import Config, GroupConfig
from modelless.errors import ConfigurationError
from modelless.messages import Correction, Labels

ROOT = Path(__file__).parents[2]
EXAMPLE = ("--profiles", "examples/simulate/profiles.csv", "--fleet", "examples/simulate/fleet.csv")


def choice(name: str, group: str, accuracy: float, *times: tuple[int, float], memory_mb: float = 100.0) -> Choice:
    sizes, p50_ms = zip(*times, strict=True)
    return Choice(name, "t", group, accuracy, sizes, p50_ms, tuple(1.2 * ms for ms in p50_ms), memory_mb, 100.0)


SMALL = choice("small:1/x", "cpu", 0.8, (1, 10.0), (8, 40.0))
LARGE = choice("large:1/x", "gpu", 0.95, (1, 5.0), (32, 32.0))
CPU, GPU = Limits("cpu", 1000.0, 0.1, 0, 4), Limits("gpu", 1000.0, 1.0, 0, 2)


def quoted(*asked: Asked, choices: Any = (SMALL, LARGE), groups: Any = (CPU, GPU)) -> Quote:
    return quote(asked, choices, groups)


def test_the_cheapest_fleet_that_serves_everything() -> None:
    found = quoted(Asked("t", 50.0, 200.0, 0.7), Asked("t", 20.0, 200.0, 0.9))
    low, high = found.classes
    assert found.is_served
    assert (low.served, high.served) == (pytest.approx(1.0), pytest.approx(1.0))
    assert set(high.shares) == {LARGE.key}, "nothing else is accurate enough"
    by = {group.name: group for group in found.groups}
    assert 1 <= by["gpu"].workers <= 2
    assert found.usd_per_hour == pytest.approx(0.1 * by["cpu"].workers + by["gpu"].workers)
    assert found.bound_usd_per_hour <= found.usd_per_hour + 1e-9
    assert sum(group.rows_per_s for group in found.groups) == pytest.approx(70.0)
    assert found.usd_per_1000_rows == pytest.approx(found.usd_per_hour / 70 / 3.6)


def test_more_demand_takes_more_workers_until_there_are_no_more() -> None:
    workers = [quoted(Asked("t", rate, 200.0, 0.7), groups=(CPU,)).groups[0].workers for rate in (1.0, 150.0, 300.0)]
    assert workers == sorted(workers)
    assert workers[0] == 1 < workers[-1]
    short = quoted(Asked("t", 5000.0, 200.0, 0.7), groups=(CPU,))
    assert not short.is_served
    assert 0 < short.classes[0].served < 1
    assert short.groups[0].workers == 4
    assert "raise workers_max of cpu (at most 4)" in str(short.classes[0].why_not)


def test_who_asks_for_no_accuracy_gets_the_default_of_the_task() -> None:
    (only,) = quoted(Asked("t", 1.0, 200.0)).classes
    assert only.accuracy_min == pytest.approx(0.93)
    assert set(only.shares) == {LARGE.key}


def test_who_degrades_is_served_below_its_floor_where_nothing_above_it_is_there() -> None:
    (only,) = quoted(Asked("t", 1.0, 200.0, 0.9, on_miss="degrade"), choices=(SMALL,)).classes
    assert only.why_not is None
    assert set(only.shares) == {SMALL.key}


@pytest.mark.parametrize(
    ("asked", "settings", "words"),
    [
        (Asked("u", 1.0), {}, "no variant of task 'u' is measured; there are variants of: t"),
        (Asked("t", 1.0, 200.0, 0.99), {}, "accuracy: large:1/x on gpu is the most accurate and has 0.95"),
        (Asked("t", 1.0, 4.0, 0.9), {}, "latency: large:1/x on gpu is the quickest that is accurate enough"),
        (
            Asked("t", 1.0, 200.0),
            {"groups": (Limits("cpu", 1.0, 0.1, 0, 4),)},
            "memory: its smallest variant needs 100",
        ),
        (Asked("t", 1.0, 200.0), {"groups": (Limits("other", 1.0, 0.1, 0, 4),)}, "measured on cpu, gpu alone"),
    ],
)
def test_what_cannot_be_served_says_why(asked: Asked, settings: dict[str, Any], words: str) -> None:
    found = quoted(asked, Asked("t", 1.0, 200.0, 0.0) if not settings else asked, **settings)
    assert found.classes[0].served == 0
    assert words in str(found.classes[0].why_not)
    assert not found.is_served


def test_nothing_asked_costs_what_must_be_there() -> None:
    fixed = Limits("cpu", 1000.0, 0.1, 2, 2)
    found = quoted(Asked("t", 0.0, 200.0), groups=(fixed,))
    assert (found.usd_per_hour, found.usd_per_1000_rows, found.is_served) == (pytest.approx(0.2), None, True)


def test_variants_that_answer_are_quoted_with_corrected_accuracies() -> None:
    old, new = model(version=1), model(version=2)
    profiles = [profile(old), profile(new, accuracy=0.9)]
    models = {each.key: each for each in (old, new)}
    (newest,) = choices_of(models, profiles, {}, {})
    assert (newest.variant, newest.group, newest.task, newest.sizes) == ("m:2/onnx-fp32", "cpu", "t", (1, 8))
    (stable,) = choices_of(models, profiles, {"m": Labels("m", stable=1)}, {})
    assert stable.variant == "m:1/onnx-fp32"
    correction = Correction("m:2/onnx-fp32", new.digest, 1000.0, 600.0, 0.6, 0.57, 0.63)
    assert choices_of(models, profiles, {}, {correction.variant: correction})[0].accuracy == pytest.approx(0.57)


def test_groups_whose_number_is_fixed_are_there_whatever_is_asked() -> None:
    groups = (GroupConfig(name="a", workers=3), GroupConfig(name="b", workers_min=0, workers_max=9))
    limits = quotes.limits_of(Config(groups=groups))
    assert [(each.name, each.workers_min, each.workers_max) for each in limits] == [("a", 3, 3), ("b", 0, 9)]


# --- the file, and what is shown --------------------------------------------------------------------------------------


def test_a_demand_is_read_with_the_contracts_defaults(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("task,rate\nt,2\n")
    assert quotes.read(path) == [Asked("t", 2.0)]
    path.write_text("rate,task,burst,on_miss,prefer,latency_ms_max,accuracy_min\n2,t,4,late,accuracy,50,0.9\n")
    assert quotes.read(path) == [Asked("t", 2.0, 50.0, 0.9, "accuracy", "late", 4.0)]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("t,-1,50", "d.csv:2: rate: got '-1', expected rows a second, 0 or more"),
        ("t,,50", "d.csv:2: rate: got an empty cell"),
        (",1,50", "d.csv:2: task: got an empty cell, expected a name"),
        ("t,1,0", "d.csv:2: latency_ms_max: got '0'"),
    ],
)
def test_a_wrong_demand_names_the_cell(tmp_path: Path, row: str, words: str) -> None:
    path = tmp_path / "d.csv"
    path.write_text(f"task,rate,latency_ms_max\n{row}\n")
    with pytest.raises(ConfigurationError) as caught:
        quotes.read(path)
    assert words in str(caught.value)


def run(*arguments: str) -> Any:
    app = typer.Typer()
    command.register(app)
    return CliRunner().invoke(app, list(arguments))


def test_the_example_is_served_and_something_impossible_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    good = run("--demand", "examples/plan/demand.csv", *EXAMPLE, "--json")
    assert good.exit_code == 0, good.output
    told = json.loads(good.output)
    assert told["is_served"]
    assert told["bound_usd_per_hour"] <= told["usd_per_hour"]
    assert sum(group["rows_per_second"] for group in told["groups"]) == pytest.approx(170.0)
    path = tmp_path / "d.csv"
    path.write_text("task,rate,accuracy_min\ndigits,5,0.999\n")
    bad = run("--demand", str(path), *EXAMPLE)
    assert bad.exit_code == 1
    assert "cannot be served: digits with accuracy 0.999" in " ".join(bad.output.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (EXAMPLE, "give --demand or --watch too"),
        (("--demand", "examples/plan/demand.csv", *EXAMPLE[:2]), "give both --profiles and --fleet"),
        (("--demand", "examples/plan/demand.csv", "--follow"), "--follow is for the present plan"),
        (("--seconds", "3"), "are for --watch"),
        (("--watch", "orders", "--latency-ms", "3"), "give --task too"),
        (("--watch", "orders", "--task", "t", "--prefer", "speed"), "--prefer is one of cost"),
    ],
)
def test_options_that_do_not_go_together_say_so(
    arguments: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert words in str(run(*arguments).exception)


def test_a_quote_is_shown_with_what_it_costs_and_what_is_not_served() -> None:
    console = Console(width=200)
    with console.capture() as shown:
        console.print(quotes.render(quoted(Asked("t", 20.0, 200.0, 0.9), Asked("u", 1.0, 50.0))))
    assert "large:1/x@gpu 100%" in shown.get()
    assert "an hour, $" in shown.get()
    assert "cannot be served: u within 50 ms" in shown.get()
