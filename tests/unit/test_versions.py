"""Which version answers, when another takes over, and whose share a canary gets."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from broker_builders import Bench, model, profile
from hypothesis import given
from hypothesis import strategies as st

from broker.core import Send
from broker.versions import Loaded, Standing, canary_for, served, shadowed, share, standing, takes_over
from modelless import frames
from modelless.messages import Labels, Profile, RecordId

ONNX, INT8 = ("onnx-fp32", "cpu"), ("onnx-int8", "cpu")
GPU = ("onnx-fp32", "gpu")


def at(
    version: int,
    *loaded: tuple[str, str],
    ready: tuple[tuple[str, str], ...] = (ONNX,),
    known: tuple[tuple[str, str], ...] | None = None,
    planned: frozenset[str] | None = None,
    missing: int = 0,
) -> Standing:
    known_places = ready if known is None else known
    return Standing(version, frozenset(ready), frozenset(known_places), frozenset(loaded), planned, missing)


# --- taking over --------------------------------------------------------------------------------------------------


def test_another_version_takes_over_once_it_is_loaded_wherever_it_should_be() -> None:
    both = frozenset({"cpu", "gpu"})
    places = (ONNX, GPU)
    old = at(1, *places, ready=places, planned=both)
    assert takes_over(at(2, *places, ready=places, planned=both), old)
    assert not takes_over(at(2, ready=places, planned=both), old), "nowhere"
    assert not takes_over(at(2, *places, ready=places, planned=both, missing=1), old), "a worker still loads it"
    assert not takes_over(at(2, ONNX, ready=(ONNX,), planned=both), old), "the other group still measures it"
    assert takes_over(at(2, ONNX, ready=(ONNX,), known=places, planned=both), old), "it cannot run there"
    assert not takes_over(at(2, ONNX, ready=places, planned=frozenset({"cpu"})), old), "the plan did not get there yet"
    assert not takes_over(at(2, ONNX, ready=places), old), "without a plan: wherever the old one is"
    assert takes_over(at(2, *places, ready=places), old)


def test_a_variant_that_is_loaded_has_to_be_measured_of_the_next_version_as_well() -> None:
    old = at(1, ONNX, INT8, ready=(ONNX, INT8))
    assert not takes_over(at(2, ONNX, ready=(ONNX,)), old)
    assert takes_over(at(2, ONNX, ready=(ONNX,), known=(ONNX, INT8)), old), "it failed, and does not hold up the rest"
    assert takes_over(at(2, ONNX, ready=(ONNX, INT8)), old), "the plan does not want it loaded"


# --- who answers --------------------------------------------------------------------------------------------------


def test_without_labels_the_newest_that_took_over_answers() -> None:
    assert served([], None, None) is None
    assert served([at(1, ready=())], None, None) == 1
    assert served([at(1), at(2)], None, None) == 2, "nothing is loaded yet"
    assert served([at(1), at(2, ready=())], None, None) == 1, "the newest was not measured"
    assert served([at(1, ONNX), at(2)], None, 2) == 1, "what is loaded answers meanwhile"
    assert served([at(1, ONNX), at(2, ONNX, missing=3)], None, 1) == 1
    assert served([at(1, ONNX), at(2, ONNX, missing=3)], None, None) == 1, "as a broker that starts sees it"
    assert served([at(1, ONNX), at(2, ONNX)], None, 1) == 2
    assert served([at(1, ONNX), at(2, ONNX, missing=1)], None, 2) == 2, "a worker that starts takes nothing back"
    assert served([at(1, ONNX), at(2)], None, 2) == 1, "but when it is loaded nowhere, the older one answers"


def test_the_stable_one_answers_and_takes_over_like_any_other() -> None:
    assert served([at(1, ONNX), at(2, ONNX)], 1, None) == 1
    assert served([at(1, ONNX), at(2, ONNX), at(3, ONNX)], 2, 3) == 2, "back to an older one"
    assert served([at(1), at(2, ONNX)], 1, 2) == 2, "which is not loaded yet"
    assert served([at(1), at(2, ONNX)], 1, None) == 1, "what was not answering does not begin to"
    assert served([at(1, ONNX), at(2, ONNX)], 7, 1) == 2, "a version that was removed"


places = st.frozensets(st.sampled_from([ONNX, INT8, GPU]))


@st.composite
def standings(draw: st.DrawFn) -> list[Standing]:
    made = []
    for version in range(1, draw(st.integers(1, 4)) + 1):
        known = draw(places)
        ready = known & draw(places)
        loaded = ready & draw(places)
        planned = draw(st.none() | st.frozensets(st.sampled_from(["cpu", "gpu"])))
        made.append(Standing(version, ready, known, loaded, planned, draw(st.integers(0, 1))))
    return made


@given(standings(), st.none() | st.integers(1, 4), st.none() | st.integers(1, 4))
def test_a_loaded_version_never_gives_way_to_one_that_is_not_there(
    of: list[Standing], stable: int | None, current: int | None
) -> None:
    answers = served(of, stable, current)
    by_version = {each.version: each for each in of}
    assert answers in by_version
    before, after = by_version.get(current or 0), by_version[answers or 0]
    if before is not None and before.loaded and after is not before:
        assert after.loaded
        assert not after.missing
        for group in {group for _, group in before.loaded} & {group for _, group in after.ready}:
            assert group in {group for _, group in after.loaded}
    if stable is None and any(each.loaded for each in of):
        assert after.loaded
    assert served(of, stable, answers) == answers, "nothing changes by asking again"


def test_standing_by_profiles_workers_and_plan() -> None:
    of = model(version=2)
    cpu, gpu = profile(of), profile(of, "gpu")
    failed = replace(profile(of), variant="m:2/onnx-int8", status="failed")
    stale = replace(profile(of), variant="m:2/torch", digest="another")
    wanted = frozenset({"m:2/onnx-fp32", "m:1/onnx-fp32"})
    workers = [Loaded("cpu", frozenset({"m:2/onnx-fp32"}), wanted), Loaded("cpu", frozenset(), wanted)]
    assert standing(of, [cpu, gpu, failed, stale], workers) == Standing(
        2, frozenset({ONNX, GPU}), frozenset({ONNX, GPU, INT8}), frozenset({ONNX}), frozenset({"cpu"}), 1
    )
    assert standing(of, [cpu], []).planned is None


# --- shares -------------------------------------------------------------------------------------------------------


def records(number: int) -> list[RecordId]:
    return [RecordId("modelless.queries", offset % 3, offset) for offset in range(number)]


@pytest.mark.parametrize("weight", [0.01, 0.1, 0.5, 1.0])
def test_a_share_is_what_it_says_and_a_record_keeps_its_side(weight: float) -> None:
    labels = Labels("m", stable=1, canary=2, canary_weight=weight)
    chosen = [record for record in records(20_000) if canary_for(labels, record) == "m:2"]
    assert len(chosen) / 20_000 == pytest.approx(weight, abs=0.01)
    assert all(canary_for(labels, RecordId(*record)) for record in chosen)
    assert canary_for(replace(labels, canary=None), records(1)[0]) is None
    assert canary_for(None, records(1)[0]) is None


def test_shares_are_independent_of_each_other() -> None:
    labels = Labels("m", stable=1, canary=2, canary_weight=0.5, shadow="3", shadow_weight=0.5)
    both = Counter((canary_for(labels, r) is None, shadowed(labels, r)) for r in records(8_000))
    assert all(abs(count / 8_000 - 0.25) < 0.02 for count in both.values())
    assert 0 <= share(records(1)[0], "canary") < 1
    assert not shadowed(None, records(1)[0])


# --- in the core --------------------------------------------------------------------------------------------------

V1, V2 = "m:1/onnx-fp32", "m:2/onnx-fp32"


def bench(second: Profile | None = None) -> Bench:
    one, two = model(version=1), model(version=2)
    return Bench((one, [profile(one)]), (two, [second or profile(two)]))


def sent(bench: Bench, now_ms: float | None = None) -> list[str]:
    """By default when all that was sent before has run."""
    if now_ms is None:
        now_ms = max(worker.ends_ms for worker in bench.core.workers())
    return [each.batch.variant for each in bench.poll(now_ms) if isinstance(each, Send)]


@pytest.mark.parametrize("asked", [{"task": "t"}, {"model": "m"}, {"model": "m:stable"}])
def test_the_next_version_answers_from_when_every_worker_has_it(asked: dict[str, str]) -> None:
    one = bench()
    wanted = {f"cpu-{number}": frozenset({V1, V2}) for number in range(2)}
    one.core.planned(wanted, 0.0)
    first, second = one.worker(V1, window_ms=1e6), one.worker(V1, window_ms=1e6)
    for worker, expected in ((first, V1), (second, V2)):
        one.admit(**asked)
        assert sent(one) == [V1]
        one.ready(worker, V1, V2)
        one.admit(**asked)
        assert sent(one) == [expected]
    one.ready(second, V2)
    one.admit(**asked)
    assert sent(one) == [V2]


def test_when_the_workers_of_the_new_version_are_lost_or_leave_the_old_one_answers_again() -> None:
    one = bench()
    one.worker(V1, window_ms=1e6)
    for leave in (one.core.lost, lambda worker, now_ms: one.core.frame(worker, frames.Drain("stops"), now_ms)):
        worker = one.worker(V1, V2, window_ms=1e6)
        one.admit(task="t")
        assert sent(one) == [V2]
        leave(worker, 0.0)
        one.admit(task="t")
        assert V1 in sent(one)


def test_what_a_worker_cannot_load_does_not_hold_up_the_rest() -> None:
    one = bench()
    one.core.planned({f"cpu-{number}": frozenset({V1, V2}) for number in range(2)}, 0.0)
    one.worker(V1, V2, window_ms=1e6)
    second = one.worker(V1, window_ms=1e6)
    states = (frames.VariantState(V1, "ready"), frames.VariantState(V2, "failed"))
    one.core.frame(second, frames.State(states, 0, 0.0, 1), 0.0)
    one.admit(task="t")
    assert sent(one) == [V2]


def test_what_waits_for_the_old_version_is_answered_by_it_or_placed_anew() -> None:
    one = bench()
    worker = one.worker(V1, window_ms=5.0)
    one.admit(task="t")
    (first,) = one.poll()
    assert isinstance(first, Send)
    assert first.batch.variant == V1
    one.admit(task="t")
    assert sent(one) == [], "no room"
    one.ready(worker, V2)
    one.answer(worker, first.batch, now_ms=10.0)
    assert one.core.ledger.queries == 1, "the first is answered by what it was sent to"
    assert sent(one, 10.0) == [V2], "the second waited for what is gone"


def test_the_canary_gets_its_share_and_names_get_what_they_name() -> None:
    one = bench()
    one.core.labels("m", Labels("m", stable=1, canary=2, canary_weight=0.25), 0.0)
    one.worker(V1, V2, window_ms=1e6)
    for _ in range(400):
        one.admit(task="t")
    answers: Counter[str] = Counter()
    for number in range(400):
        for each in one.poll(10.0 * number):
            assert isinstance(each, Send)
            answers[each.batch.variant] += len(each.batch.items)
    for asked, expected in (("m:stable", V1), ("m:canary", V2), ("m:1", V1), ("m:2", V2)):
        one.admit(model=asked)
        assert sent(one) == [expected]
    assert answers[V2] / 400 == pytest.approx(0.25, abs=0.07)
    assert sum(answers.values()) == 400


def test_a_canary_costs_no_query_its_answer() -> None:
    """It is not loaded; or is too slow for what is asked; or takes other inputs."""
    two = model(version=2)
    for second in (profile(two), profile(two, curve=((1, 500.0), (8, 500.0)))):
        one = bench(second)
        one.core.labels("m", Labels("m", stable=1, canary=2, canary_weight=1.0), 0.0)
        one.worker(V1, *([V2] if second.batches[0].p50_ms > 100 else []), window_ms=1e6)
        one.admit(task="t", latency_ms_max=100.0)
        assert sent(one) == [V1]
    wide = model(version=2, shape=(-1, 9))
    other = Bench((model(), [profile(model())]), (wide, [profile(wide)]))
    other.core.labels("m", Labels("m", stable=1, canary=2, canary_weight=1.0), 0.0)
    other.worker(V1, V2, window_ms=1e6)
    other.admit(task="t")
    assert sent(other) == [V1]


def test_without_a_canary_there_is_none_to_name() -> None:
    one = bench()
    one.worker(V1, V2)
    one.admit(model="m:canary")
    (reply,) = one.poll()
    assert getattr(reply, "status", None) == "NOT_FOUND"
