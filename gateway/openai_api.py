"""The objects of the OpenAI API: answers whole and in chunks, rendered once per request.

``baton`` in the first chunk (and in a whole answer) is what a client needs to resume elsewhere,
with the ids of the tokens that it has. An answer that is resumed has what comes behind them, but
for its usage, which counts all. Of several prompts each tells its own, with its first chunk.
``token_ids`` and ``prompt_token_ids`` come with ``return_token_ids``.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from baton.errors import BatonError
from gateway.answers import (
    ChatChoice,
    ChatCompletion,
    ChatLogprobs,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    Origin,
    OriginBody,
    UsageBody,
)
from gateway.chat_message import delta, message
from gateway.logprobs import Logprobs
from gateway.requests import ValidRequest
from gateway.transcript import Finish, Piece, Scored

DONE = b"data: [DONE]\n\n"
#: Of ``json.dumps``, which would make an encoder each time.
_compact = json.JSONEncoder(separators=(",", ":")).encode

_CHUNK = {"chat": "chat.completion.chunk", "completion": "text_completion"}


class Usage:
    """Counts an answer's pieces, of all its choices.

    A prompt counts once, however many choices go on from it. Cached tokens are those of its
    tokens that no worker computed for this request, as the one that computed the prompt had their
    KV in its prefix cache; of several attempts, that which gave the first token counts.
    """

    def __init__(self, requests: Sequence[ValidRequest]) -> None:
        self._of = {choice: request for request in requests for choice in request.choices}
        self.prompt = sum(len(request.prompt_ids) for request in requests)  #: tokens
        self.completion = sum(len(request.generated_ids) for request in requests)
        self._cached: dict[int, int] = {}  # of each prompt, by its first choice
        self._prompts = len(requests)

    def count(self, piece: Piece) -> None:
        self.completion += len(piece.token_ids)
        if piece.cached_tokens is not None and len(self._cached) < self._prompts:
            request = self._of[piece.choice]
            cached = min(len(request.prompt_ids), piece.cached_tokens)
            self._cached.setdefault(request.choices[0], cached)

    @property
    def cached(self) -> int:
        """Of the prompts' tokens."""
        return sum(self._cached.values())

    def rendered(self) -> UsageBody:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }


