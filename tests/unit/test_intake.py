"""Intake: a record becomes an entry, a refusal or a dead letter, and costs nothing but itself."""

from __future__ import annotations

import json
from typing import Any

import pytest
from broker_builders import TOPIC, source, tensor
from hypothesis import given
from hypothesis import strategies as st
from message_strategies import mutations

from broker.intake import Dead, Intake, Refusal
from broker.ledger import Entry, Source
from modelless.codec import encode_query
from modelless.messages import Query
from modelless.topics import ReplyTopicRule, Topics
from modelless.wire import pack

TOPICS = Topics()
PARTITIONS = {"modelless.replies": 4, "modelless.replies.mine": 2, "answers": 1, "modelless.registry": 1}
INTAKE = Intake(
    TOPICS,
    ReplyTopicRule(TOPICS, ["answers"]),
    lambda topic: PARTITIONS.get(topic, 0),
    latency_ms_default=30_000,
    request_bytes_max=1 << 20,
)
BODY: dict[str, Any] = {
    "id": "q",
    "task": "t",
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 1], "data": b"\0" * 8}],
}


def read(body: dict[str, Any] | bytes | None, **of: Any) -> Entry | Refusal | Dead:
    return INTAKE.read(source(pack(body) if isinstance(body, dict) else body, **of))


def taken(arrival_ms: float = 1000.0, topic: str = TOPIC, **asked: Any) -> Entry:
    query = Query("q", (tensor(),), task="t", **asked)
    entry = INTAKE.read(source(encode_query(query), arrival_ms=arrival_ms, topic=topic))
    assert isinstance(entry, Entry)
    return entry


def test_a_query_becomes_an_entry() -> None:
    entry = read(BODY, headers=[("kafka_correlationId", b"c"), ("modelless-id", b"header")])
    assert isinstance(entry, Entry)
    assert (entry.address.id, entry.address.topic, entry.address.partition) == ("header", "modelless.replies", None)
    assert (entry.rows, entry.address.form, entry.address.echo) == (2, "msgpack", (("kafka_correlationId", b"c"),))


def test_what_a_query_weighs_counts_its_record_and_its_decoded_inputs() -> None:
    small, large = taken(), INTAKE.read(source(encode_query(Query("q", (tensor(1000),), task="t"))))
    assert isinstance(large, Entry)
    assert large.size_bytes - small.size_bytes >= 2 * (len(tensor(1000).data) - len(tensor().data))


# --- deadlines --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "latency_deadline_ms", "deadline_ms", "give_up_ms"),
    [
        ({}, 31_000, 31_000, 31_000),
        ({"latency_ms_max": 50}, 1050, 1050, 1050),
        ({"deadline_ms": 1020.0}, 1020, 1020, 1020),
        ({"deadline_ms": 90_000.0}, 90_000, 90_000, 90_000),
        ({"latency_ms_max": 50, "deadline_ms": 1020.0}, 1020, 1020, 1020),
        ({"latency_ms_max": 50, "deadline_ms": 2000.0}, 1050, 1050, 1050),
        ({"latency_ms_max": 50, "on_miss": "degrade"}, 1050, 1050, 1050),
        ({"latency_ms_max": 50, "on_miss": "late"}, 1050, None, 31_000),
        ({"latency_ms_max": 60_000, "on_miss": "late"}, 61_000, None, 61_000),
    ],
)
def test_deadlines(
    asked: dict[str, Any], latency_deadline_ms: float, deadline_ms: float | None, give_up_ms: float
) -> None:
    entry = taken(**asked)
    assert (entry.latency_deadline_ms, entry.deadline_ms, entry.give_up_ms) == (
        latency_deadline_ms,
        deadline_ms,
        give_up_ms,
    )


def test_offline_queries_need_no_deadline_and_keep_the_one_they_have() -> None:
    entry = taken(topic=TOPICS.offline)
    assert (entry.latency_deadline_ms, entry.deadline_ms, entry.give_up_ms) == (None, None, None)
    assert taken(topic=TOPICS.offline, latency_ms_max=5).deadline_ms == 1005


# --- where the outcome goes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("topic", ["modelless.replies", "modelless.replies.mine", "answers"])
def test_allowed_reply_topics(topic: str) -> None:
    assert taken(reply_topic=topic).address.topic == topic


@pytest.mark.parametrize(
    "topic",
    ["__consumer_offsets", "modelless.queries", "modelless.registry", "modelless", "../x", "other", "a" * 300, "é"],
)
def test_other_reply_topics_are_dead_letters_before_any_send(topic: str) -> None:
    dead = read({**BODY, "reply_topic": topic})
    assert isinstance(dead, Dead)
    assert dead.code == "PERMISSION_DENIED"


