"""Record headers of a query: what they say, whichever of their names was used.

They win over the body and still work when the body is broken. Names of ours are ``modelless-id``,
``modelless-reply-topic``, ``modelless-reply-partition``, ``modelless-deadline-ms`` and ``modelless-explain``; besides
``content-type`` and ``traceparent`` there are Spring's ``kafka_correlationId``, ``kafka_replyTopic`` and
``kafka_replyPartition``.
A name of ours wins over Spring's, the last of equal names wins, and names that we do not know are left alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from modelless.errors import DecodeError

HEADERS_MAX = 256
HEADERS_BYTES_MAX = 64 * 1024
ID_LENGTH_MAX = 128
TOPIC_LENGTH_MAX = 1024
"""More than Kafka allows: too long a name is refused by :class:`modelless.topics.ReplyTopicRule`, as any other."""
PARTITION_MAX = 2**31 - 1
DEADLINE_MS_MAX = 32_503_680_000_000.0
"""The year 3000 in Unix milliseconds: what lies beyond is seconds or microseconds by mistake."""

ID = "modelless-id"
REPLY_TOPIC = "modelless-reply-topic"
REPLY_PARTITION = "modelless-reply-partition"
DEADLINE = "modelless-deadline-ms"
EXPLAIN = "modelless-explain"
"""Of a query: ``1`` asks for an explanation; of its reply: that, as JSON."""
CONTENT_TYPE = "content-type"
TRACEPARENT = "traceparent"
SPRING_ID = "kafka_correlationId"
SPRING_REPLY_TOPIC = "kafka_replyTopic"
SPRING_REPLY_PARTITION = "kafka_replyPartition"
STATUS = "modelless-status"
QUERY = "modelless-query"

_KNOWN = frozenset(
    [
        ID,
        REPLY_TOPIC,
        REPLY_PARTITION,
        DEADLINE,
        EXPLAIN,
        CONTENT_TYPE,
        TRACEPARENT,
        SPRING_ID,
        SPRING_REPLY_TOPIC,
        SPRING_REPLY_PARTITION,
    ]
)
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_DECIMAL = re.compile(rb"[0-9]{1,10}")
_NUMBER = re.compile(rb"[0-9]{1,16}(\.[0-9]{1,9})?")


class Headers(NamedTuple):
    """What the headers of a query say; None where they say nothing."""

    id: str | None = None
    reply_topic: str | None = None
    reply_partition: int | None = None
    deadline_ms: float | None = None
    """Unix milliseconds."""
    content_type: str | None = None
    """Lower case, without parameters."""
    traceparent: str | None = None
    echo: tuple[tuple[str, bytes], ...] = ()
    """To be copied into the reply as they are: ``kafka_correlationId`` and ``traceparent``."""
    explain: bool = False
    """The reply is to say why it was chosen as it was."""


NO_HEADERS = Headers()


def read_headers(headers: Sequence[tuple[str, bytes | None]]) -> Headers:
    """Read the headers of a record, in their order. A header with a null value counts as absent.

    A ``traceparent`` that is not one is ignored, as W3C Trace Context (section 3.2.2.5) asks.

    Raises:
        DecodeError: a header of ours is malformed, or there are too many or too large ones.
    """
    if len(headers) == 1 and headers[0][0] == ID and headers[0][1] is not None:
        return Headers(_id({ID: headers[0][1]}))  # what most have
    found: dict[str, bytes] = {}
    size = 0
    for count, (name, value) in enumerate(headers, 1):
        size += len(name) + (0 if value is None else len(value))
        if count > HEADERS_MAX or size > HEADERS_BYTES_MAX:
            raise DecodeError(f"more than {HEADERS_MAX} headers or {HEADERS_BYTES_MAX} bytes of them")
        if value is not None and name in _KNOWN:
            found[name] = value
    return _interpret(found) if found else NO_HEADERS


def _interpret(found: dict[str, bytes]) -> Headers:
    echo: list[tuple[str, bytes]] = []
    if SPRING_ID in found:
        echo.append((SPRING_ID, found[SPRING_ID]))
    traceparent = found.get(TRACEPARENT)
    if traceparent is not None and not _TRACEPARENT.fullmatch(traceparent):
        traceparent = None
    if traceparent is not None:
        echo.append((TRACEPARENT, traceparent))
    content_type = found.get(CONTENT_TYPE)
    return Headers(
        _id(found),
        _reply_topic(found),
        _reply_partition(found),
        _deadline_ms(found),
        None if content_type is None else _media_type(content_type),
        None if traceparent is None else traceparent.decode("ascii"),
        tuple(echo),
        _explain(found),
    )


def _id(found: dict[str, bytes]) -> str | None:
    if ID in found:
        text = _text(ID, found[ID])
    elif SPRING_ID in found:
        text = _correlation_text(found[SPRING_ID])
    else:
        return None
    if not 1 <= len(text) <= ID_LENGTH_MAX:
        raise DecodeError(f"the id in the headers must have 1 to {ID_LENGTH_MAX} characters, got {len(text)}")
    return text


def _correlation_text(value: bytes) -> str:
    """Spring's default correlation id is 16 raw bytes: what is not printable text becomes hexadecimal."""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return value.hex()
    return text if text.isprintable() else value.hex()


def _reply_topic(found: dict[str, bytes]) -> str | None:
    name = REPLY_TOPIC if REPLY_TOPIC in found else SPRING_REPLY_TOPIC
    if name not in found:
        return None
    text = _text(name, found[name])
    if not 1 <= len(text) <= TOPIC_LENGTH_MAX:
        raise DecodeError(f"header {name} must have 1 to {TOPIC_LENGTH_MAX} characters, got {len(text)}")
    return text


def _reply_partition(found: dict[str, bytes]) -> int | None:
    """Decimal text, or as Spring sends it: an int in 4 big-endian bytes."""
    name = REPLY_PARTITION if REPLY_PARTITION in found else SPRING_REPLY_PARTITION
    if name not in found:
        return None
    value = found[name]
    if _DECIMAL.fullmatch(value):
        partition = int(value)
    elif len(value) == 4:
        partition = int.from_bytes(value, "big", signed=True)
    else:
        partition = -1
    if not 0 <= partition <= PARTITION_MAX:
        raise DecodeError(f"header {name} must be a partition of 0 or more, as decimal text or 4 big-endian bytes")
    return partition


def _deadline_ms(found: dict[str, bytes]) -> float | None:
    if DEADLINE not in found:
        return None
    value = found[DEADLINE]
    deadline_ms = float(value) if _NUMBER.fullmatch(value) else 0.0
    if not 0 < deadline_ms < DEADLINE_MS_MAX:
        raise DecodeError(f"header {DEADLINE} must be Unix milliseconds above 0 and before the year 3000, as text")
    return deadline_ms


def _explain(found: dict[str, bytes]) -> bool:
    value = found.get(EXPLAIN, b"0")
    if value not in (b"0", b"1"):
        raise DecodeError(f"header {EXPLAIN} must be 1 or 0")
    return value == b"1"


def _media_type(value: bytes) -> str:
    return value.split(b";", 1)[0].strip().decode("latin-1").lower()


def _text(name: str, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise DecodeError(f"header {name} is not UTF-8") from None


def reply_headers(id: str, status: str, query: str, echo: Iterable[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """The headers of a reply: who is answered, how, which record, and what its query wants echoed."""
    return [(ID, id.encode()), (STATUS, status.encode()), (QUERY, query.encode()), *echo]
