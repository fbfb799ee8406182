"""``python -m bench.peers.proxy PORT PREFILL DECODE``: what stands before a pair of vLLM servers.

As vLLM's manual has it for its NixlConnector: the prefill server is asked for one token, and says
where its KV lies; the decode server gets the request with that, and answers it. PREFILL and DECODE
are URLs.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

_PATH = "/v1/completions"
#: What the prefill server is told of the transfer; it fills in the rest.
_REMOTE = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}


class Proxy:
    """Keeps connections to both."""

    def __init__(self, prefill: str, decode: str) -> None:
        self._prefill = prefill
        self._decode = decode
        self._session: aiohttp.ClientSession | None = None

    def app(self) -> Starlette:
        routes = [Route(_PATH, self.complete, methods=["POST"]), Route("/health", _healthy)]
        return Starlette(routes=routes, lifespan=self.lifespan)

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=timeout, raise_for_status=True
        ) as self._session:
            yield

    async def complete(self, request: Request) -> Response:
        """Answers 502 where a server answers with an error."""
        assert self._session is not None, "it is served within its lifespan"
        asked = await request.json()
        first = {name: value for name, value in asked.items() if name != "stream_options"}
        first |= {"max_tokens": 1, "stream": False, "kv_transfer_params": _REMOTE}
        try:
            async with self._session.post(self._prefill + _PATH, json=first) as answer:
                said = await answer.json()
            asked["kv_transfer_params"] = said["kv_transfer_params"]
            decoding = await self._session.post(self._decode + _PATH, json=asked)
        except aiohttp.ClientError as error:
            return PlainTextResponse(str(error), status_code=502)
        return StreamingResponse(_pieces(decoding), media_type=decoding.content_type)


async def _pieces(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    async with answer:
        async for piece in answer.content.iter_any():
            yield piece


async def _healthy(request: Request) -> Response:
    return PlainTextResponse("ok")


def main(port: int, prefill: str, decode: str) -> None:
    app = Proxy(prefill, decode).app()
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:4])
