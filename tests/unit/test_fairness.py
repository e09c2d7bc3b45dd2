"""Fair shares of device time between topics: the fluid server against its definition, and what it makes of queues."""

from __future__ import annotations

import pytest
from broker_builders import Bench, entry, model, profile
from hypothesis import given
from hypothesis import strategies as st

from broker.batcher import BEHIND_MS, NEVER, VariantQueue
from broker.catalog import Candidate
from broker.core import Reply, Send
from broker.fairness import Account, Fairness, crowding, readable, share
from broker.profiles import LatencyTable
from modelless import frames

ASKED = st.dictionaries(
    st.integers(0, 9), st.tuples(st.floats(0.0, 1e6), st.floats(0.01, 100.0)), min_size=1, max_size=8
)


@given(ASKED, st.floats(0.0, 1e7))
def test_shares_are_max_min_fair(asked: dict[int, tuple[float, float]], amount: float) -> None:
    """Nobody gets more than asked; nothing is left that is wanted; who is limited has as much by weight as anybody."""
    wanted = {key: each for key, (each, _) in asked.items()}
    weights = {key: weight for key, (_, weight) in asked.items()}
    given = share(amount, wanted, weights)
    total = sum(wanted.values())
    assert sum(given.values()) == pytest.approx(min(amount, total), abs=1e-6)
    for key, got in given.items():
        assert 0.0 <= got <= wanted[key]
        if got < wanted[key] * (1 - 1e-9) - 1e-9:
            most = max(given[each] / weights[each] for each in given)
            assert got / weights[key] == pytest.approx(most, rel=1e-6, abs=1e-9)


def both(**weights: float) -> tuple[Fairness, Account, Account]:
    fairness = Fairness(weights)
    fairness.account("a")
    b, a = fairness.account("b"), fairness.account("a")
    assert a is not None
    assert b is not None
    for each in (a, b):
        each.at("cpu").tightness.observe(100, 0)
    return fairness, a, b


def test_one_topic_has_no_account() -> None:
    fairness = Fairness()
    assert fairness.account("a") is None
    assert fairness.account("a") is None
    assert fairness.account("b") is not None
    assert fairness.account("a") is not None


def test_what_is_sent_of_one_is_served_to_all() -> None:
    fairness, a, b = both(a=3.0)
    a.add("cpu", 100)
    b.add("cpu", 100)
    a.take("cpu", 40)
    fairness.sent("cpu", {a: 40})
    assert a.at("cpu").backlog_ms == pytest.approx(70)
    assert b.at("cpu").backlog_ms == pytest.approx(90)


def test_what_waits_for_other_workers_is_not_served_by_this_one() -> None:
    fairness, a, b = both()
    a.add("cpu", 100)
    b.add("cpu", 100)
    a.take("cpu", 40)
    fairness.sent("cpu", {a: 40}, {b})
    assert (a.at("cpu").backlog_ms, b.at("cpu").backlog_ms) == pytest.approx((60, 100))


def test_who_has_the_most_is_ahead_and_who_asks_for_little_is_not() -> None:
    fairness, a, b = both()
    a.add("cpu", 24)
    assert fairness.turned("cpu", 1, 0) == [], "begun within a quarter of 100 ms"
    a.add("cpu", 10)
    b.add("cpu", 10)
    assert fairness.turned("cpu", 1, 0) == [a]
    assert fairness.turned("cpu", 1, 0) == []
    assert (a.is_ahead("cpu"), b.is_ahead("cpu"), a.is_ahead("gpu")) == (True, False, False)
    a.take("cpu", 34)
    fairness.sent("cpu", {a: 34})
    assert fairness.turned("cpu", 1, 0) == [a]
    assert not a.is_ahead("cpu")


def test_weights_say_who_is_ahead() -> None:
    fairness, a, b = both(a=3.0)
    a.add("cpu", 150)
    b.add("cpu", 100)
    assert fairness.turned("cpu", 1, 0) == [b]


