"""The decoder that remembers, against the one that does not: on every input they say the same."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from message_strategies import mutations, queries

from modelless.codec import decode_query, encode_query
from modelless.errors import DecodeError
from modelless.headers import NO_HEADERS, Headers
from modelless.learned import LENGTHS_MAX, TEMPLATES_MAX, TRIALS_MAX, QueryDecoder
from modelless.messages import Query
from modelless.tensors import Tensor

HEADERS = st.sampled_from(
    [
        NO_HEADERS,
        Headers(id="h-1"),
        Headers(id="h-1", reply_topic="modelless.replies.shop", reply_partition=7),
        Headers(deadline_ms=1_800_000_000_000.0, content_type="application/x-msgpack"),
        Headers(id="h-1", content_type="application/json"),
    ]
)


def outcome(decode: Any, *arguments: Any) -> Any:
    try:
        return decode(*arguments)
    except DecodeError as error:
        return error.message


def digits(query_id: str, number: float, **change: Any) -> bytes:
    tensor = Tensor("pixels", "FP32", (1, 2), struct.pack("<2f", number, 0.5))
    return encode_query(Query(query_id, (tensor,), "digits", latency_ms_max=50.0)._replace(**change))


def is_learned(decoder: QueryDecoder, value: bytes) -> bool:
    """Whether the value is decoded from memory: then a template of its length fits."""
    known = decoder._lengths.get(len(value))
    return known is not None and any(t.fill(value, Headers(id="x")) is not None for t in known.templates)


@given(queries(), st.data(), HEADERS)
@settings(max_examples=300)
def test_it_says_what_the_plain_decoder_says(query: Query, data: st.DataObject, headers: Headers) -> None:
    value = encode_query(query)
    decoder = QueryDecoder()
    for _ in range(2):
        assert outcome(decoder.decode, value, headers) == outcome(decode_query, value, headers)
    other = query._replace(
        id=data.draw(st.text("ab\xe9", min_size=len(query.id), max_size=len(query.id))),
        inputs=tuple(
            t._replace(data=data.draw(st.binary(min_size=len(t.data), max_size=len(t.data)))) for t in query.inputs
        ),
    )
    for changed in (encode_query(other), data.draw(mutations(value)), data.draw(mutations(encode_query(other)))):
        assert outcome(decoder.decode, changed, headers) == outcome(decode_query, changed, headers)


@given(st.lists(st.tuples(st.integers(0, 3), st.binary(min_size=8, max_size=8), HEADERS), max_size=30))
def test_producers_of_equal_length_do_not_mix(sent: list[tuple[int, bytes, Headers]]) -> None:
    decoder = QueryDecoder()
    for producer, data, headers in sent:
        tensor = Tensor("pixels", "FP32", (1, 2), data)
        value = encode_query(Query("q-1", (tensor,), task=f"task-{producer}"))
        assert outcome(decoder.decode, value, headers) == outcome(decode_query, value, headers)


def test_the_third_of_its_kind_is_decoded_from_memory() -> None:
    decoder = QueryDecoder()
    for number in range(3):
        value = digits(f"q-{number}", number)
        assert is_learned(decoder, value) == (number == 2)
        query, form = decoder.decode(value)
        assert (query, form) == decode_query(value)
    assert query.id == "q-2"
    assert decoder.decode(value, Headers(id="h", reply_partition=3))[0] == query._replace(id="h", reply_partition=3)


@pytest.mark.parametrize(
    "change",
    [
        {"task": "digitz"},
        {"latency_ms_max": 51.0},
        {"inputs": (Tensor("pixelz", "FP32", (1, 2), bytes(8)),)},
        {"inputs": (Tensor("pixels", "INT32", (1, 2), bytes(8)),)},
        {"inputs": (Tensor("pixels", "FP32", (2, 1), bytes(8)),)},
    ],
)
def test_what_is_outside_of_the_holes_counts(change: dict[str, Any]) -> None:
    decoder = QueryDecoder()
    for number in range(3):
        decoder.decode(digits("q-1", number))
    other = digits("q-1", 7, **change)
    assert decoder.decode(other) == decode_query(other)


@pytest.mark.parametrize(
    "query",
    [
        Query("q-1", (Tensor("mask", "BOOL", (1, 8), bytes(8)),), task="digits"),
        Query("q-1", (Tensor("x", "INT8", (1, 4), b"abcd"), Tensor("y", "INT8", (1, 4), b"abcd")), task="digits"),
        Query("q-1", (Tensor("x", "INT8", (1, 4), b"abcd"),), task="digits", deadline_ms=1.9e12),
        Query(
            "q-1",
            (Tensor("x", "INT8", (1, 4), b"abcd"),),
            task="digits",
            metadata={"a": "b" * 1000, "c": "d" * 1000, "e": "f" * 1024, "g": "h" * 1024},
        ),
    ],
    ids=["bool", "ambiguous", "deadline", "long"],
)
def test_what_cannot_be_learned_is_not(query: Query) -> None:
    decoder, value = QueryDecoder(), encode_query(query)
    for _ in range(4):
        assert decoder.decode(value) == decode_query(value)
    assert not is_learned(decoder, value)


def test_memory_is_bounded() -> None:
    decoder = QueryDecoder()
    for size in range(2 * LENGTHS_MAX):
        for turn in range(2 * TEMPLATES_MAX):
            decoder.decode(
                encode_query(Query("q", (Tensor("x", "INT8", (1, 1 + size), bytes(1 + size)),), task=f"t{turn}"))
            )
        assert len(decoder._lengths) <= LENGTHS_MAX
    assert all(len(known.templates) <= TEMPLATES_MAX for known in decoder._lengths.values())


def test_a_sender_that_never_repeats_is_given_up() -> None:
    decoder = QueryDecoder()
    for number in range(1000, 1000 + 2 * TRIALS_MAX):
        decoder.decode(digits("q-1", 1.0, task=f"t-{number}"))
    (known,) = decoder._lengths.values()
    assert known.trials == TRIALS_MAX


def test_a_template_says_nothing_about_broken_text() -> None:
    decoder = QueryDecoder()
    for number in range(3):
        decoder.decode(digits("q-1", number))
    broken = digits("q-1", 1.0).replace(b"q-1", b"q-\xff")
    with pytest.raises(DecodeError, match="UTF-8"):
        decoder.decode(broken, Headers(id="h-1"))
