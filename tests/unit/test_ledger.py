"""The ledger: every accepted record leaves once, and what belongs to an earlier ownership changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
from broker_builders import TOPIC, entry
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from broker.ledger import Commit, Entry, Ledger, State
from modelless.messages import RecordId


def open_at(ledger: Ledger, offset: int, **asked: Any) -> Entry:
    made = entry(offset, **asked)
    assert ledger.arrived(made.record)
    ledger.open(made)
    return made


def test_a_revoked_entry_is_done_and_its_offset_stays_for_the_next_owner() -> None:
    ledger = Ledger()
    ledger.assign(TOPIC, 0, 0, "")
    held = open_at(ledger, 0)
    assert ledger.revoke(TOPIC, 0) == [held]
    assert held.state is State.DONE
    assert not ledger.finish(held)
    assert (ledger.queries, ledger.bytes, ledger.owned()) == (0, 0, [])
    assert ledger.revoke(TOPIC, 0) == []


def test_an_outcome_of_an_earlier_epoch_does_not_finish_the_same_offset_of_this_one() -> None:
    ledger = Ledger()
    ledger.assign(TOPIC, 0, 0, "")
    stale = open_at(ledger, 0)
    ledger.revoke(TOPIC, 0)
    ledger.assign(TOPIC, 0, 0, "")
    fresh = open_at(ledger, 0)
    assert not ledger.finish(stale)
    assert ledger.find(fresh.record) is fresh
    assert ledger.commits()[0].offset == 0


def test_a_commit_of_an_earlier_epoch_does_not_hide_what_is_to_be_committed() -> None:
    ledger = Ledger()
    ledger.assign(TOPIC, 0, 0, "")
    (old,) = ledger.commits()
    ledger.revoke(TOPIC, 0)
    ledger.assign(TOPIC, 0, 0, "")
    ledger.committed(old)
    (fresh,) = ledger.commits()
    assert fresh.epoch > old.epoch
    ledger.committed(fresh)
    assert ledger.commits() == []
    ledger.committed(Commit("gone", 0, 1, 5, ""))


def test_records_of_partitions_that_are_not_ours_are_no_work() -> None:
    ledger = Ledger()
    assert not ledger.arrived(RecordId(TOPIC, 0, 0))
    ledger.passed(TOPIC, 0, 5)
    assert ledger.position(TOPIC, 0) is None
    assert ledger.find(RecordId(TOPIC, 0, 0)) is None


def test_owning_twice_is_impossible() -> None:
    ledger = Ledger()
    ledger.assign(TOPIC, 0, 0, "")
    with pytest.raises(AssertionError):
        ledger.assign(TOPIC, 0, 0, "")


def test_what_was_answered_before_is_finished_when_it_is_read_by_whoever_owns_it_then() -> None:
    ledger = Ledger()
    ledger.answered_before(TOPIC, 0, [0, 2])
    ledger.assign(TOPIC, 0, 0, "")
    assert [ledger.arrived(RecordId(TOPIC, 0, offset)) for offset in range(4)] == [False, True, False, True]
    assert ledger.commits()[0].offset == 1


def test_entries_are_found_by_id_and_by_record_until_they_are_finished() -> None:
    ledger = Ledger()
    ledger.assign(TOPIC, 0, 0, "")
    first, second = open_at(ledger, 0, id="same"), open_at(ledger, 1, id="same")
    assert ledger.with_id("same") == [first, second]
    assert ledger.finish(first)
    assert ledger.with_id("same") == [second]
    ledger.finish(second)
    assert ledger.with_id("same") == []


def test_the_oldest_unfinished_and_the_unsettled() -> None:
    ledger = Ledger()
    ledger.assign(TOPIC, 0, 0, "")
    assert ledger.oldest_arrival_ms() is None
    made = entry(0, arrival_ms=77)
    ledger.arrived(made.record)
    ledger.open(made)
    assert ledger.oldest_arrival_ms() == 77
    assert ledger.unsettled([(TOPIC, 0), ("other", 1)]) == 0
    made.state = State.SENT
    assert ledger.unsettled([(TOPIC, 0)]) == 1


class Owner(RuleBasedStateMachine):
    """One partition that comes and goes; outcomes arrive late, for any ownership."""

    @initialize()
    def begin(self) -> None:
        self.ledger = Ledger(lambda entry: self.revoked.append(entry))
        self.revoked: list[Entry] = []
        self.opened: list[Entry] = []
        self.finished: set[int] = set()
        self.committed = (0, "")
        self.owned = False
        self.next = 0

    @precondition(lambda self: not self.owned)
    @rule()
    def assign(self) -> None:
        self.ledger.assign(TOPIC, 0, *self.committed)
        self.owned, self.next = True, self.committed[0]

    @precondition(lambda self: self.owned)
    @rule()
    def revoke(self) -> None:
        held = self.ledger.revoke(TOPIC, 0)
        assert self.revoked[len(self.revoked) - len(held) :] == held
        self.owned = False

    @precondition(lambda self: self.owned)
    @rule(gap=st.sampled_from([0, 0, 2]))
    def read(self, gap: int) -> None:
        made = entry(self.next + gap, id="same" if gap else f"q{self.next}")
        self.next += gap + 1
        if self.ledger.arrived(made.record):
            self.ledger.open(made)
            self.opened.append(made)

    @precondition(lambda self: self.opened)
    @rule(which=st.integers(0, 1000))
    def outcome(self, which: int) -> None:
        """Of any entry of any ownership, again and again."""
        chosen = self.opened[which % len(self.opened)]
        before = chosen.state
        finished = self.ledger.finish(chosen)
        assert finished == (before is not State.DONE)
        if finished:
            self.finished.add(chosen.record.offset)

    @precondition(lambda self: self.owned)
    @rule()
    def commit(self) -> None:
        for each in self.ledger.commits():
            assert not any(e.record.offset < each.offset for e in self.ledger.entries())
            self.committed = (each.offset, each.metadata)
            self.ledger.committed(each)
        assert self.ledger.commits() == []

    @invariant()
    def accounts_agree(self) -> None:
        held = list(self.ledger.entries())
        assert len(held) == self.ledger.queries == sum(e.state is not State.DONE for e in self.opened)
        assert sum(e.size_bytes for e in held) == self.ledger.bytes
        assert len(self.ledger.with_id("same")) == sum(e.address.id == "same" for e in held)


TestOwner = Owner.TestCase
TestOwner.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
