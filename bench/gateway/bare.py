"""``python -m bench.gateway.bare``: a server that makes its tokens itself, and does nothing else.

What a gateway could at best be, written as one would with the same libraries: uvicorn, Starlette,
and sse-starlette's EventSourceResponse or Starlette's StreamingResponse.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import uvicorn
import uvloop
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from baton.parent import exit_with_parent
from bench.gateway import steps
from bench.gateway.steps import LETTERS, Clock

_HEAD = '{"id":"cmpl-0","object":"text_completion","created":0,"model":"letters",'
_BEFORE = _HEAD + '"choices":[{"index":0,"finish_reason":null,"logprobs":null,"text":"'
_AFTER = '"}]}'
_LAST = _HEAD + '"choices":[{"index":0,"finish_reason":"length","logprobs":null,"text":""}]}'


class Answering:
    """The sequences of one group."""

    def __init__(self) -> None:
        self._open: dict[asyncio.Queue[str], int] = {}  #: tokens to come of each

    def step(self, letter: str) -> Callable[[], None]:
        """See Group."""

        def send() -> None:
            for queue, left in list(self._open.items()):
                queue.put_nowait(letter)
                if left > 1:
                    self._open[queue] = left - 1
                else:
                    del self._open[queue]

        return send

    async def tokens(self, count: int) -> AsyncIterator[str]:
        """The first at once."""
        queue = asyncio.Queue[str]()
        if count > 1:
            self._open[queue] = count - 1
        try:
            yield LETTERS[0]
            for _ in range(count - 1):
                yield await queue.get()
        finally:
            self._open.pop(queue, None)


async def _events(tokens: AsyncIterator[str]) -> AsyncIterator[ServerSentEvent]:
    async for text in tokens:
        yield ServerSentEvent(f"{_BEFORE}{text}{_AFTER}", sep="\n")
    for data in (_LAST, "[DONE]"):
        yield ServerSentEvent(data, sep="\n")


async def _lines(tokens: AsyncIterator[str]) -> AsyncIterator[bytes]:
    async for text in tokens:
        yield f"data: {_BEFORE}{text}{_AFTER}\n\n".encode()
    yield f"data: {_LAST}\n\ndata: [DONE]\n\n".encode()


#: How an answer is streamed, by name.
WAYS: Mapping[str, Callable[[AsyncIterator[str]], Response]] = {
    "sse-starlette": lambda tokens: EventSourceResponse(_events(tokens), sep="\n"),
    "StreamingResponse": lambda tokens: StreamingResponse(
        _lines(tokens), media_type="text/event-stream"
    ),
}


def application(way: str, group: Answering, model: str) -> Starlette:
    """Enough of the OpenAI API for clients, and for routers that look before they forward."""

    async def complete(http: Request) -> Response:
        asked = await http.json()
        tokens = group.tokens(asked["max_tokens"])
        if asked.get("stream"):
            return WAYS[way](tokens)
        text = "".join([letter async for letter in tokens])
        choice = {"index": 0, "finish_reason": "length", "logprobs": None, "text": text}
        head = {"id": "cmpl-0", "object": "text_completion", "created": 0, "model": model}
        return JSONResponse({**head, "choices": [choice]})

    async def models(_: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": model, "object": "model"}]})

    async def well(_: Request) -> Response:
        return JSONResponse({"model_path": model, "is_generation": True})

    looks = ("/health", "/health_generate", "/get_model_info", "/model_info", "/server_info")
    return Starlette(
        routes=[
            Route("/v1/completions", complete, methods=["POST"]),
            Route("/v1/models", models),
            *(Route(path, well) for path in looks),
        ]
    )


async def serve(way: str, model: str, clock: Clock) -> None:
    """Say where it listens, and answer until the process ends."""
    group = Answering()
    listening = socket.create_server(("127.0.0.1", 0), backlog=2048)
    config = uvicorn.Config(application(way, group, model), log_config=None, access_log=False)
    print("ready", f"127.0.0.1:{listening.getsockname()[1]}", flush=True)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(steps.run(clock, [group]))
        tasks.create_task(uvicorn.Server(config).serve([listening]))


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.gateway.bare")
    parser.add_argument("--way", required=True, choices=WAYS)
    parser.add_argument("--model", required=True, help="the name under which it is served")
    parser.add_argument("--clock", required=True, type=Path, help="file of times: see steps.py")
    asked = parser.parse_args()
    exit_with_parent()
    uvloop.run(serve(asked.way, asked.model, Clock(asked.clock)))


if __name__ == "__main__":
    main()
