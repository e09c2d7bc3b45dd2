"""The demo's words and tables, for what was made of its models."""

from __future__ import annotations

from pathlib import Path

from portfolio import BUILDERS, MODELS, portfolio
from rich.console import Console
from rich.table import Table

from modelless.config import load_config
from modelless.demo.measured import measured
from modelless.demo.report import Answer, CostRatios, figures
from modelless.demo.scenario import Policy, make_scenario, oracle
from modelless.demo.show import class_table, failures, family_table, notes, policy_notes, ratios, short
from modelless.demo.system import BUILDERS as ALLOWED
from modelless.demo.system import write_config
from modelless.variants import variants

CATALOG = portfolio()
FOUND = variants(CATALOG, CATALOG.models())
SCENARIO = make_scenario(measured(FOUND))


def text(table: Table) -> list[str]:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(table)
    return [line.rstrip() for line in capture.get().splitlines()]


def test_a_line_per_model_with_how_far_its_variants_are_apart() -> None:
    lines = text(family_table(FOUND))
    rows = {line.split()[0]: line for line in lines if line.split() and line.split()[0] in map(short, MODELS)}
    assert len(rows) == len(MODELS)
    assert rows["cnn"].split()[1:3] == [str(len(BUILDERS)), "1"]
    assert "0.960 to 0.968" in rows["cnn"]
    assert failures(FOUND) == [
        "failed: cnn tensorrt-fp16, committee tensorrt-fp16, deep tensorrt-fp16, linear tensorrt-fp16, "
        "mlp tensorrt-fp16: no CUDA device"
    ]


def test_only_what_is_ready_takes_part() -> None:
    assert len(measured(FOUND)) == len(MODELS) * len(BUILDERS)
    assert all(one.accuracy < 0.98 for one in measured(FOUND)), "the lower end, not what was measured"


def test_what_each_class_chose_is_told_by_variant() -> None:
    names = [f"digits-cnn:1/{builder}" for builder in BUILDERS][:6]
    answers = [
        Answer("model-less", "tight", 0.0, 5.0, "OK", 1, 1, variant=name, accuracy=0.99, batch_size=2, cost=1e-6)
        for index, name in enumerate(names)
        for _ in range(10 - index)
    ]
    answers.append(Answer("model-less", "tight", 0.0, 5.0, "DEADLINE_EXCEEDED", 1))
    kind = SCENARIO.classes[0]
    (row,) = [row for row in figures(answers, SCENARIO.classes, SCENARIO.policies[:1]) if row.kind == "tight"]
    words = notes([row])
    assert "model-less chose cnn torch-fp32 22%, cnn torch-bf16 20%" in words
    assert "and 2 others" in words
    assert "no answer to 1 DEADLINE_EXCEEDED" in words
    assert max(map(len, text(class_table(kind, [row])))) <= 80


def test_fixed_choices_and_the_oracle_are_named() -> None:
    best = oracle(SCENARIO, {})
    lines = policy_notes(type(SCENARIO)(SCENARIO.classes, (*SCENARIO.policies, best), SCENARIO.measured))
    assert [line.partition(":")[0] for line in lines] == ["one for all", "cheapest", "oracle"]
    assert lines[0].endswith(": committee onnx-int8") or lines[0].endswith(": committee onnx-fp32")
    assert "tight: " in lines[2] and "accurate: committee" in lines[2]
    assert policy_notes(type(SCENARIO)(SCENARIO.classes, (Policy("model-less"),))) == []


def test_ratios_are_told_or_missing() -> None:
    told = ratios(CostRatios(1.08, 0.52), [1.28, None, 0.91])
    assert "1.08 times the oracle's (0.91 to 1.28 in its turns), 0.52 times" in told
    assert "- times the oracle's (- in its turns)" in ratios(CostRatios(None, None), [])


def test_the_configuration_names_the_builders(tmp_path: Path) -> None:
    assert load_config(write_config(tmp_path, None)).worker.builders == ALLOWED
    assert load_config(write_config(tmp_path, None, ())).worker.builders == ()
