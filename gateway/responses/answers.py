"""Answers to POST /v1/responses, whole and as the events of a stream."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from baton.errors import BatonError
from gateway.answers import OutputMessage, OutputText, ResponseBody, ResponseUsage, TokenLogprob
from gateway.logprobs import Logprobs
from gateway.openai_api import Usage, origin_of
from gateway.requests import ValidRequest
from gateway.responses.schemas import ResponsesRequest
from gateway.transcript import Finish, Piece


@dataclass(frozen=True, slots=True)
class ResponseAnswers:
    """How the answer to one request looks: much of it is what was asked."""

    wire: ResponsesRequest
    logprobs: Logprobs

    async def whole(
        self, requests: Sequence[ValidRequest], pieces: AsyncIterator[Piece]
    ) -> ResponseBody:
        """The answer as one object, once the last piece is here."""
        events = self.chunks(requests)
        usage = Usage(requests)
        async for piece in pieces:
            usage.count(piece)
            events.take(piece)
        return events.body(usage)

    def chunks(self, requests: Sequence[ValidRequest]) -> ResponseEvents:
        [request] = requests
        return ResponseEvents(request, self)


class ResponseEvents:
    """Renders a stream's events, numbered from 0; each tells where in the response it belongs."""

    def __init__(self, request: ValidRequest, answers: ResponseAnswers) -> None:
        self._request = request
        self._wire = answers.wire
        self._logprobs = answers.logprobs
        self._item_id = "msg_" + request.request_id.removeprefix("resp_")
        self._place = {"item_id": self._item_id, "output_index": 0, "content_index": 0}
        self._sequence = 0
        self._text = ""
        self._told: list[TokenLogprob] = []
        self._workers = ""
        self._finish: Finish | None = None

    def take(self, piece: Piece) -> list[TokenLogprob]:
        """Count the piece in; the log probabilities that it brought."""
        told = self._logprobs.chat(piece.scored)
        self._text += piece.text
        self._told += told
        self._workers = piece.workers
        self._finish = piece.finish
        return told

    def piece(self, piece: Piece) -> bytes:
        """Text and log probabilities; the first opens the response."""
        opening = b"" if self._sequence else self._open(piece.workers)
        told = self.take(piece)
        if not piece.text and not told:
            return opening
        delta = {**self._place, "delta": piece.text, "logprobs": told}
        return opening + self._event("response.output_text.delta", delta)

    def finish(self, index: int, finish: Finish) -> bytes:
        """The text, its part and its message are done; ``index`` is that of the one choice."""
        text = {**self._place, "text": self._text, "logprobs": self._told}
        item = {"output_index": 0, "item": self._message()}
        return (
            self._event("response.output_text.done", text)
            + self._event("response.content_part.done", {**self._place, "part": self._part()})
            + self._event("response.output_item.done", item)
        )

    def last(self, usage: Usage, extra: Mapping[str, object]) -> bytes:
        """The response as a whole."""
        body = self.body(usage)
        return self._event(f"response.{body['status']}", {"response": {**body, **extra}})

    def error(self, error: BatonError) -> bytes:
        """What ends a stream that had already begun when something went wrong."""
        told = {"code": error.code, "message": error.message, "param": error.param}
        return self._event("error", told)

    def body(self, usage: Usage | None) -> ResponseBody:
        """The response as it stands; with ``usage`` it has ended."""
        request, wire = self._request, self._wire
        cut = self._finish == "length"
        ended: Literal["incomplete", "completed"] = "incomplete" if cut else "completed"
        return {
            "id": request.request_id,
            "object": "response",
            "created_at": request.created,
            "completed_at": None if usage is None or cut else int(time.time()),
            "status": "in_progress" if usage is None else ended,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if usage and cut else None,
            "instructions": wire.instructions,
            "max_output_tokens": wire.max_output_tokens,
            "metadata": wire.metadata or {},
            "model": request.model,
            "output": [] if usage is None else [self._message()],
            "parallel_tool_calls": wire.parallel_tool_calls is not False,
            "previous_response_id": None,
            "service_tier": "default",
            "store": False,
            "temperature": request.sampling.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": wire.tool_choice or "auto",
            "tools": [],
            "top_logprobs": wire.top_logprobs or 0,
            "top_p": request.sampling.top_p,
            "truncation": "disabled",
            "usage": None if usage is None else _usage(usage),
            "user": wire.user,
            "baton": origin_of(request, self._workers),
        }

    def _open(self, workers: str) -> bytes:
        self._workers = workers
        begun = {"response": self.body(None)}
        item: OutputMessage = {
            "id": self._item_id,
            "type": "message",
            "role": "assistant",
            "status": "in_progress",
            "content": [],
        }
        part: OutputText = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        return (
            self._event("response.created", begun)
            + self._event("response.in_progress", begun)
            + self._event("response.output_item.added", {"output_index": 0, "item": item})
            + self._event("response.content_part.added", {**self._place, "part": part})
        )

    def _message(self) -> OutputMessage:
        return {
            "id": self._item_id,
            "type": "message",
            "role": "assistant",
            "status": "incomplete" if self._finish == "length" else "completed",
            "content": [self._part()],
        }

    def _part(self) -> OutputText:
        return {
            "type": "output_text",
            "text": self._text,
            "annotations": [],
            "logprobs": self._told,
        }

    def _event(self, kind: str, data: Mapping[str, Any]) -> bytes:
        numbered = {"type": kind, **data, "sequence_number": self._sequence}
        self._sequence += 1
        return f"event: {kind}\ndata: {json.dumps(numbered, separators=(',', ':'))}\n\n".encode()


def _usage(usage: Usage) -> ResponseUsage:
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt + usage.completion,
    }
