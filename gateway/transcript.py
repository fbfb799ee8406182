"""The text of one answer: every token seen once, in order, never reset between attempts."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from baton.generation import FinishReason, TokenLogprobs
from gateway.detokenizer import Detokenizer
from gateway.orchestrator import Delta, Deltas
from gateway.reply import Reader
from gateway.requests import ValidRequest
from gateway.resume import finished
from gateway.stopper import Stopper
from gateway.tool_calls import CallDelta

Finish = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True)
class Scored:
    """A token of the answer, and how likely it was."""

    token_id: int
    offset: int  #: characters of the answer's text that were certain before it
    logprobs: TokenLogprobs


@dataclass(slots=True)  # not frozen: there is one per token
class Piece:
    """Text of a choice that became certain, and the tokens seen since its last piece.

    The last piece has ``finish``. The token lists of all pieces are the tokens of the answer; a
    token's text may come with a later piece, or not at all behind a stop string.
    """

    text: str
    token_ids: list[int]
    finish: Finish | None = None
    cached_tokens: int | None = None  #: see Course.cached_tokens
    choice: int = 0
    workers: str = ""  #: see Delta.workers
    reasoning: str = ""  #: what the model thinks, which is no text of the answer
    calls: tuple[CallDelta, ...] = ()  #: pieces of tool calls
    #: Of its tokens, but for an end of sequence that is not shown; where they are asked for.
    scored: list[Scored] = field(default_factory=list)
    #: Of the prompt's tokens but for the first; in a request's first piece, where it has them.
    echo: list[Scored] | None = None


class Transcript:
    """Detokenises, and ends at a stop string."""

    def __init__(self, request: ValidRequest, detokenizer: Detokenizer, choice: int = 0) -> None:
        """Of an answer that another gateway began it takes in what the client has. Raises
        AnswerFinished when a stop string is in that. O(tokens): off the event loop when many."""
        spec = request.sampling
        self._choice = choice
        self._silent = frozenset() if spec.ignore_eos else frozenset(spec.eos_ids)
        self._detokenizer = detokenizer
        self._stopper = Stopper(request.stop)
        self._tags = request.reply.tags
        self._reader = None
        if not request.reply.plain:
            self._reader = Reader(request.reply, partial(request.call_id, choice))
        self._characters = 0
        for count, token_id in enumerate(request.generated_ids, start=1):
            text = self._push(token_id)
            if self._reader is not None:
                self._reader.push(text)
            if self._stopper.stopped:
                raise finished(FinishReason.STOP, f"a stop string is complete with token {count}")

    def add(self, delta: Delta) -> Piece:
        """The piece that the delta gives. Tokens behind a completed stop string are dropped."""
        text = ""
        scored = list[Scored]()
        for count, token_id in enumerate(delta.token_ids, start=1):
            if delta.logprobs and token_id not in self._silent:
                scored.append(Scored(token_id, self._characters, delta.logprobs[count - 1]))
            text += self._push(token_id)
            if self._stopper.stopped:
                return self._piece(text, delta.token_ids[:count], "stop", delta, scored)
        if delta.finish is None:
            return self._piece(text, delta.token_ids, None, delta, scored)
        text += self._stopper.push(self._detokenizer.flush()) + self._stopper.flush()
        finish: Finish = "length"
        if self._stopper.stopped or delta.finish is FinishReason.STOP:
            finish = "stop"
        return self._piece(text, delta.token_ids, finish, delta, scored)

    def _push(self, token_id: int) -> str:
        if token_id in self._silent:
            return ""
        if self._reader is not None and token_id in self._tags:
            text = self._detokenizer.flush() + self._tags[token_id]
        else:
            text = self._detokenizer.push(token_id)
        self._characters += len(text)
        return self._stopper.push(text)

    def _piece(
        self,
        text: str,
        token_ids: list[int],
        finish: Finish | None,
        of: Delta,
        scored: list[Scored],
    ) -> Piece:
        piece = Piece(text, token_ids, finish, of.cached_tokens, self._choice, of.workers)
        piece.scored = scored
        if self._reader is not None:
            parts = self._reader.push(text, last=finish is not None)
            piece.text, piece.reasoning, piece.calls = parts.text, parts.reasoning, parts.calls
            if finish == "stop" and self._reader.calls:
                piece.finish = "tool_calls"
        return piece


async def transcribe(deltas: Deltas, transcript: Transcript) -> AsyncGenerator[Piece, None]:
    """Pieces to the first that finishes; by then ``deltas`` is closed, which cancels what runs."""
    async with aclosing(deltas) as source:
        async for delta in source:
            piece = transcript.add(delta)
            if piece.finish is not None:
                await source.aclose()
            yield piece
            if piece.finish is not None:
                return
