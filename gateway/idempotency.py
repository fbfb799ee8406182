"""``Idempotency-Key``: a request that is repeated gets the answer of the first, not another one.

    first      runs as a task of its own; what it sends is recorded, and sent on to its client
    repeated   is sent the record from its beginning, and what comes as it comes
    all gone   for ``grace`` seconds it goes on, for whoever comes back; then it is cancelled like
               any request whose client leaves

Only what ended well is kept. A failure is told to all who wait for it, and forgotten: who asks
again is served anew. Keys are of the API key that they came with, in this gateway alone.
"""

from __future__ import annotations

import asyncio
import hashlib
import reprlib
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from baton.errors import BatonError, ClientGone, IdempotencyConflict, InternalError, InvalidRequest
from gateway.body_limit import body_of
from gateway.callers import caller_of
from gateway.disconnect import unless_gone
from gateway.metrics import Metrics
from gateway.streams import AnswerStream

log = structlog.get_logger(__name__)

HEADER = "idempotency-key"
#: Says that an answer is that of an earlier request.
REPLAYED = (b"idempotent-replayed", b"true")
#: Characters of a key.
MAX_KEY = 255

Handler = Callable[[Request], Awaitable[Response]]
#: Whose key, and the key.
Name = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepLimits:
    """How much is kept, and for how long."""

    seconds: float  #: from the end of an answer
    bytes: int  #: of all answers together
    answers: int  #: of one API key
    grace: float  #: seconds that an answer goes on though nobody listens


