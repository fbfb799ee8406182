"""The objects of the OpenAI API: answers whole and in chunks, rendered once per request.

``baton`` in the first chunk (and in a whole answer) is what a client needs to resume elsewhere,
with the ids of the tokens that it has. An answer that is resumed has what comes behind them, but
for its usage, which counts all.
``token_ids`` and ``prompt_token_ids`` come with ``return_token_ids``.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from baton.errors import BatonError
from gateway.requests import ValidRequest
from gateway.tool_calls import CallDelta
from gateway.transcript import Finish, Piece

DONE = b"data: [DONE]\n\n"

_OBJECT = {"chat": "chat.completion", "completion": "text_completion"}
_CHUNK = {"chat": "chat.completion.chunk", "completion": "text_completion"}


def error_event(error: BatonError) -> bytes:
    """What ends a stream that had already begun when something went wrong."""
    return _event(error.to_openai())


class Usage:
    """Counts an answer's pieces, of all its choices, for the usage object.

    The prompt counts once, however many choices go on from it. Cached tokens are those of its
    tokens that no worker computed for this request, as the one that computed the prompt had their
    KV in its prefix cache; of several attempts, that which gave the first token counts.
    """

    def __init__(self, request: ValidRequest) -> None:
        self._prompt = len(request.prompt_ids)
        self._tokens = len(request.generated_ids)
        self._cached: int | None = None

    def count(self, piece: Piece) -> None:
        self._tokens += len(piece.token_ids)
        if self._cached is None:
            self._cached = piece.cached_tokens

    def rendered(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self._prompt,
            "completion_tokens": self._tokens,
            "total_tokens": self._prompt + self._tokens,
            "prompt_tokens_details": {"cached_tokens": min(self._prompt, self._cached or 0)},
        }


async def whole(request: ValidRequest, pieces: AsyncIterator[Piece]) -> dict[str, Any]:
    """The answer as one object, once the last piece is here."""
    usage = Usage(request)
    by_choice: dict[int, list[Piece]] = {choice: [] for choice in request.choices}
    workers = ""
    async for piece in pieces:
        usage.count(piece)
        workers = piece.workers
        by_choice[piece.choice].append(piece)
    return {
        **_head(request, _OBJECT[request.kind]),
        "choices": [_choice(request, index, of) for index, of in by_choice.items()],
        "usage": usage.rendered(),
        **_origin(request, workers),
    }


def _choice(request: ValidRequest, index: int, pieces: list[Piece]) -> dict[str, Any]:
    text = "".join(piece.text for piece in pieces)
    choice: dict[str, Any] = {
        "index": index,
        "finish_reason": pieces[-1].finish,
        "logprobs": None,
    }
    if request.kind == "chat":
        choice["message"] = _message(text, pieces)
    else:
        choice["text"] = text
    if request.return_token_ids:
        choice["token_ids"] = [token_id for piece in pieces for token_id in piece.token_ids]
    return choice


def _message(text: str, pieces: list[Piece]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    if reasoning := "".join(piece.reasoning for piece in pieces):
        message["reasoning_content"] = reasoning
    calls: list[dict[str, Any]] = []
    for delta in (delta for piece in pieces for delta in piece.calls):
        if delta.id:
            function = {"name": delta.name, "arguments": ""}
            calls.append({"id": delta.id, "type": "function", "function": function})
        calls[delta.index]["function"]["arguments"] += delta.arguments
    if calls:
        message["tool_calls"] = calls
        message["content"] = text or None
    return message


class Chunks:
    """Renders a stream's events. One per token goes by ``piece``: only text and ids are rendered
    then, the rest was once, here."""

    def __init__(self, request: ValidRequest) -> None:
        self._request = request
        self._chat = request.kind == "chat"
        #: OpenAI sends a null usage with every chunk but the last, when usage was asked for.
        null_usage = {"usage": None} if request.include_usage else {}
        self._head = {**_head(request, _CHUNK[request.kind]), **null_usage}
        opened = _compact(self._head)[:-1]
        self._before = {
            choice: f'data: {opened},"choices":[{{"index":{choice},"logprobs":null,'
            '"finish_reason":null,'
            for choice in request.choices
        }
        self._text = '"delta":{"content":' if self._chat else '"text":'
        self._after = "}}]}\n\n" if self._chat else "}]}\n\n"

    def first(self, workers: str) -> bytes:
        """Opens the stream: each choice's role, and what the client needs to resume elsewhere."""
        opening = {"delta": {"role": "assistant", "content": ""}} if self._chat else {"text": ""}
        events = b""
        origin = _origin(self._request, workers)
        for index in self._request.choices:
            choice = {"index": index, "logprobs": None, "finish_reason": None, **opening}
            events += _event({**self._head, "choices": [choice], **origin})
            origin = {}
        return events

    def piece(self, piece: Piece) -> bytes:
        """Text and, if asked for, ids; nothing when there is neither."""
        ids = ""
        if self._request.return_token_ids and piece.token_ids:
            ids = f'"token_ids":{piece.token_ids},'
        if piece.reasoning or piece.calls:
            delta = _compact(_delta(piece))
            return f'{self._before[piece.choice]}{ids}"delta":{delta}}}]}}\n\n'.encode()
        if not piece.text and not ids:
            return b""
        text = json.dumps(piece.text)
        return f"{self._before[piece.choice]}{ids}{self._text}{text}{self._after}".encode()

    def finish(self, index: int, finish: Finish) -> bytes:
        """Why a choice ended."""
        choice: dict[str, Any] = {"index": index, "logprobs": None, "finish_reason": finish}
        if self._chat:
            choice["delta"] = {}
        else:
            choice["text"] = ""
        return _event({**self._head, "choices": [choice]})

    def last(self, usage: Usage, extra: Mapping[str, object]) -> bytes:
        """Usage if asked for, with what else there is to say, and the mark of the end."""
        if self._request.include_usage:
            extra = {"usage": usage.rendered(), **extra}
        return (_event({**self._head, "choices": [], **extra}) if extra else b"") + DONE


def _delta(piece: Piece) -> dict[str, Any]:
    """What is more than text."""
    delta: dict[str, Any] = {}
    if piece.reasoning:
        delta["reasoning_content"] = piece.reasoning
    if piece.text:
        delta["content"] = piece.text
    if piece.calls:
        delta["tool_calls"] = [_call(call) for call in piece.calls]
    return delta


def _call(call: CallDelta) -> dict[str, Any]:
    if not call.id:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    function = {"name": call.name, "arguments": call.arguments}
    return {"index": call.index, "id": call.id, "type": "function", "function": function}


def _head(request: ValidRequest, kind: str) -> dict[str, Any]:
    return {
        "id": request.request_id,
        "object": kind,
        "created": request.created,
        "model": request.model,
    }


def _origin(request: ValidRequest, workers: str) -> dict[str, Any]:
    origin: dict[str, Any] = {
        "baton": {
            "request_id": request.request_id,
            "seed": request.sampling.seed,
            "prompt_digest": request.prompt_digest,
            "workers": workers,
        }
    }
    if request.return_token_ids:
        origin["prompt_token_ids"] = list(request.prompt_ids)
    return origin


def _compact(value: dict[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"))


def _event(value: dict[str, Any]) -> bytes:
    return f"data: {_compact(value)}\n\n".encode()
