"""Answers to POST /v1/responses, whole and as the events of a stream."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from baton.errors import BatonError
from gateway.logprobs import Logprobs
from gateway.openai_api import Usage, origin_of
from gateway.requests import ValidRequest
from gateway.responses.bodies import NamedBody, ResponseBody, ResponseUsage, TextBody, ToolBody
from gateway.responses.items import Event
from gateway.responses.output import ResponseOutput
from gateway.responses.schemas import (
    FunctionTool,
    NamedFunction,
    ResponsesRequest,
    SchemaFormat,
)
from gateway.tool_schemas import JsonObjectFormat
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
        response = self._response(requests)
        usage = Usage(requests)
        async for piece in pieces:
            usage.count(piece)
            response.take(piece)
            if piece.finish is not None:
                response.end(piece.finish)
        return response.body(usage)

    def chunks(self, requests: Sequence[ValidRequest]) -> ResponseEvents:
        return ResponseEvents(self._response(requests), Usage(requests))

    def _response(self, requests: Sequence[ValidRequest]) -> Response:
        [request] = requests
        return Response(request, self.wire, self.logprobs)


class Response:
    """One response as it grows."""

    def __init__(self, request: ValidRequest, wire: ResponsesRequest, logprobs: Logprobs) -> None:
        self._request = request
        self._wire = wire
        self._output = ResponseOutput(request.request_id.removeprefix("resp_"), logprobs)
        self._workers = ""
        self._finish: Finish | None = None

    def take(self, piece: Piece) -> list[Event]:
        """What a piece adds."""
        self._workers = piece.workers
        return self._output.take(piece)

    def end(self, finish: Finish) -> list[Event]:
        """No other piece comes."""
        self._finish = finish
        return self._output.end(finish)

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
            "output": [] if usage is None else self._output.items,
            "parallel_tool_calls": wire.parallel_tool_calls is not False,
            "previous_response_id": None,
            "service_tier": "default",
            "store": False,
            "temperature": request.sampling.temperature,
            "text": _text(wire),
            "tool_choice": _choice(wire),
            "tools": [_tool(tool) for tool in wire.tools.root] if wire.tools is not None else [],
            "top_logprobs": wire.top_logprobs or 0,
            "top_p": request.sampling.top_p,
            "truncation": "disabled",
            "usage": None if usage is None else _usage(usage, self._output.reasoning_tokens),
            "user": wire.user,
            "baton": origin_of(request, self._workers),
        }


class ResponseEvents:
    """Renders a stream's events, numbered from 0; each tells where in the response it belongs."""

    def __init__(self, response: Response, usage: Usage) -> None:
        self._response = response
        self._usage = usage
        self._sequence = 0

    def piece(self, piece: Piece) -> bytes:
        """What it adds; the first opens the response."""
        self._usage.count(piece)
        added = self._response.take(piece)
        opening = b"" if self._sequence else self._open()
        return opening + self._rendered(added)

    def finish(self, index: int, finish: Finish) -> bytes:
        """What is not done yet is done; ``index`` is that of the one choice."""
        return self._rendered(self._response.end(finish))

    def last(self, extra: Mapping[str, object]) -> bytes:
        """The response as a whole."""
        body = self._response.body(self._usage)
        return self._event(f"response.{body['status']}", {"response": {**body, **extra}})

    def error(self, error: BatonError) -> bytes:
        """What ends a stream that had already begun when something went wrong."""
        told = {"code": error.code, "message": error.message, "param": error.param}
        return self._event("error", told)

    def _open(self) -> bytes:
        begun = {"response": self._response.body(None)}
        created = self._event("response.created", begun)
        return created + self._event("response.in_progress", begun)

    def _rendered(self, events: Iterable[Event]) -> bytes:
        return b"".join(self._event(*event) for event in events)

    def _event(self, kind: str, data: Mapping[str, object]) -> bytes:
        numbered = {"type": kind, **data, "sequence_number": self._sequence}
        self._sequence += 1
        return f"event: {kind}\ndata: {json.dumps(numbered, separators=(',', ':'))}\n\n".encode()


def _text(wire: ResponsesRequest) -> TextBody:
    match wire.text.format if wire.text is not None else None:
        case SchemaFormat() as wanted:
            told: TextBody = {
                "format": {
                    "type": "json_schema",
                    "name": wanted.name,
                    "schema": {**wanted.definition},
                    "description": wanted.description,
                    "strict": wanted.strict,
                }
            }
            return told
        case JsonObjectFormat():
            return {"format": {"type": "json_object"}}
    return {"format": {"type": "text"}}


def _choice(wire: ResponsesRequest) -> Literal["none", "auto", "required"] | NamedBody:
    if isinstance(wire.tool_choice, NamedFunction):
        return {"type": "function", "name": wire.tool_choice.name}
    return wire.tool_choice or "auto"


def _tool(tool: FunctionTool) -> ToolBody:
    return {
        "type": "function",
        "name": tool.name,
        "description": tool.description,
        "parameters": None if tool.parameters is None else {**tool.parameters},
        "strict": tool.strict,
    }


def _usage(usage: Usage, reasoning: int) -> ResponseUsage:
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": usage.prompt + usage.completion,
    }
