"""The catalog: what a name resolves to, and what a candidate keeps when records change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from broker_builders import model, profile, put, tensor
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.catalog import SCALE_STEP, TARGETS_MAX, Catalog, Target, match_inputs
from broker.ranking import SIZES
from broker.usual import QUIET_MS
from broker.view import NEVER
from modelless.messages import Correction, Demanded, Evaluation, ModelVersion, Profile, Query
from modelless.tensors import Tensor, TensorSpec


def resolve(catalog: Catalog, **named: str) -> Target | None:
    return catalog.resolve(Query("q", (tensor(),), **named))  # type: ignore[arg-type]


def variants(target: Target | None) -> list[str]:
    assert target is not None
    return sorted(f"{c.variant}@{c.group}" for c in target.ranking.candidates)


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
    assert after.cost_per_1000_usual == pytest.approx(10 * learned * before.cost_per_1000_usual)
    put(catalog, model(), profile(model(), curve=((1, 5.0),)))
    fresh = catalog.candidate("m:1/onnx-fp32", "cpu")
    assert fresh is not None
    assert fresh.table.scale == 1.0


def test_candidates_are_ranked_anew_when_their_tables_have_learned_enough() -> None:
    catalog = Catalog()
    slow, quick = model("slow"), model("quick")
    put(catalog, slow, profile(slow))
    put(catalog, quick, profile(quick, curve=((1, 9.0), (8, 9.0))))
    target = resolve(catalog, task="t")
    assert target is not None

    def fastest() -> str:
        found = target.ranking.fastest(1, 0, NEVER)
        assert found is not None
        return found.model.name

    assert fastest() == "quick"
    candidate = catalog.candidate("quick:1/onnx-fp32", "cpu")
    assert candidate is not None
    candidate.table.scale = 1 + SCALE_STEP / 2
    catalog.observed(candidate)
    catalog.rank_observed(0.0)
    assert candidate.lat_ms(1) == 9.0
    candidate.table.scale = 2.0
    assert (candidate.lat_ms(1), fastest()) == (9.0, "quick")
    catalog.rank_observed(0.0)
    assert (candidate.lat_ms(1), fastest()) == (18.0, "slow")
    assert candidate.cost_per_1000_usual == pytest.approx(candidate.cost_per_1000(8))
    candidate.table.scale = 1.0
    catalog.rank_observed(0.0)
    assert fastest() == "quick"
    catalog.rank_observed(0.0)
    assert not catalog._observed


def test_cost_is_that_of_the_batches_that_a_group_runs() -> None:
    catalog = Catalog()
    wide, narrow = model("wide"), model("narrow")
    put(catalog, wide, profile(wide, curve=((1, 8.0), (8, 8.0))))
    put(catalog, narrow, profile(narrow, curve=((1, 2.0), (8, 16.0))))
    target = resolve(catalog, task="t")
    assert target is not None

    def cheapest() -> str:
        found = target.ranking.cheapest(0)
        assert found is not None
        return found.model.name

    assert cheapest() == "wide"  # nothing runs: the best is assumed
    candidate = catalog.candidate("narrow:1/onnx-fp32", "cpu")
    assert candidate is not None
    catalog.ran(candidate, 1, 0.0)
    catalog.rank_observed(0.0)
    assert cheapest() == "narrow"
    for _ in range(200):
        catalog.ran(candidate, 6, 1.0)
    catalog.rank_observed(1.0)
    assert cheapest() == "wide"
    assert catalog.usual(1.0)["cpu"].rows == pytest.approx(6, rel=0.1)
    catalog.ran(candidate, 1, 2.0)
    catalog.rank_observed(2.0)
    late = model("late")
    put(catalog, late, profile(late, curve=((1, 1.0), (8, 8.0))))
    added = catalog.candidate("late:1/onnx-fp32", "cpu")
    assert added is not None
    assert added.cost_per_1000_usual == pytest.approx(added.cost_per_1000(6))
    catalog.rank_observed(2.0 + QUIET_MS + 1)
    assert added.cost_per_1000_usual == pytest.approx(added.cost_per_1000(8))


def test_groups_are_compared_by_the_company_that_all_who_come_would_make() -> None:
    """Whatever batches they happen to run."""
    catalog = Catalog()
    put(
        catalog,
        model(),
        profile(model(), "strong", curve=((1, 40.0), (8, 110.0)), price_per_hour=1.0),
        profile(model(), "weak", curve=((1, 80.0), (8, 220.0)), price_per_hour=0.4),
    )
    strong, weak = (catalog.candidate("m:1/onnx-fp32", group) for group in ("strong", "weak"))
    assert strong is not None
    assert weak is not None
    target = resolve(catalog, task="t")
    assert target is not None
    for group in ("strong", "weak"):
        catalog.set_ready("m:1/onnx-fp32", group, frozenset({f"{group}-0", f"{group}-1"}))
    catalog.ran(strong, 8, 0.0)
    catalog.ran(weak, 2, 0.0)
    catalog.rank_observed(0.0)
    assert target.ranking.cheapest(0) is strong
    asked = Demanded("t", 600.0, 0.5, "cost", False, 174.0)
    others = Demanded("u", 600.0, 0.5, "cost", False, 900.0)
    for useless in (
        replace(asked, prefer="accuracy"),
        replace(asked, accuracy_min=0.99),
        replace(asked, latency_ms=70.0),
        replace(asked, rows_per_second=1.0),
        others,
    ):
        catalog.expect([useless])
        catalog.rank_observed(0.0)
        assert target.ranking.cheapest(0) is strong, useless
    catalog.expect([asked, others])
    catalog.rank_observed(0.0)
    assert target.ranking.cheapest(0) is weak
    assert weak.cost_per_1000_usual == pytest.approx(weak.cost_per_1000(8))
    catalog.expect([])
    catalog.rank_observed(0.0)
    assert target.ranking.cheapest(0) is strong


def test_what_a_group_would_not_choose_has_no_company() -> None:
    catalog = Catalog()
    quick, slow = model("quick"), model("slow")
    put(catalog, quick, profile(quick, curve=((1, 10.0), (8, 20.0)), accuracy=0.8))
    put(catalog, slow, profile(slow, curve=((1, 40.0), (8, 80.0)), accuracy=0.9))
    candidates = [catalog.candidate(f"{name}:1/onnx-fp32", "cpu") for name in ("quick", "slow")]
    for candidate in candidates:
        assert candidate is not None
        catalog.set_ready(candidate.variant, "cpu", frozenset({"cpu-0"}))
        catalog.ran(candidate, 1, 0.0)
    catalog.expect([Demanded("t", 600.0, 0.5, "cost", False, 400.0), Demanded("t", 600.0, 0.85, "cost", False, 0.1)])
    catalog.rank_observed(0.0)
    assert [c.usual.rows for c in candidates if c is not None and c.usual is not None] == [8, 1]


def test_what_has_not_run_is_as_slow_as_what_has() -> None:
    catalog = Catalog()
    first, second = model("first"), model("second")
    put(catalog, first, profile(first, curve=((1, 2.0),)))
    put(catalog, second, profile(second, curve=((1, 3.0),)))
    ran, unknown = (catalog.candidate(f"{name}:1/onnx-fp32", "cpu") for name in ("first", "second"))
    assert ran is not None
    assert unknown is not None
    ran.table.scale, ran.table.observed_ms = 2.0, 0.0
    catalog.ran(ran, 1, 0.0)
    catalog.rank_observed(0.0)
    assert (ran.lat_ms(1), unknown.lat_ms(1)) == (4.0, pytest.approx(6.0))
    unknown.table.scale, unknown.table.observed_ms = 1.5, 1.0
    catalog.rank_observed(1.0)
    assert unknown.lat_ms(1) == pytest.approx(6.0)  # the difference may be noise
    unknown.table.scale = 1.1
    catalog.rank_observed(1.0)
    assert unknown.lat_ms(1) == pytest.approx(3.3)  # whatever slows the other, it does not slow this one


@given(st.integers(1, 3000), st.floats(0.2, 5.0))
def test_at_the_sizes_latency_is_the_tables_and_between_them_no_more(rows: int, scale: float) -> None:
    """Nobody is refused for a time that is larger than the profile's."""
    catalog = Catalog()
    put(catalog, model(), profile(model(), curve=((1, 1.0), (4, 3.0), (64, 100.0))))
    (candidate,) = catalog.candidates()
    candidate.table.scale = scale
    candidate.sample()
    table_ms = candidate.table.p50_ms(rows)
    assert candidate.lat_ms(rows) <= table_ms * (1 + 1e-9)
    if rows in SIZES or rows >= candidate.table.rows_max:
        assert candidate.lat_ms(rows) == pytest.approx(table_ms)
    (learned,) = candidate.lat_sampled_ms[-1:]
    assert candidate.lat_ms(SIZES[-1]) == learned


