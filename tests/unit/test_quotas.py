"""Quotas: what a tenant may have run; refusals that say when to come back; offline queries that wait."""

from __future__ import annotations

from typing import Any

import pytest
from broker_builders import TOPIC, Bench, entry, model, profile
from hypothesis import given
from hypothesis import strategies as st

from broker.core import Reply, Send
from broker.ledger import State
from broker.quotas import Bucket, Quotas, shares
from modelless.config import load_config
from modelless.errors import ConfigurationError
from modelless.messages import MS_PER_HOUR, Cancel

M = "m:1/onnx-fp32"
FAST = ((1, 10.0), (8, 10.0))
ROW_USD = 10.0 / 8 * 3.6 / MS_PER_HOUR
"""Of a row in the largest batch, which is what counts while nothing runs."""
ROWS_PER_HOUR = 1.0 / ROW_USD
OFFLINE = "modelless.queries.offline"


def bench(rows_per_second: float, burst_s: float = 1.0, tenant: str = TOPIC) -> Bench:
    quotas = Quotas({tenant: rows_per_second * 3600 * ROW_USD}, burst_s)
    made = Bench((model(), [profile(model(), curve=FAST)]), quotas=quotas)
    made.core.ledger.assign(OFFLINE, 0, 0, "")
    made.worker(M, window_ms=1e6)
    return made


def refusals(instructions: list[Any]) -> list[Reply]:
    return [each for each in instructions if isinstance(each, Reply)]


def items(instructions: list[Any]) -> int:
    return sum(len(each.batch.items) for each in instructions if isinstance(each, Send))


# --- the bucket -------------------------------------------------------------------------------------------------------


def test_a_bucket_is_full_at_first_and_holds_no_more_than_its_burst() -> None:
    bucket = Bucket("a", usd_per_hour=3600.0, burst_s=5.0)
    assert bucket.wait_ms(0) == 0
    bucket.take(4.0, 0)
    assert bucket.left_usd == pytest.approx(1.0)
    assert bucket.wait_ms(100_000) == 0
    assert bucket.left_usd == pytest.approx(5.0)


def test_who_takes_more_than_is_left_leaves_a_debt_and_the_next_waits_for_it() -> None:
    bucket = Bucket("a", usd_per_hour=3600.0, burst_s=1.0)
    bucket.take(4.0, 0)
    assert bucket.wait_ms(0) == pytest.approx(3000.0)
    assert bucket.wait_ms(1000) == pytest.approx(2000.0)
    assert bucket.wait_ms(3001) == 0


def test_time_that_goes_back_gives_nothing() -> None:
    bucket = Bucket("a", usd_per_hour=3600.0, burst_s=1.0)
    bucket.take(1.5, 1000)
    for now_ms in (0, 500, 1000):
        assert bucket.wait_ms(now_ms) > 0


@given(
    st.lists(st.tuples(st.floats(0, 3000), st.floats(0, 3)), max_size=200),
    st.floats(0.1, 20),
    st.floats(0.1, 1),
)
def test_nobody_gets_more_than_the_rate_the_burst_and_one_query(
    asked: list[tuple[float, float]], burst_s: float, share: float
) -> None:
    bucket, now_ms, given_usd, largest = Bucket("a", 3600.0, burst_s, share), 0.0, 0.0, 0.0
    for pause_ms, cost_usd in asked:
        now_ms += pause_ms
        if not bucket.wait_ms(now_ms):
            bucket.take(cost_usd, now_ms)
            given_usd, largest = given_usd + cost_usd, max(largest, cost_usd)
    assert given_usd <= share * (burst_s + now_ms / 1000) + largest + 1e-6


def test_a_brokers_part_is_that_of_its_partitions() -> None:
    owned = [("a", 0), ("a", 1), ("g", 0), ("h", 0)]
    partitions = {"a": 4, "b": 2, "g": 2, "h": 2}
    assert shares(["a", "b", "shop"], owned, partitions, ["g", "h", "unknown"]) == {"a": 0.5, "shop": 0.5}
    assert shares(["shop"], owned, partitions, []) == {}
    quotas = Quotas({"a": 1.0, "b": 1.0})
    quotas.put_shares({"a": 0.25})
    quotas.put_shares({"b": 0.5})
    bucket = quotas.of(entry(topic="a"))
    assert bucket is not None
    assert bucket.share == 0.25


# --- in the core ------------------------------------------------------------------------------------------------------


