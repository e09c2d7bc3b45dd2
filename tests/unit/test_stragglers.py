"""Workers that are suddenly slow: what is recalled from them, what is hedged, and what each outcome then changes."""

from __future__ import annotations

from typing import Any

import pytest
from broker_builders import Bench, model, profile

from broker.core import CancelSent, Instruction, Send
from broker.devices import Worker
from broker.ledger import Entry, State
from broker.stragglers import BURST, SLACK_MS, SLACK_MS_MIN
from modelless import frames
from modelless.messages import Cancel

M = "m:1/onnx-fp32"
OVERDUE_MS = 20.0 + SLACK_MS
"""Of a batch that was sent at 0: its p99 and the slack."""
HALF_MS = 500.0
"""At which what was sent at 0 and has 1000 ms is hedged."""


def sends(instructions: list[Instruction]) -> list[Send]:
    return [each for each in instructions if isinstance(each, Send)]


def recalls(instructions: list[Instruction]) -> list[tuple[Worker, frames.Recall]]:
    return [
        (each.worker, each.cancel)
        for each in instructions
        if isinstance(each, CancelSent) and isinstance(each.cancel, frames.Recall)
    ]


class Stalled:
    """Two workers; ``first`` runs one batch and stalls, a second batch waits behind it, ``second`` idles."""

    def __init__(self, *, workers: int = 2, behind: int = 0, queries: int = 1, **settings: Any) -> None:
        self.bench = Bench((model(), [profile(model())]), **settings)
        self.core = self.bench.core
        self.first = self.bench.worker(M, window_ms=100)
        self.entries = [self.admit() for _ in range(queries)]
        (self.batch,) = [send.batch for send in sends(self.bench.poll(0))]
        self.behind = [self.admit(8) for _ in range(behind)]
        self.batches_behind = [send.batch for send in sends(self.bench.poll(8))]
        self.others = [self.bench.worker(M, window_ms=100) for _ in range(workers - 1)]
        self.bench.poll(8)

    def admit(self, now_ms: float = 0.0, **asked: Any) -> Entry:
        return self.bench.admit(now_ms, **{"latency_ms_max": 1000, **asked})

    def hedged(self, now_ms: float = HALF_MS) -> frames.Batch:
        """After the recall, which nobody answers."""
        self.bench.poll(OVERDUE_MS)
        (send,) = sends(self.bench.poll(now_ms))
        assert send.worker is self.others[0]
        return send.batch

    def outcome(self, worker: Worker, batch: frames.Batch, now_ms: float, disposition: Any = "answered") -> None:
        self.bench.answer(worker, batch, now_ms, disposition)

    @property
    def statistics(self) -> tuple[int, int, int]:
        of = self.core.statistics
        return of.recalled, of.hedged, of.duplicates_avoided


def states(entries: list[Entry]) -> list[State]:
    return [entry.state for entry in entries]


# --- recalling --------------------------------------------------------------------------------------------------------


def test_what_waits_behind_a_straggler_is_recalled_when_it_is_overdue_and_not_before() -> None:
    stalled = Stalled(behind=1)
    assert stalled.core.wake_at_ms() == OVERDUE_MS
    assert recalls(stalled.bench.poll(OVERDUE_MS - 1)) == []
    told = recalls(stalled.bench.poll(OVERDUE_MS))
    assert told == [
        (stalled.first, frames.Recall(stalled.batch.batch, (stalled.entries[0].record,))),
        (stalled.first, frames.Recall(stalled.batches_behind[0].batch, (stalled.behind[0].record,))),
    ]
    assert recalls(stalled.bench.poll(OVERDUE_MS + 1)) == [], "once"


def test_what_is_given_back_goes_to_another_worker_and_is_no_attempt() -> None:
    stalled = Stalled(behind=1)
    stalled.bench.poll(OVERDUE_MS)
    stalled.outcome(stalled.first, stalled.batches_behind[0], OVERDUE_MS + 1, "returned")
    (send,) = sends(stalled.bench.poll(OVERDUE_MS + 1))
    assert (send.worker, send.batch.items[0].record) == (stalled.others[0], stalled.behind[0].record)
    assert stalled.behind[0].attempts == 0
    assert stalled.statistics == (1, 0, 0)