def test_who_has_it_ready_is_known_before_and_after_its_profile() -> None:
    catalog = Catalog()
    catalog.set_ready("m:1/onnx-fp32", "cpu", frozenset({"a-1", "b-1"}))
    put(catalog, model(), profile(model()))
    target = resolve(catalog, task="t")
    assert target is not None
    assert [(each.group, each.team) for each in target.ranking.classes] == [("cpu", {"a-1", "b-1"})]
    catalog.set_ready("m:1/onnx-fp32", "cpu", frozenset({"b-1"}))
    assert [(each.group, each.team) for each in target.ranking.classes] == [("cpu", {"b-1"})]
    put(catalog, model(), profile(model(), accuracy=0.1))
    assert [(each.group, each.team) for each in target.ranking.classes] == [("cpu", {"b-1"})]
    catalog.set_ready("m:1/onnx-fp32", "cpu", frozenset())
    assert (target.ranking.classes, target.ranking.unloaded) == ((), 1)


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


def test_what_is_chosen_by_is_the_lower_bound_and_what_is_said_is_the_accuracy() -> None:
    catalog = Catalog()
    put(catalog, model(), replace(profile(model()), accuracy=0.9, accuracy_low=0.85))
    (candidate,) = catalog.candidates()
    assert (candidate.accuracy, candidate.accuracy_low) == (0.9, 0.85)
    target = resolve(catalog, task="t")
    assert target is not None
    assert target.ranking.accuracy_best == 0.85


