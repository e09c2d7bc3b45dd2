"""Dead letters: the record as it came, with the reason and its history in headers.

One that is larger than the dead-letter topic takes is written without its value, its key and its own headers: what is
left says how large it was, its SHA-256, and where the original lies for as long as its topic keeps it. More headers
than a query may have are left out as well: not every client library can read them.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable

from broker.core import Bury
from broker.outbox import Outgoing
from modelless.headers import HEADERS_MAX

TRUNCATED = "modelless-truncated"
SHA256 = "modelless-value-sha256"
SIZE = "modelless-value-bytes"
_REASON_CHARACTERS_MAX = 2_000

Headers = tuple[tuple[str, bytes | None], ...]


def dead_letter(topic: str, bury: Bury, done: Callable[[str | None], None]) -> Outgoing:
    """The record to write for ``bury``; what an empty value was, no value or none at all, is not kept."""
    source = bury.entry.source
    history: Headers = (
        ("modelless-code", bury.code.encode()),
        ("modelless-reason", bury.reason[:_REASON_CHARACTERS_MAX].encode(errors="backslashreplace")),
        ("modelless-query", str(source.record).encode()),
        ("modelless-attempts", str(bury.entry.attempts).encode()),
    )
    headers: Headers = tuple(source.headers)
    if len(headers) > HEADERS_MAX:
        headers, history = (), (*history, (TRUNCATED, f"{len(headers)} headers".encode()))
    whole = Outgoing(
        topic=topic,
        partition=None,
        partition_key=str(source.record).encode(),
        key=source.key,
        value=source.value or b"",
        headers=(*headers, *history),
        done=done,
        must=True,
    )
    return dataclasses.replace(whole, smaller=functools.partial(_truncated, whole, history))


def _truncated(whole: Outgoing, history: Headers) -> Outgoing:
    cut = (
        (TRUNCATED, b"key, value and headers"),
        (SIZE, str(len(whole.value)).encode()),
        (SHA256, hashlib.sha256(whole.value).hexdigest().encode()),
    )
    return dataclasses.replace(whole, key=None, value=b"", headers=(*history, *cut), smaller=None)