def test_more_workers_serve_more_in_the_same_time() -> None:
    fairness, a, _ = both()
    a.add("cpu", 60)
    assert fairness.turned("cpu", 4, 0) == []
    assert fairness.turned("cpu", 2, 0) == [a]


def test_nobody_saves_up_more_than_a_latency() -> None:
    fairness, a, _ = both()
    fairness.turned("cpu", 1, 0)
    a.add("cpu", 10)
    a.take("cpu", 500)  # dropped, when the fluid server had served nearly all of it
    a.add("cpu", 10)
    assert a.at("cpu").backlog_ms == pytest.approx(-90)


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.floats(0.1, 50.0)), min_size=1, max_size=60),
    st.floats(0.2, 5.0),
    st.floats(0.0, 1.0),
)
def test_the_fluid_server_has_as_much_to_do_as_the_real_one(
    work: list[tuple[str, float]], weight: float, order: float
) -> None:
    """Whoever is served first: what is left of all is what has not been sent, and nobody has less than nothing."""
    fairness, a, b = both(a=weight)
    accounts = {"a": a, "b": b}
    for topic, cost_ms in work:
        accounts[topic].add("cpu", cost_ms)
    left = sum(cost_ms for _, cost_ms in work)
    for topic, cost_ms in sorted(work, key=lambda each: (each[0] == "a") == (order < 0.5)):
        account = accounts[topic]
        account.take("cpu", cost_ms)
        fairness.sent("cpu", {account: cost_ms})
        left -= cost_ms
        assert a.at("cpu").backlog_ms + b.at("cpu").backlog_ms == pytest.approx(left, abs=1e-6)
        assert min(a.at("cpu").backlog_ms, b.at("cpu").backlog_ms) >= -1e-6


# --- queues -----------------------------------------------------------------------------------------------------------


def queue() -> VariantQueue:
    of = model()
    table = LatencyTable(profile(of, curve=((1, 10.0), (2, 12.0), (4, 16.0))).batches)
    return VariantQueue(Candidate("m:1/onnx-fp32", "cpu", of, 0.9, 0.9, table, 1.0))


def waiting(in_queue: VariantQueue, account: Account, latency_ms_max: float) -> None:
    made = entry(0, latency_ms_max=latency_ms_max)
    made.account = account
    in_queue.add(made)


def latencies(in_queue: VariantQueue) -> list[float]:
    return [each.latency_deadline_ms or 0.0 for _, _, each in in_queue.first(100)]


def test_who_is_ahead_waits_behind_and_comes_back() -> None:
    _, a, b = both()
    of = queue()
    for latency_ms in (10, 30, 50):
        waiting(of, a, latency_ms)
        waiting(of, b, latency_ms + 5)
    a.at("cpu").is_ahead = True
    of.reorder(a)
    waiting(of, a, 20)
    assert latencies(of) == [15, 35, 55, 10, 20, 30, 50]
    assert of.head_order_ms == 15
    assert of.head_deadline_ms == 10, "that it is behind does not change when it expires"
    assert (of.front_ms, of.rows_before(of.front_ms)) == (BEHIND_MS, 3)
    assert of.tail_ms(BEHIND_MS) == 55
    assert [each.latency_deadline_ms for each in of.due(20)] == [15, 10, 20]
    a.at("cpu").is_ahead = False
    of.reorder(a)
    assert latencies(of) == [30, 35, 50, 55]
    assert of.front_ms == BEHIND_MS
    assert len(of.take_all()) == 4
    assert not of.accounts
    assert of.front_ms == NEVER


def test_who_waits_behind_joins_a_batch_if_it_is_still_in_time() -> None:
    _, a, b = both()
    a.at("cpu").is_ahead = True
    of = queue()
    for latency_ms in (10, 30, 50, 70):
        waiting(of, a, latency_ms)
    waiting(of, b, 100)
    assert [each.latency_deadline_ms for each in of.take(3, 10.0)] == [100, 30, 50]
    assert latencies(of) == [10, 70]
    assert [each.latency_deadline_ms for each in of.take(3, 10.0)] == [10, 70], "now they are the front"