def test_a_correction_replaces_what_was_measured_while_it_is_of_the_same_model() -> None:
    catalog = Catalog()
    put(catalog, model(), profile(model()), profile(model(), "gpu"))
    said = Correction("m:1/onnx-fp32", "m:1", 100.0, 70.0, 0.75, 0.7, 0.8)
    catalog.put_correction(said.variant, said)
    assert [(c.accuracy, c.accuracy_low) for c in catalog.candidates()] == [(0.75, 0.7)] * 2
    catalog.put_correction(said.variant, replace(said, digest="another"))
    assert [(c.accuracy, c.accuracy_low) for c in catalog.candidates()] == [(0.9, 0.9)] * 2
    catalog.put_correction(said.variant, said)
    catalog.put_correction(said.variant, None)
    catalog.put_correction("unknown:1/onnx-fp32", said)
    assert [c.accuracy for c in catalog.candidates()] == [0.9] * 2


def test_targets_asked_for_by_name_are_bounded() -> None:
    catalog = Catalog()
    of = model()
    names = [f"m:1/b{number}" for number in range(TARGETS_MAX + 10)]
    put(catalog, of, *(replace(profile(of), variant=name) for name in names))
    for name in names:
        assert variants(resolve(catalog, variant=name)) == [f"{name}@cpu"]
    assert len(catalog._targets) == TARGETS_MAX


# --- records come one at a time; what follows from them is what follows from them all ---------------------------------

