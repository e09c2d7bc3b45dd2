"""States of variants: what makes them, what ends them, and what is written of them."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from broker_builders import Bench, model, profile
from hypothesis import given
from hypothesis import strategies as st

from broker.catalog import Candidate
from broker.conditions import (
    CHANGE_INTERVAL_MS,
    DRIFTED_MS,
    SNAPSHOT_INTERVAL_MS,
    STATES,
    WRITTEN_AT_ONCE_MAX,
    Conditions,
    Facts,
    Rate,
    State,
    next_state,
)
from broker.devices import Worker
from modelless import frames
from modelless.messages import BatchTime, Condition

VARIANT = "m:1/onnx-fp32"
KEY = f"{VARIANT}@cpu"
IDLE = Facts(ready=True, loading=False, scale=1.0, busy=0.1, used=True)

factors = st.floats(0.1, 20)
facts = st.builds(Facts, st.booleans(), st.booleans(), factors, st.floats(0, 2), st.booleans())


@given(st.sampled_from(STATES), facts)
def test_a_state_stays_while_its_facts_do(before: State, of: Facts) -> None:
    after = next_state(before, of)
    assert next_state(after, of) == after


@given(st.sampled_from(STATES), facts)
def test_only_what_is_ready_is_more_than_loading(before: State, of: Facts) -> None:
    after = next_state(before, of)
    assert (after in ("inactive", "loading")) == (not of.ready)
    assert after != "interfered" or of.scale >= 1.2
    assert after != "overloaded" or of.busy >= 0.75


@pytest.mark.parametrize(
    ("before", "of", "after"),
    [
        ("inactive", IDLE, "active"),
        ("active", IDLE._replace(ready=False, loading=True), "loading"),
        ("active", IDLE._replace(ready=False), "inactive"),
        ("active", IDLE._replace(scale=2.0), "interfered"),
        ("active", IDLE._replace(scale=1.4), "active"),
        ("interfered", IDLE._replace(scale=1.4), "interfered"),
        ("interfered", IDLE._replace(scale=1.1), "active"),
        ("interfered", IDLE._replace(scale=1.4, used=False), "interfered"),
        ("active", IDLE._replace(scale=2.0, busy=0.8), "active"),
        ("active", IDLE._replace(busy=0.8), "active"),
        ("active", IDLE._replace(busy=0.95), "overloaded"),
        ("overloaded", IDLE._replace(busy=0.8), "overloaded"),
        ("overloaded", IDLE._replace(busy=0.7), "active"),
        ("interfered", IDLE._replace(busy=0.95, scale=2.0), "overloaded"),
        ("active", IDLE._replace(busy=0.95, used=False), "active"),
    ],
)
def test_what_follows(before: State, of: Facts, after: State) -> None:
    assert next_state(before, of) == after


def test_a_rate_is_that_of_lately() -> None:
    rate = Rate()
    for step in range(100):
        rate.add(10, step * 500.0)
    assert rate.at(49_500) == pytest.approx(20, rel=0.06)
    assert rate.at(49_500 + 5_000) == pytest.approx(20 / 2.718, rel=0.06)
    assert rate.at(0) == rate.at(49_500), "a clock that goes back makes nothing grow"


class Life:
    """One worker whose batches take 10 ms by the profile, and what is said of its variant."""

    def __init__(self) -> None:
        steady = replace(profile(model()), batches=(BatchTime(1, 10.0, 10.0), BatchTime(8, 10.0, 10.0)))
        self.bench = Bench((model(), [steady]))
        self.worker: Worker = self.bench.worker(VARIANT)
        self.now_ms = 0.0

    @property
    def conditions(self) -> Conditions:
        return self.bench.core.conditions

    @property
    def state(self) -> str:
        return self.conditions.states().get(KEY, "inactive")

    def find(self, variant: str, group: str) -> Candidate | None:
        return self.bench.core.catalog.candidate(variant, group)

    def play(self, for_ms: float, batch_ms: float = 10.0, batches: int = 5) -> set[str]:
        """So many batches every half second; the states that were seen."""
        seen, ends_ms = set(), self.now_ms + for_ms
        while self.now_ms < ends_ms:
            self.now_ms += 500
            ran = ((8, batch_ms),) * batches
            variant = frames.VariantState(VARIANT, "ready", 0, ran, 8 * batches, batch_ms * batches)
            self.bench.core.frame(self.worker, frames.State((variant,), 0, 0.0, 1), self.now_ms)
            self.bench.core.judge(self.now_ms)
            seen.add(self.state)
        return seen

    def write(self) -> dict[str, Condition | None]:
        due = self.conditions.unwritten(self.find, self.now_ms)
        for key, condition in due.items():
            self.conditions.heard(key, condition)
        return due


def test_slow_batches_at_a_low_rate_are_interference_until_they_are_fast_again() -> None:
    life = Life()
    assert life.play(20_000) == {"active"}
    life.play(5_000, batch_ms=30)
    assert life.state == "interfered"
    assert life.play(20_000, batch_ms=30) == {"interfered"}
    life.play(5_000)
    assert life.state == "active"


def test_what_is_interfered_and_not_chosen_any_more_recovers_by_itself() -> None:
    life = Life()
    life.play(10_000, batch_ms=30)
    assert life.state == "interfered"
    life.play(120_000, batches=0)
    assert life.state == "active"


def test_a_device_full_of_batches_as_fast_as_the_profile_is_overloaded() -> None:
    life = Life()
    assert "interfered" not in life.play(20_000, batches=49)
    assert life.state == "overloaded"
    life.play(20_000, batches=10)
    assert life.state == "active"


def test_a_device_full_of_slow_batches_is_interfered_not_overloaded() -> None:
    life = Life()
    assert "overloaded" not in life.play(20_000, batch_ms=30, batches=16)
    assert life.state == "interfered"


def test_a_variant_loaded_nowhere_is_inactive_and_forgotten_once_that_is_written() -> None:
    life = Life()
    life.play(5_000)
    life.write()
    life.bench.core.lost(life.worker, life.now_ms)
    life.now_ms += 1000
    life.bench.core.judge(life.now_ms)
    assert life.state == "inactive"
    (written,) = life.write().values()
    assert written is not None
    assert written.state == "inactive"
    life.bench.core.judge(life.now_ms + 200_000)
    assert life.conditions.states() == {}
    assert life.write() == {}


def test_only_changes_are_written_and_not_too_often() -> None:
    life = Life()
    life.play(1_000)
    first = life.write()
    assert [(c.state, c.p50_scale) for c in first.values() if c] == [("active", 1.0)]
    life.play(20_000)
    assert life.write() == {}
    writes: list[tuple[float, Condition]] = []
    for _ in range(240):
        life.play(500, batch_ms=30)
        writes += [(life.now_ms, c) for c in life.write().values() if c]
    assert [c.state for _, c in writes].count("interfered") == len(writes) - 1, "a snapshot on the way, at most"
    assert 1 < len(writes) < 5
    assert writes[-1][1].p50_scale == pytest.approx(3, rel=0.2)
    gaps_ms = [after - before for (before, _), (after, _) in pairwise(writes)]
    assert min(gaps_ms) >= CHANGE_INTERVAL_MS
    assert max(gaps_ms) >= SNAPSHOT_INTERVAL_MS


def test_a_broker_that_starts_begins_with_the_snapshot_of_this_very_profile() -> None:
    before = Life()
    before.play(20_000, batch_ms=30)
    (condition,) = before.write().values()
    assert condition is not None
    for changed, scale in (
        (condition, 3.0),
        (replace(condition, digest="another"), 1.0),
        (replace(condition, changed_ms=-1.0), 1.0),
    ):
        fresh = Life()
        fresh.conditions.heard(KEY, changed)
        fresh.conditions.restore(fresh.find, fresh.bench.core.catalog.profiles)
        found = fresh.find(VARIANT, "cpu")
        assert found is not None
        assert found.table.scale == pytest.approx(scale, rel=0.1)
    assert fresh.conditions.states() == {}


def test_drift_is_a_median_far_from_the_profile_for_long_at_low_load() -> None:
    for batch_ms in (30.0, 3.0):
        life = Life()
        life.play(DRIFTED_MS / 2, batch_ms=batch_ms)
        assert not life.conditions.drifted(life.now_ms)
        life.play(DRIFTED_MS, batch_ms=batch_ms)
        assert life.conditions.drifted(life.now_ms) == {KEY}
        life.play(20_000)
        assert not life.conditions.drifted(life.now_ms)


def test_a_removed_profile_ends_its_condition() -> None:
    life = Life()
    life.play(5_000)
    life.write()
    life.bench.core.catalog.put_profile(KEY, None)
    life.bench.core.judge(life.now_ms)
    assert life.write() == {KEY: None}
    assert life.write() == {}


def test_what_is_written_at_once_is_bounded() -> None:
    models = [model(f"m{number}") for number in range(WRITTEN_AT_ONCE_MAX + 50)]
    bench = Bench(*((of, [profile(of)]) for of in models))
    bench.worker(*(f"{of.key}/onnx-fp32" for of in models))
    for _ in range(3):  # some of them each time
        bench.core.judge(0)
    conditions, find = bench.core.conditions, bench.core.catalog.candidate
    first = conditions.unwritten(find, 0)
    assert len(first) == WRITTEN_AT_ONCE_MAX
    for key, condition in first.items():
        conditions.heard(key, condition)
    assert len(conditions.unwritten(find, 0)) == 50
