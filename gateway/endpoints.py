"""The endpoints that generate: body to valid request to answer."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Protocol

import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from baton.errors import BatonError, ClientGone, InternalError, InvalidRequest
from gateway import echo, resume
from gateway.body_limit import body_of, forget_body
from gateway.callers import caller_of
from gateway.disconnect import unless_gone
from gateway.explanation import ASK, PLACEMENT, Trail
from gateway.logprobs import Logprobs
from gateway.merge import merge
from gateway.metrics import Metrics
from gateway.openai_api import OpenAiAnswers
from gateway.orchestrator import Deltas, Orchestrator
from gateway.registry import Registry
from gateway.requests import Limits, Validator, ValidRequest
from gateway.responses.answers import ResponseAnswers
from gateway.responses.schemas import ResponsesRequest, named_as_here
from gateway.schemas import ChatRequest, CompletionRequest, parse
from gateway.streams import AnswerStream, Chunks
from gateway.telling.account import Account, Accounts
from gateway.telling.tale import Tale
from gateway.tokenizer import ModelTokenizer
from gateway.transcript import Piece, Scored, Transcript, transcribe

log = structlog.get_logger(__name__)

#: Requests with the same value may go to one worker (--placement affinity).
_SESSION = "x-baton-session"
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


class Answers(Protocol):
    """How the answers of an endpoint look."""

    async def whole(
        self, requests: Sequence[ValidRequest], pieces: AsyncIterator[Piece]
    ) -> Mapping[str, object]: ...

    def chunks(self, requests: Sequence[ValidRequest]) -> Chunks: ...


@dataclass(frozen=True, slots=True)
class Asked:
    """What one HTTP request wants generated, one request per prompt, and how it is to look."""

    requests: Sequence[ValidRequest]
    answers: Answers


class Generation:
    """POST /v1/chat/completions, /v1/completions and /v1/responses."""

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
        self._logprobs = Logprobs(tokenizer.vocabulary)
        self._openai = OpenAiAnswers(self._logprobs)

    async def chat(self, http: Request) -> Response:
        return await self._counted(http, self._validate_chat)

    async def completion(self, http: Request) -> Response:
        return await self._counted(http, self._validate_completion)

    async def response(self, http: Request) -> Response:
        return await self._counted(http, self._validate_response)

    async def _validate_chat(self, http: Request) -> Asked:
        wire = parse(ChatRequest, body := await body_of(http))
        request = await self._validator.chat(
            wire, self.limits(), caller_of(http.scope), _traceparent(http), len(body)
        )
        return Asked([request], self._openai)

    async def _validate_completion(self, http: Request) -> Asked:
        wire = parse(CompletionRequest, await body_of(http))
        requests = await self._validator.completion(
            wire, self.limits(), caller_of(http.scope), _traceparent(http)
        )
        return Asked(requests, self._openai)

    async def _validate_response(self, http: Request) -> Asked:
        wire = parse(ResponsesRequest, body := await body_of(http))
        caller = caller_of(http.scope)
        with named_as_here():
            asked = wire.as_chat()
            request = await self._validator.chat(
                asked, self.limits(), caller, _traceparent(http), len(body), "response"
            )
        return Asked([request], ResponseAnswers(wire, self._logprobs))

    async def _counted(
        self, http: Request, validate: Callable[[Request], Awaitable[Asked]]
    ) -> Response:
        """Every request is counted once: here, unless its stream begins and counts itself."""
        try:
            trail = _trail(http)
            with self._accounts.open(http) as account:
                asked = _in_session(http, await validate(http))
                forget_body(http.scope)
                return await self._answer(http, asked, trail, account)
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
        self, http: Request, asked: Asked, trail: Trail | None, account: Account
    ) -> Response:
        requests, answers = asked.requests, asked.answers
        # For every line that is logged from here on, in this task and those that it makes.
        structlog.contextvars.bind_contextvars(request_id=requests[0].request_id)
        # One trail is left: that of the first prompt.
        trails = [trail, *[None] * (len(requests) - 1)]
        tales = [account.tale(request) for request in requests]
        each = zip(requests, trails, tales, strict=True)
        pieces = merge([await self._pieces(*one, account) for one in each])

        def count(status: int) -> None:
            self._count(status)
            account.ended(status)

        if not requests[0].stream:
            body = await unless_gone(http.receive, answers.whole(requests, pieces))
            told = {**body, **account.extra}
            count(200)
            return JSONResponse(told, headers=_headers(requests[0], trail))
        # Until the first token is here, what goes wrong still has an HTTP status.
        first = await unless_gone(http.receive, _first(pieces))
        headers = _headers(requests[0], trail)
        chunks = answers.chunks(requests)
        return AnswerStream(
            requests,
            chunks,
            first,
            pieces,
            self._write_timeout,
            count,
            headers,
            extra=lambda: account.extra,
        )

    async def _pieces(
        self, request: ValidRequest, trail: Trail | None, tale: Tale, account: Account
    ) -> AsyncGenerator[Piece, None]:
        """The answers to one prompt. Nothing is admitted before the first is asked for."""
        answers = await self._answers(request, trail, tale)
        return self._echoed(request, answers, account) if request.scores_echo else answers

    async def _answers(
        self, request: ValidRequest, trail: Trail | None, tale: Tale
    ) -> AsyncGenerator[Piece, None]:
        if not request.generates:
            return _nothing(request)
        transcripts = await self._transcripts(request)
        if request.resume is not None:
            self._metrics.resumes.labels(outcome="accepted").inc()

        def render(choice: int, deltas: Deltas) -> AsyncGenerator[Piece, None]:
            return transcribe(deltas, transcripts[choice])

        return self._orchestrator.generate(request, render, trail, tale)

    async def _echoed(
        self, request: ValidRequest, answers: AsyncGenerator[Piece, None], account: Account
    ) -> AsyncGenerator[Piece, None]:
        """The prompt's log probabilities before all else; see ``echo``."""
        vocabulary, scored = self._tokenizer.vocabulary, list[Scored]()

        def render(_: int, deltas: Deltas) -> AsyncGenerator[Scored, None]:
            return echo.scored(deltas, request, self._tokenizer.detokenizer(), vocabulary)

        async with aclosing(answers):
            if request.echo_grammar:
                asked = echo.scoring(request)
                told = self._orchestrator.generate(asked, render, None, account.tale(asked))
                async with aclosing(told):
                    scored = [one async for one in told]
            yield Piece("", [], echo=scored, choice=request.choices[0])
            async for piece in answers:
                piece.cached_tokens = None  # they were computed for this very request
                yield piece

    async def _transcripts(self, request: ValidRequest) -> dict[int, Transcript]:
        """Of each choice. Raises AnswerFinished: see Transcript."""

        def begin() -> dict[int, Transcript]:
            return {
                choice: Transcript(request, self._tokenizer.detokenizer(), choice)
                for choice in request.choices
            }

        return await self._tokenizer.apart(len(request.generated_ids), begin)

    def limits(self) -> Limits:
        """As the fleet is now."""
        roster = self._registry.roster
        return Limits(
            context=self._tokenizer.context_length,
            sequence=roster.longest_sequence,
            prompt=roster.longest_prompt,
        )

    def _count(self, status: int) -> None:
        self._metrics.requests.labels(str(status)).inc()


async def _nothing(request: ValidRequest) -> AsyncGenerator[Piece, None]:
    for choice in request.choices:
        yield Piece("", [], "length", choice=choice)


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


def _in_session(http: Request, asked: Asked) -> Asked:
    """Named by the header, which goes before what the body says."""
    session = http.headers.get(_SESSION)
    if not session:
        return asked
    return replace(asked, requests=[replace(one, session=session) for one in asked.requests])


def _traceparent(http: Request) -> str:
    """The W3C trace context, if it is one."""
    given = http.headers.get("traceparent", "")
    return given if _TRACEPARENT.fullmatch(given) else ""