@dataclass(frozen=True, slots=True)
class OpenAiAnswers:
    """How answers to /v1/chat/completions and /v1/completions look."""

    logprobs: Logprobs

    async def whole(
        self, requests: Sequence[ValidRequest], pieces: AsyncIterator[Piece]
    ) -> ChatCompletion | Completion:
        """The answer as one object, once the last piece is here."""
        usage = Usage(requests)
        by_choice: dict[int, list[Piece]] = {c: [] for r in requests for c in r.choices}
        async for piece in pieces:
            usage.count(piece)
            by_choice[piece.choice].append(piece)
        origins = [_origin(r, by_choice[r.choices[0]][-1].workers) for r in requests]
        if requests[0].kind == "chat":
            [request] = requests
            return self._chat(request, by_choice, usage, origins[0])
        return self._completion(requests, by_choice, usage, origins)

    def _chat(
        self,
        request: ValidRequest,
        by_choice: Mapping[int, list[Piece]],
        usage: Usage,
        origin: Origin,
    ) -> ChatCompletion:
        body: ChatCompletion = {
            "id": request.request_id,
            "object": "chat.completion",
            "created": request.created,
            "model": request.model,
            "choices": [self._chat_choice(request, i, by_choice[i]) for i in request.choices],
            "usage": usage.rendered(),
            "baton": origin["baton"],
        }
        if "prompt_token_ids" in origin:
            body["prompt_token_ids"] = origin["prompt_token_ids"]
        return body

    def _completion(
        self,
        requests: Sequence[ValidRequest],
        by_choice: Mapping[int, list[Piece]],
        usage: Usage,
        origins: list[Origin],
    ) -> Completion:
        body: Completion = {
            "id": requests[0].request_id,
            "object": "text_completion",
            "created": requests[0].created,
            "model": requests[0].model,
            "choices": [
                self._text_choice(r, i, by_choice[i], by_choice[r.choices[0]][0].echo)
                for r in requests
                for i in r.choices
            ],
            "usage": usage.rendered(),
            "baton": origins[0]["baton"],
        }
        if "prompt_token_ids" in origins[0]:
            body["prompt_token_ids"] = origins[0]["prompt_token_ids"]
        if len(origins) > 1:
            body["prompts"] = origins
        return body

    def chunks(self, requests: Sequence[ValidRequest]) -> Chunks:
        return Chunks(requests, self.logprobs)

    def _chat_choice(self, request: ValidRequest, index: int, pieces: list[Piece]) -> ChatChoice:
        asked, scored = request.sampling.logprobs is not None, _scored(pieces)
        choice: ChatChoice = {
            "index": index,
            "finish_reason": _finish(pieces),
            "logprobs": _chat_logprobs(self.logprobs, scored) if asked else None,
            "message": message(pieces),
        }
        if request.return_token_ids:
            choice["token_ids"] = _token_ids(pieces)
        return choice

    def _text_choice(
        self,
        request: ValidRequest,
        index: int,
        pieces: list[Piece],
        echo: list[Scored] | None,
    ) -> CompletionChoice:
        text = "".join(piece.text for piece in pieces)
        asked, scored = request.sampling.logprobs is not None, _scored(pieces)
        finish, before = _finish(pieces), len(request.echo)
        assert finish != "tool_calls", "a text completion has no tools"
        choice: CompletionChoice = {
            "index": index,
            "finish_reason": finish,
            "logprobs": self.logprobs.completion(scored, before) if asked else None,
            "text": request.echo + text,
        }
        if echo is not None and choice["logprobs"] is not None:
            prompt = self.logprobs.echo(request.prompt_ids[0], echo)
            choice["logprobs"] = _joined(prompt, choice["logprobs"])
        if request.return_token_ids:
            choice["token_ids"] = _token_ids(pieces)
        return choice


