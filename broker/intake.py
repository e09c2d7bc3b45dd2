"""Intake: a record of a query topic becomes an entry for the core, or says why it cannot be one.

Whatever arrives, exactly one of three things comes out, so that a bad record costs only itself:

* :class:`Entry` in good order: admit it;
* :class:`Refusal`: not a valid query, but we know whom to tell: answer it;
* :class:`Dead`: nobody can be told, or may be told there: bury it.

Reply addresses are checked here, before anything is ever sent: against the rule of allowed topics, and against the
topics and partitions that exist.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import lru_cache

from broker.ledger import Address, Entry, Source
from broker.ledger import Headers as RecordHeaders
from modelless.codec import salvage
from modelless.errors import DecodeError, ModellessError
from modelless.headers import HEADERS_MAX, NO_HEADERS, Headers, read_headers
from modelless.learned import QueryDecoder
from modelless.messages import Query
from modelless.topics import ReplyTopicRule, Topics

KEY_BYTES_MAX = 16 * 1024
"""Keys travel with the query and its reply, beside bodies that may be as large as a record can be."""
_ENTRY_OVERHEAD_BYTES = 2_000
"""What an entry weighs besides its record and its inputs, measured."""

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


def unreadable(source: Source, reason: str) -> Dead:
    """For a record that is not even one: whatever it says about a reply address is not to be believed."""
    return Dead(_entry(source, NO_QUERY, _NOWHERE), "INVALID_ARGUMENT", reason)


class Intake:
    """The checks of one broker.

    Args:
        reply_partitions: how many partitions a topic has, 0 when it does not exist.
        tenant_topics: whose queries may name a tenant.
    """

    def __init__(
        self,
        topics: Topics,
        rule: ReplyTopicRule,
        reply_partitions: Callable[[str], int],
        *,
        latency_ms_default: float,
        request_bytes_max: int,
        tenant_topics: Collection[str] = (),
    ) -> None:
        self._offline = topics.offline
        self._replies = topics.replies
        self._task_of = lru_cache(1000)(topics.task_of)
        self._rule = rule
        self._reply_partitions = reply_partitions
        self._latency_ms_default = latency_ms_default
        self._request_bytes_max = request_bytes_max
        self._tenant_topics = frozenset(tenant_topics)
        self._decode = QueryDecoder(bytes_max=request_bytes_max).decode

    def read(self, source: Source) -> Entry | Refusal | Dead:
        """Decode and check one record."""
        try:
            headers = read_headers(source.headers) if source.headers else NO_HEADERS
        except DecodeError as error:
            if len(source.headers) > HEADERS_MAX:
                return unreadable(source, error.message)
            return self._malformed(source, _readable(source.headers), error)
        if source.key is not None and len(source.key) > KEY_BYTES_MAX:
            return unreadable(source, f"a key of {len(source.key)} bytes is larger than the limit of {KEY_BYTES_MAX}")
        try:
            query, form = self._decode(source.value, headers)
        except ModellessError as error:
            return self._malformed(source, headers, error)
        topic = query.reply_topic or self._replies
        address = Address(query.id, topic, query.reply_partition, form, headers.echo)
        entry = _entry(source, query, address)
        entry.explains = headers.explain
        denied = self._denied(address)
        if denied is not None:
            return Dead(entry, *denied)
        bound = self._task_of(source.record.topic)
        if bound is not None and query.task is not None and query.task != bound:
            return Refusal(entry, "INVALID_ARGUMENT", f"this topic serves task {bound!r} only, not {query.task!r}")
        if query.tenant is not None and source.record.topic not in self._tenant_topics:
            return Refusal(entry, "PERMISSION_DENIED", "this topic's policy does not allow naming a tenant")
        set_deadlines(entry, self._latency_ms_default, is_offline=entry.record.topic == self._offline)
        return entry

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
        found, form = salvage(source.value, headers, bytes_max=self._request_bytes_max)
        if found.id is None and found.reply_topic is None:
            return _NOWHERE
        topic = found.reply_topic or self._replies
        return Address(found.id or str(source.record), topic, found.reply_partition, form, headers.echo)


def set_deadlines(entry: Entry, latency_ms_default: float, *, is_offline: bool = False) -> None:
    """From what its query asks for. Offline, who asks for none has none."""
    query, arrival_ms = entry.query, entry.source.arrival_ms
    latency_ms, latency_deadline_ms = query.latency_ms_max, query.deadline_ms
    if latency_ms is None and latency_deadline_ms is None and not is_offline:
        latency_ms = latency_ms_default
    if latency_ms is not None:
        soonest_ms = arrival_ms + latency_ms
        if latency_deadline_ms is None or soonest_ms < latency_deadline_ms:
            latency_deadline_ms = soonest_ms
    entry.latency_deadline_ms = entry.deadline_ms = entry.give_up_ms = latency_deadline_ms
    if query.on_miss == "late" and latency_deadline_ms is not None:
        entry.deadline_ms = None
        entry.give_up_ms = max(latency_deadline_ms, arrival_ms + latency_ms_default)


def _readable(headers: RecordHeaders) -> Headers:
    """What those headers say that are well-formed each by itself."""
    kept = []
    for header in headers:
        with contextlib.suppress(DecodeError):
            read_headers([header])
            kept.append(header)
    try:
        return read_headers(kept)
    except DecodeError:  # too many bytes of them
        return NO_HEADERS


_NOWHERE = Address("", "", None, "msgpack")


def _entry(source: Source, query: Query, address: Address) -> Entry:
    inputs = query.inputs
    rows = inputs[0].shape[0] if inputs else 0
    size_bytes = source.size_bytes + _ENTRY_OVERHEAD_BYTES
    for tensor in inputs:
        size_bytes += len(tensor.data)
    return Entry(source, query, address, rows, size_bytes, None, None, None)
