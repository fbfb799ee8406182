"""What the text of an answer is made of: thoughts, words for the user, calls of tools.

Read from the one stream of text, in the gateway: an answer that goes on at another worker, or at
another gateway, is read on as if nothing had happened.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

from gateway.reasoning import ReasoningReader, Thinking
from gateway.tool_calls import CallDelta, CallId, Found
from gateway.tool_formats import ToolFormat


@dataclass(frozen=True, slots=True)
class Parts:
    """What a piece of text came to."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[CallDelta, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """How an answer is to be read."""

    thinking: Thinking = Thinking.NO
    tools: ToolFormat | None = None  #: None: no call is looked for
    names: frozenset[str] = frozenset()  #: of the functions that may be called
    #: Special tokens that are tags here: their text is read, though it is never shown.
    tags: Mapping[int, str] = field(default_factory=dict)

    @property
    def plain(self) -> bool:
        """Nothing but words."""
        return self.thinking is Thinking.NO and self.tools is None


class Reader:
    """Reads one choice, piece by piece."""

    def __init__(self, reply: Reply, call_id: CallId) -> None:
        self._reasoning = ReasoningReader(reply.thinking)
        self._tools = reply.tools.reader(reply.names, call_id) if reply.tools else None

    @property
    def calls(self) -> bool:
        """A tool was called."""
        return self._tools is not None and self._tools.calls > 0

    def push(self, text: str, *, last: bool = False) -> Parts:
        """What is certain. With the ``last`` text, all."""
        reasoning, answer = self._reasoning.push(text)
        if last:
            rest = self._reasoning.flush()
            reasoning, answer = reasoning + rest[0], answer + rest[1]
        if self._tools is None:
            return Parts(answer, reasoning)
        found = Found()
        self._tools.push(answer, found)
        if last:
            self._tools.flush(found)
        return Parts(found.text, reasoning, tuple(_joined(found.calls)))


def _joined(calls: Sequence[CallDelta]) -> Iterator[CallDelta]:
    """One piece for each call."""
    for _, deltas in groupby(calls, key=lambda delta: delta.index):
        first, *others = deltas
        yield replace(first, arguments="".join(d.arguments for d in (first, *others)))
