"""Decoding queries that look like the ones before them.

A program sends the same query over and over: the same task, the same constraints, tensors of the same shape; only its
id and its numbers differ. So what :func:`~modelless.codec.decode_query` found out once about the bytes around those
is remembered as a **template**: the value's length, the constant bytes, and the **holes** between them, where the id
and the tensors' data lie. A value of the same length with the same bytes outside of the holes can only mean the same
query with other contents: a hole is the whole payload of one MessagePack ``str`` or ``bin``, which no parser looks
into. Everything else goes the long way, and so decides what is learned next.

Not learned: JSON, tensors of BOOL (their bytes have to be looked at), queries whose ``deadline_ms`` is in the body
(each has its own), and values in which a hole's place is ambiguous.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from modelless.codec import BYTES_MAX, complete_query, decode_query, query_fields
from modelless.frames import Form
from modelless.headers import ID_LENGTH_MAX, NO_HEADERS, Headers
from modelless.messages import Query
from modelless.tensors import Tensor
from modelless.wire import pack

LENGTHS_MAX = 256
"""Lengths of values that something is remembered of; then all is forgotten and learned anew."""
TEMPLATES_MAX = 4
"""Of one length."""
CONSTANT_BYTES_MAX = 4096
TRIALS_MAX = 32
"""Templates learned of one length without one that fitted, before it is given up."""

_Hole = tuple[int, int]
_new = tuple.__new__


@dataclass(frozen=True, slots=True)
class _Template:
    constants: tuple[tuple[int, int, bytes], ...]
    """(start, end, bytes) outside of the holes."""
    id: _Hole | None
    tensors: tuple[tuple[str, str, tuple[int, ...], int, int], ...]
    """(name, datatype, shape, start, end of its data)."""
    rest: tuple[Any, ...]
    """A query's fields after id and inputs, as the body says them."""

    def fill(self, value: bytes, headers: Headers) -> Query | None:
        """The query in ``value``; None when it has to go the long way."""
        for start, end, constant in self.constants:
            if value[start:end] != constant:
                return None
        query_id = headers.id
        if self.id is not None:
            try:
                own = value[self.id[0] : self.id[1]].decode()
            except UnicodeDecodeError:
                return None
            query_id = query_id or own
        if query_id is None:
            return None
        inputs = tuple([_new(Tensor, (n, datatype, shape, value[s:e])) for n, datatype, shape, s, e in self.tensors])
        query: Query = _new(Query, (query_id, inputs, *self.rest))
        return query


@dataclass(slots=True)
class _Length:
    """What is known of values of one length."""

    templates: list[_Template] = field(default_factory=list)
    trials: int = 0


class QueryDecoder:
    """:func:`~modelless.codec.decode_query` with a memory; one per thread."""

    def __init__(self, *, bytes_max: int = BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._lengths: dict[int, _Length] = {}

    def decode(self, value: bytes | None, headers: Headers = NO_HEADERS) -> tuple[Query, Form]:
        """As ``decode_query``. Raises DecodeError."""
        if value is None or headers.content_type == "application/json":
            return decode_query(value, headers, bytes_max=self._bytes_max)
        known = self._lengths.get(len(value))
        if known is not None:
            for template in known.templates:
                query = template.fill(value, headers)
                if query is not None:
                    known.trials = 0
                    return complete_query(query, headers), "msgpack"
        query, form = decode_query(value, headers, bytes_max=self._bytes_max)
        if form == "msgpack":
            self._learn(value, known)
        return query, form

    def _learn(self, value: bytes, known: _Length | None) -> None:
        """Remember a value that decoded well."""
        if known is None:
            if len(self._lengths) >= LENGTHS_MAX:
                self._lengths.clear()
            known = self._lengths[len(value)] = _Length()
            return  # the first of its length: most are never followed by another
        if known.trials >= TRIALS_MAX:
            return
        known.trials += 1
        template = _template(value, self._bytes_max)
        if template is not None:
            known.templates = [template, *known.templates[: TEMPLATES_MAX - 1]]


def _template(value: bytes, bytes_max: int) -> _Template | None:
    """What is constant in a value, and where its holes are; None for what cannot be learned."""
    fields = query_fields(value, bytes_max=bytes_max)
    inputs: Sequence[Tensor] = fields.pop("inputs")
    if "deadline_ms" in fields or any(tensor.datatype == "BOOL" for tensor in inputs):
        return None
    own_id = fields.pop("id", None)
    found = [_find(value, pack(bytes(tensor.data)), len(tensor.data)) for tensor in inputs]
    id_hole = None if own_id is None else _find(value, pack("id") + pack(own_id), len(own_id.encode()))
    holes = [hole for hole in (*found, id_hole) if hole is not None]
    if len(holes) < len(inputs) + (own_id is not None) or (id_hole and id_hole[1] - id_hole[0] > ID_LENGTH_MAX):
        return None
    edges = sorted(holes)
    if any(before[1] > after[0] for before, after in pairwise(edges)):
        return None
    spans = zip([0, *(end for _, end in edges)], [*(start for start, _ in edges), len(value)], strict=True)
    constants = tuple((start, end, value[start:end]) for start, end in spans if start < end)
    if sum(end - start for start, end, _ in constants) > CONSTANT_BYTES_MAX:
        return None
    tensors = tuple((t.name, t.datatype, t.shape, *hole) for t, hole in zip(inputs, found, strict=True) if hole)
    return _Template(constants, id_hole, tensors, Query("", (), **fields)[2:])


def _find(value: bytes, packed: bytes, size: int) -> _Hole | None:
    """The last ``size`` bytes of ``packed`` in ``value``, if they are there exactly once."""
    start = value.find(packed)
    if size == 0 or start < 0 or value.find(packed, start + 1) >= 0:
        return None
    end = start + len(packed)
    return end - size, end
