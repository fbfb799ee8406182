"""What the two ends of a link say: fixed-size messages with a sequence number and a CRC-32. Pure.

    kind u8 | sequence u32, from 0 in each direction | fields | CRC-32 of all before it

All numbers are little endian.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple, TypeAlias

from baton.errors import HandoffFailed

_REASON_BYTES = 240
_HEAD = struct.Struct("<BI")
_CRC = struct.Struct("<I")


class Hello(NamedTuple):
    """P to D, first, with the ring's descriptor."""

    version: int
    slots: int
    slot_bytes: int
    slot_blocks: int


class Proof(NamedTuple):
    """D to P: what D reads at the start of the ring."""

    nonce: bytes


class Proven(NamedTuple):
    """P to D: it is the ring's."""


class Read(NamedTuple):
    """D to P: send the KV of the Prefill call with this token."""

    reading: int  #: chosen by D, counts up from 0
    token: bytes


class Filled(NamedTuple):
    """P to D: a slot holds these blocks."""

    reading: int
    slot: int
    layer: int
    start: int
    end: int
    nbytes: int
    checksums: int  #: how many lie in the ring for this slot


class Consumed(NamedTuple):
    """D to P: the slot may be filled again."""

    slot: int


class Cancel(NamedTuple):
    """D to P: the reading is not wanted any more. It may have ended already."""

    reading: int


class Ended(NamedTuple):
    """P to D: the last word on a reading; an empty reason means that everything was sent."""

    reading: int
    reason: str


class Broken(NamedTuple):
    """Either way: this end closes the link, or never opened it."""

    reason: str


Message: TypeAlias = Hello | Proof | Proven | Read | Filled | Consumed | Cancel | Ended | Broken

_REASON = f"{_REASON_BYTES}s"
_FORMATS: dict[type[Message], struct.Struct] = {
    Hello: struct.Struct("<IIQI"),
    Proof: struct.Struct("<16s"),
    Proven: struct.Struct("<"),
    Read: struct.Struct("<I16s"),
    Filled: struct.Struct("<IIIIIII"),
    Consumed: struct.Struct("<I"),
    Cancel: struct.Struct("<I"),
    Ended: struct.Struct(f"<I{_REASON}"),
    Broken: struct.Struct(f"<{_REASON}"),
}
_KINDS = tuple(_FORMATS)

#: No message is longer.
MAX_BYTES = _HEAD.size + max(fields.size for fields in _FORMATS.values()) + _CRC.size


def encode(sequence: int, message: Message) -> bytes:
    """One message. A long reason loses its end."""
    kind = type(message)
    fields = [_to_bytes(value) if isinstance(value, str) else value for value in message]
    body = _HEAD.pack(_KINDS.index(kind), sequence % 2**32) + _FORMATS[kind].pack(*fields)
    return body + _CRC.pack(zlib.crc32(body))


def decode(sequence: int, data: bytes) -> Message:
    """The message that must come next. Raises HandoffFailed for anything else."""
    body, crc = data[: -_CRC.size], data[-_CRC.size :]
    if len(body) < _HEAD.size or _CRC.pack(zlib.crc32(body)) != crc:
        raise HandoffFailed(f"a KV notification of {len(data)} bytes is damaged")
    number, came = _HEAD.unpack_from(body)
    if came != sequence % 2**32:
        what = "repeated" if came < sequence % 2**32 else "lost"
        raise HandoffFailed(f"a KV notification was {what}: {came} came, {sequence} was expected")
    if number >= len(_KINDS) or len(body) != _HEAD.size + _FORMATS[_KINDS[number]].size:
        raise HandoffFailed(f"{len(data)} bytes are no KV notification of kind {number}")
    kind = _KINDS[number]
    fields = list(_FORMATS[kind].unpack_from(body, _HEAD.size))
    if kind is Ended or kind is Broken:
        fields[-1] = fields[-1].rstrip(b"\0").decode(errors="replace")
    message: Message = kind(*fields)
    return message


def _to_bytes(reason: str) -> bytes:
    return reason.encode()[:_REASON_BYTES]
