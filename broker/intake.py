"""Intake: a record of a query topic becomes an entry for the core, or says why it cannot be one.

Whatever arrives, exactly one of three things comes out, so that a bad record costs only itself:

* :class:`Entry` in good order: admit it;
* :class:`Refusal`: not a valid query, but we know whom to tell: answer it;
* :class:`Dead`: nobody can be told, or may be told there: bury it.

Reply addresses are checked here, before anything is ever sent: against the rule of allowed topics, and against the
topics and partitions that exist.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from broker.ledger import Address, Entry, Source
from modelless.codec import decode_query
from modelless.errors import DecodeError, ModellessError
from modelless.frames import Form
from modelless.headers import Headers, read_headers
from modelless.messages import Query
from modelless.tensors import rows
from modelless.topics import ReplyTopicRule, Topics
from modelless.wire import unpack

_ENTRY_OVERHEAD_BYTES = 2_000
"""What an entry weighs besides its record, measured."""

NO_QUERY = Query(id="", inputs=())


@dataclass(frozen=True, slots=True)
class Refusal:
    """A record whose sender can be told what is wrong with it. ``entry`` carries the address."""

    entry: Entry
    status: str
    message: str


@dataclass(frozen=True, slots=True)
class Dead:
    """A record whose outcome is a dead letter."""

    entry: Entry
    code: str
    reason: str


class Intake:
    """The checks of one broker.

    Args:
        reply_partitions: how many partitions a topic has, 0 when it does not exist.
    """

    def __init__(
        self,
        topics: Topics,
        rule: ReplyTopicRule,
        reply_partitions: Callable[[str], int],
        *,
        latency_ms_default: float,
        request_bytes_max: int,
    ) -> None:
        self._topics = topics
        self._rule = rule
        self._reply_partitions = reply_partitions
        self._latency_ms_default = latency_ms_default
        self._request_bytes_max = request_bytes_max

    def read(self, source: Source) -> Entry | Refusal | Dead:
        """Decode and check one record."""
        try:
            headers = read_headers(source.headers)
        except DecodeError as error:
            return Dead(_entry(source, NO_QUERY, _NOWHERE), error.code, error.message)
        try:
            query, form = decode_query(source.value, headers)
        except ModellessError as error:
            return self._malformed(source, headers, error)
        topic = query.reply_topic or self._topics.replies
        address = Address(query.id, topic, query.reply_partition, form, headers.echo)
        entry = _entry(source, query, address)
        denied = self._denied(address)
        if denied is not None:
            return Dead(entry, *denied)
        bound = self._topics.task_of(source.record.topic)
        if bound is not None and query.task is not None and query.task != bound:
            return Refusal(entry, "INVALID_ARGUMENT", f"this topic serves task {bound!r} only, not {query.task!r}")
        if query.tenant is not None:
            return Refusal(entry, "PERMISSION_DENIED", "this topic's policy does not allow naming a tenant")
        self._deadlines(entry)
        return entry

    def _deadlines(self, entry: Entry) -> None:
        query, arrival_ms = entry.query, entry.source.arrival_ms
        latency_ms = query.latency_ms_max
        if latency_ms is None and query.deadline_ms is None and entry.record.topic != self._topics.offline:
            latency_ms = self._latency_ms_default
        deadlines = [] if latency_ms is None else [arrival_ms + latency_ms]
        if query.deadline_ms is not None:
            deadlines.append(query.deadline_ms)
        latency_deadline_ms = min(deadlines, default=None)
        entry.latency_deadline_ms = entry.deadline_ms = entry.give_up_ms = latency_deadline_ms
        if query.on_miss == "late" and latency_deadline_ms is not None:
            entry.deadline_ms = None
            entry.give_up_ms = max(latency_deadline_ms, arrival_ms + self._latency_ms_default)

    def _denied(self, address: Address) -> tuple[str, str] | None:
        """(code, reason) when this address may not or cannot be written to."""
        if not self._rule.allows(address.topic):
            return "PERMISSION_DENIED", "the reply topic is not among those that this broker may write to"
        partitions = self._reply_partitions(address.topic)
        if not partitions:
            return "NOT_FOUND", "the reply topic does not exist"
        if address.partition is not None and address.partition >= partitions:
            return "INVALID_ARGUMENT", f"the reply topic has {partitions} partitions, not {address.partition + 1}"
        return None

    def _malformed(self, source: Source, headers: Headers, error: ModellessError) -> Refusal | Dead:
        """Tell the sender if the headers, or what can still be read of the body, say who it is."""
        address = self._salvage(source, headers)
        entry = _entry(source, NO_QUERY, address)
        if address is _NOWHERE:
            return Dead(entry, error.code, error.message)
        denied = self._denied(address)
        if denied is not None:
            return Dead(entry, *denied)
        return Refusal(entry, error.code, error.message)

    def _salvage(self, source: Source, headers: Headers) -> Address:
        body, form = self._fields(source.value)
        query_id = headers.id or body.get("id")
        named_topic = headers.reply_topic or body.get("reply_topic")
        if not isinstance(query_id, str) or not 0 < len(query_id) <= 128:
            query_id = None
        if named_topic is not None and not isinstance(named_topic, str):
            named_topic = None
        if query_id is None and named_topic is None:
            return _NOWHERE
        partition = headers.reply_partition if headers.reply_partition is not None else body.get("reply_partition")
        if not isinstance(partition, int) or isinstance(partition, bool) or partition < 0:
            partition = None
        return Address(
            query_id or str(source.record), named_topic or self._topics.replies, partition, form, headers.echo
        )

    def _fields(self, value: bytes | None) -> tuple[dict[str, Any], Form]:
        """What can be read of a body that is no valid query."""
        if value is None:
            return {}, "msgpack"
        try:
            if value.lstrip()[:1] == b"{":
                body = json.loads(value) if len(value) <= _SALVAGE_JSON_BYTES_MAX else {}
                fields = body.get("parameters")
                return {**(fields if isinstance(fields, dict) else {}), "id": body.get("id")}, "json"
            body = unpack(value, bytes_max=self._request_bytes_max)
        except (ModellessError, ValueError, RecursionError):
            return {}, "json" if value.lstrip()[:1] == b"{" else "msgpack"
        return (body if isinstance(body, dict) else {}), "msgpack"


_SALVAGE_JSON_BYTES_MAX = 64 * 1024
_NOWHERE = Address("", "", None, "msgpack")


def _entry(source: Source, query: Query, address: Address) -> Entry:
    return Entry(
        source=source,
        query=query,
        address=address,
        rows=rows(query.inputs) if query.inputs else 0,
        size_bytes=source.size_bytes + _ENTRY_OVERHEAD_BYTES,
        latency_deadline_ms=None,
        deadline_ms=None,
        give_up_ms=None,
    )
