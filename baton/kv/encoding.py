"""KvFrame to and from bytes, with one copy less on each side than protobuf makes.

``payload`` is the frame's last field: a frame is a small message (layer, range, checksums), the
payload's tag and length, and the payload. It is joined here straight from the pool's memory, and
cut here out of what was received. What is on the wire is ordinary protobuf.
"""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.message import DecodeError

from baton.errors import HandoffFailed
from baton.kv.framing import Piece
from baton.v1 import kv_pb2

_VARINT, _LENGTH_DELIMITED = 0, 2
_PAYLOAD_TAG = kv_pb2.KvFrame.PAYLOAD_FIELD_NUMBER << 3 | _LENGTH_DELIMITED


def encode(piece: Piece, payload: Sequence[memoryview], sums: Sequence[int] = ()) -> bytes:
    """One KvFrame message, ``sums`` being the checksums. Copies ``payload``, once."""
    layer, start, end = piece
    head = kv_pb2.KvFrame(layer=layer, start_token=start, end_token=end, checksums=sums)
    length = sum(part.nbytes for part in payload)
    border = bytes((_PAYLOAD_TAG, *_to_varint(length)))
    return b"".join((head.SerializeToString(), border, *payload))


def decode(message: bytes) -> tuple[kv_pb2.KvFrame, memoryview]:
    """The frame without its payload, and the payload as a view of ``message``.

    Raises HandoffFailed for anything that ``encode`` (or protobuf, which writes fields in order)
    would not have written.
    """
    try:
        border, start = _find_payload(message)
        return kv_pb2.KvFrame.FromString(message[:border]), memoryview(message)[start:]
    except (DecodeError, IndexError, ValueError) as error:
        raise HandoffFailed(f"{len(message)} bytes are no KV frame: {error}") from error


def _find_payload(message: bytes) -> tuple[int, int]:
    """Where the small message ends and where the payload starts; both at the end without one."""
    at = 0
    while at < len(message):
        border = at
        tag, at = _from_varint(message, at)
        value, at = _from_varint(message, at)
        if tag == _PAYLOAD_TAG:
            if at + value != len(message):
                raise ValueError(f"its payload should end at {at + value}")
            return border, at
        if tag & 7 == _LENGTH_DELIMITED:
            at += value
        elif tag & 7 != _VARINT:
            raise ValueError(f"field tag {tag}")
    return len(message), len(message)


def _to_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _from_varint(message: bytes, at: int) -> tuple[int, int]:
    """The number that starts at ``at``, and where it ends.

    Raises IndexError at the end, ValueError for more than 64 bits: reading on would take time that
    grows with the square of what came.
    """
    value = shift = 0
    while shift < 64:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError(f"the number before byte {at} has more than 64 bits")
