"""The endpoints that generate: body to valid request to answer."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import replace

import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from baton.errors import BatonError, ClientGone, InternalError, InvalidRequest
from gateway import openai_api, resume
from gateway.callers import caller_of
from gateway.disconnect import unless_gone
from gateway.explanation import ASK, PLACEMENT, Trail
from gateway.metrics import Metrics
from gateway.orchestrator import Deltas, Orchestrator
from gateway.registry import Registry
from gateway.requests import Limits, Validator, ValidRequest
from gateway.schemas import ChatRequest, CompletionRequest, parse
from gateway.streams import AnswerStream
from gateway.telling.account import Account, Accounts
from gateway.tokenizer import ModelTokenizer
from gateway.transcript import Piece, Transcript, transcribe

log = structlog.get_logger(__name__)

#: Requests with the same value may go to one worker (--placement affinity).
_SESSION = "x-baton-session"
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


class Generation:
    """POST /v1/chat/completions and /v1/completions."""

    def __init__(
        self,
        validator: Validator,
        tokenizer: ModelTokenizer,
        registry: Registry,
        orchestrator: Orchestrator,
        metrics: Metrics,
        accounts: Accounts,
        write_timeout: float,
    ) -> None:
        self._validator = validator
        self._tokenizer = tokenizer
        self._registry = registry
        self._orchestrator = orchestrator
        self._metrics = metrics
        self._accounts = accounts
        self._write_timeout = write_timeout

    async def chat(self, http: Request) -> Response:
        return await self._counted(http, self._validate_chat)

    async def completion(self, http: Request) -> Response:
        return await self._counted(http, self._validate_completion)

    async def _validate_chat(self, http: Request) -> ValidRequest:
        wire = parse(ChatRequest, await http.body())
        return await self._validator.chat(
            wire, self._limits(), caller_of(http.scope), _traceparent(http)
        )

    async def _validate_completion(self, http: Request) -> ValidRequest:
        wire = parse(CompletionRequest, await http.body())
        return await self._validator.completion(
            wire, self._limits(), caller_of(http.scope), _traceparent(http)
        )

    async def _counted(
        self, http: Request, validate: Callable[[Request], Awaitable[ValidRequest]]
    ) -> Response:
        """Every request is counted once: here, unless its stream begins and counts itself."""
        try:
            trail = _trail(http)
            with self._accounts.open(http) as account:
                request = _in_session(http, await validate(http))
                return await self._answer(http, request, trail, account)
        except ClientDisconnect:
            self._count(ClientGone.http_status)
            raise ClientGone("the client closed the connection within the body") from None
        except BatonError as error:
            self._count(error.http_status)
            self._metrics.refusals.labels(reason=error.code).inc()
            if error.param is not None and error.param.startswith(resume.FIELD):
                self._metrics.resumes.labels(outcome="refused").inc()
            raise
        except Exception:
            self._count(InternalError.http_status)
            raise

    async def _answer(
        self, http: Request, request: ValidRequest, trail: Trail | None, account: Account
    ) -> Response:
        # For every line that is logged from here on, in this task and those that it makes.
        structlog.contextvars.bind_contextvars(request_id=request.request_id)
        transcripts = await self._transcripts(request)
        if request.resume is not None:
            self._metrics.resumes.labels(outcome="accepted").inc()

        def render(choice: int, deltas: Deltas) -> AsyncGenerator[Piece, None]:
            return transcribe(deltas, transcripts[choice])

        def count(status: int) -> None:
            self._count(status)
            account.ended(status)

        pieces = self._orchestrator.generate(request, render, trail, account.tale(request))
        if not request.stream:
            body = await unless_gone(http.receive, openai_api.whole(request, pieces))
            body |= account.extra
            count(200)
            return JSONResponse(body, headers=_headers(request, trail))
        # Until the first token is here, what goes wrong still has an HTTP status.
        first = await unless_gone(http.receive, _first(pieces))
        headers = _headers(request, trail)
        return AnswerStream(
            request,
            first,
            pieces,
            self._write_timeout,
            count,
            headers,
            extra=lambda: account.extra,
        )

    async def _transcripts(self, request: ValidRequest) -> dict[int, Transcript]:
        """Of each choice. Raises AnswerFinished: see Transcript."""

        def begin() -> dict[int, Transcript]:
            return {
                choice: Transcript(request, self._tokenizer.detokenizer(), choice)
                for choice in request.choices
            }

        return await self._tokenizer.apart(len(request.generated_ids), begin)

    def _limits(self) -> Limits:
        roster = self._registry.roster
        return Limits(
            context=self._tokenizer.context_length,
            sequence=roster.longest_sequence,
            prompt=roster.longest_prompt,
        )

    def _count(self, status: int) -> None:
        self._metrics.requests.labels(code=str(status)).inc()


async def _first(pieces: AsyncGenerator[Piece, None]) -> Piece:
    return await anext(pieces)


def _headers(request: ValidRequest, trail: Trail | None) -> dict[str, str]:
    explained = trail.headers if trail is not None else {}
    return {"X-Request-Id": request.request_id, **explained}


def _trail(http: Request) -> Trail | None:
    """Raises InvalidRequest."""
    asked = http.headers.get(ASK)
    if asked not in (None, PLACEMENT):
        raise InvalidRequest(f"header {ASK} is {asked!r}, but only {PLACEMENT!r} can be explained")
    return None if asked is None else Trail()


def _in_session(http: Request, request: ValidRequest) -> ValidRequest:
    """Named by the header, which goes before the body's ``user``."""
    session = http.headers.get(_SESSION)
    return replace(request, session=session) if session else request


def _traceparent(http: Request) -> str:
    """The W3C trace context, if it is one."""
    given = http.headers.get("traceparent", "")
    return given if _TRACEPARENT.fullmatch(given) else ""