class Recording:
    """One answer: what was sent of it so far, and who listens."""

    def __init__(self, name: Name, digest: bytes, body: bytes, grace: float) -> None:
        self.name = name
        self.digest = digest  #: of the request
        self.size = 0
        self.over = False
        self.error: Exception | None = None
        self._body: bytes | None = body
        self._grace = grace
        self._messages: list[Message] = []
        self._news = asyncio.Event()
        self._listeners = 0
        self._abandoned = asyncio.Event()

    @property
    def unheard(self) -> bool:
        """Whether it goes on though nobody listens."""
        return not self.over and not self._listeners

    async def receive(self) -> Message:
        """The request's body, then its disconnection once nobody has listened for long."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._abandoned.wait()
        return {"type": "http.disconnect"}

    def take(self, message: Message) -> int:
        """Record what is sent; returns its size."""
        size = len(message.get("body", b""))
        self.size += size
        self._messages.append(message)
        self._tell()
        return size

    def end(self, error: Exception | None = None) -> None:
        """Nothing more comes."""
        self.over, self.error = True, error
        self._tell()

    def join(self) -> None:
        """Somebody listens; to be followed by ``leave``."""
        self._listeners += 1

    def leave(self) -> None:
        self._listeners -= 1
        if not self._listeners and not self.over:
            asyncio.get_running_loop().call_later(self._grace, self._abandon)

    async def begun(self) -> None:
        """Wait for the first message. Raises what went wrong before it."""
        while not self._messages and not self.over:
            await self._news.wait()
        if not self._messages:
            assert self.error is not None, "an answer without a message has failed"
            raise self.error

    async def send(self, send: Send, timeout: float, *, repeated: bool) -> None:
        """Everything, in order, as it comes. Raises TimeoutError for one who does not read."""
        place = 0
        while True:
            news = self._news
            while place < len(self._messages):
                message = self._messages[place]
                if repeated and message["type"] == "http.response.start":
                    message = {**message, "headers": [*message["headers"], REPLAYED]}
                async with asyncio.timeout(timeout):
                    await send(message)
                place += 1
            if self.over:
                return
            if not news.is_set():
                await news.wait()

    def _abandon(self) -> None:
        if not self._listeners:
            self._abandoned.set()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


class Recorded(Response):
    """An answer sent from its recording."""

    def __init__(self, recording: Recording, timeout: float, *, repeated: bool) -> None:
        super().__init__()
        self._recording = recording
        self._timeout = timeout
        self._repeated = repeated

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = self._recording.send(send, self._timeout, repeated=self._repeated)
        try:
            with suppress(ClientGone):  # nobody is left to be told
                await unless_gone(receive, sending)
        except TimeoutError:
            log.warning("client reads too slowly", seconds=self._timeout)
        finally:
            self._recording.leave()


class Idempotency:
    """Answers by key. ``close`` ends what runs."""

    def __init__(
        self,
        limits: KeepLimits,
        write_timeout: float,
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        self._limits = limits
        self._write_timeout = write_timeout
        self._metrics = metrics
        self._clock = clock
        self._known: dict[Name, Recording] = {}
        #: Those that have ended, oldest first, and when.
        self._kept: OrderedDict[Name, float] = OrderedDict()
        self._of_caller = Counter[str]()
        self._bytes = 0
        self._running = set[Recording]()
        self._tasks = set[asyncio.Task[None]]()

    def once(self, handle: Handler) -> Handler:
        """An endpoint that does what ``handle`` does, once for each key."""

        async def endpoint(http: Request) -> Response:
            key = http.headers.get(HEADER)
            return await (handle(http) if key is None else self._answer(http, key, handle))

        return endpoint

    async def close(self) -> None:
        """Cancel what nobody has waited for to its end."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _answer(self, http: Request, key: str, handle: Handler) -> Response:
        try:
            if not 1 <= len(key) <= MAX_KEY:
                raise InvalidRequest(
                    f"header {HEADER} has {len(key)} characters, but must have 1 to {MAX_KEY}"
                )
            body = await body_of(http)
            caller = caller_of(http.scope)
            known = self._find((caller.name, key), _digest(http, body))
            if known is None:
                caller.quota.require_room(self._unheard(caller.name))
        except ClientDisconnect:
            raise self._refused(ClientGone("the client left within the body")) from None
        except BatonError as error:
            raise self._refused(error) from None
        recording = known or self._begin(http, key, body, handle)
        recording.join()
        try:
            await unless_gone(http.receive, recording.begun())
        except BaseException:
            recording.leave()
            raise
        repeated = known is not None
        if repeated:
            self._metrics.repeated.inc()
        return Recorded(recording, self._write_timeout, repeated=repeated)

    def _find(self, name: Name, digest: bytes) -> Recording | None:
        """Raises IdempotencyConflict for the key of another request."""
        self._expire()
        recording = self._known.get(name)
        if recording is not None and recording.digest != digest:
            raise IdempotencyConflict(
                f"header {HEADER} is {reprlib.repr(name[1])}, which came with another request"
            )
        return recording

    def _unheard(self, caller: str) -> int:
        return sum(r.unheard for r in self._running if r.name[0] == caller)

    def _begin(self, http: Request, key: str, body: bytes, handle: Handler) -> Recording:
        name = caller_of(http.scope).name, key
        recording = Recording(name, _digest(http, body), body, self._limits.grace)
        self._known[name] = recording
        self._of_caller[name[0]] += 1
        while self._of_caller[name[0]] > self._limits.answers and self._drop_oldest(name[0]):
            pass
        task = asyncio.create_task(self._run(http.scope, recording, handle), name="idempotent")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return recording

    async def _run(self, scope: Scope, recording: Recording, handle: Handler) -> None:
        async def send(message: Message) -> None:
            size = recording.take(message)
            if self._known.get(recording.name) is recording:
                self._bytes += size
                self._make_room(recording)

        well, failure = False, None
        self._running.add(recording)
        try:
            response = await handle(Request(scope, recording.receive))
            await response(scope, recording.receive, send)
            status = response.status if isinstance(response, AnswerStream) else response.status_code
            well = status == 200
        except Exception as error:  # noqa: BLE001 - raised again where its clients wait
            failure = error
        except asyncio.CancelledError:
            failure = InternalError("the gateway stops")
            raise
        finally:
            recording.end(failure)
            self._running.discard(recording)
            self._ended(recording, well=well)

    def _ended(self, recording: Recording, *, well: bool) -> None:
        if self._known.get(recording.name) is not recording:
            return
        if well:
            self._kept[recording.name] = self._clock()
        else:
            self._drop(recording.name)

    def _make_room(self, recording: Recording) -> None:
        """A running answer that is longer than all that may be kept is not kept either."""
        while self._bytes > self._limits.bytes and self._drop_oldest():
            pass
        if self._bytes > self._limits.bytes:
            self._drop(recording.name)

    def _expire(self) -> None:
        due = self._clock() - self._limits.seconds
        while self._kept and next(iter(self._kept.values())) <= due:
            self._drop(next(iter(self._kept)))

    def _drop_oldest(self, caller: str | None = None) -> bool:
        """Of those that have ended, of one API key or of any; False when there is none."""
        found = next((name for name in self._kept if caller in (None, name[0])), None)
        if found is not None:
            self._drop(found)
        return found is not None

    def _drop(self, name: Name) -> None:
        """Whoever listens goes on."""
        recording = self._known.pop(name)
        self._kept.pop(name, None)
        self._bytes -= recording.size
        self._of_caller[name[0]] -= 1
        if not self._of_caller[name[0]]:
            del self._of_caller[name[0]]

    def _refused(self, error: BatonError) -> BatonError:
        self._metrics.requests.labels(code=str(error.http_status)).inc()
        self._metrics.refusals.labels(reason=error.code).inc()
        return error


def _digest(http: Request, body: bytes) -> bytes:
    """Of what must be the same for a request to be the same."""
    return hashlib.blake2b(http.url.path.encode() + b"\0" + body, digest_size=16).digest()