def test_a_straggler_gets_nothing_new_until_a_run_of_it_ends() -> None:
    stalled = Stalled(queries=2)
    stalled.bench.poll(OVERDUE_MS)
    new = [stalled.admit(OVERDUE_MS)]
    assert [send.worker for send in sends(stalled.bench.poll(OVERDUE_MS))] == [stalled.others[0]]
    new.append(stalled.admit(OVERDUE_MS))
    assert sends(stalled.bench.poll(OVERDUE_MS + 1)) == []
    stalled.core.frame(stalled.first, frames.Outcome(stalled.batch.batch, True, 40.0, 2, (), True), 42)
    assert [send.worker for send in sends(stalled.bench.poll(42))] == [stalled.first]
    assert states(new) == [State.SENT, State.SENT]


def test_a_single_worker_is_left_alone() -> None:
    stalled = Stalled(workers=1, behind=1)
    assert stalled.core.wake_at_ms() == float("inf")
    assert [stalled.bench.poll(now_ms) for now_ms in (OVERDUE_MS, 100, HALF_MS, 900)] == [[], [], [], []]
    assert stalled.first.outstanding_ms(900) == 0


def test_where_all_are_late_nobody_straggles() -> None:
    stalled = Stalled()
    stalled.admit(1)
    stalled.admit(1)
    assert sends(stalled.bench.poll(1))
    assert recalls(stalled.bench.poll(100)) == []
    assert sends(stalled.bench.poll(HALF_MS)) == []


def test_a_worker_without_the_variant_takes_nothing_over() -> None:
    stalled = Stalled(behind=1)
    stalled.bench.ready(stalled.others[0])
    stalled.bench.poll(9)
    assert stalled.core.wake_at_ms() > OVERDUE_MS
    assert stalled.bench.poll(OVERDUE_MS) == []
    assert stalled.bench.poll(HALF_MS) == []


def test_what_nobody_else_could_answer_in_time_is_not_recalled() -> None:
    bench = Bench((model(), [profile(model())]))
    first = bench.worker(M, window_ms=100)
    bench.admit(latency_ms_max=1000)
    bench.poll(0)
    bench.admit(8, latency_ms_max=OVERDUE_MS)
    loose = bench.admit(8, latency_ms_max=1000)
    (behind,) = [send.batch for send in sends(bench.poll(8))]
    assert len(behind.items) == 2
    bench.worker(M)
    told = {frame.batch: frame.records for worker, frame in recalls(bench.poll(OVERDUE_MS)) if worker is first}
    assert told[behind.batch] == (loose.record,)


# --- hedging ----------------------------------------------------------------------------------------------------------


def test_what_is_not_given_back_is_sent_to_an_idle_worker_at_half_the_time_that_was_left() -> None:
    stalled = Stalled(queries=2)
    stalled.bench.poll(OVERDUE_MS)
    assert stalled.core.wake_at_ms() == HALF_MS
    assert sends(stalled.bench.poll(HALF_MS - 1)) == []
    (send,) = sends(stalled.bench.poll(HALF_MS))
    assert send.worker is stalled.others[0]
    assert [item.record for item in send.batch.items] == [entry.record for entry in stalled.entries]
    assert sends(stalled.bench.poll(HALF_MS + 100)) == [], "once"
    assert stalled.statistics == (0, 2, 0)


def test_the_first_outcome_counts_and_the_other_worker_need_not_answer_any_more() -> None:
    stalled = Stalled()
    second = stalled.hedged()
    stalled.outcome(stalled.others[0], second, 512)
    assert states(stalled.entries) == [State.DONE]
    assert recalls(stalled.bench.poll(512)) == [
        (stalled.first, frames.Recall(stalled.batch.batch, (stalled.entries[0].record,), answered=True))
    ]
    stalled.outcome(stalled.first, stalled.batch, 600, "returned")
    assert stalled.core.statistics.outcomes == {("OK", "t"): 1}
    assert stalled.statistics == (0, 1, 1)
    assert [(c.offset, c.metadata) for c in stalled.core.ledger.commits()] == [(1, "")]
    assert not stalled.first.sent and not stalled.others[0].sent
    assert stalled.bench.poll(601) == []


