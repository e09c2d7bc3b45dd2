"""The catalog: what a name resolves to, and what a candidate keeps when records change."""

from __future__ import annotations

from dataclasses import replace

import pytest
from broker_builders import model, profile, put, tensor

from broker.catalog import Catalog, Target, match_inputs
from modelless.messages import Evaluation, Query
from modelless.tensors import Tensor, TensorSpec


def resolve(catalog: Catalog, **named: str) -> Target | None:
    return catalog.resolve(Query("q", (tensor(),), **named))  # type: ignore[arg-type]


def variants(target: Target | None) -> list[str]:
    assert target is not None
    return sorted(f"{c.variant}@{c.group}" for c in target.candidates)


def test_a_task_means_the_default_version_of_each_of_its_models() -> None:
    catalog = Catalog()
    for of in (model("a"), model("a", 2), model("b"), model("other", task="u")):
        put(catalog, of, profile(of))
    assert variants(resolve(catalog, task="t")) == ["a:2/onnx-fp32@cpu", "b:1/onnx-fp32@cpu"]
    assert catalog.tasks() == ["t", "u"]


def test_the_default_version_is_the_newest_that_something_can_run() -> None:
    catalog = Catalog()
    old, new = model("a"), model("a", 2)
    put(catalog, old, profile(old))
    put(catalog, new)
    assert variants(resolve(catalog, model="a")) == ["a:1/onnx-fp32@cpu"]
    put(catalog, new, profile(new))
    assert variants(resolve(catalog, model="a")) == ["a:2/onnx-fp32@cpu"]
    assert variants(resolve(catalog, model="a:1")) == ["a:1/onnx-fp32@cpu"]


def test_a_variant_means_itself_on_every_group() -> None:
    catalog = Catalog()
    put(catalog, model(), profile(model()), profile(model(), "gpu"))
    assert variants(resolve(catalog, variant="m:1/onnx-fp32")) == ["m:1/onnx-fp32@cpu", "m:1/onnx-fp32@gpu"]
    assert resolve(catalog, variant="m:1/torch-fp32") is None


@pytest.mark.parametrize("named", [{"task": "x"}, {"model": "x"}, {"model": "m:9"}, {"variant": "m:9/onnx-fp32"}])
def test_what_does_not_exist_resolves_to_nothing_and_is_not_remembered(named: dict[str, str]) -> None:
    catalog = Catalog()
    put(catalog, model(), profile(model()))
    assert resolve(catalog, **named) is None
    assert not catalog._targets


def test_a_registered_model_without_profiles_is_a_target_without_candidates() -> None:
    catalog = Catalog()
    put(catalog, model())
    assert variants(resolve(catalog, task="t")) == []
    catalog.put_profile("m:1/onnx-fp32@cpu", replace(profile(model()), status="failed"))
    assert variants(resolve(catalog, variant="m:1/onnx-fp32")) == []


def test_profiles_of_another_digest_or_without_batch_times_do_not_count() -> None:
    catalog = Catalog()
    put(catalog, model(), replace(profile(model()), digest="another"), replace(profile(model(), "gpu"), batches=()))
    assert catalog.candidates() == []


def test_what_a_table_learned_stays_while_its_batch_times_do() -> None:
    catalog = Catalog()
    put(catalog, model(), profile(model()))
    before = catalog.candidate("m:1/onnx-fp32", "cpu")
    assert before is not None
    before.table.observe(1, 80.0, 0.0)
    learned = before.table.scale
    put(catalog, model(), replace(profile(model()), measured_ms=5.0))
    assert catalog.candidate("m:1/onnx-fp32", "cpu") is before
    put(catalog, model(), profile(model(), accuracy=0.5, price_per_hour=36.0))
    after = catalog.candidate("m:1/onnx-fp32", "cpu")
    assert after is not None
    assert (after.accuracy, after.table.scale) == (0.5, learned)
    assert after.cost_per_1000_least == pytest.approx(10 * before.cost_per_1000_least)
    put(catalog, model(), profile(model(), curve=((1, 5.0),)))
    fresh = catalog.candidate("m:1/onnx-fp32", "cpu")
    assert fresh is not None
    assert fresh.table.scale == 1.0


def test_cost_follows_what_the_table_learns() -> None:
    catalog = Catalog()
    put(catalog, model(), profile(model()))
    (candidate,) = catalog.candidates()
    assert candidate.cost_per_1000_least == pytest.approx(10 / 8 * 3.6 / 3_600_000 * 1000)
    candidate.table.observe(8, 20.0, 0.0)
    assert candidate.cost_per_1000_least == pytest.approx(candidate.cost_per_1000(8))


def test_a_declared_accuracy_counts_where_none_was_measured() -> None:
    catalog = Catalog()
    of = replace(model(), evaluation=Evaluation(accuracy=0.7))
    put(catalog, of, replace(profile(of), accuracy=None))
    assert [c.accuracy for c in catalog.candidates()] == [0.7]


def test_removed_models_and_profiles_are_gone() -> None:
    catalog = Catalog()
    put(catalog, model(), profile(model()))
    assert resolve(catalog, task="t")
    catalog.put_profile("m:1/onnx-fp32@cpu", None)
    assert variants(resolve(catalog, task="t")) == []
    catalog.put_model("m:1", None)
    assert resolve(catalog, task="t") is None


SPECS = (TensorSpec("a", "FP32", (-1, 2)), TensorSpec("b", "INT8", (-1, -1)))
A, B = Tensor("a", "FP32", (1, 2), b"\0" * 8), Tensor("b", "INT8", (1, 3), b"\0" * 3)


def test_inputs_come_in_the_order_of_the_specification() -> None:
    assert match_inputs((B, A), SPECS) == (A, B)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ((A,), "input 'b' is missing"),
        ((A, B._replace(datatype="UINT8")), "input 'b' has datatype UINT8"),
        ((A._replace(shape=(1, 3)), B), "input 'a' has shape [1, 3]"),
        ((A, B._replace(shape=(1, 3, 1))), "input 'b' has shape [1, 3, 1]"),
        ((A, B, B._replace(name="c")), "input 'c' is unknown"),
    ],
)
def test_a_misfit_says_what_is_expected(tensors: tuple[Tensor, ...], said: str) -> None:
    answer = match_inputs(tensors, SPECS)
    assert isinstance(answer, str)
    assert answer.startswith(said)
    assert "a: FP32 [-1, 2], b: INT8 [-1, -1]" in answer
