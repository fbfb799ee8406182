"""The client for asyncio: calls, errors and options are those of ``sync``."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterable
from contextlib import aclosing
from typing import Literal, Self, Unpack, overload

import httpx
from httpx_sse import EventSource, ServerSentEvent

from baton.client import asked, http
from baton.client.answer import Answer, Chunk, Progress
from baton.client.asked import Asked, ChatOptions, GenerateOptions, Messages, Prompt
from baton.client.cluster import AsyncCluster, Cluster, Tls
from baton.client.course import Attempt, Course
from baton.client.gateways import PATIENCE, Gateways, Tries
from baton.errors import BatonError, GatewayLost


class AsyncStream(Progress, AsyncIterator[Chunk]):
    """As ``Stream``, for ``async for`` and ``async with``."""

    def __init__(self, chunks: AsyncGenerator[Chunk, None], answer: Answer) -> None:
        super().__init__(answer)
        self._chunks = chunks

    async def __anext__(self) -> Chunk:
        return await anext(self._chunks)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End it here. Idempotent."""
        await self._chunks.aclose()


class AsyncClient:
    """``Client`` for asyncio, and for one event loop.

    async with AsyncClient("http://a:8000", "http://b:8000") as client:
        answer = await client.generate("Once upon a time", max_new_tokens=50)
        async for chunk in client.chat("What is prefill?", stream=True):
            print(chunk.text, end="")
    """

    def __init__(
        self,
        *gateways: str | Iterable[str],
        api_key: str | None = None,
        model: str | None = None,
        admin: str | None = None,
        patience: float = PATIENCE,
        silence: float = http.SILENCE,
        connections: httpx.AsyncClient | None = None,
    ) -> None:
        """As ``Client``."""
        self._rng = random.Random()
        self._gateways = Gateways(gateways, self._rng)
        self._headers = http.authorization(api_key)
        self._model = model
        self._admin = admin
        self._patience = patience
        self._silence = silence
        self._own = connections is None
        self._http = connections or httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(
                limits=http.LIMITS, socket_options=http.socket_options()
            )
        )

    @overload
    def generate(
        self, prompt: Prompt, *, stream: Literal[False] = False, **options: Unpack[GenerateOptions]
    ) -> Coroutine[None, None, Answer]: ...
    @overload
    def generate(
        self, prompt: Prompt, *, stream: Literal[True], **options: Unpack[GenerateOptions]
    ) -> AsyncStream: ...
    def generate(
        self, prompt: Prompt, *, stream: bool = False, **options: Unpack[GenerateOptions]
    ) -> Coroutine[None, None, Answer] | AsyncStream:
        """As ``Client.generate``."""
        return self._call(asked.generate(prompt, options), stream)

    @overload
    def chat(
        self, messages: Messages, *, stream: Literal[False] = False, **options: Unpack[ChatOptions]
    ) -> Coroutine[None, None, Answer]: ...
    @overload
    def chat(
        self, messages: Messages, *, stream: Literal[True], **options: Unpack[ChatOptions]
    ) -> AsyncStream: ...
    def chat(
        self, messages: Messages, *, stream: bool = False, **options: Unpack[ChatOptions]
    ) -> Coroutine[None, None, Answer] | AsyncStream:
        """As ``Client.chat``."""
        return self._call(asked.chat(messages, options), stream)

    async def models(self) -> list[str]:
        """As ``Client.models``."""
        return await self._models(self._tries())

    def cluster(self, *, tls: Tls | None = None) -> AsyncCluster:
        """As ``Client.cluster``."""
        return AsyncCluster(Cluster(self._admin, tls))

    async def aclose(self) -> None:
        if self._own:
            await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def _call(self, wanted: Asked, stream: bool) -> Coroutine[None, None, Answer] | AsyncStream:
        answer = Answer()
        chunks = self._chunks(wanted, self._tries(wanted.deadlines.total), answer)
        return AsyncStream(chunks, answer) if stream else _whole(chunks, answer)

    async def _chunks(
        self, wanted: Asked, tries: Tries, answer: Answer
    ) -> AsyncGenerator[Chunk, None]:
        course = Course(wanted, await self._served(tries), tries, answer)
        while (attempt := course.next()) is not None:
            await asyncio.sleep(attempt.wait)
            try:
                async with aclosing(self._attempt(attempt, course, tries)) as chunks:
                    async for chunk in chunks:
                        yield chunk
                continue
            except httpx.TransportError as error:
                failure: BatonError = http.lost(attempt.gateway, error)
            except BatonError as error:
                failure = error
            except TimeoutError:
                failure = GatewayLost(f"{attempt.gateway}: the deadline passed")
            for chunk in course.failed(failure):
                yield chunk

    async def _attempt(
        self, attempt: Attempt, course: Course, tries: Tries
    ) -> AsyncGenerator[Chunk, None]:
        """Raises httpx.TransportError, BatonError; TimeoutError when no time is left."""
        request = self._http.build_request(
            "POST",
            attempt.url,
            json=attempt.body,
            headers={**self._headers, **attempt.headers},
            timeout=http.timeout(tries.left(), self._silence),
        )
        async with _in_time(tries):
            response = await self._http.send(request, stream=True)
        async with aclosing(response):
            if response.status_code != 200:
                async with _in_time(tries):
                    await response.aread()
                raise http.refused(attempt.gateway, response)
            async with aclosing(EventSource(response).aiter_sse()) as events:
                while (event := await _next(events, tries)) is not None:
                    for chunk in course.take(event.data):
                        yield chunk
            course.ended()

    async def _served(self, tries: Tries) -> str:
        if self._model is None:
            self._model = (await self._models(tries))[0]
        return self._model

    async def _models(self, tries: Tries) -> list[str]:
        while True:
            turn = tries.next()
            await asyncio.sleep(turn.wait)
            try:
                response = await self._http.get(
                    f"{turn.url}/v1/models",
                    headers=self._headers,
                    timeout=http.timeout(tries.left(), self._silence),
                )
                names = http.names(turn.url, response)
            except httpx.TransportError as error:
                tries.failed(turn.url, http.lost(turn.url, error))
            except BatonError as error:
                tries.failed(turn.url, error)
            else:
                tries.got_on(turn.url)
                return names

    def _tries(self, deadline: float = math.inf) -> Tries:
        return Tries(
            self._gateways,
            patience=self._patience,
            deadline=deadline,
            clock=time.monotonic,
            rng=self._rng,
        )


async def _whole(chunks: AsyncGenerator[Chunk, None], answer: Answer) -> Answer:
    async with aclosing(chunks):
        async for _ in chunks:
            pass
    return answer


async def _next(
    events: AsyncGenerator[ServerSentEvent, None], tries: Tries
) -> ServerSentEvent | None:
    """The next event; None at the end."""
    async with _in_time(tries):
        return await anext(events, None)


def _in_time(tries: Tries) -> asyncio.Timeout:
    """Bounds what is in it alone: over a ``yield`` it would bound the caller, too."""
    left = tries.left()
    return asyncio.timeout(None if left == math.inf else left)
