"""Queries without a deadline: behind all others, for no longer than these can wait, and fair between jobs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
from broker_builders import Bench, Curve, entry, model, profile

from broker.core import Instruction, Reply, Send
from broker.devices import Worker
from broker.groups import OFFLINE_LONG_SHARE, OFFLINE_SHARE, SLACK_PERIOD_MS
from broker.jobs import JOBS_MAX, Jobs
from broker.ledger import Entry
from modelless import frames

OFFLINE = "modelless.queries.offline"
STEEP: Curve = tuple((rows, float(10 + 2 * rows)) for rows in (1, 2, 4, 8, 16, 32))
MODEL = model()


def bench(curve: Curve = STEEP, workers: int = 1, **settings: Any) -> tuple[Bench, list[Worker]]:
    made = Bench((MODEL, [profile(MODEL, curve=curve)]), **settings)
    made.core.ledger.assign(OFFLINE, 0, 0, "")
    return made, [made.worker("m:1/onnx-fp32", window_ms=1000.0) for _ in range(workers)]


def admit_offline(of: Bench, offset: int, now_ms: float = 0.0, job: str = "j", **asked: Any) -> Entry:
    made = entry(offset, arrival_ms=now_ms, topic=OFFLINE, metadata={"job": job}, **asked)
    assert of.core.ledger.arrived(made.record)
    of.core.admit(made, now_ms)
    return made


def batches(instructions: Sequence[Instruction]) -> list[frames.Batch]:
    return [each.batch for each in instructions if isinstance(each, Send)]


def end(of: Bench, worker: Worker, batch: frames.Batch, now_ms: float) -> None:
    of.answer(worker, batch, now_ms)


def test_the_job_that_had_the_least_device_time_goes_first() -> None:
    of, (worker,) = bench(((1, 10.0), (2, 10.0)))
    for offset in range(8):
        admit_offline(of, offset, job="long")
    (first,) = batches(of.poll(0))
    for offset in range(8, 12):
        admit_offline(of, offset, job="short")
    order = []
    now_ms, running = 0.0, [first]
    while running:
        now_ms += 10
        batch = running.pop(0)
        order += [item.record.offset for item in batch.items]
        end(of, worker, batch, now_ms)
        running += batches(of.poll(now_ms))
    assert order[:2] == [0, 1]
    assert order[2:4] == [8, 9], "the new one has had nothing yet"
    assert set(order[4:8]) == {2, 3, 10, 11}, "then they take turns"
    assert len(order) == 12


def test_a_job_that_runs_alone_for_long_is_behind_a_new_one_until_that_has_had_as_much() -> None:
    jobs = Jobs()
    long, short = jobs.of("t", {"job": "long"}), jobs.of("t", {"job": "short"})
    long.ran(100.0)
    long.add(5.0)
    for _ in range(3):
        short.add(5.0)
    assert (long.place_ms, short.place_ms) == (105.0, 15.0)
    short.take(5.0)
    assert short.place_ms == 10.0, "what left without running is not held against it"
    assert jobs.of("t", {}) is jobs.of("t", {})
    assert jobs.of("t", {}) is not jobs.of("u", {})


def test_jobs_are_forgotten_when_there_are_too_many_but_not_those_that_wait() -> None:
    jobs = Jobs()
    waits = jobs.of("t", {"job": "waits"})
    waits.add(1.0)
    for number in range(2 * JOBS_MAX):
        jobs.of("t", {"job": str(number)})
    assert jobs.of("t", {"job": "waits"}) is waits
    assert len(jobs._jobs) <= JOBS_MAX


def test_an_online_query_goes_before_an_offline_batch_that_was_sent_and_has_not_begun() -> None:
    of, (worker,) = bench()
    for offset in range(64):
        admit_offline(of, offset)
    (first,) = batches(of.poll(0))
    assert len(first.items) == 32
    of.core.frame(worker, frames.Credit(80), 70)
    (yielding,) = batches(of.poll(70))
    end_ms = worker.ends_ms
    assert end_ms == 74, "the device is free for whoever comes when the first has ended"
    online = of.admit(71, latency_ms_max=40)
    (sent,) = batches(of.poll(72))
    assert sent.items[0].record == online.record
    assert worker.sent[yielding.batch].is_offline
    assert list(worker.sent) == [first.batch, sent.batch, yielding.batch]
    assert not batches(of.poll(73)), "one that has not begun is enough"
    end(of, worker, first, 74)
    assert worker.front.batch == sent.batch
    assert worker.unsettled_ms == sent.cost_ms


def test_no_offline_batch_takes_longer_than_the_most_urgent_query_of_late_can_wait() -> None:
    of, (worker,) = bench()
    of.admit(0, latency_ms_max=100)  # alone it takes 12 ms, at most 15
    (online,) = batches(of.poll(0))
    end(of, worker, online, 12)
    for offset in range(40):
        admit_offline(of, offset, 13)
    (offline,) = batches(of.poll(13))
    assert len(offline.items) == 8, "26 ms, at most 32.5; 16 rows would take 52.5 of 85"
    assert worker.start_ms(13) - 13 <= OFFLINE_SHARE * 85
    hurried = of.admit(14, latency_ms_max=100)
    assert hurried.deadline_ms is not None
    assert worker.start_ms(14) + 15 < hurried.deadline_ms


def test_who_is_too_long_waits_until_nobody_is_in_such_a_hurry() -> None:
    of, (worker,) = bench((*STEEP, (64, 1000.0)))
    of.admit(0, latency_ms_max=40)  # 25 to spare
    (online,) = batches(of.poll(0))
    end(of, worker, online, 12)
    admit_offline(of, 0, 13, rows=64)
    assert not batches(of.poll(13))
    assert not batches(of.poll(14))
    wake_ms = of.core.wake_at_ms()
    assert 14 < wake_ms <= SLACK_PERIOD_MS
    assert not batches(of.poll(wake_ms)), "it was within the last period"
    wake_ms = of.core.wake_at_ms()
    assert wake_ms <= 2 * SLACK_PERIOD_MS + 1
    (batch,) = batches(of.poll(wake_ms))
    assert len(batch.items) == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_who_is_too_long_runs_now_and_then_however_much_of_a_hurry_others_are_in(workers: int) -> None:
    of, _ = bench(workers=workers)
    for offset in range(20):
        admit_offline(of, offset, 0, rows=32)  # 74 ms
    running: list[tuple[float, Worker, frames.Batch]] = []
    offline_ms, online, now_ms = 0.0, 0, 0.0
    while now_ms < 120_000:
        for each in [each for each in running if each[0] <= now_ms]:
            running.remove(each)
            ends_ms, worker, batch = each
            items = tuple(frames.ItemOutcome(item.record, "answered", "OK") for item in batch.items)
            of.core.frame(worker, frames.Outcome(batch.batch, True, batch.cost_ms, len(items), items), ends_ms)
        if now_ms % 100 == 0:
            of.admit(now_ms, latency_ms_max=40)
        for sent in [each for each in of.poll(now_ms) if isinstance(each, Send)]:
            is_offline = sent.batch.items[0].record.topic == OFFLINE
            offline_ms += sent.batch.cost_ms if is_offline else 0.0
            online += not is_offline
            running.append((now_ms + sent.batch.cost_ms, sent.worker, sent.batch))
        if now_ms == 60_000:
            takes_ms, may_ms = of.core.groups["cpu"].withheld_ms(now_ms)
            assert takes_ms >= 74 > 25 > may_ms > 0, "and it is told"
        now_ms += 20
    assert online > 1000
    assert OFFLINE_LONG_SHARE / 2 < offline_ms / 120_000 / workers <= OFFLINE_LONG_SHARE


def test_one_that_is_too_long_keeps_nobody_from_another_worker() -> None:
    other = model("o", task="u")
    of = Bench((MODEL, [profile(MODEL, curve=STEEP)]), (other, [profile(other, curve=STEEP)]))
    of.core.ledger.assign(OFFLINE, 0, 0, "")
    first = of.worker("m:1/onnx-fp32", window_ms=1000.0)
    second = of.worker("o:1/onnx-fp32", window_ms=1000.0)
    of.admit(0, latency_ms_max=40)
    (online,) = batches(of.poll(0))
    end(of, first, online, 12)
    admit_offline(of, 0, 13, rows=8)
    for offset in (1, 2):
        admit_offline(of, offset, 13, task="u")
    (sent,) = batches(of.poll(13))
    assert sent.items[0].record.offset == 1
    assert not batches(of.poll(14))
    end(of, second, sent, 25)
    (sent,) = batches(of.poll(25))
    assert sent.items[0].record.offset == 2


def test_one_query_alone_may_take_most_of_that_time_so_that_jobs_do_not_stand_still() -> None:
    of, (worker,) = bench()
    of.admit(0, latency_ms_max=40)
    (online,) = batches(of.poll(0))
    end(of, worker, online, 12)
    for offset in range(4):
        admit_offline(of, offset, 13)
    (batch,) = batches(of.poll(13))
    assert len(batch.items) == 1, "15 of 25 ms, at most"


def test_shorter_ones_pass_one_that_is_too_long() -> None:
    of, (worker,) = bench()
    of.admit(0, latency_ms_max=100)
    (online,) = batches(of.poll(0))
    end(of, worker, online, 12)
    admit_offline(of, 0, 13, rows=30)
    for offset in range(1, 4):
        admit_offline(of, offset, 13, rows=2)
    (batch,) = batches(of.poll(13))
    assert [item.record.offset for item in batch.items] == [1, 2, 3]


def test_offline_rows_fill_up_a_batch_where_that_takes_no_longer() -> None:
    of, _ = bench(((1, 10.0), (8, 10.0), (16, 30.0)))
    busy = of.admit(0, latency_ms_max=1000)
    (first,) = batches(of.poll(0))
    assert [item.record for item in first.items] == [busy.record]
    for offset in range(20):
        admit_offline(of, offset)
    for _ in range(3):
        of.admit(1, latency_ms_max=1000)
    (batch,) = batches(of.poll(9))
    assert len(batch.items) == 8
    assert sum(item.deadline_ms is None for item in batch.items) == 5
    assert batch.cost_ms == 10.0


def test_what_waits_offline_makes_nobody_wait() -> None:
    of, _ = bench()
    for offset in range(500):
        admit_offline(of, offset, rows=20)
    of.poll(0)
    online = of.admit(1, latency_ms_max=300, rows=1)
    assert online.place is not None, "it was not refused for what waits offline"
    (group,) = of.core.groups.values()
    assert group.head_ms == online.deadline_ms
    (told,) = [each.demand for each in of.demands[-1:]]
    assert told.deadline_ms is None
    of.poll(30)
    assert of.demands[-1].demand.backlog_ms < 100, "what has no deadline is not what others are told beside this"


@pytest.mark.parametrize("seed", range(10))
def test_whatever_comes_the_most_urgent_are_in_time(seed: int) -> None:
    """A device that is never late, online queries that are never many at once, and more offline work than it can do."""
    dice = random.Random(seed)
    curve = tuple((rows, 5 + dice.uniform(0.5, 5) * rows) for rows in (1, 2, 4, 8, 16))
    of, (worker,) = bench(curve)
    latency_ms = curve[0][1] * dice.uniform(3, 20)
    of.admit(0, latency_ms_max=latency_ms)
    next_ms, offset, now_ms, served = latency_ms, 0, 0.0, 0
    waiting: list[tuple[bool, int, frames.Batch]] = []
    running: tuple[float, frames.Batch] | None = None
    deadlines: dict[Any, float] = {}
    while now_ms < 60 * latency_ms:
        while offset < served + 40:
            admit_offline(of, offset, now_ms, rows=dice.choice((1, 1, 2)))
            offset += 1
        if now_ms >= next_ms:
            online = of.admit(now_ms, latency_ms_max=latency_ms)
            deadlines[online.record] = now_ms + latency_ms
            next_ms = now_ms + latency_ms * dice.uniform(1, 3)
        instructions = of.poll(now_ms)
        assert not [each for each in instructions if isinstance(each, Reply)], "nobody is refused"
        waiting += [
            (all(item.deadline_ms is None for item in batch.items), batch.batch, batch)
            for batch in batches(instructions)
        ]
        if running is None and waiting:
            waiting.sort(key=lambda each: each[:2])
            _, _, batch = waiting.pop(0)
            running = now_ms + batch.cost_ms, batch
        wake_ms = [next_ms, of.core.wake_at_ms()] + ([running[0]] if running else [])
        now_ms = max(now_ms, min(each for each in wake_ms if each > now_ms or running))
        if running is not None and running[0] <= now_ms:
            for item in running[1].items:
                served += item.deadline_ms is None
                assert item.deadline_ms is None or now_ms <= item.deadline_ms
                deadlines.pop(item.record, None)
            end(of, worker, running[1], now_ms)
            running = None
    assert served > 0
    assert all(deadline_ms >= now_ms for deadline_ms in deadlines.values())
