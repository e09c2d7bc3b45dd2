"""The device queue: what runs next, what expires, who gets which credit. No clock, no sleeping."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worker_builders import VARIANT, batch, item

from modelless.frames import Batch, CancelItems, Credit, Demand, ItemOutcome, Outcome
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


def settle(queue: DeviceQueue, done: Run | Answer, now_ms: float) -> None:
    status = done.status if isinstance(done, Answer) else "OK"
    queue.settled(done.link, done.batch.batch, [ItemOutcome(i.record, "answered", status) for i in done.items])


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
    """Random pushes, deadlines, cancellations, errors and crashes; checked from outside the queue."""
    dice = random.Random(seed)
    queue = make_queue(1, 2)
    pushed: dict[int, float | None] = {}
    fate: Counter[int] = Counter()
    sent: dict[tuple[int, int], set[int]] = {}
    bad = {offset for offset in range(200) if dice.random() < 0.1}
    unsettled: list[Run | Answer] = []
    running: Run | None = None
    now_ms, number = 0.0, 0

    def carry_out(out: list[Instruction]) -> None:
        nonlocal running
        for instruction in out:
            if isinstance(instruction, Run):
                assert running is None
                running = instruction
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
        if action < 0.35 and len(pushed) < 190:
            number += 1
            items = []
            for _ in range(dice.randint(1, 6)):
                deadline_ms = None if dice.random() < 0.3 else now_ms + dice.random() * 40
                items.append(item(len(pushed), deadline_ms, rows=dice.randint(1, 3)))
                pushed[len(pushed)] = deadline_ms
            link = dice.choice((1, 2))
            sent[link, number] = {each.record.offset for each in items}
            queue.push(link, batch(number, items, cost_ms=dice.random() * 9))
        elif action < 0.4 and pushed:
            for link in (1, 2):
                queue.cancel(link, CancelItems(number, (item(dice.randrange(len(pushed))).record,)))
        elif action < 0.7 and running is not None:
            run, running = running, None
            if bad & set(offsets(run)):
                if dice.random() < 0.5:
                    queue.crashed(1.0)
                    queue.device(True)
                else:
                    queue.failed(1.0)
            else:
                queue.ran(1.0)
                unsettled.append(run)
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
                queue.ran(1.0)
                unsettled.append(run)
        while unsettled:
            settle(queue, unsettled.pop(), now_ms)
    carry_out(queue.poll(now_ms))
    assert queue.drained
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
    queue.ran(2.0, (7, 8))
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
        queue.ran(1.0, (5, 6)[: len(run.items)])
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
