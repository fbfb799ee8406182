"""Middleware: whose request it is, before anything of its body is read."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from baton.errors import BatonError
from gateway.keys import Caller, Keys
from gateway.metrics import Metrics
from gateway.page.site import is_page
from gateway.quota import UNLIMITED, Quota
from gateway.refusal import refusal

#: Load balancers and orchestrators ask these, without a key.
OPEN = frozenset({"/health", "/ready"})


class Callers:
    """Tells callers apart by their API keys; without keys all are one, without limits."""

    def __init__(self, keys: Keys | None, metrics: Metrics) -> None:
        self._keys = keys
        self._nobody = Caller("", Quota(UNLIMITED, time.monotonic))
        self._metrics = metrics

    @property
    def anybody(self) -> bool:
        """Whether no key is needed."""
        return self._keys is None

    def identify(self, headers: Headers) -> Caller:
        """Raises InvalidApiKey."""
        if self._keys is None:
            return self._nobody
        return self._keys.caller(headers.get("authorization", ""))

    def refused(self, error: BatonError) -> None:
        self._metrics.requests.labels(code=str(error.http_status)).inc()
        self._metrics.refusals.labels(reason=error.code).inc()


class Admitted:
    """Lets in who shows a key and stays within its limits, for as long as the answer takes."""

    def __init__(self, app: ASGIApp, callers: Callers) -> None:
        self._app = app
        self._callers = callers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN or is_page(scope["path"]):
            await self._app(scope, receive, send)
            return
        with ExitStack() as running:
            try:
                caller = self._callers.identify(Headers(scope=scope))
                running.enter_context(caller.quota.request())
            except BatonError as error:
                self._callers.refused(error)
                await refusal(error)(scope, receive, send)
                return
            scope["state"] = {**scope.get("state", {}), "caller": caller}
            await self._app(scope, receive, send)


def caller_of(scope: Mapping[str, Any]) -> Caller:
    """Who was let in with this request."""
    caller = scope["state"]["caller"]
    assert isinstance(caller, Caller)
    return caller
