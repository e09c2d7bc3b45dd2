"""What people see of the variants: the facts put together, the table, and the picture."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from portfolio import BUILDERS, MODELS, failed, model, portfolio, profile, put
from rich.text import Text

from modelless.catalog import Catalog
from modelless.commands.models import _plain, render, select
from modelless.errors import ConfigurationError, NotFoundError
from modelless.frontier import frontier
from modelless.messages import BatchTime, Condition, Correction, Labels, Member, Profile
from modelless.plot import Box, _place, _short_names, plot_variants, require
from modelless.variants import Variant, best_batch, variants

CNN = model("digits-cnn")


def of(catalog: Catalog, *loaded: str) -> list[Variant]:
    return variants(catalog, catalog.models(), loaded)


def table(catalog: Catalog, *workers: Member) -> list[str]:
    lines = render(catalog.models(), of(catalog), catalog, workers)
    return [Text.from_markup(line).plain for line in lines]


def test_best_batch_has_the_highest_throughput() -> None:
    batches = (BatchTime(1, 1.0, 1.0), BatchTime(8, 4.0, 5.0), BatchTime(16, 16.0, 20.0))
    best = best_batch(Profile("v", "g", "ready", "d", batches=batches, price_per_hour=3.6))

    assert best is not None
    assert (best.batch_size, best.p50_ms, best.rows_per_second) == (8, 4.0, 2000.0)
    assert best.cost == pytest.approx(3.6 / 3600 * 0.5)  # 1,000 rows take half a second
    assert best_batch(Profile("v", "g", "failed", "d")) is None


# --- facts ------------------------------------------------------------------------------------------------------


def test_the_frontier_is_of_the_task_and_of_the_lower_bound() -> None:
    found = of(portfolio())
    points = [variant.point for variant in found]
    ready = [point for point in points if point is not None]
    assert len(ready) == len(MODELS) * len(BUILDERS)
    expected = {id(ready[index]) for index in frontier(ready)}
    assert [v.on_frontier for v in found] == [point is not None and id(point) in expected for point in points]
    assert 0 < sum(v.on_frontier for v in found) < len(ready)


def test_a_task_has_a_frontier_of_its_own() -> None:
    catalog = portfolio()
    other = model("slow", task="other")
    put(catalog, other)
    put(catalog, profile(other, "torch-fp32", 0.5, 1000.0))
    assert [v.name for v in of(catalog) if v.model.task == "other" and v.on_frontier] == ["slow:1/torch-fp32"]


def test_a_version_that_does_not_answer_is_not_on_the_frontier() -> None:
    catalog = portfolio()
    newer = model("digits-cnn", version=2)
    put(catalog, newer)
    put(catalog, profile(newer, "onnx-fp32", 1.0, 0.001))
    assert {v.name for v in of(catalog) if v.on_frontier} == {"digits-cnn:2/onnx-fp32"}
    put(catalog, Labels("digits-cnn", stable=1))
    assert "digits-cnn:2/onnx-fp32" not in {v.name for v in of(catalog) if v.on_frontier}


def test_a_correction_replaces_what_was_measured() -> None:
    catalog = portfolio()
    name = "digits-cnn:1/onnx-fp32"
    (before,) = [v for v in of(catalog) if v.name == name]
    assert before.on_frontier
    put(catalog, Correction(name, CNN.digest, 1000.0, 700.0, 0.71, 0.68, 0.74, drifted=True))
    (after,) = [v for v in of(catalog) if v.name == name]
    assert (after.accuracy, after.interval, after.measured) == (0.71, (0.68, 0.74), before.measured)
    assert not after.on_frontier


def test_states_are_the_leaders_or_what_is_loaded() -> None:
    catalog = portfolio()
    name = "digits-cnn:1/onnx-fp32"
    states = {v.name: v.state for v in of(catalog, name)}
    assert (states[name], states["digits-cnn:1/torch-fp32"]) == ("active", "inactive")
    assert states["digits-cnn:1/tensorrt-fp16"] == "failed"
    put(catalog, Condition(name, "cpu-small", CNN.digest, "interfered", 1.8))
    assert {v.name: v.state for v in of(catalog, name)}[name] == "interfered"


# --- the table --------------------------------------------------------------------------------------------------


def test_a_block_per_model_and_aligned_columns() -> None:
    lines = table(portfolio())
    blocks = [line for line in lines if "  task digits" in line]
    assert [line.partition(":")[0] for line in blocks] == sorted(MODELS)
    rows = [line for line in lines if line[:2] in ("* ", "  ") and "cpu-small" in line]
    assert len(rows) == 35
    assert len({line.index("cpu-small") for line in rows}) == 1
    assert max(map(len, lines[: len(rows) + len(blocks)])) < 140
    marked = [line for line in rows if line.startswith("* ")]
    assert f"35 variants of 5 models, {len(marked)} on the frontier" in lines[-2]


def test_why_a_builder_failed_is_told_once() -> None:
    refused = Member("worker", "cpu-small-0", "1", "ready", group="cpu-small", errors={"torch-int8": "needs AVX512"})
    lines = table(portfolio(), refused, replace(refused, name="cpu-small-1"), replace(refused, group="edge"))
    assert lines[-2] == "torch-int8 is not offered on cpu-small, edge: needs AVX512"
    assert sum("no CUDA device" in line for line in lines) == 1
    assert lines[-1].startswith("tensorrt-fp16 on cpu-small failed for digits-cnn:1, digits-committee:1")


def test_corrections_drift_interference_and_labels_are_seen() -> None:
    catalog = portfolio()
    assert "measured" not in table(catalog)[0]
    put(catalog, Correction("digits-cnn:1/onnx-int8", CNN.digest, 340.0, 300.0, 0.9, 0.88, 0.92, drifted=True))
    put(catalog, Condition("digits-cnn:1/onnx-fp32", "cpu-small", CNN.digest, "interfered", 1.84))
    put(catalog, Labels("digits-cnn", stable=1, shadow="digits-cnn:1/onnx-int8", shadow_weight=0.5))
    lines = table(catalog)
    assert "measured  labels" in lines[0]
    (corrected,) = [line for line in lines if "drifted" in line]
    assert "0.9000  0.880–0.920    0.9599     340" in corrected
    assert any("interfered, 1.8 times as slow" in line for line in lines)
    assert any(line.startswith("digits-cnn:1  task digits, safetensors, stable, shadow of 50%") for line in lines)


def test_declared_accuracy_and_what_is_not_measured_yet() -> None:
    catalog = Catalog(portfolio()._topics)
    assert table(catalog) == ["no model is registered: `modelless register model.toml`"]
    put(catalog, CNN)
    assert table(catalog)[1:2] == ["  not measured yet"]
    put(catalog, replace(profile(CNN, "emulated", 0.9, 1.0), accuracy_rows=0, accuracy_low=None, accuracy_high=None))
    assert any("declared" in line for line in table(catalog))


def test_filters() -> None:
    models = [model("a"), model("a", version=2), model("b", task="t")]
    assert [m.key for m in select(models, None, "a")] == ["a:1", "a:2"]
    assert [m.key for m in select(models, None, "a:2")] == ["a:2"]
    assert [m.key for m in select(models, "t", None)] == ["b:1"]
    assert select([], None, None) == []
    with pytest.raises(
        NotFoundError, match="no task 't' and model 'a'; registered are tasks digits, t and models a, b"
    ):
        select(models, "t", "a")


def test_json_has_the_facts() -> None:
    catalog = portfolio()
    plain = _plain(catalog, catalog.models(), of(catalog))
    cnn = next(entry for entry in plain if entry["model"] == "digits-cnn:1")
    assert len(cnn["variants"]) == len(BUILDERS) + 1
    best = cnn["variants"][0]
    assert (best["variant"], best["on_frontier"], best["state"]) == ("digits-cnn:1/onnx-fp32", True, "inactive")
    assert best["accuracy_low"] < best["accuracy"] < best["accuracy_high"]
    assert best["best"]["cost"] > 0
    assert cnn["variants"][-1]["reason"] == "no CUDA device"


# --- the picture ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_a_picture_by_its_suffix(tmp_path: Path, suffix: str) -> None:
    path = plot_variants(tmp_path / "new" / f"frontier{suffix}", of(portfolio()))
    magic = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix]
    assert path.read_bytes().startswith(magic)


def test_the_picture_names_the_frontier(tmp_path: Path) -> None:
    """An SVG has every text as a comment too."""
    found = of(portfolio())
    text = plot_variants(tmp_path / "frontier.svg", found).read_text()
    names = dict(zip([v.name for v in found], _short_names(found), strict=True))
    assert names["digits-cnn:1/onnx-fp32"] == "cnn onnx-fp32"
    for variant in found:
        if variant.on_frontier:
            assert f"<!-- {names[variant.name]} -->" in text, variant.name
    assert "<!-- digits: accuracy against cost -->" in text


def test_labels_stand_on_nothing_and_nearby_first() -> None:
    inside = Box(0, 0, 200, 200)
    taken = [Box(96, 96, 104, 104)]
    for _ in range(12):
        place = _place((100, 100), (40, 10), 1.0, taken, inside)
        assert place is not None
        assert place.box.within(inside)
        assert not any(place.box.overlaps(other) for other in taken)
        taken.append(place.box)
    assert _place((100, 100), (40, 10), 1.0, [inside], inside) is None


def test_names_say_what_differs() -> None:
    one = [Variant(CNN, profile(CNN, "onnx-fp32", 0.9, 1.0))]
    assert _short_names(one) == ["digits-cnn onnx-fp32"]
    newer = model("digits-cnn", version=2)
    more = [*one, Variant(newer, profile(newer, "onnx-fp32", 0.9, 1.0, group="gpu"))]
    assert _short_names(more) == ["digits-cnn:1 onnx-fp32@cpu-small", "digits-cnn:2 onnx-fp32@gpu"]


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"must be one of \.png, \.svg, \.pdf"):
        require(tmp_path / "frontier.gif")
    with pytest.raises(ConfigurationError, match="nothing to draw yet"):
        plot_variants(tmp_path / "frontier.png", [Variant(CNN, failed(CNN, "onnx-fp32", "no"))])


def test_without_matplotlib_the_extra_is_named() -> None:
    code = (
        "import sys\nsys.modules['matplotlib'] = None\nsys.argv = ['modelless', 'models', '--plot', 'f.png']\n"
        "from modelless.commands import main\nmain()"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "pip install 'modelless[demo]'" in ended.stderr
