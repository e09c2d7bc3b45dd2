"""Offsets: never committed past an unfinished one; a successor runs what was unfinished, or more, never less."""

from __future__ import annotations

import base64
import random
import time
import zlib

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from broker.offsets import METADATA_CHARACTERS_MAX, PartitionOffsets


def read(offsets: PartitionOffsets, *records: int) -> list[int]:
    return [record for record in records if offsets.arrived(record)]


def test_it_commits_the_lowest_unfinished_offset() -> None:
    offsets = PartitionOffsets(10)
    assert offsets.commit() == (10, "")
    read(offsets, 10, 11, 12)
    offsets.finished(11)
    offsets.finished(12)
    assert offsets.commit()[0] == 10
    offsets.finished(10)
    assert offsets.commit() == (13, "")


def test_finished_above_the_lowest_unfinished_is_not_run_again() -> None:
    offsets = PartitionOffsets(0)
    read(offsets, *range(6))
    for offset in (1, 3, 4):
        offsets.finished(offset)
    assert read(PartitionOffsets(*offsets.commit()), *range(8)) == [0, 2, 5, 6, 7]


def test_gaps_of_transactions_are_no_work_for_anybody() -> None:
    offsets = PartitionOffsets(0)
    assert read(offsets, 0, 1, 4) == [0, 1, 4]
    for offset in (0, 1, 4):
        offsets.finished(offset)
    assert offsets.commit() == (5, "")
    offsets.passed(9)
    assert offsets.commit() == (9, "")


def test_a_gap_at_the_end_does_not_hide_what_is_unfinished() -> None:
    offsets = PartitionOffsets(0)
    read(offsets, 3)
    offsets.passed(9)
    assert offsets.commit()[0] == 3
    assert read(PartitionOffsets(*offsets.commit()), 3, 9) == [3, 9]


def test_pc826_the_highest_seen_offset_is_not_what_is_committed() -> None:
    """Parallel-consumer 826: offset 5 was skipped because 6 had been seen."""
    offsets = PartitionOffsets(5)
    read(offsets, 5, 6)
    offsets.finished(6)
    successor = PartitionOffsets(*offsets.commit())
    assert read(successor, 5, 6, 7) == [5, 7]
    successor.finished(7)
    assert successor.commit()[0] == 5


def test_pc909_a_stale_entry_does_not_shadow_a_fresh_one() -> None:
    """Parallel-consumer 909: a partition came back, and what was left of the first ownership hid its records."""
    first = PartitionOffsets(0)
    read(first, 0, 1, 2)
    first.finished(1)
    again = PartitionOffsets(*first.commit())
    assert read(again, 0, 1, 2) == [0, 2]
    again.finished(0)
    again.finished(2)
    assert again.commit() == (3, "")


def test_reading_a_record_twice_accepts_it_once() -> None:
    offsets = PartitionOffsets(0)
    assert read(offsets, 0, 1, 0, 1, 2) == [0, 1, 2]
    offsets.passed(1)
    assert offsets.position == 3


def test_finishing_twice_is_impossible() -> None:
    offsets = PartitionOffsets(0)
    read(offsets, 0)
    offsets.finished(0)
    with pytest.raises(AssertionError):
        offsets.finished(0)


def test_what_does_not_fit_costs_duplicates() -> None:
    offsets = PartitionOffsets(0)
    count, rng = 120_000, random.Random(7)
    read(offsets, *range(count))
    survivors = {offset for offset in range(count) if rng.random() < 0.3} | {0}
    for offset in range(count):
        if offset not in survivors:
            offsets.finished(offset)
    base, metadata = offsets.commit()
    assert (base, metadata) == (0, "")


@pytest.mark.parametrize(
    "metadata",
    [
        "something else",
        "1:",
        "1:!!!!",
        "1:" + base64.b64encode(b"not deflated").decode(),
        "1:" + base64.b64encode(zlib.compress(b"\xff")[:-3]).decode(),
        "1:" + base64.b64encode(zlib.compress(b"\xff") + b"more").decode(),
        "1:" + base64.b64encode(zlib.compress(b"\xff" * (40 << 20))).decode(),
        "1:" + "A" * METADATA_CHARACTERS_MAX,
        "2:" + base64.b64encode(zlib.compress(b"\xff")).decode(),
        "1:é",
    ],
)
def test_foreign_and_damaged_metadata_costs_duplicates_only(metadata: str) -> None:
    assert read(PartitionOffsets(4, metadata), 4, 5, 6) == [4, 5, 6]