@pytest.mark.parametrize("brief", [False, True])
def test_a_late_answer_of_the_loser_counts_nothing(brief: bool) -> None:
    stalled = Stalled(queries=3)
    second = stalled.hedged()
    stalled.outcome(stalled.others[0], second, 512)
    if brief:
        stalled.core.frame(stalled.first, frames.Outcome(stalled.batch.batch, True, 900.0, 3, (), True), 900)
    else:
        stalled.outcome(stalled.first, stalled.batch, 900)
    assert stalled.core.statistics.outcomes == {("OK", "t"): 3}
    assert stalled.core.statistics.retried == 0
    assert stalled.statistics == (0, 3, 0)
    assert not stalled.core.ledger.queries


def test_the_first_one_may_win_too() -> None:
    stalled = Stalled()
    second = stalled.hedged()
    stalled.outcome(stalled.first, stalled.batch, 505)
    assert [(worker, frame.answered) for worker, frame in recalls(stalled.bench.poll(505))] == [
        (stalled.others[0], True)
    ]
    stalled.outcome(stalled.others[0], second, 511, "returned")
    assert stalled.core.statistics.outcomes == {("OK", "t"): 1}


def test_who_ends_its_run_before_the_hedge_wakes_nobody() -> None:
    stalled = Stalled()
    stalled.bench.poll(OVERDUE_MS)
    assert stalled.core.wake_at_ms() == HALF_MS
    stalled.outcome(stalled.first, stalled.batch, 100)
    assert stalled.bench.poll(100) == []
    assert stalled.core.wake_at_ms() == float("inf")


@pytest.mark.parametrize("how", ["returned", "lost", "forgotten"])
def test_who_is_left_answers_when_the_other_one_will_not(how: str) -> None:
    stalled = Stalled()
    second = stalled.hedged()
    if how == "returned":
        stalled.outcome(stalled.first, stalled.batch, 510, "returned")
    elif how == "lost":
        stalled.core.lost(stalled.first, 510)
    else:
        stalled.core.frame(stalled.first, frames.Outcome(stalled.batch.batch, True, 1.0, 0, ()), 510)
    assert states(stalled.entries) == [State.SENT], "the hedge is the retry"
    assert sends(stalled.bench.poll(510)) == []
    assert stalled.entries[0].attempts == (how != "returned")
    stalled.outcome(stalled.others[0], second, 515)
    assert stalled.core.statistics.outcomes == {("OK", "t"): 1}


def test_when_both_are_lost_it_is_sent_again() -> None:
    stalled = Stalled(workers=3)
    stalled.hedged()
    stalled.core.lost(stalled.others[0], 510)
    stalled.core.lost(stalled.first, 511)
    (send,) = sends(stalled.bench.poll(511))
    assert send.worker is stalled.others[1]
    assert stalled.entries[0].attempts == 2


def test_what_ran_badly_or_was_lost_before_is_never_hedged() -> None:
    stalled = Stalled()
    stalled.bench.poll(OVERDUE_MS)
    crashed = frames.Outcome(stalled.batch.batch, False, 30.0, 0, ())
    stalled.core.frame(stalled.first, crashed, 45)
    assert [each for now_ms in (100, HALF_MS, 900) for each in stalled.bench.poll(now_ms)] == []
    tried = Stalled(workers=3)
    tried.core.lost(tried.first, 1)
    (send,) = sends(tried.bench.poll(1))
    out = [tried.bench.poll(now_ms) for now_ms in (100, HALF_MS, HALF_MS + 1, 900)]
    assert [(each[0], each[1].records) for each in recalls(out[0])] == [(send.worker, (tried.entries[0].record,))]
    assert [sends(each) for each in out] == [[], [], [], []]


