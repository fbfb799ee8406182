"""The output of a response as it grows, piece by piece: thoughts, words and calls as items."""

from __future__ import annotations

from gateway.answers import TokenLogprob
from gateway.logprobs import Logprobs
from gateway.responses.bodies import OutputItem
from gateway.responses.items import Call, Event, Item, Thoughts, Words
from gateway.tool_calls import CallDelta
from gateway.transcript import Finish, Piece


class ResponseOutput:
    """All words are one message, however many calls stand between them: so it does not matter how
    the answer is cut into pieces. An item is done when the next of its kind begins, thoughts when
    the answer does; the message at the end."""

    def __init__(self, name: str, logprobs: Logprobs) -> None:
        """``name`` tells its items from those of other responses."""
        self._name = name
        self._logprobs = logprobs
        self._items: list[Item] = []
        self._thoughts: Thoughts | None = None
        self._words: Words | None = None
        self._call: Call | None = None
        self._latest: Item | None = None  # that something was added to
        self._untold: list[TokenLogprob] = []  # go with the next words
        self._answers = False  # thoughts are over
        self._before = 0  # tokens

    @property
    def reasoning_tokens(self) -> int:
        """Those that came before the answer, if there were thoughts."""
        return self._before if self._thoughts is not None else 0

    @property
    def items(self) -> list[OutputItem]:
        return [item.body() for item in self._items]

    def take(self, piece: Piece) -> list[Event]:
        """What a piece adds."""
        self._untold += self._logprobs.chat(piece.scored)
        events = self._think(piece.reasoning) if piece.reasoning else []
        if piece.text or piece.calls:
            events += self._answer()
        if not self._answers:
            self._before += len(piece.token_ids)
        if piece.text or (self._untold and self._words is not None):
            events += self._say(piece.text)
        for part in piece.calls:
            events += self._go_on(part)
        return events

    def end(self, finish: Finish) -> list[Event]:
        """All there was has come. A response without anything has an empty message."""
        latest = self._latest
        events: list[Event] = []
        if self._untold or not self._items:
            events += self._say("")
        for item in self._items:
            if item.status == "in_progress":
                cut = finish == "length" and latest in (item, None)
                events += item.end("incomplete" if cut else "completed")
        return events

    def _think(self, text: str) -> list[Event]:
        events: list[Event] = []
        if self._thoughts is None:
            self._thoughts = Thoughts(f"rs_{self._name}", len(self._items))
            events += self._begun(self._thoughts)
        self._latest = self._thoughts
        return [*events, self._thoughts.add(text)]

    def _answer(self) -> list[Event]:
        """Thoughts are over."""
        begins, self._answers = not self._answers, True
        return self._thoughts.end("completed") if begins and self._thoughts is not None else []

    def _say(self, text: str) -> list[Event]:
        events: list[Event] = []
        if self._words is None:
            self._words = Words(f"msg_{self._name}", len(self._items))
            events += self._begun(self._words)
        if text:
            self._latest = self._words
        told, self._untold = self._untold, []
        return [*events, self._words.add(text, told)] if text or told else events

    def _go_on(self, part: CallDelta) -> list[Event]:
        events: list[Event] = []
        if part.id:
            if self._call is not None:
                events += self._call.end("completed")
            self._call = Call(part.id, part.name, len(self._items))
            events += self._begun(self._call)
        assert self._call is not None, "the first piece of a call has its id"
        self._latest = self._call
        return [*events, self._call.add(part.arguments)] if part.arguments else events

    def _begun(self, item: Item) -> list[Event]:
        self._items.append(item)
        return item.begin()
