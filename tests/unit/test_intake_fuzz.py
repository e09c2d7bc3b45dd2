"""Whatever a record holds, the intake says exactly one thing about it, and what it says can be written."""

from __future__ import annotations

import json
from typing import Any

import msgpack
from hypothesis import given, settings
from hypothesis import strategies as st
from message_strategies import queries

from broker.core import Bury, Core, Reply
from broker.dead_letters import dead_letter
from broker.intake import Dead, Intake, Refusal
from broker.ledger import Entry, Source
from modelless import messages
from modelless.codec import encode_query, encode_reply
from modelless.messages import Query, RecordId
from modelless.tensors import Tensor
from modelless.topics import ReplyTopicRule, Topics

TOPIC = "modelless.queries"
NOW_MS = 1_000_000.0

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=300)
    | st.binary(max_size=20)
)
things = st.recursive(
    scalars, lambda t: st.lists(t, max_size=3) | st.dictionaries(st.text(max_size=5), t, max_size=3), max_leaves=6
)
FIELDS = [
    *("id", "task", "model", "variant", "inputs", "latency_ms_max", "deadline_ms", "accuracy_min", "cost_max"),
    *("prefer", "on_miss", "reply_topic", "reply_partition", "tenant", "metadata", "v", "parameters", "nonsense"),
]
header_names = st.sampled_from(
    [
        *("modelless-id", "modelless-reply-topic", "modelless-reply-partition", "modelless-deadline-ms"),
        *("content-type", "traceparent", "kafka_correlationId", "kafka_replyTopic", "kafka_replyPartition", "other"),
    ]
)
header_values = st.sampled_from(
    [None, b"", b"0", b"-1", b"nan", b"application/json", b"modelless.replies", b"modelless.queries", b"\xff", b"../x"]
) | st.binary(max_size=130)
header_lists = st.lists(st.tuples(header_names, header_values), max_size=5).map(tuple)


def intake() -> Intake:
    rule = ReplyTopicRule(Topics())
    return Intake(
        Topics(),
        rule,
        lambda topic: 4 if topic == "modelless.replies" else 0,
        latency_ms_default=30_000,
        request_bytes_max=1 << 20,
    )


def one_outcome(value: bytes | None, headers: tuple[tuple[str, bytes | None], ...], key: bytes | None = None) -> None:
    """Read it, decide on it, and write what was decided."""
    source = Source(RecordId(TOPIC, 0, 5), key, value, headers, NOW_MS)  # type: ignore[arg-type]
    core = Core()
    core.ledger.assign(TOPIC, 0, 5, "")
    assert core.ledger.arrived(source.record)
    result = intake().read(source)
    match result:
        case Entry():
            core.admit(result, NOW_MS)
        case Refusal(entry=entry, status=status, message=message):
            core.refuse(entry, status, message)
        case Dead(entry=entry, code=code, reason=reason):
            core.dead(entry, code, reason)
    for instruction in core.poll(NOW_MS):
        match instruction:
            case Reply():
                write_reply(instruction)
                core.replied(instruction.entry, instruction.status)
            case Bury():
                letter = dead_letter("modelless.dead-letter", instruction, lambda _: None)
                assert all(isinstance(part, bytes | None) for _, part in letter.headers)
                assert letter.smaller is not None
                assert len(letter.smaller().value) == 0
                core.buried(instruction.entry)
    assert core.ledger.queries == 0, "exactly one outcome"


def write_reply(reply: Reply) -> None:
    entry, address = reply.entry, reply.entry.address
    assert address.topic == "modelless.replies", "checked before anything is sent"
    assert address.id.encode()
    message = messages.Reply(
        address.id,
        str(entry.record),
        reply.status,
        reply.message,
        retry_after_ms=reply.retry_after_ms,
        metadata=entry.query.metadata,
    )
    assert encode_reply(message, address.form)


@given(value=st.none() | st.binary(max_size=200), headers=header_lists, key=st.none() | st.binary(max_size=4))
def test_any_bytes(value: bytes | None, headers: tuple[tuple[str, bytes | None], ...], key: bytes | None) -> None:
    one_outcome(value, headers, key)


@given(query=queries(), headers=header_lists, data=st.data())
def test_a_good_query_with_bytes_changed(
    query: Query, headers: tuple[tuple[str, bytes | None], ...], data: st.DataObject
) -> None:
    value = bytearray(encode_query(query))
    for _ in range(data.draw(st.integers(0, 3))):
        value[data.draw(st.integers(0, len(value) - 1))] = data.draw(st.integers(0, 255))
    one_outcome(bytes(value[: data.draw(st.integers(0, len(value)))] if data.draw(st.booleans()) else value), headers)


@settings(max_examples=300)
@given(query=queries(), headers=header_lists, changes=st.dictionaries(st.sampled_from(FIELDS), things, max_size=3))
def test_a_good_query_with_fields_changed(
    query: Query, headers: tuple[tuple[str, bytes | None], ...], changes: dict[str, Any]
) -> None:
    body = msgpack.unpackb(encode_query(query)) | changes
    one_outcome(msgpack.packb(body), headers)


json_things = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
    lambda t: st.lists(t, max_size=3) | st.dictionaries(st.text(max_size=5), t, max_size=3),
    max_leaves=6,
)
json_inputs = st.fixed_dictionaries(
    {"name": st.just("x"), "datatype": st.just("FP32"), "shape": st.just([1, 2]), "data": st.just([1.0, 2.0])}
)


@settings(max_examples=300)
@given(
    headers=header_lists,
    inputs=st.lists(json_inputs | json_things, max_size=2) | json_things,
    outside=st.dictionaries(st.sampled_from([*FIELDS, "outputs", "model_name"]), json_things, max_size=2),
    inside=st.dictionaries(st.sampled_from(FIELDS), json_things, max_size=3),
    ascii_only=st.booleans(),
)
def test_json_with_anything_in_it(
    headers: tuple[tuple[str, bytes | None], ...],
    inputs: Any,
    outside: dict[str, Any],
    inside: dict[str, Any],
    ascii_only: bool,
) -> None:
    body = {"id": "a", "inputs": inputs, "parameters": {"task": "t"} | inside} | outside
    text = json.dumps(body, ensure_ascii=ascii_only)
    one_outcome(text.encode("utf-8", errors="surrogatepass"), headers)


def test_a_lone_surrogate_in_every_text_of_a_json_query() -> None:
    for field in ("id", "task", "model", "reply_topic", "tenant", "prefer", "metadata"):
        bad: Any = {"\ud800": "\ud800"} if field == "metadata" else "a\ud800"
        body: dict[str, Any] = {"id": "a", "inputs": [], "parameters": {"task": "t"}}
        (body if field == "id" else body["parameters"])[field] = bad
        one_outcome(json.dumps(body).encode(), ())
        one_outcome(json.dumps(body).encode(), (("modelless-id", b"a"),))


def test_inputs_that_disagree_on_their_rows() -> None:
    two = (Tensor("x", "FP32", (1, 1), b"\0" * 4), Tensor("y", "FP32", (2, 1), b"\0" * 8))
    one_outcome(encode_query(Query(id="a", inputs=two, task="t")), ())
