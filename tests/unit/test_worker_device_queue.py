"""The device queue: what runs next, what expires, who gets which credit. No clock, no sleeping."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worker_builders import VARIANT, batch, item

from modelless.frames import (
    Backlog,
    Batch,
    BatchTensor,
    Call,
    CancelItems,
    Credit,
    Demand,
    Item,
    ItemOutcome,
    Outcome,
    Recall,
)
from workers.device_queue import Answer, DeviceQueue, Instruction, Run, Tell


def make_queue(*links: int) -> DeviceQueue:
    queue = DeviceQueue(lead_ms=4.0)
    queue.ready([VARIANT])
    queue.device(True)
    for link in links or (1,):
        queue.link_up(link)
    return queue


def runs(instructions: list[Instruction]) -> list[Run]:
    return [i for i in instructions if isinstance(i, Run)]


def answers(instructions: list[Instruction]) -> list[Answer]:
    return [i for i in instructions if isinstance(i, Answer)]


def outcomes(instructions: list[Instruction]) -> list[Outcome]:
    return [i.frame for i in instructions if isinstance(i, Tell) and isinstance(i.frame, Outcome)]


def offsets(run: Run | Answer) -> list[int]:
    return [each.record.offset for each in run.items]


def ran(queue: DeviceQueue, run: Run) -> list[Run]:
    """It ended well: what of it is published, as the shell does it."""
    parts = []
    for part, gone in zip(run.parts, queue.ran(1.0), strict=True):
        kept = tuple([i for i in part.indices if part.batch.items[i].record not in gone])
        if kept:
            parts.append(replace(part, indices=kept))
    return [replace(run, parts=tuple(parts))] if parts else []


def settle(queue: DeviceQueue, done: Run | Answer, now_ms: float) -> None:
    status = done.status if isinstance(done, Answer) else "OK"
    for part in [done] if isinstance(done, Answer) else done.parts:
        queue.settled(part.link, part.batch.batch, [ItemOutcome(i.record, "answered", status) for i in part.items])


def test_the_earliest_deadline_runs_first_and_one_at_a_time() -> None:
    queue = make_queue(1, 2)
    queue.push(1, batch(1, [item(1, None)]))
    queue.push(1, batch(2, [item(2, 500.0)]))
    queue.push(2, batch(1, [item(3, 100.0)]))
    order = []
    for now_ms in range(3):
        (run,) = runs(queue.poll(now_ms))
        assert runs(queue.poll(now_ms)) == []
        order += offsets(run)
        queue.ran(1.0)
    assert order == [3, 2, 1]


def test_a_batch_is_settled_once() -> None:
    queue = make_queue()
    queue.push(1, batch(7, [item(1), item(2)]))
    out = queue.poll(0)
    (run,) = runs(out)
    queue.ran(3.0)
    settle(queue, run, 4)
    (outcome,) = outcomes(queue.poll(4))
    assert (outcome.batch, outcome.final, outcome.execute_ms, outcome.rows, outcome.rest_ok) == (7, True, 3.0, 2, True)


def test_expired_items_are_answered_while_another_batch_runs_and_their_mates_still_run() -> None:
    queue = make_queue()
    queue.push(1, batch(1, [item(1, 1000.0)]))
    assert runs(queue.poll(0))
    queue.push(1, batch(2, [item(2, 50.0), item(3, 2000.0)]))
    queue.poll(1)
    assert queue.wake_at_ms() == 50.0
    (answer,) = answers(queue.poll(50.0))
    assert (offsets(answer), answer.status) == ([2], "DEADLINE_EXCEEDED")
    settle(queue, answer, 51)
    assert [o.final for o in outcomes(queue.poll(51))] == [False]
    queue.ran(60)
    (run,) = runs(queue.poll(60))
    assert offsets(run) == [3]
    assert run.inputs[0].shape == (1, 4)
    assert bytes(run.inputs[0].data) == bytes(batch(2, [item(3)]).inputs[0].data)


def test_cancelled_items_do_not_start() -> None:
    queue = make_queue()
    queue.device(False)
    queue.push(1, batch(1, [item(1), item(2), item(3)]))
    queue.cancel(1, CancelItems(1, (item(2).record,)))
    (answer,) = answers(queue.poll(0))
    assert (offsets(answer), answer.status) == ([2], "CANCELLED")
    queue.device(True)
    assert offsets(runs(queue.poll(1))[0]) == [1, 3]


def test_recalled_items_are_given_back_when_they_have_not_started() -> None:
    queue = make_queue()
    queue.push(1, batch(1, [item(1), item(2)]))
    (run,) = runs(queue.poll(0))
    queue.push(1, batch(2, [item(3), item(4)]))
    for number, records in ((1, (1, 2)), (2, (3,)), (3, (9,))):
        queue.recall(1, Recall(number, tuple(item(offset).record for offset in records)))
    queue.recall(2, Recall(2, (item(4).record,)))
    (outcome,) = outcomes(queue.poll(0))
    assert (outcome.batch, outcome.final, outcome.execute_ms) == (2, False, 0.0)
    assert [(each.record.offset, each.disposition) for each in outcome.items] == [(3, "returned")]
    assert ran(queue, run) == [run], "what runs is answered"
    assert offsets(runs(queue.poll(1))[0]) == [4]


def test_what_another_worker_has_answered_is_given_back_from_a_run_too() -> None:
    queue = make_queue()
    queue.push(1, batch(1, [item(1), item(2)]))
    (run,) = runs(queue.poll(0))
    queue.push(1, batch(2, [item(3)]))
    queue.recall(1, Recall(1, (item(2).record,), answered=True))
    queue.recall(1, Recall(2, (item(3).record,), answered=True))
    assert [outcome.batch for outcome in outcomes(queue.poll(0))] == [2]
    (published,) = ran(queue, run)
    assert offsets(published) == [1]
    (outcome,) = outcomes(queue.poll(1))
    assert [(each.record.offset, each.disposition) for each in outcome.items] == [(2, "returned")]
    settle(queue, published, 2)
    (outcome,) = outcomes(queue.poll(2))
    assert (outcome.final, outcome.rest_ok) == (True, True)


def test_suspects_are_not_given_back_and_a_bad_end_is_told_at_once() -> None:
    queue = make_queue()
    queue.push(1, batch(1, [item(1), item(2), item(3)]))
    queue.poll(0)
    queue.crashed(7.0)
    (outcome,) = outcomes(queue.poll(1))
    assert (outcome.final, outcome.items, outcome.execute_ms, outcome.rows) == (False, (), 7.0, 0)
    queue.recall(1, Recall(1, tuple(item(offset).record for offset in (1, 2, 3))))
    assert outcomes(queue.poll(2)) == []
    queue.recall(1, Recall(1, (item(3).record,), answered=True))
    assert [each.record.offset for each in outcomes(queue.poll(2))[0].items] == [3]


def test_a_lost_link_drops_what_waits_and_finishes_what_runs() -> None:
    queue = make_queue(1, 2)
    queue.push(1, batch(1, [item(1)]))
    queue.poll(0)
    queue.push(1, batch(2, [item(2)]))
    queue.push(2, batch(1, [item(3)]))
    queue.link_lost(1)
    queue.ran(1.0)
    (run,) = runs(queue.poll(1))
    assert offsets(run) == [3]


def test_what_is_not_loaded_is_returned() -> None:
    queue = make_queue()
    queue.push(1, batch(1, [item(1)], variant="other:1/onnx-fp32"))
    (outcome,) = outcomes(queue.poll(0))
    assert outcome.final
    assert outcome.items[0].disposition == "returned"


def test_unloading_returns_what_waits() -> None:
    queue = make_queue()
    queue.device(False)
    queue.push(1, batch(1, [item(1)]))
    assert queue.holds(VARIANT)
    queue.ready([])
    assert outcomes(queue.poll(0))[0].items[0].disposition == "returned"
    assert not queue.holds(VARIANT)


def test_draining_returns_the_queue_and_finishes_the_run() -> None:
    queue = make_queue()
    queue.push(1, batch(1, [item(1)]))
    queue.push(1, batch(2, [item(2)]))
    (run,) = runs(queue.poll(0))
    queue.drain()
    assert [o.items[0].disposition for o in outcomes(queue.poll(1))] == ["returned"]
    assert not queue.drained
    queue.ran(2.0)
    assert not queue.drained
    settle(queue, run, 3)
    assert queue.drained


@pytest.mark.parametrize("poison", range(0, 32, 5))
def test_one_poison_among_32_costs_at_most_6_deaths(poison: int) -> None:
    queue = make_queue()
    queue.quarantine(True)
    queue.push(1, batch(1, [item(i) for i in range(32)]))
    deaths, answered, poisoned = 0, set[int](), set[int]()
    for now_ms in range(100):
        out = queue.poll(now_ms)
        for answer in answers(out):
            assert answer.poisoned
            poisoned.update(offsets(answer))
            settle(queue, answer, now_ms)
        for run in runs(out):
            if poison in offsets(run):
                deaths += 1
                queue.crashed(1.0)
                queue.device(True)
                queue.quarantine(True)
            else:
                queue.ran(1.0)
                answered.update(offsets(run))
                settle(queue, run, now_ms)
    assert (deaths, poisoned, answered) == (6, {poison}, set(range(32)) - {poison})


def test_suspects_run_only_in_quarantine_and_do_not_hold_up_others() -> None:
    queue = make_queue()
    queue.push(1, batch(1, [item(1, 10_000.0), item(2, 10_000.0)]))
    queue.poll(0)
    queue.crashed(1.0)
    queue.device(True)
    queue.push(1, batch(2, [item(3)]))
    (run,) = runs(queue.poll(2))
    assert (offsets(run), run.quarantined) == ([3], False)
    assert queue.suspects() == (VARIANT,)
    queue.ran(1.0)
    assert runs(queue.poll(3)) == []
    queue.quarantine(True)
    assert runs(queue.poll(4))[0].quarantined


def test_nothing_starts_on_a_dead_executor_until_it_is_replaced() -> None:
    queue = make_queue()
    queue.push(1, batch(1, [item(1)]))
    queue.poll(0)
    queue.push(1, batch(2, [item(2)]))
    queue.crashed(1.0)
    assert runs(queue.poll(1)) == []
    queue.device(True)
    assert offsets(runs(queue.poll(2))[0]) == [2]
    queue.interrupted()
    assert offsets(runs(queue.poll(3))[0]) == [2]


def test_a_query_that_died_alone_once_is_not_blamed_before_quarantine() -> None:
    queue = make_queue()
    queue.push(1, batch(1, [item(1)]))
    queue.poll(0)
    queue.crashed(1.0)
    queue.quarantine(True)
    out = queue.poll(2)
    assert answers(out) == []
    assert runs(out)[0].quarantined
    queue.ran(1.0)


def test_an_error_of_the_model_is_bisected_without_quarantine() -> None:
    queue = make_queue()
    queue.push(1, batch(1, [item(i) for i in range(4)]))
    answered: list[int] = []
    for now_ms in range(20):
        out = queue.poll(now_ms)
        for answer in answers(out):
            assert (offsets(answer), answer.status, answer.poisoned) == ([2], "INTERNAL", False)
        for run in runs(out):
            assert not run.quarantined
            if 2 in offsets(run):
                queue.failed(1.0)
            else:
                queue.ran(1.0)
                answered += offsets(run)
    assert sorted(answered) == [0, 1, 3]


def test_a_paused_queue_grants_nothing_and_starts_nothing() -> None:
    queue = make_queue()
    queue.poll(0)
    queue.pause(True)
    queue.push(1, batch(1, [item(1)]))
    out = queue.poll(1)
    assert Tell(1, Credit(0.0)) in out
    assert runs(out) == []


def test_urgent_brokers_get_more_credit_and_everybody_some() -> None:
    queue = make_queue(1, 2)
    queue.demand(1, Demand(100.0, 1000.0))
    queue.demand(2, Demand(100.0, 100_000.0))
    windows = {i.link: i.frame.window_ms for i in queue.poll(0) if isinstance(i, Tell) and isinstance(i.frame, Credit)}
    assert sum(windows.values()) == pytest.approx(queue.statistics().cap_ms)
    assert windows[1] > 5 * windows[2] > 0


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_every_item_gets_exactly_one_outcome_and_nothing_starts_late(seed: int) -> None:
    """Random pushes, deadlines, cancellations, errors, crashes and lost links; checked from outside the queue."""
    dice = random.Random(seed)
    links = [1, 2, 3]
    queue = make_queue(*links)
    pushed: dict[int, float | None] = {}
    fate: Counter[int] = Counter()
    sent: dict[tuple[int, int], set[int]] = {}
    bad = {offset for offset in range(200) if dice.random() < 0.1}
    unsettled: list[Run | Answer] = []
    running: Run | None = None
    now_ms, number, offset_next = 0.0, 0, 0
    gone: set[int] = set()

    def carry_out(out: list[Instruction]) -> None:
        nonlocal running
        for instruction in out:
            if isinstance(instruction, Run):
                assert running is None
                running = instruction
                assert len(
                    {(part.link, part.batch.batch, index) for part in running.parts for index in part.indices}
                ) == len(running.items)
                for each in instruction.items:
                    assert each.deadline_ms is None or each.deadline_ms > now_ms
            elif isinstance(instruction, Answer):
                unsettled.append(instruction)
            elif isinstance(instruction.frame, Outcome):
                frame = instruction.frame
                named = [o.record.offset for o in frame.items]
                fate.update(named if not frame.rest_ok else sent[instruction.link, frame.batch] - fate.keys())

    for _ in range(120):
        now_ms += dice.random() * 5
        action = dice.random()
        if action < 0.35 and offset_next < 190:
            number += 1
            items = []
            for _ in range(dice.randint(1, 6)):
                deadline_ms = None if dice.random() < 0.3 else now_ms + dice.random() * 40
                items.append(item(offset_next, deadline_ms, rows=dice.randint(1, 3)))
                pushed[offset_next] = deadline_ms
                offset_next += 1
            link = dice.choice(links)
            sent[link, number] = {each.record.offset for each in items}
            of = batch(number, items, cost_ms=dice.random() * 9)
            own = sum(each.rows for each in items)
            queue.push(link, replace(of, times=tuple((own + more, 3.0 + more / 4) for more in (0, 2, 8, 24))))
            queue.demand(link, Demand(dice.choice((0.0, 5.0)), None))
        elif action < 0.36:
            link = links.pop(dice.randrange(len(links)))
            queue.link_lost(link)
            links.append(max(*links, link) + 1)
            queue.link_up(links[-1])
            for offset in [
                o for (of_link, _), offsets in sent.items() if of_link == link for o in offsets - fate.keys()
            ]:
                del pushed[offset]
                gone.add(offset)
        elif action < 0.4 and pushed:
            for link in links:
                queue.cancel(link, CancelItems(number, (item(dice.randrange(offset_next)).record,)))
        elif action < 0.5 and sent:
            link, recalled = dice.choice(list(sent))
            records = tuple(item(offset).record for offset in sent[link, recalled] if dice.random() < 0.7)
            queue.recall(link, Recall(recalled, records, answered=dice.random() < 0.5))
        elif action < 0.7 and running is not None:
            run, running = running, None
            if bad & set(offsets(run)):
                if dice.random() < 0.5:
                    queue.crashed(1.0)
                    queue.device(True)
                else:
                    queue.failed(1.0)
            else:
                unsettled += ran(queue, run)
        elif action < 0.8 and unsettled:
            settle(queue, unsettled.pop(dice.randrange(len(unsettled))), now_ms)
        elif action < 0.85:
            queue.quarantine(dice.random() < 0.7)
        carry_out(queue.poll(now_ms))

    queue.drain()
    for _ in range(400):
        now_ms += 1
        carry_out(queue.poll(now_ms))
        if running is not None:
            run, running = running, None
            if bad & set(offsets(run)):
                queue.failed(1.0)
            else:
                unsettled += ran(queue, run)
        while unsettled:
            settle(queue, unsettled.pop(), now_ms)
    carry_out(queue.poll(now_ms))
    assert queue.drained
    assert not gone & fate.keys()
    assert fate == Counter(dict.fromkeys(pushed, 1))


def shadow(number: int, *offsets: int) -> Batch:
    return replace(batch(number, [item(offset) for offset in offsets]), predicts=True, shadow=True)


def test_a_shadow_runs_last_and_answers_nobody() -> None:
    queue = make_queue()
    queue.push(1, shadow(1, 1, 2))
    queue.push(1, batch(2, [item(3, None)]))
    assert offsets(runs(queue.poll(0))[0]) == [3]
    queue.ran(1.0)
    assert offsets(runs(queue.poll(1))[0]) == [1, 2]
    queue.ran(2.0, [(7,), (8,)])
    (outcome,) = outcomes(queue.poll(2))
    assert (outcome.batch, outcome.final, outcome.rest_ok, outcome.predictions) == (1, True, True, (7, 8))
    assert queue.statistics().unsettled_items == 1, "the query's reply is still being written"


@pytest.mark.parametrize("crashes", [False, True])
def test_a_shadow_that_fails_is_given_back_whole_and_nobody_is_looked_for(crashes: bool) -> None:
    queue = make_queue()
    queue.push(1, shadow(1, 1, 2))
    queue.poll(0)
    (queue.crashed if crashes else queue.failed)(1.0)
    out = queue.poll(1)
    assert runs(out) == answers(out) == []
    (outcome,) = outcomes(out)
    assert [(o.disposition, o.status) for o in outcome.items] == [("returned", "INTERNAL")] * 2
    assert outcome.final
    assert queue.suspects() == ()


def test_predictions_are_told_of_a_batch_that_ran_and_was_answered_as_a_whole() -> None:
    queue = make_queue()
    for number, gone in ((1, False), (2, True)):
        queue.push(1, replace(batch(number, [item(1), item(2)]), predicts=True))
        if gone:
            queue.device(False)
            queue.cancel(1, CancelItems(number, (item(2).record,)))
            (answer,) = answers(queue.poll(0))
            settle(queue, answer, 0)
            queue.device(True)
        (run,) = runs(queue.poll(0))
        queue.ran(1.0, [(5,), (6,)][: len(run.items)])
        settle(queue, run, 1)
        assert outcomes(queue.poll(1))[-1].predictions == (() if gone else (5, 6))


def test_a_shadow_takes_no_credit() -> None:
    windows = []
    for shadowed in (False, True):
        queue = make_queue()
        queue.poll(0)
        queue.push(1, replace(batch(1, [item(1)], cost_ms=500.0), shadow=shadowed))
        windows += [i.frame.window_ms for i in queue.poll(1) if isinstance(i, Tell) and isinstance(i.frame, Credit)]
    assert len(windows) == 1, "a large batch raises the cap, a shadow's does not"


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_where_credit_was_not_divided_anew_that_would_have_told_nobody_anything(seed: int) -> None:
    """Random events at one broker's queue, or several's; after each poll the credit is divided anew after all."""
    dice = random.Random(seed)
    links = list(range(1, dice.choice((2, 3))))
    queue = make_queue(*links)
    unsettled: list[Run | Answer] = []
    run: Run | None = None
    now_ms = 0.0
    for number in range(80):
        now_ms += dice.choice((0.0, 0.0, 1.0, 20.0))
        link, action = dice.choice(links), dice.randrange(9)
        if action <= 1:
            items = [item(3 * number + n, dice.choice((None, now_ms + 30))) for n in range(dice.randint(1, 3))]
            queue.push(link, batch(number, items, cost_ms=dice.choice((2.0, 10.0, 50.0))))
        elif action == 2:
            queue.demand(link, Demand(dice.choice((0.0, 5.0, 50.0)), dice.choice((None, now_ms + 20))))
        elif action <= 4 and run is not None:
            done, run = run, None
            if dice.random() < 0.3:
                queue.failed(1.0)
            else:
                queue.ran(1.0)
                unsettled.append(done)
        elif action == 5 and unsettled:
            settle(queue, unsettled.pop(dice.randrange(len(unsettled))), now_ms)
        elif action == 6:
            queue.pause(dice.random() < 0.3)
        elif action == 7:
            queue.ready([VARIANT] if dice.random() < 0.7 else [])
        elif action == 8 and dice.random() < 0.5:
            dice.choice((queue.link_lost, queue.link_up))(link)
        elif action == 8 and dice.random() < 0.05:
            queue.drain()
        out = queue.poll(now_ms)
        run = next(iter(runs(out)), run)
        unsettled += answers(out)
        queue._regrant = True
        assert queue.poll(now_ms) == []
        queue._regrant = False


TIMES = ((1, 10.0), (2, 11.0), (4, 13.0), (8, 17.0))


def part(number: int, items: list[Item], times: tuple[tuple[int, float], ...] = TIMES) -> Batch:
    rows = sum(each.rows for each in items)
    return replace(batch(number, items, cost_ms=10.0), times=tuple(each for each in times if each[0] >= rows))


def started(queue: DeviceQueue, now_ms: float) -> list[int]:
    (run,) = runs(queue.poll(now_ms))
    return offsets(run)


def waiting(*batches: tuple[int, Batch]) -> DeviceQueue:
    queue = make_queue(1, 2, 3)
    queue.device(False)
    for link, of in batches:
        queue.push(link, of)
    queue.poll(0)
    queue.device(True)
    return queue


def test_what_several_brokers_sent_of_one_variant_runs_as_one_and_is_told_to_each() -> None:
    queue = waiting((1, part(7, [item(1, 100.0)])), (2, part(7, [item(2, 90.0), item(3)])))
    (run,) = runs(queue.poll(1))
    assert (offsets(run), run.rows, run.inputs[0].shape) == ([2, 3, 1], 3, (3, 4))
    assert [row[0] for row in np.frombuffer(run.inputs[0].data, "<f4").reshape(3, 4)] == [2.0, 3.0, 1.0]
    queue.ran(13.0)
    settle(queue, run, 20)
    told = {i.link: i.frame for i in queue.poll(20) if isinstance(i, Tell) and isinstance(i.frame, Outcome)}
    assert [(told[link].execute_ms, told[link].rows, told[link].rest_ok) for link in (1, 2)] == [(13.0, 3, True)] * 2


def test_nobody_is_late_for_the_sake_of_company() -> None:
    assert started(waiting((1, part(1, [item(1, 11.5)])), (2, part(1, [item(2), item(3), item(4)]))), 1) == [1]
    assert started(waiting((1, part(1, [item(1, 5.0)])), (2, part(1, [item(2)]))), 1) == [1, 2], "late anyway"
    assert started(waiting((1, part(1, [item(1, 90.0)])), (2, part(1, [item(2), item(3, 91.0)]))), 1) == [1, 2, 3]


def test_together_they_are_no_more_than_any_broker_allows_and_no_slower_than_apart() -> None:
    three = [item(2), item(3), item(4)]
    assert started(waiting((1, part(1, [item(1, 90.0)], TIMES[:2])), (2, part(1, three))), 1) == [1]
    assert started(waiting((1, part(1, [item(1, 90.0)])), (2, part(1, three, TIMES[:1]))), 1) == [1]
    steep = ((1, 10.0), (2, 10.0), (4, 40.0))
    assert started(waiting((1, part(1, [item(1, 90.0)], steep)), (2, part(1, three[:2], steep))), 1) == [1]


def test_other_variants_shapes_and_shadows_do_not_join() -> None:
    other_rows = BatchTensor("x", "FP32", (1, 2), b"\0" * 8)
    queue = waiting(
        (1, part(1, [item(1, 90.0)])),
        (2, replace(part(1, [item(2)]), inputs=(other_rows,))),
        (2, replace(part(2, [item(3)]), shadow=True, times=())),
        (3, batch(1, [item(4)])),
    )
    assert started(queue, 1) == [1]


def padded(of: Batch, length: int, cuts: tuple[tuple[int, int], ...] = ()) -> Batch:
    return replace(of, items=tuple(each._replace(length=1) for each in of.items), length=length, cuts=cuts)


def test_what_is_padded_joins_what_is_padded_likewise() -> None:
    others = [padded(part(1, [item(2)]), 5, ((0, 1),)), padded(part(2, [item(3)]), 4), part(3, [item(4)])]
    first = padded(part(1, [item(1, 90.0)]), 4, ((0, 1),))
    assert started(waiting((1, first), *[(2, other) for other in others]), 1) == [1]
    queue = waiting((1, first), (2, padded(part(1, [item(2)]), 4, ((0, 1),))))
    (run,) = runs(queue.poll(1))
    assert (offsets(run), run.length, run.cuts) == ([1, 2], 4, ((0, 1),))


@pytest.mark.parametrize("poison", [0, 3, 7])
@pytest.mark.parametrize("crashes", [False, True])
def test_who_harms_a_shared_run_is_found_as_in_one_batch(poison: int, crashes: bool) -> None:
    queue = waiting(*[(link, part(1, [item(4 * link - 4 + i) for i in range(4)])) for link in (1, 2)])
    queue.quarantine(True)
    bad, blamed, answered = 0, [], list[int]()
    for now_ms in range(40):
        out = queue.poll(now_ms)
        for answer in answers(out):
            blamed += offsets(answer)
            settle(queue, answer, now_ms)
        for run in runs(out):
            if poison in offsets(run):
                bad += 1
                (queue.crashed if crashes else queue.failed)(1.0)
                queue.device(True)
                queue.quarantine(True)
            else:
                queue.ran(1.0)
                answered += offsets(run)
                settle(queue, run, now_ms)
    assert (bad, blamed, sorted(answered)) == (4, [poison], [i for i in range(8) if i != poison])


def test_a_link_that_is_lost_in_mid_run_leaves_the_others_their_outcomes() -> None:
    queue = waiting((1, part(1, [item(1, 50.0)])), (2, part(1, [item(2, 60.0)])))
    (run,) = runs(queue.poll(1))
    queue.link_lost(1)
    assert [each.link for each in run.parts] == [1, 2], "both are published"
    queue.ran(1.0)
    settle(queue, run, 2)
    assert [i.link for i in queue.poll(2) if isinstance(i, Tell) and isinstance(i.frame, Outcome)] == [2]


def test_a_query_is_not_blamed_for_one_whose_link_was_lost_in_mid_run() -> None:
    queue = waiting((1, part(1, [item(1, 50.0)])), (2, part(1, [item(2, 60.0)])))
    queue.poll(1)
    queue.link_lost(1)
    queue.failed(1.0)
    out = queue.poll(2)
    assert answers(out) == []
    assert offsets(runs(out)[0]) == [2]


def test_what_another_worker_has_answered_of_a_shared_run_is_its_own_brokers_only() -> None:
    queue = waiting((1, part(7, [item(1, 50.0), item(3)])), (2, part(7, [item(1, 60.0)])))
    (run,) = runs(queue.poll(1))
    queue.recall(1, Recall(7, (item(1).record,), answered=True))
    (published,) = ran(queue, run)
    assert [(each.link, [of.record.offset for of in each.items]) for each in published.parts] == [(1, [3]), (2, [1])]
    settle(queue, published, 2)
    told = [(i.link, i.frame) for i in queue.poll(2) if isinstance(i, Tell) and isinstance(i.frame, Outcome)]
    assert [(link, frame.final, len(frame.items)) for link, frame in told] == [
        (1, False, 1),
        (1, True, 0),
        (2, True, 0),
    ]


@pytest.mark.parametrize("crashes", [False, True])
def test_of_a_bad_run_what_another_worker_has_answered_does_not_run_again_nor_leaves_its_mate_blamed(
    crashes: bool,
) -> None:
    queue = waiting((1, part(1, [item(1, 50.0)])), (2, part(1, [item(2, 60.0)])))
    queue.quarantine(True)
    queue.poll(1)
    queue.recall(1, Recall(1, (item(1).record,), answered=True))
    (queue.crashed if crashes else queue.failed)(1.0)
    out = queue.poll(2)
    told = [
        (i.link, i.frame.final, len(i.frame.items)) for i in out if isinstance(i, Tell) and isinstance(i.frame, Outcome)
    ]
    assert (answers(out), told) == ([], [(1, False, 0), (2, False, 0), (1, True, 1)])
    assert offsets(runs(out)[0]) == [2]


def test_predictions_of_a_shared_run_are_cut_by_batch() -> None:
    asks = replace(part(1, [item(2, 60.0), item(3)]), predicts=True)
    queue = waiting((1, part(1, [item(1, 50.0)])), (2, asks))
    (run,) = runs(queue.poll(1))
    queue.ran(1.0, [(7, 7), (8,), (9, 9)])
    settle(queue, run, 2)
    told = {i.link: i.frame for i in queue.poll(2) if isinstance(i, Tell) and isinstance(i.frame, Outcome)}
    assert (told[1].predictions, told[2].predictions) == ((), (8, 9, 9))


def test_several_brokers_are_told_what_the_device_has_to_do_and_one_alone_is_not() -> None:
    def told(queue: DeviceQueue, now_ms: float) -> dict[int, Backlog]:
        return {i.link: i.frame for i in queue.poll(now_ms) if isinstance(i, Tell) and isinstance(i.frame, Backlog)}

    queue = make_queue(1, 2)
    queue.poll(0)
    queue.push(1, batch(5, [item(1)], cost_ms=30.0))
    frames = told(queue, 1)
    assert frames[2] == Backlog(30.0, 0, 0.0, True)
    assert told(queue, 2) == {}, "they know"
    queue.demand(1, Demand(80.0, None))
    assert told(queue, 11) == {}, "what has no deadline waits for theirs"
    queue.demand(1, Demand(80.0, 900.0))
    assert told(queue, 11) == {2: Backlog(20.0, 0, 80.0, False)}
    queue.ran(11.0)
    assert {link: frame.ends_in_ms for link, frame in told(queue, 12).items()} == {1: 0.0, 2: 0.0}
    alone = make_queue(1)
    alone.push(1, batch(5, [item(1)], cost_ms=30.0))
    assert told(alone, 1) == {}


def test_who_has_the_earliest_deadline_is_told_that_it_is_next_and_the_others_that_they_are_not() -> None:
    def told(now_ms: float) -> dict[int, bool]:
        frames = [(i.link, i.frame) for i in queue.poll(now_ms) if isinstance(i, Tell)]
        return {link: frame.is_next for link, frame in frames if isinstance(frame, Backlog)}

    queue = make_queue(1, 2, 3)
    queue.poll(0)
    queue.demand(1, Demand(0.5, 900.0))
    queue.demand(2, Demand(0.5, 500.0))
    assert told(1) == {1: False, 3: False}
    queue.demand(1, Demand(0.5, 400.0))
    assert told(2) == {1: True, 2: False}
    assert told(400) == {1: False, 2: True}, "it cannot have it any more"
    queue.demand(2, Demand(0.0, None))
    assert told(401) == {1: True, 3: True}, "whoever has something"


def test_a_small_batch_that_did_not_join_a_run_goes_back_and_a_full_one_waits() -> None:
    def returned(*batches: tuple[int, Batch]) -> dict[int, list[int]]:
        queue = waiting(*batches)
        frames = [(i.link, i.frame) for i in queue.poll(1) if isinstance(i, Tell)]
        return {
            link: [each.record.offset for each in frame.items if each.disposition == "returned"]
            for link, frame in frames
            if isinstance(frame, Outcome)
        }

    urgent, small = part(1, [item(1, 11.5)]), part(1, [item(2), item(3)])
    assert returned((1, urgent), (2, small)) == {2: [2, 3]}
    assert returned((1, part(1, [item(1, 90.0)])), (2, small)) == {}, "it joined"
    assert returned((1, urgent), (2, batch(1, [item(2), item(3)], cost_ms=10.0))) == {}, "it cannot grow"
    alone = make_queue(1)
    for of in (urgent, replace(small, batch=2)):
        alone.push(1, of)
    assert started(alone, 1) == [1]
    assert alone.statistics().queued_items == 2, "nobody else may have more urgent work"


def test_who_has_work_queued_is_called_to_fill_up_what_waits() -> None:
    def called(queue: DeviceQueue, now_ms: float) -> dict[int, Call]:
        return {i.link: i.frame for i in queue.poll(now_ms) if isinstance(i, Tell) and isinstance(i.frame, Call)}

    queue = make_queue(1, 2, 3)
    queue.demand(2, Demand(80.0, 900.0))
    queue.push(3, batch(1, [item(1)]))
    queue.poll(0)
    queue.push(1, part(1, [item(2)]))
    assert called(queue, 1) == {2: Call(VARIANT, 7)}
    queue.push(1, padded(part(2, [item(9)]), 4))
    assert called(queue, 1) == {2: Call(VARIANT, 7, 4)}
    queue.push(2, part(1, [item(3)]))
    assert called(queue, 2) == {}, "it is the answer"