def test_reply_topics_and_partitions_that_do_not_exist() -> None:
    dead = read({**BODY, "reply_topic": "modelless.replies.none"})
    assert isinstance(dead, Dead)
    assert dead.code == "NOT_FOUND"
    dead = read({**BODY, "reply_topic": "modelless.replies.mine", "reply_partition": 2})
    assert isinstance(dead, Dead)
    assert (dead.code, dead.reason) == ("INVALID_ARGUMENT", "the reply topic has 2 partitions, not 3")


# --- what is wrong with it is told to whom it may concern -------------------------------------------------------------


def test_a_misspelt_constraint_is_answered() -> None:
    refusal = read({**BODY, "latency_max_ms": 5})
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.entry.address.id) == ("INVALID_ARGUMENT", "q")
    assert "latency_ms_max" in refusal.message


def test_a_misspelt_constraint_is_answered_in_json_too() -> None:
    body = {
        "id": "q",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}],
        "parameters": {"task": "t", "latency_max_ms": 5, "reply_topic": "answers"},
    }
    refusal = read(json.dumps(body).encode())
    assert isinstance(refusal, Refusal)
    address = refusal.entry.address
    assert (address.id, address.topic, address.form) == ("q", "answers", "json")


@pytest.mark.parametrize("value", [None, b"", b"\xc1", b"\x81", b"{", pack(BODY) + b"more", pack({"inputs": 1})])
def test_a_broken_body_without_an_address_is_a_dead_letter_and_with_one_is_answered(value: bytes | None) -> None:
    dead = read(value)
    assert isinstance(dead, Dead)
    assert dead.code == "INVALID_ARGUMENT"
    refusal = read(value, headers=[("modelless-id", b"h")])
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.entry.address.id) == ("INVALID_ARGUMENT", "h")


def test_a_reply_topic_alone_is_an_address() -> None:
    refusal = read(b"\xc1", headers=[("modelless-reply-topic", b"answers")], offset=7)
    assert isinstance(refusal, Refusal)
    assert (refusal.entry.address.id, refusal.entry.address.topic) == (f"{TOPIC}/0/7", "answers")


def test_the_address_of_a_broken_body_is_checked_as_well() -> None:
    dead = read(b"\xc1", headers=[("modelless-id", b"h"), ("modelless-reply-topic", b"__consumer_offsets")])
    assert isinstance(dead, Dead)
    assert dead.code == "PERMISSION_DENIED"


@pytest.mark.parametrize("deadline", [b"0", b"-1", b"nan", b"99999999999999999"])
def test_a_broken_header_is_answered_to_the_address_in_the_body(deadline: bytes) -> None:
    refusal = read(BODY, headers=[("modelless-deadline-ms", deadline)])
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.entry.address.id) == ("INVALID_ARGUMENT", "q")


def test_too_many_headers_are_a_dead_letter() -> None:
    assert isinstance(read(BODY, headers=[("a", b"")] * 1000), Dead)


def test_a_topic_that_is_bound_to_a_task_serves_no_other() -> None:
    refusal = read(BODY, topic="modelless.queries.other")
    assert isinstance(refusal, Refusal)
    assert refusal.status == "INVALID_ARGUMENT"
    assert isinstance(read(BODY, topic="modelless.queries.t"), Entry)


def test_naming_a_tenant_is_not_allowed() -> None:
    refusal = read({**BODY, "tenant": "somebody"})
    assert isinstance(refusal, Refusal)
    assert refusal.status == "PERMISSION_DENIED"


def test_naming_a_tenant_is_allowed_where_the_configuration_says_so() -> None:
    intake = Intake(
        TOPICS,
        ReplyTopicRule(TOPICS),
        lambda _: 1,
        latency_ms_default=30_000,
        request_bytes_max=1 << 20,
        tenant_topics=["gateway"],
    )
    value = pack({**BODY, "tenant": "somebody"})
    allowed, denied = intake.read(source(value, topic="gateway")), intake.read(source(value))
    assert isinstance(allowed, Entry)
    assert allowed.query.tenant == "somebody"
    assert isinstance(denied, Refusal)


@given(mutations(pack(BODY)))
def test_whatever_arrives_has_exactly_one_outcome(value: bytes) -> None:
    record: Source = source(value)
    result = INTAKE.read(record)
    entry = result if isinstance(result, Entry) else result.entry
    assert entry.source is record


@given(st.lists(st.tuples(st.sampled_from(["modelless-id", "modelless-reply-partition", "x"]), st.binary())))
def test_whatever_the_headers_say_there_is_an_outcome(headers: list[tuple[str, bytes]]) -> None:
    assert isinstance(read(BODY, headers=headers), Entry | Refusal | Dead)