@given(st.sets(st.integers(0, 60)), st.data())
def test_damage_anywhere_in_the_metadata_loses_nothing(finished: set[int], data: st.DataObject) -> None:
    offsets = PartitionOffsets(0)
    read(offsets, *range(61))
    for offset in finished:
        offsets.finished(offset)
    base, metadata = offsets.commit()
    if metadata:
        at = data.draw(st.integers(0, len(metadata) - 1))
        metadata = metadata[:at] + data.draw(st.characters(codec="ascii")) + metadata[at + 1 :]
    run = read(PartitionOffsets(base, metadata), *range(base, 70))
    assert set(run) >= set(range(61)) - finished


def test_one_that_waits_for_long_costs_neither_memory_nor_time() -> None:
    """A query without a deadline may wait for days while hundreds of thousands behind it finish."""
    offsets = PartitionOffsets(0)
    for offset in range(400_000):
        offsets.arrived(offset)
        if offset:
            offsets.finished(offset)
    base, metadata = offsets.commit()
    assert (base, len(metadata) < METADATA_CHARACTERS_MAX) == (0, True)
    successor = PartitionOffsets(base, metadata)
    assert read(successor, 0, 1, 399_999, 400_000) == [0, 400_000]
    before_s = time.process_time()
    for _ in range(10):
        offsets.commit()
        successor.commit()
    assert time.process_time() - before_s < 2


class Owners(RuleBasedStateMachine):
    """A log with gaps, one owner after the other, each restored from any commit of its predecessor."""

    @initialize(start=st.integers(0, 50), seed=st.integers(0, 1 << 60))
    def begin(self, start: int, seed: int) -> None:
        self.log = [offset for offset in range(start, start + 60) if seed >> (offset - start) & 1]
        self.done: set[int] = set()
        self.commits = [(start, "", frozenset[int]())]
        self.take_over(0)

    @rule(which=st.integers(0, 5))
    def take_over(self, which: int) -> None:
        """The next owner starts from one of the last commits that Kafka may still have."""
        base, metadata, self.done_then = self.commits[max(len(self.commits) - 1 - which, 0)]
        self.commits = [(base, metadata, self.done_then)]
        self.offsets = PartitionOffsets(base, metadata)
        self.reads = [offset for offset in self.log if offset >= base]
        self.mine: set[int] = set()
        self.known = set(self.done_then)
        note(f"owner from {base} {metadata!r}")

    @precondition(lambda self: self.reads)
    @rule(count=st.integers(1, 10))
    def read(self, count: int) -> None:
        for offset in self.reads[:count]:
            if self.offsets.arrived(offset):
                self.mine.add(offset)
                assert offset not in self.done_then, "ran again what was finished at that commit"
            else:
                assert offset in self.done_then, "will never be run"
        del self.reads[:count]

    @precondition(lambda self: not self.reads)
    @rule(beyond=st.integers(0, 5))
    def pass_gaps(self, beyond: int) -> None:
        self.offsets.passed(self.offsets.position + beyond)

    @precondition(lambda self: self.mine)
    @rule(which=st.integers(0, 1 << 30))
    def finish(self, which: int) -> None:
        offset = sorted(self.mine)[which % len(self.mine)]
        self.mine.remove(offset)
        self.done.add(offset)
        self.known.add(offset)
        self.offsets.finished(offset)

    @rule()
    def commit(self) -> None:
        self.commits.append((*self.offsets.commit(), frozenset(self.known)))

    @invariant()
    def never_past_an_unfinished_offset(self) -> None:
        base, _ = self.offsets.commit()
        assert all(offset in self.done for offset in self.log if offset < base)
        assert self.offsets.unfinished == len(self.mine)


TestOwners = Owners.TestCase
TestOwners.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