KEYS = [(name, version) for name in ("a", "b") for version in (1, 2)]
events = st.one_of(
    st.tuples(st.just("model"), st.sampled_from(KEYS), st.sampled_from(["t", "u", None]), st.sampled_from("xy")),
    st.tuples(
        st.just("profile"),
        st.sampled_from(KEYS),
        st.sampled_from(["cpu", "gpu"]),
        st.sampled_from(["ready x", "ready y", "failed x", None]),
    ),
    st.tuples(st.just("correction"), st.sampled_from(KEYS), st.sampled_from([0.3, None]), st.sampled_from("xy")),
)


class Facts:
    """All records at once, and a catalog that got them one by one."""

    def __init__(self) -> None:
        self.catalog = Catalog()
        self.models: dict[str, ModelVersion] = {}
        self.profiles: dict[str, Profile] = {}
        self.corrections: dict[str, Correction] = {}

    def happen(self, kind: str, key: tuple[str, int], what: Any, how: Any) -> None:
        of = replace(model(*key), digest=str(how)[-1])
        if kind == "model":
            put_or_drop(self.models, of.key, None if what is None else replace(of, task=what))
            self.catalog.put_model(of.key, self.models.get(of.key))
        elif kind == "profile":
            made = replace(profile(of, what), status=str(how).partition(" ")[0])
            put_or_drop(self.profiles, made.key, None if how is None else made)
            self.catalog.put_profile(made.key, self.profiles.get(made.key))
        else:
            variant = f"{of.key}/onnx-fp32"
            said = Correction(variant, of.digest, 1, 1, what, what, what) if what else None
            put_or_drop(self.corrections, variant, said)
            self.catalog.put_correction(variant, said)

    def candidates(self, key: str) -> list[tuple[str, float]]:
        found = []
        for profiled in self.profiles.values():
            of = self.models.get(key)
            if of and profiled.variant.startswith(key) and (profiled.status, profiled.digest) == ("ready", of.digest):
                said = self.corrections.get(profiled.variant)
                found.append((profiled.key, 0.3 if said and said.digest == of.digest else 0.9))
        return sorted(found)

    def served(self, name: str) -> str | None:
        newest = [key for key in (f"{name}:2", f"{name}:1") if key in self.models]
        return next((key for key in newest if self.candidates(key)), newest[0] if newest else None)


def put_or_drop(into: dict[str, Any], key: str, value: Any) -> None:
    if value is None:
        into.pop(key, None)
    else:
        into[key] = value


def seen(target: Target | None) -> list[tuple[str, float]] | None:
    return None if target is None else sorted((c.key, c.accuracy_low) for c in target.ranking.candidates)


@settings(max_examples=300, deadline=None)
@given(st.lists(events, max_size=40))
def test_record_by_record_it_is_what_all_of_them_say(happened: list[tuple[str, tuple[str, int], Any, Any]]) -> None:
    facts = Facts()
    catalog = facts.catalog
    for event in happened:
        facts.happen(*event)
        served = {name: facts.served(name) for name in ("a", "b")}
        for task in ("t", "u"):
            of_task = [key for key in served.values() if key and facts.models[key].task == task]
            exists = any(of.task == task for of in facts.models.values())
            expected = sorted(c for key in of_task for c in facts.candidates(key)) if exists else None
            found = resolve(catalog, task=task)
            assert seen(found) == expected
            assert found is None or found.ranking.accuracy_best == max(
                (accuracy for _, accuracy in expected or []), default=0
            )
        for name, version in KEYS:
            key = f"{name}:{version}"
            assert seen(resolve(catalog, model=key)) == (facts.candidates(key) if key in facts.models else None)
            known = key in facts.models and any(p.startswith(key) for p in facts.profiles)
            assert seen(resolve(catalog, variant=f"{key}/onnx-fp32")) == (facts.candidates(key) if known else None)
        for name, key in served.items():
            assert seen(resolve(catalog, model=name)) == (facts.candidates(key) if key else None)


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