class Chunks:
    """Renders a stream's events. One per token goes by ``piece``: only text and ids are rendered
    then, the rest was once, here."""

    def __init__(self, requests: Sequence[ValidRequest], logprobs: Logprobs) -> None:
        first = requests[0]
        self._of: Mapping[int, ValidRequest] = {c: r for r in requests for c in r.choices}
        self._unopened = {request.choices[0] for request in requests}
        self._logprobs = logprobs
        self._usage = Usage(requests)
        self._chat = first.kind == "chat"
        self._include_usage = first.include_usage
        self._continuous = first.continuous_usage
        self._return_token_ids = first.return_token_ids
        #: OpenAI sends a null usage with every chunk but the last, when usage was asked for.
        alone = first.include_usage and not first.continuous_usage
        self._head = {**_head(first, _CHUNK[first.kind]), **({"usage": None} if alone else {})}
        opened = _compact(self._head)[:-1]
        self._before = {
            choice: f'data: {opened},"choices":[{{"index":{choice},"finish_reason":null,'
            for choice in self._of
        }
        self._text = '"delta":{"content":' if self._chat else '"text":'
        self._after = "}}]" if self._chat else "}]"

    def piece(self, piece: Piece) -> bytes:
        """Text and, if asked for, ids and log probabilities; nothing when there is neither. A
        prompt's first opens its choices."""
        request = self._of[piece.choice]
        opening = b""
        if self._unopened and request.choices[0] in self._unopened:
            self._unopened.remove(request.choices[0])
            opening = self._open(request, piece)
        self._usage.count(piece)
        ids = ""
        if self._return_token_ids and piece.token_ids:
            ids = f'"token_ids":{piece.token_ids},'
        more = piece.reasoning or piece.calls
        if not (piece.text or more or ids or piece.scored):
            return opening
        told = "null"
        if piece.scored:
            told = _compact(self._told(request, piece.scored))
        before = f'{self._before[piece.choice]}"logprobs":{told},{ids}'
        end = f",{_compact(self._so_far())[1:]}\n\n" if self._continuous else "}\n\n"
        if more:
            return opening + f'{before}"delta":{_compact(delta(piece))}}}]{end}'.encode()
        return opening + f"{before}{self._text}{_compact(piece.text)}{self._after}{end}".encode()

    def finish(self, index: int, finish: Finish) -> bytes:
        """Why a choice ended."""
        choice: dict[str, Any] = {"index": index, "logprobs": None, "finish_reason": finish}
        if self._chat:
            choice["delta"] = {}
        else:
            choice["text"] = ""
        return _event({**self._head, "choices": [choice], **self._so_far()})

    def last(self, extra: Mapping[str, object]) -> bytes:
        """Usage if asked for, with what else there is to say, and the mark of the end."""
        if self._include_usage:
            extra = {"usage": self._usage.rendered(), **extra}
        return (_event({**self._head, "choices": [], **extra}) if extra else b"") + DONE

    def error(self, error: BatonError) -> bytes:
        """What ends a stream that had already begun when something went wrong."""
        return _event(error.to_openai())

    def _told(
        self, request: ValidRequest, scored: Sequence[Scored]
    ) -> ChatLogprobs | CompletionLogprobs:
        if self._chat:
            return _chat_logprobs(self._logprobs, scored)
        return self._logprobs.completion(scored, len(request.echo))

    def _open(self, request: ValidRequest, first: Piece) -> bytes:
        """Each choice's role or echo, and what the client needs to resume elsewhere."""
        events, logprobs = b"", None
        if first.echo is not None:
            logprobs = self._logprobs.echo(request.prompt_ids[0], first.echo)
        origin: Mapping[str, object] = _origin(request, first.workers)
        for index in request.choices:
            opening: dict[str, Any] = {"text": request.echo}
            if self._chat:
                opening = {"delta": {"role": "assistant", "content": ""}}
            choice = {"index": index, "logprobs": logprobs, "finish_reason": None, **opening}
            events += _event({**self._head, "choices": [choice], **origin, **self._so_far()})
            origin = {}
        return events

    def _so_far(self) -> dict[str, object]:
        """Usage, where every chunk is to tell it."""
        return {"usage": self._usage.rendered()} if self._continuous else {}


def _finish(pieces: Sequence[Piece]) -> Finish:
    finish = pieces[-1].finish
    assert finish is not None, "the last piece has it"
    return finish


def _scored(pieces: Sequence[Piece]) -> list[Scored]:
    return [one for piece in pieces for one in piece.scored]


def _token_ids(pieces: Sequence[Piece]) -> list[int]:
    return [token_id for piece in pieces for token_id in piece.token_ids]


def _joined(one: CompletionLogprobs, other: CompletionLogprobs) -> CompletionLogprobs:
    return {
        "tokens": one["tokens"] + other["tokens"],
        "token_logprobs": one["token_logprobs"] + other["token_logprobs"],
        "top_logprobs": one["top_logprobs"] + other["top_logprobs"],
        "text_offset": one["text_offset"] + other["text_offset"],
    }


def _chat_logprobs(logprobs: Logprobs, scored: Sequence[Scored]) -> ChatLogprobs:
    return {"content": logprobs.chat(scored), "refusal": None}


def _head(request: ValidRequest, kind: str) -> dict[str, Any]:
    return {
        "id": request.request_id,
        "object": kind,
        "created": request.created,
        "model": request.model,
    }


def origin_of(request: ValidRequest, workers: str) -> OriginBody:
    """What it takes to go on elsewhere."""
    return {
        "request_id": request.request_id,
        "seed": request.sampling.seed,
        "prompt_digest": request.prompt_digest,
        "workers": workers,
    }


def _origin(request: ValidRequest, workers: str) -> Origin:
    origin: Origin = {"baton": origin_of(request, workers)}
    if request.return_token_ids:
        origin["prompt_token_ids"] = list(request.prompt_ids)
    return origin


def _event(value: Mapping[str, Any]) -> bytes:
    return f"data: {_compact(value)}\n\n".encode()