def test_what_leaves_is_no_backlog() -> None:
    _, a, _ = both()
    of = queue()
    for latency_ms in (10, 30, 50):
        waiting(of, a, latency_ms)
    assert a.at("cpu").backlog_ms == pytest.approx(3 * of.candidate.row_ms)
    of.remove(of.head)
    of.due(30)
    of.take_all()
    assert a.at("cpu").backlog_ms == pytest.approx(0)


# --- the core ---------------------------------------------------------------------------------------------------------


def flooded(**more: object) -> Bench:
    """A device that takes 10 ms for up to 8 rows, and a topic that has asked for more than it can do in 100 ms."""
    of = model()
    bench = Bench((of, [profile(of)]), **more)
    bench.core.ledger.assign("modelless.queries.t", 0, 0, "")
    bench.worker("m:1/onnx-fp32")
    bench.admit(0, latency_ms_max=100, topic="modelless.queries.t")
    bench.poll(0)
    for _ in range(200):
        bench.admit(0, latency_ms_max=100)
    return bench


def test_a_flood_refuses_only_itself() -> None:
    bench = flooded()
    said = [each for each in bench.poll(0) if isinstance(each, Reply)]
    assert said
    assert {each.entry.record.topic for each in said} == {"modelless.queries"}
    light = bench.admit(0, latency_ms_max=40, topic="modelless.queries.t")
    said = [each for each in bench.poll(0) if isinstance(each, Reply)]
    assert light not in [each.entry for each in said]
    flood = bench.admit(0, latency_ms_max=40)
    (reply,) = [each for each in bench.poll(0) if isinstance(each, Reply)]
    assert (reply.entry, reply.status) == (flood, "RESOURCE_EXHAUSTED")
    assert reply.retry_after_ms is not None
    assert reply.retry_after_ms > 0
    assert "fair share" in reply.message
    assert bench.core.statistics.shed["t", "modelless.queries", "share"] == 1


def test_what_is_within_its_share_is_sent_first() -> None:
    bench = flooded()
    bench.poll(0)
    bench.admit(0, latency_ms_max=90, topic="modelless.queries.t")
    (worker,) = bench.core.workers()
    for batch in list(worker.sent):
        bench.core.frame(worker, frames.Outcome(batch, True, 10.0, 1, (), True), 10)
    (send,) = [each for each in bench.poll(10) if isinstance(each, Send)]
    assert send.batch.items[0].record.topic == "modelless.queries.t"
    assert len(send.batch.items) == 8, "the rest of the batch is for those behind"
    seconds = bench.core.statistics.topic_seconds
    assert seconds["modelless.queries.t"] == pytest.approx(0.01 / 8)
    assert seconds["modelless.queries"] == pytest.approx(0.07 / 8)


# --- the broker's room ------------------------------------------------------------------------------------------------


def test_a_topic_that_takes_most_of_the_room_is_read_no_further() -> None:
    assert crowding({"a": 0.88, "b": 0.0}) == set()
    assert crowding({"a": 0.89, "b": 0.0}) == {"a"}
    assert crowding({"a": 0.6, "b": 0.33}) == {"a"}
    assert crowding({"a": 0.5, "b": 0.46}) == {"a", "b"}


def test_of_the_offline_topic_no_more_is_read_than_a_part_of_the_room() -> None:
    assert readable(["off", "q"], {"off": 0.2}, "off") == ["off", "q"]
    assert readable(["off", "q"], {"off": 0.25, "q": 0.1}, "off") == ["q"]
    assert readable(["off"], {"off": 0.25}, "off") == [], "alone, too: the rest waits in Kafka"
    assert readable(["q"], {"q": 0.99}, "off") == ["q"]
    assert readable(["q", "r"], {"q": 0.95}, "off") == ["r"]
