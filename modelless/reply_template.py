"""Replies that differ in little, as bytes: what they have in common is packed once.

In MessagePack a map is its number of entries (one byte, up to 15 of them) and then its entries, so that entries which
are packed apart can be put one behind another. What comes out says the same as :func:`modelless.codec.encode_reply`,
for a fraction of the work: most of a reply is the same for a whole batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgpack

from modelless import wire
from modelless.codec import encode_reply, reply_body
from modelless.frames import Form
from modelless.messages import Reply

OWN = ("id", "query", "queue_ms", "missed", "metadata")
"""The fields that are each reply's own."""
_HEADS: tuple[bytes, ...] = tuple(msgpack.Packer().pack_map_header(count) for count in range(32))


class ReplyTemplate:
    """See the module.

    Args:
        example: has all that the replies have in common, and outputs of their names, datatypes and shapes. Its id,
            query, queue_ms, missed and metadata do not matter.
    """

    def __init__(self, example: Reply) -> None:
        self._example = example
        body = reply_body(example)
        outputs = body.pop("outputs", [])
        for name in OWN:
            body.pop(name, None)
        common = wire.pack(body)[1:]
        if outputs:
            common += wire.pack("outputs") + msgpack.Packer().pack_array_header(len(outputs))
        self._common = common
        self._heads = _HEADS[len(body) + bool(outputs) :]
        self._tensors = [_without_data(tensor) for tensor in outputs]

    def encode(
        self,
        id: str,
        query: str,
        queue_ms: float | None,
        missed: tuple[str, ...],
        metadata: Mapping[str, str],
        data: Sequence[bytes | memoryview],
        form: Form = "msgpack",
    ) -> bytes:
        """One reply; ``data`` are the bytes of its outputs, as many as the example's have."""
        if form == "json":
            outputs = tuple(of._replace(data=own) for of, own in zip(self._example.outputs, data, strict=True))
            whole = replace(
                self._example, id=id, query=query, queue_ms=queue_ms, missed=missed, metadata=metadata, outputs=outputs
            )
            return encode_reply(whole, form)
        own: dict[str, Any] = {"id": id, "query": query}
        if queue_ms is not None:
            own["queue_ms"] = queue_ms
        if missed:
            own["missed"] = missed
        if metadata:
            own["metadata"] = dict(metadata)
        parts: list[bytes | memoryview] = [self._heads[len(own)], wire.pack(own)[1:], self._common]
        for start, rest in zip(self._tensors, data, strict=True):
            parts.append(start)
            parts.append(rest)
        return b"".join(parts)


def _without_data(tensor: dict[str, Any]) -> bytes:
    """A tensor's map up to where its data begins."""
    packed = wire.pack(tensor)
    return packed[: len(packed) - len(tensor["data"])]
