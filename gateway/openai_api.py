"""The objects of the OpenAI API: answers whole and in chunks, rendered once per request.

``baton`` in the first chunk (and in a whole answer) is what a client needs to resume elsewhere.
``token_ids`` and ``prompt_token_ids`` come with ``return_token_ids``.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from baton.errors import BatonError
from baton.generation import Timings
from gateway.requests import ValidRequest
from gateway.transcript import Finish, Piece

DONE = b"data: [DONE]\n\n"

_OBJECT = {"chat": "chat.completion", "completion": "text_completion"}
_CHUNK = {"chat": "chat.completion.chunk", "completion": "text_completion"}


def error_event(error: BatonError) -> bytes:
    """What ends a stream that had already begun when something went wrong."""
    return _event(error.to_openai())


def usage(request: ValidRequest, completion_tokens: int, timings: Timings | None) -> dict[str, Any]:
    """The usage object. Cached tokens are those that no worker had to compute."""
    prompt = len(request.prompt_ids)
    cached = 0
    if timings is not None:
        cached = min(prompt, max(timings.prefill_cached_tokens, timings.decode_cached_tokens))
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


async def whole(request: ValidRequest, pieces: AsyncIterator[Piece]) -> dict[str, Any]:
    """The answer as one object, once the last piece is here."""
    texts: list[str] = []
    ids: list[int] = []
    finish: Finish | None = None
    timings: Timings | None = None
    async for piece in pieces:
        texts.append(piece.text)
        ids += piece.token_ids
        finish, timings = piece.finish, piece.timings
    text = "".join(texts)
    choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "logprobs": None}
    if request.kind == "chat":
        choice["message"] = {"role": "assistant", "content": text, "refusal": None}
    else:
        choice["text"] = text
    if request.return_token_ids:
        choice["token_ids"] = ids
    return {
        **_head(request, _OBJECT[request.kind]),
        "choices": [choice],
        "usage": usage(request, len(ids), timings),
        **_origin(request),
    }


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
        self._before = (
            f'data: {opened},"choices":[{{"index":0,"logprobs":null,"finish_reason":null,'
        )
        self._text = '"delta":{"content":' if self._chat else '"text":'
        self._after = "}}]}\n\n" if self._chat else "}]}\n\n"

    def first(self) -> bytes:
        """Opens the stream: the role, and what the client needs to resume elsewhere."""
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": None}
        if self._chat:
            choice["delta"] = {"role": "assistant", "content": ""}
        else:
            choice["text"] = ""
        return _event({**self._head, "choices": [choice], **_origin(self._request)})

    def piece(self, piece: Piece) -> bytes:
        """Text and, if asked for, ids; nothing when there is neither."""
        ids = ""
        if self._request.return_token_ids and piece.token_ids:
            ids = f'"token_ids":{piece.token_ids},'
        if not piece.text and not ids:
            return b""
        text = json.dumps(piece.text)
        return f"{self._before}{ids}{self._text}{text}{self._after}".encode()

    def last(self, finish: Finish, completion_tokens: int, timings: Timings | None) -> bytes:
        """Why it ended, usage if asked for, and the mark of the end."""
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": finish}
        if self._chat:
            choice["delta"] = {}
        else:
            choice["text"] = ""
        ending = _event({**self._head, "choices": [choice]})
        if self._request.include_usage:
            counts = usage(self._request, completion_tokens, timings)
            ending += _event({**self._head, "choices": [], "usage": counts})
        return ending + DONE


def _head(request: ValidRequest, kind: str) -> dict[str, Any]:
    return {
        "id": request.request_id,
        "object": kind,
        "created": request.created,
        "model": request.model,
    }


def _origin(request: ValidRequest) -> dict[str, Any]:
    origin: dict[str, Any] = {
        "baton": {
            "request_id": request.request_id,
            "seed": request.sampling.seed,
            "prompt_digest": request.prompt_digest,
        }
    }
    if request.return_token_ids:
        origin["prompt_token_ids"] = list(request.prompt_ids)
    return origin


def _compact(value: dict[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"))


def _event(value: dict[str, Any]) -> bytes:
    return f"data: {_compact(value)}\n\n".encode()
