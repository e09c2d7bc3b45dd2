from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelless.errors import DecodeError
from modelless.headers import HEADERS_BYTES_MAX, HEADERS_MAX, NO_HEADERS, Headers, read_headers

TRACEPARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_none_and_foreign_ones() -> None:
    assert read_headers([]) == NO_HEADERS
    assert read_headers([("x-team", b"\xff"), ("modelless-id", None)]) == NO_HEADERS


def test_our_names() -> None:
    assert read_headers(
        [
            ("modelless-id", "é-1".encode()),
            ("modelless-reply-topic", b"modelless.replies.a"),
            ("modelless-reply-partition", b"3"),
            ("modelless-deadline-ms", b"1700000000000.5"),
            ("content-type", b"Application/JSON; charset=utf-8"),
            ("traceparent", TRACEPARENT),
        ]
    ) == Headers(
        id="é-1",
        reply_topic="modelless.replies.a",
        reply_partition=3,
        deadline_ms=1700000000000.5,
        content_type="application/json",
        traceparent=TRACEPARENT.decode(),
        echo=(("traceparent", TRACEPARENT),),
    )


def test_spring_names() -> None:
    correlation = bytes(range(200, 216))
    read = read_headers(
        [
            ("kafka_correlationId", correlation),
            ("kafka_replyTopic", b"modelless.replies.spring"),
            ("kafka_replyPartition", b"\x00\x00\x01\x02"),
        ]
    )
    assert read == Headers(
        id=correlation.hex(),
        reply_topic="modelless.replies.spring",
        reply_partition=258,
        echo=(("kafka_correlationId", correlation),),
    )


def test_spring_with_bytes_that_happen_to_be_text() -> None:
    assert read_headers([("kafka_correlationId", bytes(16))]).id == "00" * 16


def test_spring_with_text() -> None:
    read = read_headers([("kafka_correlationId", b"order-7"), ("kafka_replyPartition", b"1234")])
    assert (read.id, read.reply_partition) == ("order-7", 1234)


def test_our_names_win_over_spring_and_the_last_wins() -> None:
    read = read_headers(
        [
            ("modelless-id", b"first"),
            ("modelless-id", b"ours"),
            ("kafka_correlationId", b"theirs"),
            ("modelless-reply-topic", b"ours"),
            ("kafka_replyTopic", b"theirs"),
            ("modelless-reply-partition", b"1"),
            ("kafka_replyPartition", b"2"),
        ]
    )
    assert (read.id, read.reply_topic, read.reply_partition) == ("ours", "ours", 1)
    assert read.echo == (("kafka_correlationId", b"theirs"),)


@pytest.mark.parametrize("value", [b"", b"00", b"\xff", TRACEPARENT + b"x", TRACEPARENT.upper()])
def test_a_bad_traceparent_is_ignored(value: bytes) -> None:
    assert read_headers([("traceparent", value)]) == NO_HEADERS


MALFORMED = [
    ("modelless-id", b""),
    ("modelless-id", b"x" * 129),
    ("modelless-id", b"\xff"),
    ("kafka_correlationId", b"\xff" * 65),
    ("modelless-reply-topic", b""),
    ("modelless-reply-topic", b"x" * 1025),
    ("modelless-reply-topic", b"\xc3\x28"),
    ("modelless-reply-partition", b"-1"),
    ("modelless-reply-partition", b"one"),
    ("modelless-reply-partition", b"2147483648"),
    ("kafka_replyPartition", b"\xff\xff\xff\xff"),
    ("kafka_replyPartition", b"\x00\x00\x01"),
    *[
        ("modelless-deadline-ms", value)
        for value in (b"", b"0", b"-5", b"NaN", b"inf", b"1e12", b"253402300800000", b"1_000", b" 5", b"\xff")
    ],
]


@pytest.mark.parametrize("header", MALFORMED)
def test_malformed_ones_are_refused_by_name(header: tuple[str, bytes]) -> None:
    with pytest.raises(DecodeError, match=f"{header[0]}|id in the headers"):
        read_headers([header])


def test_limits() -> None:
    read_headers([("x", b"")] * HEADERS_MAX)
    with pytest.raises(DecodeError, match="more than 256 headers"):
        read_headers([("x", b"")] * (HEADERS_MAX + 1))
    with pytest.raises(DecodeError, match="headers or 65536 bytes"):
        read_headers([("x", b"a" * HEADERS_BYTES_MAX)])


@given(st.lists(st.tuples(st.sampled_from([header[0] for header in MALFORMED]), st.binary(max_size=20))))
def test_anything_is_read_or_refused(headers: list[tuple[str, bytes]]) -> None:
    with suppress(DecodeError):
        read_headers(headers)
