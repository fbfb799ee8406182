"""The two HTTP applications: routes, middleware in its order, errors from the one table."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import Receive, Scope, Send

from baton.errors import (
    BatonError,
    ClientGone,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    RouteNotFound,
)
from gateway.body_limit import Bodies, BodyLimit
from gateway.callers import OPEN, Admitted, Callers
from gateway.endpoints import Generation
from gateway.idempotency import Idempotency
from gateway.openapi import document
from gateway.page.site import Feed, Page
from gateway.refusal import refusal
from gateway.status import Status
from gateway.telling.endpoint import LiveEndpoint
from gateway.tokens import Tokens
from gateway.turns import OneByOne, Turns

#: Requests that begin in one round of the loop: each takes about a millisecond to be understood.
_TURNS = 16


def public_app(
    generation: Generation,
    tokens: Tokens,
    status: Status,
    idempotency: Idempotency,
    callers: Callers,
    live: LiveEndpoint | None,
    hosts: Sequence[Middleware],
    bodies: Bodies,
    *,
    cors_origins: Sequence[str],
) -> Starlette:
    """What clients see; ``live``, if there is one, only where nobody needs a key."""
    here = live if callers.anybody else None
    feed: Feed = "off" if live is None else "admin" if here is None else "here"
    once = idempotency.once
    told = document(status.model_name, keys=not callers.anybody, live=here is not None)
    browsers = Middleware(
        CORSMiddleware,
        allow_origins=cors_origins,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=["Retry-After", "X-Request-Id", "Idempotent-Replayed"],
    )
    return application(
        [
            Route("/v1/chat/completions", Answering(once(generation.chat)), methods=["POST"]),
            Route("/v1/completions", Answering(once(generation.completion)), methods=["POST"]),
            Route("/v1/responses", Answering(once(generation.response)), methods=["POST"]),
            Route("/tokenize", tokens.tokenize, methods=["POST"]),
            Route("/detokenize", tokens.detokenize, methods=["POST"]),
            Route("/v1/models", status.models),
            Route("/v1/models/{name:path}", status.model),
            Route("/health", status.health),
            Route("/ready", status.ready if callers.anybody else status.ready_or_not),
            Route("/metrics", status.metrics),
            Route("/openapi.json", _saying(told)),
            *_live(here),
            *Page(key=not callers.anybody, feed=feed).routes,
        ],
        [
            *hosts,
            *([browsers] if cors_origins else []),
            *_guards(callers, bodies),
        ],
    )


class Answering:
    """An endpoint as Starlette takes it as it is. It would wrap a function once more, for errors
    that are rendered without that, too, and every token would go through it."""

    def __init__(self, handle: Callable[[Request], Awaitable[Response]]) -> None:
        self._handle = handle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._handle(Request(scope, receive, send))
        await response(scope, receive, send)


def _saying(body: Mapping[str, object]) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint that says the same to all."""

    async def endpoint(_: Request) -> Response:
        return JSONResponse(body)

    return endpoint


def admin_app(
    generation: Generation,
    status: Status,
    idempotency: Idempotency,
    callers: Callers,
    live: LiveEndpoint | None,
    hosts: Sequence[Middleware],
    bodies: Bodies,
) -> Starlette:
    """What operators see, on a port of its own. The page's chat asks here as clients do there, with
    a key where they need one."""
    chat = [
        Route("/chat/completions", Answering(idempotency.once(generation.chat)), methods=["POST"]),
        Route("/models", status.models),
    ]
    return application(
        [
            Route("/cluster", status.cluster),
            Route("/health", status.health),
            Route("/ready", status.ready),
            Route("/metrics", status.metrics),
            *_live(live),
            *Page(key=not callers.anybody, feed="off" if live is None else "here").routes,
            Mount("/v1", routes=chat, middleware=_guards(callers, bodies)),
        ],
        hosts,
    )


def _guards(callers: Callers, bodies: Bodies) -> list[Middleware]:
    """What stands before all that generates."""
    return [
        Middleware(OneByOne, turns=Turns(_TURNS), paths=OPEN),
        Middleware(Admitted, callers=callers),
        Middleware(BodyLimit, bodies=bodies),
    ]


def _live(live: LiveEndpoint | None) -> list[Route]:
    return [] if live is None else [Route("/live", live.follow)]


def application(routes: Sequence[BaseRoute], middleware: Sequence[Middleware]) -> Starlette:
    """From the outside in: unexpected errors, ``middleware``, errors of the table, routes."""
    return Starlette(
        routes=routes,
        middleware=middleware,
        exception_handlers={
            BatonError: _render,
            ClientDisconnect: _render_gone,
            HTTPException: _render_http,
            Exception: _render_unexpected,
        },
    )


async def _render(_: Request, error: Exception) -> Response:
    """An error of the table, before the first byte of an answer."""
    assert isinstance(error, BatonError)
    return refusal(error)


async def _render_gone(_: Request, error: Exception) -> Response:
    """Nobody is left to be told, and nothing is wrong with us."""
    return refusal(ClientGone("the client closed the connection within the body"))


async def _render_http(http: Request, error: Exception) -> Response:
    """What Starlette itself refuses, in the same shape."""
    assert isinstance(error, HTTPException)
    where = f"{http.method} {http.url.path}"
    if error.status_code == RouteNotFound.http_status:
        said = f"{where}: no such route on this port; those of the API are in its /openapi.json"
        return await _render(http, RouteNotFound(said))
    if error.status_code == MethodNotAllowed.http_status:
        refused = await _render(http, MethodNotAllowed(f"{where}: method not allowed"))
        refused.headers.update(error.headers or {})
        return refused
    return await _render(http, InvalidRequest(f"{where}: {error.detail}"))


async def _render_unexpected(http: Request, _: Exception) -> Response:
    """A defect: the log has the traceback, the client learns only that it is not its fault."""
    return await _render(http, InternalError("the gateway failed; see its log"))
