"""One JSON object, read character by character: its keys, and its values as they are written."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum, auto

_SPACE = frozenset(" \t\n\r")
_SCALAR = frozenset("-0123456789tfn")


class Malformed(Exception):
    """This cannot become a JSON object any more."""


@dataclass(frozen=True, slots=True)
class Key:
    """A key of the object itself."""

    name: str


@dataclass(frozen=True, slots=True)
class Text:
    """A character of the value of the last key, as it is written."""

    char: str


class Mark(Enum):
    VALUE_END = auto()
    OBJECT_END = auto()


Event = Key | Text | Mark


class _At(Enum):
    START = auto()
    KEY = auto()  #: a key must come
    KEY_OR_END = auto()
    IN_KEY = auto()
    COLON = auto()
    VALUE = auto()
    IN_STRING = auto()
    IN_SCALAR = auto()
    NESTED = auto()
    COMMA_OR_END = auto()
    END = auto()


class ObjectScanner:
    """Objects and arrays within a value are followed by their brackets alone."""

    def __init__(self) -> None:
        self._at = _At.START
        self._key = ""
        self._depth = 0  # brackets open in a value
        self._quoted = False  # in a string within those
        self._escaped = False  # behind a backslash in a string

    def feed(self, char: str) -> list[Event]:
        """What one character more tells. Raises Malformed; not to be fed after OBJECT_END."""
        match self._at:
            case _At.IN_KEY:
                return self._in_key(char)
            case _At.IN_STRING:
                if self._closes_string(char):
                    self._at = _At.COMMA_OR_END
                    return [Text(char), Mark.VALUE_END]
                return [Text(char)]
            case _At.NESTED:
                return self._nested(char)
            case _At.IN_SCALAR if char in ",}" or char in _SPACE:
                self._at = _At.COMMA_OR_END
                return [Mark.VALUE_END, *self.feed(char)]
            case _At.IN_SCALAR:
                return [Text(char)]
        return [] if char in _SPACE else self._between(char)

    def _between(self, char: str) -> list[Event]:
        """Outside of keys and values."""
        match self._at, char:
            case _At.START, "{":
                self._at = _At.KEY_OR_END
            case ((_At.KEY | _At.KEY_OR_END), '"'):
                self._at, self._key = _At.IN_KEY, char
            case _At.COLON, ":":
                self._at = _At.VALUE
            case _At.COMMA_OR_END, ",":
                self._at = _At.KEY
            case ((_At.COMMA_OR_END | _At.KEY_OR_END), "}"):
                self._at = _At.END
                return [Mark.OBJECT_END]
            case _At.VALUE, _:
                return self._value(char)
            case _:
                raise Malformed(f"{char!r} where {self._at.name} was expected")
        return []

    def _value(self, char: str) -> list[Event]:
        if char == '"':
            self._at = _At.IN_STRING
        elif char in "{[":
            self._at, self._depth = _At.NESTED, 1
        elif char in _SCALAR:
            self._at = _At.IN_SCALAR
        else:
            raise Malformed(f"{char!r} begins no value")
        return [Text(char)]

    def _in_key(self, char: str) -> list[Event]:
        self._key += char
        if not self._closes_string(char):
            return []
        self._at = _At.COLON
        try:
            return [Key(json.loads(self._key))]
        except ValueError as error:
            raise Malformed(str(error)) from None

    def _nested(self, char: str) -> list[Event]:
        if self._quoted:
            self._quoted = not self._closes_string(char)
        elif char == '"':
            self._quoted = True
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
            if self._depth == 0:
                self._at = _At.COMMA_OR_END
                return [Text(char), Mark.VALUE_END]
        return [Text(char)]

    def _closes_string(self, char: str) -> bool:
        if self._escaped:
            self._escaped = False
        elif char == "\\":
            self._escaped = True
        else:
            return char == '"'
        return False
