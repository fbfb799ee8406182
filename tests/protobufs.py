"""Any message of a protobuf type, and any bent form of a good one, for hypothesis."""

from __future__ import annotations

from typing import Any, TypeVar

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

M = TypeVar("M", bound=Message)
F = FieldDescriptor

_U32, _U64 = 2**32 - 1, 2**64 - 1
_SCALARS: dict[int, st.SearchStrategy[Any]] = {
    F.CPPTYPE_INT32: st.integers(-(2**31), 2**31 - 1) | st.integers(-1, 3),
    F.CPPTYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    F.CPPTYPE_UINT32: st.sampled_from([0, 1, 2, _U32]) | st.integers(0, _U32),
    F.CPPTYPE_UINT64: st.sampled_from([0, 1, 2, _U64]) | st.integers(0, _U64),
    F.CPPTYPE_DOUBLE: st.floats(),
    F.CPPTYPE_FLOAT: st.floats(width=32),
    F.CPPTYPE_BOOL: st.booleans(),
    F.CPPTYPE_ENUM: st.integers(0, 4) | st.just(77),
}
#: Messages within messages; deeper ones are left out.
_DEPTH = 4


def messages(kind: type[M]) -> st.SearchStrategy[M]:
    """Each field may be left out, or be anything of its type."""
    return _fields(kind.DESCRIPTOR, _DEPTH).map(lambda fields: kind(**fields))


def bent(good: M) -> st.SearchStrategy[M]:
    """``good`` with what a random message has in place of its own, or added to its lists."""

    def bend(random: M) -> M:
        made = type(good)()
        made.CopyFrom(good)
        made.MergeFrom(random)
        return made

    return messages(type(good)).map(bend)


def _fields(kind: Descriptor, depth: int) -> st.SearchStrategy[dict[str, Any]]:
    known = {field.name: field for field in kind.fields if depth or not field.message_type}
    if not known:
        return st.just({})
    # Few at a time: where everything is wrong the first mistake hides the rest.
    names = st.lists(st.sampled_from(sorted(known)), max_size=3, unique=True)
    return names.flatmap(
        lambda chosen: st.fixed_dictionaries({name: _value(known[name], depth) for name in chosen})
    )


def _value(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    inside = field.message_type
    if inside is not None and inside.GetOptions().map_entry:
        key, value = (inside.fields_by_name[name] for name in ("key", "value"))
        return st.dictionaries(_single(key, depth), _single(value, depth), max_size=3)
    one = _single(field, depth)
    return st.lists(one, max_size=3) if field.is_repeated else one


def _single(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    if field.message_type is not None:
        return _fields(field.message_type, depth - 1)
    if field.type == F.TYPE_STRING:
        return st.text(max_size=20)
    if field.type == F.TYPE_BYTES:
        return st.binary(max_size=20)
    return _SCALARS[field.cpp_type]
