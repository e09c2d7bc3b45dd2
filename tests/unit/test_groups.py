"""What a group keeps of what it has worked out is what it would work out anew, whatever happened in between."""

from __future__ import annotations

import random

from broker_builders import TOPIC, Bench, model, profile
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.batcher import BEHIND_MS, VariantQueue
from broker.core import Send
from broker.devices import LEAD_MS, LEAD_SHARE, Worker
from broker.groups import Group
from modelless import frames
from modelless.messages import Cancel

NEVER = float("inf")
MODELS = [model("small"), model("large"), model("free", shape=(-1, -1))]
CURVES = [((1, 3.0), (8, 8.0)), ((1, 9.0), (4, 20.0)), ((1, 5.0), (16, 30.0))]
VARIANTS = [f"{of.key}/onnx-fp32" for of in MODELS]


def room_ms(worker: Worker) -> float:
    costs_ms = [sent.cost_ms for sent in worker.sent.values()]
    if not costs_ms:
        return -NEVER
    if sum(costs_ms) >= worker.window_ms:
        return NEVER
    most_ms = max(LEAD_MS, LEAD_SHARE * costs_ms[-1])
    if worker.lag_ms is None:
        return worker.ends_ms - most_ms
    lag_ms = min(worker.lag_ms, most_ms)
    return worker.ends_ms - (lag_ms - max(0.0, [*worker.sent.values()][-1].margin_ms - lag_ms))


def send_ms(group: Group) -> float:
    """Worker by worker and queue by queue."""
    return min(
        [
            room_ms(worker)
            for queue in group.queues.values()
            for worker in group.workers.values()
            if queue and not worker.draining and queue.candidate.variant in worker.ready
        ],
        default=NEVER,
    )


def first_ms(queue: VariantQueue) -> float:
    """When somebody has waited too long."""
    places_ms = [place_ms for place_ms, _, _ in queue.first(len(queue))]
    deadlines_ms = [each - BEHIND_MS if BEHIND_MS <= each < NEVER else each for each in places_ms]
    return min(deadlines_ms, default=NEVER)


def overdue_ms(group: Group) -> float:
    """Worker by worker, of those whose first batch another one could run."""
    return min(
        [
            w.overdue_ms
            for w in group.workers.values()
            if w.sent and len(next(iter(w.sent.values())).candidate.team) > 1
        ],
        default=NEVER,
    )


def queue_ms(queue: VariantQueue, by_ms: float, block_ms: float) -> float:
    """Of what waits in one queue before that place, or of all if nobody's is later."""
    rows, table = queue.rows, queue.candidate.table
    if by_ms < queue.first(len(queue))[-1][0]:
        rows = rows * sum(order_ms < by_ms for order_ms, _, _ in queue.first(len(queue))) // len(queue)
    return table.queue_ms(rows, table.rows_within(NEVER, 1, block_ms))


def ahead_ms(group: Group, order_ms: float, now_ms: float) -> dict[str, float]:
    """Worker by worker: what it has, its part of what waits, and what has to be done by the last deadline."""
    block_ms = group.block_ms(now_ms)
    queues = [queue for queue in group.queues.values() if queue]
    places_ms = [place_ms for queue in queues for place_ms, _, _ in queue.first(len(queue))]
    end_ms = NEVER if order_ms >= BEHIND_MS else BEHIND_MS
    last_ms = max([place_ms for place_ms in places_ms if place_ms < end_ms], default=-NEVER)

    def until(worker: Worker, by_ms: float) -> float:
        own_ms = max(0.0, worker.ends_ms - now_ms)
        for queue in queues:
            team = queue.candidate.team & group.workers.keys()
            if worker.incarnation in team:
                own_ms += queue_ms(queue, by_ms, block_ms) / len(team)
        return own_ms

    found = {incarnation: until(worker, order_ms) for incarnation, worker in group.workers.items()}
    if last_ms > order_ms:
        for incarnation, worker in group.workers.items():
            found[incarnation] = max(found[incarnation], until(worker, last_ms) - (last_ms - order_ms))
    return found