def test_nobody_else_is_delayed_by_a_hedge() -> None:
    stalled = Stalled()
    stalled.bench.poll(OVERDUE_MS)
    own = stalled.admit(HALF_MS - 1)
    (send,) = sends(stalled.bench.poll(HALF_MS - 1))
    assert sends(stalled.bench.poll(HALF_MS)) == []
    stalled.outcome(stalled.others[0], send.batch, 509)
    (send,) = sends(stalled.bench.poll(509))
    assert (own.state, send.batch.items[0].record) == (State.DONE, stalled.entries[0].record)


def test_who_could_not_be_in_time_any_more_is_not_hedged() -> None:
    stalled = Stalled()
    stalled.bench.poll(OVERDUE_MS)
    assert sends(stalled.bench.poll(991)) == []


def test_without_a_deadline_nobody_is_hedged() -> None:
    stalled = Stalled()
    stalled.bench.poll(OVERDUE_MS)
    stalled.entries[0].latency_deadline_ms = None
    assert sends(stalled.bench.poll(5000)) == []


@pytest.mark.parametrize("share_max", [0.0, 0.1])
def test_hedges_keep_within_their_share(share_max: float) -> None:
    bench = Bench((model(), [profile(model())]), hedge_share_max=share_max)
    workers = [bench.worker(M, window_ms=1) for _ in range(2)]
    now_ms, sent = 0.0, 0
    for number in range(400):  # each fifth time the first worker stalls, and the second one takes over
        entries = [bench.admit(now_ms, latency_ms_max=400) for _ in range(4)]
        (send,) = sends(bench.poll(now_ms))
        sent += len(entries)
        for after_ms in (100, 200, 300, 380) if number % 5 == 0 else ():
            for hedge in sends(bench.poll(now_ms + after_ms)):
                bench.answer(hedge.worker, hedge.batch, now_ms + after_ms + 10)
        bench.answer(send.worker, send.batch, now_ms + (395 if number % 5 == 0 else 10))
        now_ms += 1000
    assert not any(worker.sent for worker in workers)
    hedged = bench.core.statistics.hedged
    assert hedged <= BURST + share_max * sent if share_max else hedged == 0
    assert hedged > BURST or not share_max
    assert bench.core.statistics.outcomes == {("OK", "t"): sent}


def test_a_cancel_of_what_two_workers_have_is_not_told_to_one_of_them() -> None:
    stalled = Stalled()
    second = stalled.hedged()
    stalled.core.cancel(Cancel(id=stalled.entries[0].query.id))
    assert stalled.bench.poll(501) == []
    stalled.outcome(stalled.others[0], second, 512)
    assert stalled.core.statistics.outcomes == {("OK", "t"): 1}


def test_what_is_given_up_in_a_rebalance_is_not_hedged() -> None:
    stalled = Stalled()
    stalled.bench.poll(OVERDUE_MS)
    stalled.core.withdraw([(stalled.entries[0].record.topic, 0)])
    assert stalled.bench.poll(HALF_MS) == []


# --- what is usual ----------------------------------------------------------------------------------------------------


def test_the_slack_is_learned_from_when_outcomes_come() -> None:
    bench = Bench((model(), [profile(model())]))
    for _ in range(2):
        bench.worker(M)
    now_ms, late_ms = 0.0, 120.0

    def patience_ms() -> float:
        nonlocal now_ms
        now_ms += 1000
        bench.admit(now_ms)
        (send,) = sends(bench.poll(now_ms))
        waits_ms = send.worker.overdue_ms - now_ms - 20
        bench.answer(send.worker, send.batch, now_ms + 20 + late_ms)
        return waits_ms

    first = patience_ms()
    for _ in range(40):
        patience_ms()
    learned = patience_ms()
    assert first == SLACK_MS
    assert late_ms <= learned < 1.2 * late_ms
    late_ms = 0.0
    for _ in range(4000):
        patience_ms()
    assert patience_ms() == SLACK_MS_MIN
