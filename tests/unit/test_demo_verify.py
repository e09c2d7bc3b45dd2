"""The verifier's arithmetic: one reply for each query record, or it says which are wrong."""

from __future__ import annotations

from modelless.demo.verify import count

Q = ("q/0/0", "q/0/1", "q/1/0")


def test_one_reply_each_is_exact() -> None:
    found = count(3, Q, reversed(Q))
    assert found.is_exact
    assert found.describe() == "3 queries asked, 3 in Kafka, 3 replies: each got exactly one"


def test_a_missing_reply_is_named() -> None:
    found = count(3, Q, Q[:2])
    assert not found.is_exact
    assert found.missing == ("q/1/0",)
    assert "1 without a reply (q/1/0)" in found.describe()


def test_a_second_reply_is_named() -> None:
    found = count(3, Q, [*Q, Q[0]])
    assert not found.is_exact
    assert found.duplicates == {"q/0/0": 2}


def test_one_missing_and_one_doubled_do_not_cancel_out() -> None:
    found = count(3, Q, [Q[0], Q[1], Q[1]])
    assert not found.is_exact
    assert (found.missing, dict(found.duplicates)) == (("q/1/0",), {"q/0/1": 2})


def test_a_reply_to_nobody_is_named() -> None:
    found = count(3, Q, [*Q, "q/9/9"])
    assert not found.is_exact
    assert found.strangers == ("q/9/9",)


def test_a_query_that_never_reached_kafka_is_not_exact() -> None:
    assert not count(4, Q, Q).is_exact


def test_a_query_that_was_sent_twice_is_not_exact() -> None:
    assert not count(2, Q, Q).is_exact