def test_beyond_its_quota_a_tenant_is_refused_with_the_time_until_it_is_not() -> None:
    of = bench(rows_per_second=9.5)
    for _ in range(12):
        of.admit(0, latency_ms_max=5000)
    refused = refusals(of.poll(0))
    assert len(refused) == 2
    assert {each.status for each in refused} == {"RESOURCE_EXHAUSTED"}
    assert f"{TOPIC} has used up its quota" in refused[0].message
    retry_ms = refused[0].retry_after_ms
    assert retry_ms is not None
    assert 0 < retry_ms <= 100
    assert {(s.topic, s.reason): n for s, n in of.core.statistics.shed.items()} == {(TOPIC, "quota"): 2}
    of.admit(retry_ms, latency_ms_max=5000)
    assert refusals(of.poll(retry_ms)) == []
    of.admit(retry_ms, latency_ms_max=5000)
    assert len(refusals(of.poll(retry_ms))) == 1


def test_what_is_refused_is_no_demand_to_plan_for() -> None:
    of = bench(rows_per_second=9.5)
    for _ in range(100):
        of.admit(0, latency_ms_max=5000)
    (asked,) = of.core.demand(500)
    assert asked.rows_per_second == pytest.approx(20, rel=0.01), "ten in half a second"


def test_rows_count_and_others_are_not_refused() -> None:
    of = bench(rows_per_second=9.5, tenant="other")
    for _ in range(50):
        of.admit(0, rows=8, latency_ms_max=60_000)
    assert refusals(of.poll(0)) == []
    of = bench(rows_per_second=9.5)
    for _ in range(3):
        of.admit(0, rows=8, latency_ms_max=60_000)
    assert len(refusals(of.poll(0))) == 1, "two of 8 rows are more than there are"


def offline(of: Bench, number: int) -> list[Any]:
    made = [entry(offset, topic=OFFLINE) for offset in range(number)]
    for each in made:
        assert each.latency_deadline_ms is None
        assert of.core.ledger.arrived(each.record)
        of.core.admit(each, 0)
    return made


def test_offline_queries_wait_until_their_quota_lets_them_pass() -> None:
    of = bench(rows_per_second=9.5, tenant=OFFLINE)
    offline(of, 25)
    of.poll(0)
    held, now_ms = {0.0: of.core.quotas.held}, 0.0
    assert (of.core.quotas.held, of.core.waiting()[0]) == (15, 17), "eight run, two wait for the device"
    while of.core.quotas.held and now_ms < 5000:
        now_ms = of.core.wake_at_ms()
        of.poll(now_ms)
        held[now_ms] = of.core.quotas.held
    assert now_ms == pytest.approx(15 / 9.5 * 1000, rel=0.1), "the core says itself when to wake it"
    assert sorted(held.values(), reverse=True) == list(held.values())
    assert of.core.statistics.shed == {}


def test_a_query_that_waits_for_its_quota_can_be_cancelled_and_lost() -> None:
    of = bench(rows_per_second=0.9, tenant=OFFLINE)
    made = offline(of, 4)
    assert items(of.poll(0)) == 1
    of.core.cancel(Cancel(query=str(made[1].record)), 1.0)
    assert [each.status for each in refusals(of.poll(1))] == ["CANCELLED"]
    of.core.withdraw([(OFFLINE, 0)])
    assert of.core.waiting()[0] == 0
    assert items(of.poll(1e6)) == 0


def test_a_broker_that_leaves_keeps_nothing_for_a_quota() -> None:
    of = bench(rows_per_second=0.9, tenant=OFFLINE)
    made = offline(of, 3)
    of.poll(0)
    of.core.withdraw_parked()
    assert of.core.waiting()[0] == 0
    assert [each.state for each in made[1:]] == [State.WAITING] * 2


def test_a_query_that_is_sent_again_is_charged_once() -> None:
    of = bench(rows_per_second=0.9)
    of.admit(0, latency_ms_max=60_000)
    (send,) = [each for each in of.poll(0) if isinstance(each, Send)]
    of.answer(send.worker, send.batch, 1, disposition="returned")
    assert refusals(of.poll(2)) == []


def test_a_tenant_is_who_a_query_names_and_only_then_its_topic() -> None:
    quotas = Quotas({"shop": 1.0, TOPIC: 1.0})
    named = entry()
    named.query = named.query._replace(tenant="shop")
    found = [bucket.tenant if (bucket := quotas.of(each)) else None for each in (named, entry(), entry(topic="x"))]
    assert found == ["shop", TOPIC, None]


@pytest.mark.parametrize("quotas", [{"a b": 1.0}, {"": 1.0}, {"a": 0.0}, {"a": float("inf")}])
def test_a_quota_that_cannot_be_is_refused(quotas: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match="quotas"):
        load_config(broker={"quotas": quotas})
