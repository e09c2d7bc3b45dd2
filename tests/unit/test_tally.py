"""Labels in, corrections out: what labels weigh, what they cannot do, and when they are called drift."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
from broker_builders import model, profile
from hypothesis import given
from hypothesis import strategies as st

from broker import tally
from broker.tally import DRIFT_ROWS_MIN, EVEN_ROWS, ROWS_MAX, Count, Evaluated, Tally, correct, has_drifted
from modelless.accuracy import wilson
from modelless.messages import Correction, Feedback, Profile

MODEL = model()
MODELS = {MODEL.key: MODEL}
VARIANT = f"{MODEL.key}/onnx-fp32"
_numbers = count()


def measured(accuracy: float = 0.9, rows: int = 350, group: str = "cpu") -> Profile:
    return replace(profile(MODEL, group, accuracy=accuracy), accuracy_rows=rows)


def tallying(*profiles: Profile) -> Tally:
    made = Tally()
    for each in profiles or (measured(),):
        made.put_profile(each.key, each)
    return made


def feedback(right: int, wrong: int = 0, variant: str = VARIANT, query: str | None = None) -> Feedback:
    labels = (1,) * (right + wrong)
    return Feedback(query or f"t/0/{next(_numbers)}", variant, (1,) * right + (0,) * wrong, labels)


def corrected(made: Tally) -> Correction:
    (correction,) = made.corrections(5.0)
    return correction


# --- what labels weigh --------------------------------------------------------------------------------------


def test_a_correction_names_what_it_is_of() -> None:
    made = tallying()
    assert made.take(feedback(3, 1), MODELS) is None
    correction = corrected(made)
    assert (correction.variant, correction.digest, correction.changed_ms) == (VARIANT, MODEL.digest, 5.0)
    assert correction.key == f"correction/{VARIANT}"
    assert correction.rows == pytest.approx(4, rel=0.01)
    assert correction.right == pytest.approx(3, rel=0.01)
    assert made.corrections(6.0) == []


@pytest.mark.parametrize("rows", [0, 100, 350, 50_000])
@pytest.mark.parametrize("right", [True, False])
def test_a_first_label_changes_almost_nothing(rows: int, right: bool) -> None:
    """Neither the accuracy nor its interval, whether few rows were measured, many, or none (declared)."""
    made = tallying(measured(0.9, rows))
    made.take(feedback(int(right), int(not right)), MODELS)
    correction = corrected(made)
    low, high = Evaluated("", 0.9, rows).interval
    assert correction.accuracy == pytest.approx(0.9, abs=0.01)
    assert (correction.accuracy_low, correction.accuracy_high) == pytest.approx((low, high), abs=0.012)


@pytest.mark.parametrize("rows", [0, 350, 1_000_000])
def test_enough_labels_win(rows: int) -> None:
    made = tallying(measured(0.95, rows))
    for _ in range(400):
        made.take(feedback(6, 4), MODELS)
    correction = corrected(made)
    assert correction.accuracy == pytest.approx(0.6, abs=0.012)
    assert correction.accuracy_high < 0.65


@given(st.floats(1, ROWS_MAX), st.floats(0, 1), st.floats(0, 1), st.integers(0, 10**7))
def test_together_lies_between_and_the_weight_is_bounded(
    rows: float, share: float, accuracy: float, evaluated_rows: int
) -> None:
    of_labels = Count("d", rows, share * rows)
    correction = correct("v", of_labels, Evaluated("d", accuracy, evaluated_rows), 0.0)
    low, high = sorted((of_labels.right / rows, accuracy))
    assert low - 1e-9 <= correction.accuracy <= high + 1e-9
    assert 0 <= correction.accuracy_low <= correction.accuracy <= correction.accuracy_high <= 1
    if rows >= EVEN_ROWS:  # the labels weigh at least as much
        assert abs(correction.accuracy - share) <= abs(correction.accuracy - accuracy) + 1e-9


@given(st.floats(1, ROWS_MAX), st.floats(0, 1), st.floats(0, 1))
def test_more_evaluated_rows_pull_towards_the_evaluation(rows: float, share: float, accuracy: float) -> None:
    few, many, said = (
        correct("v", Count("d", rows, share * rows), Evaluated("d", accuracy, evaluated), 0.0).accuracy
        for evaluated in (10, 1000, 0)
    )
    assert abs(said - accuracy) <= abs(many - accuracy) + 1e-9 <= abs(few - accuracy) + 2e-9


# --- forgetting ---------------------------------------------------------------------------------------------

_parts = st.lists(st.integers(1, 500).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), min_size=1)


@given(_parts)
def test_a_count_is_bounded(parts: Sequence[tuple[int, int]]) -> None:
    counted = Count("d")
    for rows, right in parts:
        counted.add(rows, right)
        assert 0 <= counted.right <= counted.rows <= ROWS_MAX


@given(st.lists(st.booleans(), min_size=1, max_size=300))
def test_forgetting_is_exponential(outcomes: list[bool]) -> None:
    counted = Count("d")
    for outcome in outcomes:
        counted.add(1, int(outcome))
    weights = (1 - 1 / ROWS_MAX) ** np.arange(len(outcomes))[::-1]
    assert counted.rows == pytest.approx(weights.sum())
    assert counted.right == pytest.approx(weights[np.array(outcomes)].sum())


@given(st.integers(1, 200), st.booleans())
def test_many_rows_at_once_are_as_many_of_one(rows: int, right: bool) -> None:
    at_once, one_by_one = Count("d", 100.0, 50.0), Count("d", 100.0, 50.0)
    at_once.add(rows, rows * right)
    for _ in range(rows):
        one_by_one.add(1, int(right))
    assert (at_once.rows, at_once.right) == pytest.approx((one_by_one.rows, one_by_one.right))


def test_the_past_is_forgotten() -> None:
    made = tallying()
    for _ in range(1000):
        made.take(feedback(0, 10), MODELS)
    for _ in range(1000):
        made.take(feedback(10), MODELS)
    assert corrected(made).accuracy > 0.98


# --- drift --------------------------------------------------------------------------------------------------


def test_worse_than_measured_is_drift_and_back_to_it_is_not() -> None:
    made = tallying(measured(0.95, 350))
    made.take(feedback(95, 5), MODELS)
    assert not corrected(made).drifted
    made.take(feedback(300, 100), MODELS)
    assert corrected(made).drifted
    assert made.drifted() == [VARIANT]
    for _ in range(60):
        made.take(feedback(96, 4), MODELS)
    assert not corrected(made).drifted
    assert made.drifted() == []


def test_better_than_measured_is_no_drift() -> None:
    made = tallying(measured(0.8, 350))
    made.take(feedback(1000), MODELS)
    assert not corrected(made).drifted


def test_a_handful_of_labels_is_no_drift() -> None:
    assert not has_drifted(Count("d", DRIFT_ROWS_MIN - 1, 0.0), Evaluated("d", 0.99, 10_000))
    assert has_drifted(Count("d", DRIFT_ROWS_MIN, 0.0), Evaluated("d", 0.99, 10_000))


def test_an_alarm_does_not_flicker() -> None:
    """Between "surely worse" and "within what was measured" it stays what it was."""
    evaluated, between = Evaluated("d", 0.9, 500), wilson(450, 500).low - 0.002
    assert not has_drifted(Count("d", 100.0, 100 * between), evaluated)
    assert has_drifted(Count("d", 100.0, 100 * between, drifted=True), evaluated)


@pytest.mark.parametrize(("accuracy", "rows"), [(0.9, 350), (0.97, 350), (0.7, 5000), (0.9, 0)])
def test_an_alarm_is_false_as_rarely_as_it_says(accuracy: float, rows: int) -> None:
    """Evaluation and labels drawn from one truth: at most 2.5 % of one-sided alarms (and a little for discreteness)."""
    draw = np.random.default_rng(0)
    trials = 4000
    right = draw.binomial(rows, accuracy, trials) if rows else None
    labels = draw.binomial(500, accuracy, trials)
    alarms = sum(
        has_drifted(
            Count("d", 500.0, float(labels[i])), Evaluated("d", accuracy if right is None else right[i] / rows, rows)
        )
        for i in range(trials)
    )
    assert alarms / trials < 0.035


# --- what is dropped ----------------------------------------------------------------------------------------


def test_unknown_unequal_and_repeated_feedback_is_dropped_and_counted() -> None:
    made = tallying()
    assert made.take(feedback(1, variant="other:1/onnx-fp32"), MODELS) == "unknown"
    assert made.take(feedback(1, variant=f"{MODEL.key}/torch-int8"), MODELS) == "unknown"
    assert made.take(replace(feedback(2), labels=(1,)), MODELS) == "unequal"
    assert made.take(Feedback("t/0/1", VARIANT, (), ()), MODELS) == "unequal"
    once = feedback(1)
    assert made.take(once, MODELS) is None
    assert made.take(replace(once, labels=(0,)), MODELS) == "duplicate"
    made.malformed()
    assert made.statistics.dropped == {"unknown": 2, "unequal": 2, "duplicate": 1, "malformed": 1}
    assert made.statistics.rows == 1
    assert corrected(made).rows == pytest.approx(1)


def test_the_memory_of_queries_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "SEEN_MAX", 3)
    made = tallying()
    for number in range(5):
        assert made.take(feedback(1, query=f"q/0/{number}"), MODELS) is None
    assert made.take(feedback(1, query="q/0/4"), MODELS) == "duplicate"
    assert made.take(feedback(1, query="q/0/0"), MODELS) is None


def test_what_was_refused_is_not_remembered() -> None:
    made = tallying()
    assert made.take(feedback(1, query="q/0/0"), {}) == "unknown"
    assert made.take(feedback(1, query="q/0/0"), MODELS) is None


# --- evaluations and restarts -------------------------------------------------------------------------------


def test_of_several_groups_the_one_measured_on_most_rows_counts() -> None:
    made = tallying(measured(0.9, 100, "a"), measured(0.8, 400, "b"), measured(0.85, 400, "c"))
    made.take(feedback(1), MODELS)
    assert corrected(made).accuracy == pytest.approx(0.8, abs=0.01)


def test_a_variant_whose_profiles_go_is_unknown() -> None:
    made = tallying(measured(group="a"), replace(measured(group="b"), status="failed", accuracy=None))
    made.put_profile(f"{VARIANT}@a", None)
    assert made.take(feedback(1), MODELS) == "unknown"


def test_a_profile_of_another_digest_is_not_of_this_version() -> None:
    made = tallying(replace(measured(), digest="another"))
    assert made.take(feedback(1), MODELS) == "unknown"


def test_another_digest_begins_anew() -> None:
    made = tallying()
    made.take(feedback(0, 100), MODELS)
    made.put_profile(f"{VARIANT}@cpu", replace(measured(), digest="another"))
    made.take(feedback(1), {MODEL.key: replace(MODEL, digest="another")})
    correction = corrected(made)
    assert (correction.digest, correction.rows) == ("another", pytest.approx(1))


@given(_parts, st.integers(0, 30))
def test_a_successor_goes_on_where_the_last_correction_was_written(parts: list[tuple[int, int]], cut: int) -> None:
    """What came after it is read again: the same as from one that never stopped."""
    whole, first, second = tallying(), tallying(), tallying()
    records = [feedback(right, rows - right) for rows, right in parts]
    for record in records:
        whole.take(record, MODELS)
    for record in records[:cut]:
        first.take(record, MODELS)
    second.restore(first.corrections(0.0))
    for record in [*records[cut:], last := feedback(1)]:
        second.take(record, MODELS)
    whole.take(last, MODELS)
    after, expected = corrected(second), corrected(whole)
    assert (after.rows, after.right) == pytest.approx((expected.rows, expected.right))


def test_what_was_not_written_is_forgotten_when_it_is_read_again() -> None:
    made = tallying()
    made.take(feedback(1, query="q/0/0"), MODELS)
    made.restore([])
    assert made.corrections(0.0) == []
    assert made.take(feedback(1, query="q/0/0"), MODELS) is None
