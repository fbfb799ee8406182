"""What is to be told of the requests of one HTTP request, and begins with it."""

from __future__ import annotations

import time
from types import TracebackType

from starlette.requests import Request

from baton.errors import BatonError, InternalError, InvalidRequest
from baton.tracing import Tracing
from gateway.requests import ValidRequest
from gateway.telling.spans import Spans
from gateway.telling.tale import Book, Tale
from gateway.telling.timings import ASK, ASKED, FIELD, Rendered, Timings


class Accounts:
    """Opens the account of each HTTP request that generates."""

    def __init__(self, book: Book, tracing: Tracing, policy: str) -> None:
        self._book = book
        self._tracing = tracing
        self._policy = policy

    def open(self, http: Request) -> Account:
        """As it arrives. Raises InvalidRequest for a header that asks for what is not known."""
        asked = http.headers.get(ASK)
        if asked not in (None, ASKED):
            raise InvalidRequest(f"header {ASK} is {asked!r}, but only {ASKED!r} says something")
        return Account(self, http.scope["path"], timed=asked is not None)

    def tale(self, request: ValidRequest, path: str, arrived: float) -> Tale:
        """Of a request that is valid, heard by its trace."""
        tale = Tale(request, arrived, book=self._book, policy=self._policy)
        spans = Spans(tale, self._tracing, path)
        tale.traceparent = spans.traceparent
        if spans.recording:
            tale.hear(spans)
        return tale


class Account:
    """Ends once, with the HTTP status that the answer came to: by ``ended`` or, as a context
    manager, by what is raised within it."""

    def __init__(self, accounts: Accounts, path: str, *, timed: bool) -> None:
        self._accounts = accounts
        self._path = path
        self._timed = timed
        self._arrived = time.monotonic()
        self._tales: list[Tale] = []
        self._timings: list[Timings] = []  #: of each tale, where they were asked for

    def tale(self, request: ValidRequest) -> Tale:
        """Where what happens to ``request`` is said."""
        tale = self._accounts.tale(request, self._path, self._arrived)
        self._tales.append(tale)
        if self._timed:
            timings = Timings(tale)
            self._timings.append(timings)
            tale.hear(timings)
        return tale

    def ended(self, status: int) -> None:
        """The answer has gone, or there is none."""
        tales, self._tales = self._tales, []
        for tale in tales:
            tale.ended(status)

    def __enter__(self) -> Account:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, BatonError):
            self.ended(error.http_status)
        elif error is not None:
            self.ended(InternalError.http_status)

    @property
    def extra(self) -> Rendered:
        """What goes into the answer beside it, once every attempt has ended; of several prompts a
        list."""
        now = time.monotonic()
        timings = [each.rendered(now) for each in self._timings]
        if not timings:
            return {}
        return {FIELD: timings[0] if len(timings) == 1 else timings}