class Life:
    """A core to which all sorts of things happen."""

    def __init__(self, draw: random.Random) -> None:
        self.draw, self.now_ms = draw, 0.0
        self.bench = Bench(*[(of, [profile(of, curve=curve)]) for of, curve in zip(MODELS, CURVES, strict=True)])
        self.sent: list[tuple[Worker, frames.Batch]] = []
        self.order_ms = 50.0
        self.bench.core.ledger.assign(f"{TOPIC}.t", 0, 0, "")
        self.topics = [TOPIC, f"{TOPIC}.t"] if draw.random() < 0.5 else [TOPIC]
        for _ in range(3):
            self.joined()

    def some_worker(self) -> Worker:
        if not self.bench.core.workers():
            self.joined()
        return self.draw.choice(self.bench.core.workers())

    def some_variants(self) -> list[str]:
        return [variant for variant in VARIANTS if self.draw.random() < 0.6]

    def admitted(self) -> None:
        draw = self.draw
        self.bench.admit(
            self.now_ms,
            latency_ms_max=draw.choice([20.0, 60.0, 60.0, 200.0]),
            on_miss=draw.choice(["reject", "degrade", "late"]),
            prefer=draw.choice(["accuracy", "cost", "latency"]),
            rows=draw.choice([1, 1, 3]),
            width=draw.choice([4, 4, 5]),
            topic=draw.choice(self.topics),
        )

    def polled(self) -> None:
        for instruction in self.bench.poll(self.now_ms):
            if isinstance(instruction, Send):
                self.sent.append((instruction.worker, instruction.batch))
        for group in self.bench.core.groups.values():
            assert all(group.queues.values()), "an empty queue is left"
            assert group.send_ms > self.now_ms, "a worker has room for what waits"

    def passed(self) -> None:
        self.now_ms += self.draw.choice([0.1, 1.0, 5.0, 30.0])
        self.polled()

    def answered(self) -> None:
        if self.sent:
            worker, batch = self.sent.pop(self.draw.randrange(len(self.sent)))
            self.bench.answer(worker, batch, self.now_ms, self.draw.choice(["answered", "answered", "returned"]))

    def credited(self) -> None:
        window_ms = self.draw.choice([0.0, 10.0, 100.0])
        self.bench.core.frame(self.some_worker(), frames.Credit(window_ms), self.now_ms)

    def reloaded(self) -> None:
        self.bench.ready(self.some_worker(), *self.some_variants(), now_ms=self.now_ms)

    def joined(self) -> None:
        self.bench.worker(*self.some_variants(), window_ms=40.0, now_ms=self.now_ms)

    def drained(self) -> None:
        self.bench.core.frame(self.some_worker(), frames.Drain("test"), self.now_ms)

    def lost(self) -> None:
        worker = self.some_worker()
        self.sent = [each for each in self.sent if each[0] is not worker]
        self.bench.core.lost(worker, self.now_ms)

    def cancelled(self) -> None:
        waiting = [each for each in self.bench.core.ledger.entries() if isinstance(each.place, VariantQueue)]
        if waiting:
            self.bench.core.cancel(Cancel(query=str(self.draw.choice(waiting).record)))

    def measured(self) -> None:
        number = self.draw.randrange(len(MODELS))
        made = profile(MODELS[number], curve=CURVES[number], accuracy=self.draw.choice([0.5, 0.7, 0.9]))
        self.bench.core.catalog.put_profile(made.key, made)
        self.bench.core.catalog_changed(self.now_ms)

    def check(self) -> None:
        if self.draw.random() < 0.3:  # otherwise what was asked before is asked again
            self.order_ms = self.now_ms + self.draw.choice([1.0, 20.0, 60.0, BEHIND_MS + 20.0, NEVER])
        for group in self.bench.core.groups.values():
            assert group.head_ms == min(map(first_ms, group.queues.values()), default=NEVER)
            assert group.send_ms == send_ms(group)
            assert group.overdue_ms == overdue_ms(group)
            expected_ms = ahead_ms(group, self.order_ms, self.now_ms)
            for candidate in self.bench.core.catalog.candidates():
                if candidate.team:
                    wait_ms = group.waits_ms((candidate.team,), self.order_ms, self.now_ms)[0]
                    assert wait_ms == min([expected_ms[incarnation] for incarnation in candidate.team])


OFTEN = [Life.admitted, Life.admitted, Life.polled, Life.passed, Life.answered]
SELDOM = [Life.credited, Life.reloaded, Life.joined, Life.drained, Life.lost, Life.cancelled, Life.measured]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32))
def test_what_is_kept_is_what_would_be_worked_out_anew(seed: int) -> None:
    life = Life(random.Random(seed))
    for _ in range(80):
        life.draw.choice(OFTEN if life.draw.random() < 0.8 else SELDOM)(life)
        life.check()


def test_workers_of_the_same_teams_count_as_one_until_a_team_parts_them() -> None:
    bench = Bench(*[(of, [profile(of, curve=curve)]) for of, curve in zip(MODELS, CURVES, strict=True)])
    both, one = bench.worker(*VARIANTS[:2]), bench.worker(VARIANTS[0])
    both.occupy(30.0, 0.0)
    one.occupy(10.0, 0.0)
    group = bench.core.groups["cpu"]
    assert group.waits_ms((frozenset([both.incarnation, one.incarnation]),), NEVER, 0.0)[0] == 10.0
    assert group.waits_ms((frozenset([both.incarnation]),), NEVER, 0.0)[0] == 30.0
    assert group.waits_ms((frozenset([both.incarnation, one.incarnation]),), NEVER, 0.0)[0] == 10.0
