"""The events of a stream as typed chunks, and the answer that they add up to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Event: TypeAlias = Mapping[str, Any]  #: an object of the OpenAI API, as JSON


@dataclass(frozen=True, slots=True)
class Logprob:
    """How likely a token was."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()  #: the most likely tokens there, with theirs


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A part of a call of a tool. Id and name come with its first."""

    index: int
    id: str
    name: str
    arguments: str


@dataclass(slots=True)
class ToolCall:
    """A tool that the model wants called."""

    id: str = ""
    name: str = ""
    arguments: str = ""  #: JSON, as the model wrote it


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """What one choice has more than before: text that became certain, tokens, or its end."""

    choice: int
    text: str = ""
    tokens: tuple[int, ...] = ()
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    logprobs: tuple[Logprob, ...] = ()
    finish_reason: str | None = None

    @property
    def empty(self) -> bool:
        """As the one that opens a stream."""
        return self == Chunk(choice=self.choice)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of a whole answer; the prompt counts once, however many choices there are."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int  #: of the prompt, those that nobody had to compute

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(slots=True)
class Choice:
    """One of the answers to the prompt."""

    index: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[Logprob] = field(default_factory=list)
    tool_calls: list[ToolCall] = field(default_factory=list)
    finish_reason: str | None = None  #: "stop", "length", ...; None while it goes on
    _text: list[str] = field(default_factory=list)
    _reasoning: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self._text)

    @property
    def reasoning(self) -> str:
        """What the model thought before it answered, where the gateway tells the two apart."""
        return "".join(self._reasoning)

    def add(self, chunk: Chunk) -> None:
        self._text.append(chunk.text)
        self._reasoning.append(chunk.reasoning)
        self.tokens.extend(chunk.tokens)
        self.logprobs.extend(chunk.logprobs)
        for delta in chunk.tool_calls:
            while len(self.tool_calls) <= delta.index:
                self.tool_calls.append(ToolCall())
            call = self.tool_calls[delta.index]
            call.id, call.name = call.id or delta.id, call.name or delta.name
            call.arguments += delta.arguments
        self.finish_reason = chunk.finish_reason or self.finish_reason


class Answer:
    """What came of a call so far; the whole of it once ``usage`` is there."""

    def __init__(self) -> None:
        self.request_id = ""  #: as the gateway that answered first names it
        self.model = ""
        self.seed: int | None = None  #: given with the same prompt, it gives the same draws
        self.resumed = 0  #: how often it went on at another gateway
        self.usage: Usage | None = None
        self._choices: dict[int, Choice] = {}
        self._prompt_tokens = self._cached_tokens = 0

    @property
    def choices(self) -> Sequence[Choice]:
        return [self._choices[index] for index in sorted(self._choices)]

    @property
    def text(self) -> str:
        """Of the first choice, as all that follow."""
        return self._first.text

    @property
    def tokens(self) -> list[int]:
        """Ids, one that ended the sequence included."""
        return self._first.tokens

    @property
    def finish_reason(self) -> str | None:
        return self._first.finish_reason

    @property
    def reasoning(self) -> str:
        return self._first.reasoning

    @property
    def tool_calls(self) -> list[ToolCall]:
        return self._first.tool_calls

    @property
    def logprobs(self) -> list[Logprob]:
        return self._first.logprobs

    @property
    def message(self) -> dict[str, str]:
        """For the messages of the next call. Tools that are to be called are not in it."""
        return {"role": "assistant", "content": self.text}

    def choice(self, index: int) -> Choice:
        return self._choices.setdefault(index, Choice(index))

    def add(self, event: Event) -> Iterator[Chunk]:
        """What an event has, chunk by chunk."""
        if told := event.get("baton"):
            self.request_id = self.request_id or told["request_id"]
            self.seed, self.model = told["seed"], event["model"]
            self._prompt_tokens = len(event.get("prompt_token_ids", ()))
        if usage := event.get("usage"):
            self._cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        for choice in event.get("choices", ()):
            chunk = _chunk(choice)
            if not chunk.empty:
                self.choice(chunk.choice).add(chunk)
                yield chunk

    def end(self) -> None:
        """All of it is here."""
        self.usage = Usage(
            prompt_tokens=self._prompt_tokens,
            completion_tokens=sum(len(choice.tokens) for choice in self._choices.values()),
            cached_tokens=self._cached_tokens,
        )

    @property
    def _first(self) -> Choice:
        return self._choices.get(0) or Choice(0)


class Progress:
    """What a stream and its answer have in common to the eye."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer

    @property
    def text(self) -> str:
        """So far, as all that follow; of the first choice."""
        return self.answer.text

    @property
    def tokens(self) -> list[int]:
        return self.answer.tokens

    @property
    def finish_reason(self) -> str | None:
        return self.answer.finish_reason

    @property
    def usage(self) -> Usage | None:
        """At the end."""
        return self.answer.usage


def _chunk(choice: Event) -> Chunk:
    delta: Event = choice.get("delta") or choice
    return Chunk(
        choice=choice["index"],
        text=delta.get("content") or delta.get("text") or "",
        tokens=tuple(choice.get("token_ids", ())),
        reasoning=delta.get("reasoning_content") or "",
        tool_calls=tuple(map(_tool_call, delta.get("tool_calls") or ())),
        logprobs=tuple(_logprobs(choice.get("logprobs") or {})),
        finish_reason=choice.get("finish_reason"),
    )


def _tool_call(delta: Event) -> ToolCallDelta:
    function: Event = delta.get("function") or {}
    return ToolCallDelta(
        index=delta["index"],
        id=delta.get("id") or "",
        name=function.get("name") or "",
        arguments=function.get("arguments") or "",
    )


def _logprobs(said: Event) -> Iterator[Logprob]:
    """Chats list objects, completions have a list for each field."""
    for token in said.get("content") or ():
        others = token.get("top_logprobs") or ()
        top = tuple((other["token"], other["logprob"]) for other in others)
        yield Logprob(token["token"], token["logprob"], top)
    tokens = said.get("tokens") or ()
    tops: Sequence[Mapping[str, float] | None] = said.get("top_logprobs") or [None] * len(tokens)
    for text, logprob, likely in zip(tokens, said.get("token_logprobs", ()), tops, strict=True):
        yield Logprob(text, logprob, tuple((likely or {}).items()))
