"""When a canary is rolled back, and what is counted to judge it by."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from broker_builders import Bench, model, profile
from hypothesis import given
from hypothesis import strategies as st

from broker.canary import Counts, exceeds, is_slow, verdict
from broker.core import Send
from modelless import frames
from modelless.messages import Labels, Served

LABELS = Labels("m", stable=1, canary=2, canary_weight=0.1, samples_min=100, changed_ms=5.0)


def counts(canary: Served, stable: Served | None = None) -> dict[str, Served]:
    return {"m:1": stable or Served("m:1", 900, 0, 0.0, batches=900), "m:2": canary}


def failing(failed: int, of: int) -> Served:
    return Served("m:2", of - failed, failed, 0.0, batches=of)


def slow(number: int, of: int) -> Served:
    return Served("m:2", of, 0, 0.0, batches=of, slow=number)


# --- the rules ----------------------------------------------------------------------------------------------------


def test_a_good_canary_stays() -> None:
    assert verdict(LABELS, counts(failing(0, 1000))) is None
    assert verdict(LABELS, counts(failing(2, 100))) is None, "2 % is within the margin"
    assert verdict(LABELS, counts(slow(50, 100))) is None
    assert verdict(LABELS, {}) is None


def test_nothing_is_judged_before_there_are_enough_answers() -> None:
    assert verdict(LABELS, counts(failing(99, 99))) is None
    assert verdict(replace(LABELS, samples_min=20), counts(failing(20, 20))) is not None


def test_errors_above_stables_by_more_than_the_margin_roll_it_back() -> None:
    words = verdict(LABELS, counts(failing(20, 200)))
    assert words is not None
    assert "m:2 failed 20 of 200 queries, stable 0 of 900" in words
    assert verdict(LABELS, counts(failing(20, 200), Served("m:1", 800, 100, 0.0))) is None, "so does stable"
    assert verdict(replace(LABELS, errors_margin=0.2), counts(failing(20, 200))) is None


def test_a_few_errors_are_not_enough_to_be_sure() -> None:
    assert verdict(LABELS, counts(failing(4, 100))) is None, "4 %, but it may well be chance"
    assert verdict(LABELS, counts(failing(400, 10_000))) is not None, "4 %, and it is not"


def test_slow_batches_roll_it_back() -> None:
    words = verdict(LABELS, counts(slow(100, 120)))
    assert words is not None
    assert "100 of 120 batches of m:2 took more than 50% longer" in words
    noisy = Served("m:1", 900, 0, 0.0, batches=900, slow=400)
    assert verdict(LABELS, counts(slow(100, 120), noisy)) is None, "the machine is slow for stable as well"


def test_few_batches_prove_little_even_of_many_queries() -> None:
    canary = Served("m:2", 320, 0, 0.0, batches=4, slow=3)
    assert verdict(LABELS, counts(canary)) is None


def test_a_canary_that_answers_everything_is_judged_by_itself() -> None:
    assert verdict(LABELS, {"m:2": failing(50, 100)}) is not None
    assert verdict(LABELS, {"m:2": failing(1, 100)}) is None


def test_a_slow_batch_takes_longer_by_the_margin_and_by_more_than_noise() -> None:
    assert is_slow(31.0, 20.0, LABELS)
    assert not is_slow(29.0, 20.0, LABELS)
    assert not is_slow(0.9, 0.2, LABELS), "a few tenths of a millisecond"
    assert is_slow(1.3, 0.2, LABELS)


def test_the_test_of_two_shares_against_published_values() -> None:
    """R. G. Newcombe, Stat. Med. 17, 1998, p. 873, table II (method 10): 56/70 and 48/80 differ by 0.0524 at least."""
    assert exceeds(56, 70, 48, 80, 0.0523)
    assert not exceeds(56, 70, 48, 80, 0.0526)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0, 1))
def test_more_errors_never_save_a_canary(bad: tuple[int, int], margin: float) -> None:
    number, of = bad
    if number < of and exceeds(number, of, 3, 100, margin):
        assert exceeds(number + 1, of, 3, 100, margin)
    assert not exceeds(number, of, number, of, margin), "as good as stable"


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1])
def test_an_equal_canary_is_hardly_ever_rolled_back_however_often_it_is_judged(share: float) -> None:
    """The test is made again with every answer, which is more than 95 % is for; the margin is what is left for that."""
    rolled_back = 0
    for seed in range(40):
        draw = Random(seed)
        failed = failed_stable = 0
        for number in range(1, 1001):
            failed += draw.random() < share
            failed_stable += sum(draw.random() < share for _ in range(9))
            if number >= 100 and exceeds(failed, number, failed_stable, 9 * number, 0.02):
                rolled_back += 1
                break
    assert rolled_back <= 2


# --- counting -----------------------------------------------------------------------------------------------------

V1, V2 = "m:1/onnx-fp32", "m:2/onnx-fp32"


def bench(labels: Labels = LABELS) -> Bench:
    one, two = model(version=1), model(version=2)
    made = Bench((one, [profile(one)]), (two, [profile(two)]))
    made.core.labels("m", labels, 0.0)
    return made


def sent(bench: Bench, now_ms: float = 0.0) -> list[frames.Batch]:
    return [each.batch for each in bench.poll(now_ms) if isinstance(each, Send)]


def test_outcomes_are_counted_by_version() -> None:
    one = bench()
    worker = one.worker(V1, V2, window_ms=1e6)
    for asked in ("m:1", "m:1", "m:1", "m:2", "m:2"):
        one.admit(model=asked)
    first = sent(one)
    for batch in [*first, *sent(one, worker.ends_ms)]:  # the next one when the device is about to be idle
        rows = len(batch.items)
        if batch.variant == V1:
            one.core.frame(worker, frames.Outcome(batch.batch, True, 12.0, rows, (), True), 10.0)
        else:
            bad = frames.ItemOutcome(batch.items[0].record, "answered", "INTERNAL")
            fine = frames.ItemOutcome(batch.items[1].record, "answered", "OK")
            one.core.frame(worker, frames.Outcome(batch.batch, True, 12.0, rows, (bad, fine)), 10.0)
    assert set(one.core.counts.served()) == {
        Served("m:1", 3, 0, 12.0, batches=1, slow=0, since_ms=5.0),
        Served("m:2", 1, 1, 6.0, since_ms=5.0),
    }


@pytest.mark.parametrize(("execute_ms", "slow"), [(14.0, 0), (16.0, 1)])
def test_a_canarys_batch_is_compared_with_what_stables_would_have_taken(execute_ms: float, slow: int) -> None:
    one = bench()
    worker = one.worker(V1, V2, window_ms=1e6)
    one.admit(model="m:2")
    (batch,) = sent(one)
    one.core.frame(worker, frames.Outcome(batch.batch, True, execute_ms, 1, (), True), 10.0)
    assert one.core.counts.served() == (Served("m:2", 1, 0, execute_ms, batches=1, slow=slow, since_ms=5.0),)


def test_what_is_given_back_and_what_other_models_answer_is_not_counted() -> None:
    one = bench()
    other = model("other")
    one.core.catalog.put_model(other.key, other)
    one.core.catalog.put_profile("other:1/onnx-fp32@cpu", profile(other))
    worker = one.worker(V1, "other:1/onnx-fp32", window_ms=1e6)
    one.admit(model="other")
    one.admit(model="m:1")
    for batch in sent(one):
        disposition = "returned" if batch.variant == V1 else "answered"
        one.answer(worker, batch, 1.0, disposition)
    assert one.core.counts.served() == ()


def test_counts_begin_anew_with_other_labels_and_end_without_a_canary_or_shadow() -> None:
    counts = Counts()
    counts.relabel("m", LABELS)
    counts.answered("m", "m:2", 3, 1.0)
    counts.relabel("m", replace(LABELS, changed_ms=6.0))
    assert counts.served() == ()
    counts.failed("m", "m:2")
    assert counts.served() == (Served("m:2", 0, 1, 0.0, since_ms=6.0),)
    counts.relabel("m", Labels("m", stable=1))
    assert "m" not in counts
