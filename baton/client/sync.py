"""The blocking client."""

from __future__ import annotations

import math
import random
import socket
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Literal, Self, Unpack, overload

import httpx
from httpx_sse import EventSource

from baton.client import asked, http
from baton.client.answer import Answer, Chunk, Progress
from baton.client.asked import Asked, ChatOptions, GenerateOptions, Messages, Prompt
from baton.client.cluster import Cluster, Tls
from baton.client.course import Attempt, Course
from baton.client.gateways import PATIENCE, Gateways, Tries
from baton.errors import BatonError

#: A connection is cut so much after its deadline: whoever looks at the clock then finds it passed.
_BEHIND = 0.01


class Stream(Progress, Iterator[Chunk]):
    """The chunks of an answer as they come; what there is of it so far is ``answer``.

    The first ``next`` sends the request. Raises the error that ends it where no other try could
    mend it; what had come stays. One that is left before its end is to be closed (``with``, or
    ``close``), which frees at once what works for it.
    """

    def __init__(self, chunks: Generator[Chunk, None, None], answer: Answer) -> None:
        super().__init__(answer)
        self._chunks = chunks

    def __next__(self) -> Chunk:
        return next(self._chunks)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it here. Idempotent."""
        self._chunks.close()


class Client:
    """Answers from one gateway, or from several that stand in for one another.

        with Client("http://a:8000", "http://b:8000") as client:
            print(client.generate("Once upon a time", max_new_tokens=50).text)

    Whatever another try can mend is tried again, at another gateway or after a pause, which is the
    gateway's ``Retry-After`` where it gives one; an answer whose gateway dies goes on with the next
    token at another. Otherwise calls raise an error of ``baton.errors``. Any thread may use it.
    """

    def __init__(
        self,
        *gateways: str | Iterable[str],
        api_key: str | None = None,
        model: str | None = None,
        admin: str | None = None,
        patience: float = PATIENCE,
        silence: float = http.SILENCE,
        connections: httpx.Client | None = None,
    ) -> None:
        """``gateways``: their URLs. ``model``: the one they serve if None. ``admin``: URL of a
        gateway's --admin-port, for ``cluster``. ``patience``: seconds that a call goes on failing
        without a new token before it gives up. ``silence``: seconds without a byte after which a
        gateway is taken for lost. ``connections``: for proxies, certificates and the like; it is
        left open. Raises InvalidRequest."""
        self._rng = random.Random()
        self._gateways = Gateways(gateways, self._rng)
        self._headers = http.authorization(api_key)
        self._model = model
        self._admin = admin
        self._patience = patience
        self._silence = silence
        self._own = connections is None
        self._http = connections or httpx.Client(
            transport=httpx.HTTPTransport(limits=http.LIMITS, socket_options=http.socket_options())
        )

    @overload
    def generate(
        self, prompt: Prompt, *, stream: Literal[False] = False, **options: Unpack[GenerateOptions]
    ) -> Answer: ...
    @overload
    def generate(
        self, prompt: Prompt, *, stream: Literal[True], **options: Unpack[GenerateOptions]
    ) -> Stream: ...
    def generate(
        self, prompt: Prompt, *, stream: bool = False, **options: Unpack[GenerateOptions]
    ) -> Answer | Stream:
        """Go on with a text, or with token ids. Raises an error of the table; UnsupportedParameter
        for an option that is not there."""
        return self._call(asked.generate(prompt, options), stream)

    @overload
    def chat(
        self, messages: Messages, *, stream: Literal[False] = False, **options: Unpack[ChatOptions]
    ) -> Answer: ...
    @overload
    def chat(
        self, messages: Messages, *, stream: Literal[True], **options: Unpack[ChatOptions]
    ) -> Stream: ...
    def chat(
        self, messages: Messages, *, stream: bool = False, **options: Unpack[ChatOptions]
    ) -> Answer | Stream:
        """Answer the last of some messages. Raises as ``generate``."""
        return self._call(asked.chat(messages, options), stream)

    def models(self) -> list[str]:
        """Names of what is served. Raises an error of the table."""
        return self._models(self._tries())

    def cluster(self, *, tls: Tls | None = None) -> Cluster:
        """The workers. Raises InvalidRequest without an admin URL."""
        return Cluster(self._admin, tls)

    def close(self) -> None:
        if self._own:
            self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, wanted: Asked, stream: bool) -> Answer | Stream:
        answer = Answer()
        chunks = self._chunks(wanted, self._tries(wanted.deadlines.total), answer)
        if stream:
            return Stream(chunks, answer)
        for _ in chunks:
            pass
        return answer

    def _chunks(self, wanted: Asked, tries: Tries, answer: Answer) -> Generator[Chunk, None, None]:
        course = Course(wanted, self._served(tries), tries, answer)
        while (attempt := course.next()) is not None:
            time.sleep(attempt.wait)
            try:
                yield from self._attempt(attempt, course, tries)
                continue
            except httpx.TransportError as error:
                failure: BatonError = http.lost(attempt.gateway, error)
            except BatonError as error:
                failure = error
            yield from course.failed(failure)

    def _attempt(self, attempt: Attempt, course: Course, tries: Tries) -> Iterator[Chunk]:
        """Raises httpx.TransportError, BatonError."""
        with self._http.stream(
            "POST",
            attempt.url,
            json=attempt.body,
            headers={**self._headers, **attempt.headers},
            timeout=http.timeout(tries.left(), self._silence),
        ) as response:
            if response.status_code != 200:
                response.read()
                raise http.refused(attempt.gateway, response)
            with _cut(response, tries.left()):
                for event in EventSource(response).iter_sse():
                    yield from course.take(event.data)
            course.ended()

    def _served(self, tries: Tries) -> str:
        if self._model is None:
            self._model = self._models(tries)[0]
        return self._model

    def _models(self, tries: Tries) -> list[str]:
        while True:
            turn = tries.next()
            time.sleep(turn.wait)
            try:
                response = self._http.get(
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


@contextmanager
def _cut(response: httpx.Response, left: float) -> Iterator[None]:
    """Ends the connection in so many seconds: httpx's time-out for reads is one for all of a body,
    and starts anew with each."""
    network = response.extensions.get("network_stream")
    if left == math.inf or network is None:
        yield
        return
    connected = network.get_extra_info("socket")

    def cut() -> None:
        with suppress(OSError):  # it has ended by itself
            connected.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(left + _BEHIND, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
