"""Messages between a supervisor and its executor child, over a Unix socket pair.

``>IQ`` (header bytes, body bytes), a MessagePack header, then the tensors' raw bytes one after the other. The header is
``[call, operation or status, fields, tensors]`` with a tensor as ``[name, datatype, shape]``. No pickle.

Operations of the parent: ``build``, ``load``, ``run``, ``unload``, ``import``, ``memory``. A child answers each call
once, with ``ok`` or ``error``; ``run`` calls are answered in order, others when they are done.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import msgpack

from modelless.frames import BatchTensor
from modelless.tensors import ITEM_BYTES

PREFIX = struct.Struct(">IQ")
HEADER_BYTES_MAX = 4 * 1024 * 1024
BODY_BYTES_MAX = 1 << 31


class Message(NamedTuple):
    call: int
    kind: str
    fields: Mapping[str, Any]
    tensors: tuple[BatchTensor, ...]


class ChannelError(Exception):
    """The other side sent something that is no message; it cannot be talked to any longer."""


def encode(
    call: int, kind: str, fields: Mapping[str, Any], tensors: Sequence[BatchTensor] = ()
) -> list[bytes | memoryview]:
    """The buffers to write, in order."""
    header = msgpack.packb((call, kind, fields, [(t.name, t.datatype, t.shape) for t in tensors]))
    bodies = [t.data for t in tensors]
    return [PREFIX.pack(len(header), sum(map(len, bodies))) + header, *bodies]


def decode_prefix(data: bytes | bytearray | memoryview) -> tuple[int, int]:
    """Sizes of the header and the body. Raises ChannelError when they are beyond the limits."""
    header_bytes, body_bytes = PREFIX.unpack_from(data)
    if header_bytes > HEADER_BYTES_MAX or body_bytes > BODY_BYTES_MAX:
        raise ChannelError(f"message of {header_bytes} and {body_bytes} bytes is too large")
    return header_bytes, body_bytes


def decode(header: bytes | memoryview, body: memoryview) -> Message:
    """Raises ChannelError when the header is no header or does not fit the body."""
    try:
        call, kind, fields, metas = msgpack.unpackb(header, use_list=False)
        tensors, start = [], 0
        for name, datatype, shape in metas:
            end = start + prod(shape) * ITEM_BYTES[datatype]
            tensors.append(BatchTensor(name, datatype, shape, body[start:end]))
            start = end
    except (ValueError, TypeError, KeyError, msgpack.UnpackException) as error:
        raise ChannelError(f"not a message: {error!r}") from None
    if start != len(body):
        raise ChannelError(f"tensors of {start} bytes in a body of {len(body)}")
    return Message(call, kind, fields, tuple(tensors))


class Incoming:
    """Bytes in, messages out: the parent's side, fed by its event loop."""

    def __init__(self) -> None:
        self._received = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        received = self._received
        received += data
        while len(received) >= PREFIX.size:
            header_bytes, body_bytes = decode_prefix(received)
            end = PREFIX.size + header_bytes + body_bytes
            if len(received) < end:
                return
            frame = bytes(memoryview(received)[PREFIX.size : end])
            del received[:end]
            yield decode(memoryview(frame)[:header_bytes], memoryview(frame)[header_bytes:])


# --- the child's side: blocking ---------------------------------------------------------------------------------------


def receive(sock: socket.socket) -> Message | None:
    """Block for the next message; None at the end of file. The tensors are views of a writable buffer of their own."""
    prefix = _read(sock, PREFIX.size)
    if prefix is None:
        return None
    header_bytes, body_bytes = decode_prefix(prefix)
    frame = _read(sock, header_bytes + body_bytes)
    if frame is None:
        return None
    return decode(memoryview(frame)[:header_bytes], memoryview(frame)[header_bytes:])


def send(sock: socket.socket, buffers: Sequence[bytes | memoryview]) -> None:
    """Block until everything is written."""
    views = [memoryview(b).cast("B") for b in buffers if len(b)]
    while views:
        sent = sock.sendmsg(views[:64])
        while views and sent >= len(views[0]):
            sent -= len(views.pop(0))
        if sent:
            views[0] = views[0][sent:]


def _read(sock: socket.socket, size: int) -> bytearray | None:
    buffer = bytearray(size)
    view = memoryview(buffer)
    while view:
        count = sock.recv_into(view)
        if count == 0:
            return None
        view = view[count:]
    return buffer
