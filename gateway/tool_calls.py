"""Tool calls in the text of an answer, told while they are written.

A call is told once its function is known and its arguments begin; these are then passed on as the
model writes them. What does not become the call of a function that was offered stays text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from gateway.json_scanner import Event, Key, Malformed, Mark, ObjectScanner, Text
from gateway.tags import TagFinder, Trimmer

#: Keys under which models write the arguments.
_ARGUMENTS = frozenset({"arguments", "parameters"})

#: Call number, from 0, to its id.
CallId = Callable[[int], str]


@dataclass(frozen=True, slots=True)
class CallDelta:
    """A piece of a call; the first of each has its id and name."""

    index: int
    arguments: str
    id: str = ""
    name: str = ""


@dataclass(slots=True)
class Found:
    """What text came to: text that belongs to no call, and pieces of calls."""

    text: str = ""
    calls: list[CallDelta] = field(default_factory=list)


class _Call:
    """One call, as a JSON object with a name and arguments, in any order."""

    def __init__(self, index: int, names: Collection[str], call_id: CallId) -> None:
        self._index = index
        self._names = names
        self._id = call_id
        self._scanner = ObjectScanner()
        self._key = ""
        self._value = ""
        self._name = ""
        self._early = ""  # arguments that came before the name
        self._streams = False  # the value is passed on as it comes
        self._said = 0  # characters of it that were
        self.begun = False  #: told: it cannot become text any more
        self.ended = False
        self.raw = ""  #: all that was read, until it has begun

    def push(self, text: str, found: Found) -> str | None:
        """What is left of the text, once the object has ended or cannot be a call; None until
        then."""
        for place, char in enumerate(text):
            try:
                for event in self._scanner.feed(char):
                    self._take(event, found)
            except Malformed:
                return text[place:]
            if not self.begun:
                self.raw += char
            if self.ended:
                return text[place + 1 :]
        self._pass_on(found)
        return None

    def _take(self, event: Event, found: Found) -> None:
        match event:
            case Key(name):
                self._key, self._value, self._said = name, "", 0
            case Text(char):
                if not self._value:
                    self._streams = self._key in _ARGUMENTS and bool(self._name) and char == "{"
                    if self._streams:
                        self._begin(found)
                self._value += char
            case Mark.VALUE_END:
                self._value_ended(found)
            case Mark.OBJECT_END:
                if not self._name:
                    raise Malformed("it has no name")
                if not self.begun:
                    self._begin(found)
                    self._say(self._early or "{}", found)
                self.ended = True

    def _value_ended(self, found: Found) -> None:
        if self._streams:
            self._pass_on(found)
            self._streams = False
            return
        if self._key != "name" and self._key not in _ARGUMENTS:
            return
        try:
            value = json.loads(self._value)
        except ValueError as error:
            raise Malformed(str(error)) from None
        if self._key == "name":
            if value not in self._names or self.begun:
                raise Malformed("no such function was offered")
            self._name = value
        elif isinstance(value, str):  # some models write the arguments as text
            self._early = value
        elif isinstance(value, dict):
            self._early = self._value
        else:
            raise Malformed("arguments are an object")

    def _begin(self, found: Found) -> None:
        self.begun = True
        found.calls.append(CallDelta(self._index, "", self._id(self._index), self._name))

    def _pass_on(self, found: Found) -> None:
        if self._streams and len(self._value) > self._said:
            self._say(self._value[self._said :], found)
            self._said = len(self._value)

    def _say(self, arguments: str, found: Found) -> None:
        found.calls.append(CallDelta(self._index, arguments))


class HermesReader:
    """Calls between <tool_call> and </tool_call>, among text. White space beside them is
    dropped."""

    OPEN, CLOSE = "<tool_call>", "</tool_call>"

    def __init__(self, names: Collection[str], call_id: CallId) -> None:
        self._names = names
        self._call_id = call_id
        self._finder = TagFinder(self.OPEN)
        self._trimmer = Trimmer(leading=False)
        self._call: _Call | None = None
        self._behind: str | None = None  # a call: what may become the closing tag
        self.calls = 0  #: begun

    def push(self, text: str, found: Found) -> None:
        rest: str | None = text
        while rest is not None:
            if self._call is not None:
                rest = self._in_call(self._call, rest, found)
            elif self._behind is not None:
                rest = self._closing(self._behind + rest)
            else:
                before, rest = self._finder.push(rest)
                found.text += self._trimmer.push(before)
                if rest is not None:
                    self._call = _Call(self.calls, self._names, self._call_id)

    def flush(self, found: Found) -> None:
        """The end: what began to look like a call, and is none, is text."""
        if self._call is not None and not self._call.begun:
            found.text += self._trimmer.push(self.OPEN + self._call.raw)
        found.text += self._trimmer.push(self._finder.flush()) + self._trimmer.flush()

    def _in_call(self, call: _Call, text: str, found: Found) -> str | None:
        begun = call.begun
        rest = call.push(text, found)
        if call.begun and not begun:
            self.calls += 1
            self._trimmer.drop()
        if rest is not None:
            self._call = None
            if call.begun:
                self._behind = ""
            else:
                found.text += self._trimmer.push(self.OPEN + call.raw)
        return rest

    def _closing(self, text: str) -> str | None:
        bare = text.lstrip()
        if self.CLOSE.startswith(bare) and bare != self.CLOSE:
            self._behind = bare
            return None
        self._behind = None
        return bare.removeprefix(self.CLOSE)


class Llama3Reader:
    """An answer that is JSON from the beginning is one call, or several with semicolons between;
    any other is text. <|python_tag|>, which may stand before calls, says nothing more."""

    TAG = "<|python_tag|>"
    _SPACE = " \t\r\n"

    def __init__(self, names: Collection[str], call_id: CallId) -> None:
        self._names = names
        self._call_id = call_id
        self._finder = TagFinder(self.TAG)
        self._space: str | None = ""  # what stands before a call, if there is one; None in text
        self._call: _Call | None = None
        self.calls = 0  #: begun

    def push(self, text: str, found: Found) -> None:
        behind: str | None = text
        while behind is not None:
            before, behind = self._finder.push(behind)
            self._untagged(before, found)

    def flush(self, found: Found) -> None:
        """The end: what began to look like a call, and is none, is text."""
        self._untagged(self._finder.flush(), found)
        if self._call is not None and not self._call.begun:
            found.text += (self._space or "") + self._call.raw
        elif self._call is None and not self.calls:
            found.text += self._space or ""

    def _untagged(self, text: str, found: Found) -> None:
        rest: str | None = text
        while rest:
            if self._call is not None:
                rest = self._in_call(self._call, rest, found)
            elif self._space is not None:
                rest = self._before(self._space, rest)
            else:
                found.text += rest
                rest = None

    def _before(self, space: str, text: str) -> str:
        """Before a call, or in text from here on."""
        bare = text.lstrip(self._SPACE + ";" if self.calls else self._SPACE)
        space += text[: len(text) - len(bare)]
        if not bare or bare.startswith("{"):
            self._space = space
            self._call = _Call(self.calls, self._names, self._call_id) if bare else None
            return bare
        self._space = None
        return bare if self.calls else space + bare

    def _in_call(self, call: _Call, text: str, found: Found) -> str | None:
        begun = call.begun
        rest = call.push(text, found)
        self.calls += call.begun and not begun
        if rest is None:
            return None
        self._call = None
        if call.begun:
            self._space = ""
            return rest
        rest = ("" if self.calls else self._space or "") + call.raw + rest
        self._space = None
        return rest


ToolReader = HermesReader | Llama3Reader
