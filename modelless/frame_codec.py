"""Frames of the link as bytes: the array ``[type, field, ...]`` of :mod:`modelless.frames`.

The length prefix is the link's. A peer is as little trusted as a producer: every field is checked.
"""

from __future__ import annotations

from modelless import wire
from modelless.errors import DecodeError
from modelless.fields import shown
from modelless.frames import FRAME_BYTES_MAX, FRAME_TYPES, Frame, VariantState
from modelless.structure import array_fields, array_packer, decoder

ITEMS_MAX = 1_000_000
"""Elements of one frame: a batch of thousands of queries, or the offsets of what a worker answered lately."""

_pack = array_packer(VariantState)
_TYPES = {kind: (index, array_fields(kind)) for index, kind in enumerate(FRAME_TYPES)}
_DECODERS = [decoder(kind, "array") for kind in FRAME_TYPES]


def encode_frame(frame: Frame) -> bytes:
    """One frame without its length prefix."""
    index, fields = _TYPES[type(frame)]
    return _pack((index, *fields(frame)))


def decode_frame(data: bytes | memoryview) -> Frame:
    """The frame in ``data``, which holds nothing else.

    Raises:
        DecodeError: not a frame of this version of the link; the link is of no use any more.
    """
    value = wire.unpack(data, bytes_max=FRAME_BYTES_MAX, depth_max=None, items_max=ITEMS_MAX)
    if type(value) is not list or not value:
        raise DecodeError(f"a frame is an array that starts with its type, got {shown(value)}")
    index = value[0]
    if type(index) is not int or not 0 <= index < len(_DECODERS):
        raise DecodeError(f"frame type {shown(index)} is not one of 0 to {len(_DECODERS) - 1}")
    frame: Frame = _DECODERS[index](value[1:])
    return frame
