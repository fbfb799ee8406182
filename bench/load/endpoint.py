"""``python -m bench.load.endpoint``: an OpenAI endpoint whose delays are known.

The first token comes ``FIRST`` seconds after the request for each token of the prompt, the others
``GAP`` after one another for each token that is asked for: both can be told from the request. What
is due is due at a time, not after the last token, so that delays of this process do not add up.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys

import uvloop
from aiohttp import web

FIRST = 0.001
GAP = 0.002


async def complete(request: web.Request) -> web.StreamResponse:
    """Of a prompt of ids."""
    loop = asyncio.get_running_loop()
    came = loop.time()
    asked = await request.json()
    prompt, tokens = len(asked["prompt"]), asked["max_tokens"]
    answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await answer.prepare(request)
    for number in range(tokens):
        due = came + FIRST * prompt + number * GAP * tokens
        await asyncio.sleep(due - loop.time())
        await _event(answer, {"choices": [{"index": 0, "text": " a"}]})
    usage = {"prompt_tokens": prompt, "completion_tokens": tokens}
    await _event(answer, {"choices": [], "usage": usage})
    await answer.write(b"data: [DONE]\n\n")
    return answer


async def _event(answer: web.StreamResponse, event: dict[str, object]) -> None:
    await answer.write(f"data: {json.dumps(event)}\n\n".encode())


async def serve() -> None:
    """Until its standard input ends; its first line of output is the port."""
    app = web.Application()
    app.router.add_post("/v1/completions", complete)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    listening = socket.create_server(("127.0.0.1", 0))
    try:
        await web.SockSite(runner, listening).start()
        print(listening.getsockname()[1], flush=True)
        await asyncio.to_thread(sys.stdin.read)
    finally:
        await runner.cleanup()


if __name__ == "__main__":
    uvloop.run(serve())
