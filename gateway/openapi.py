"""The OpenAPI document of the public endpoints, made of the wire types, the answers and the error
table: nothing is said twice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import TypeAdapter
from pydantic.json_schema import DEFAULT_REF_TEMPLATE, GenerateJsonSchema

from baton import errors
from baton.errors import BatonError
from gateway import answers
from gateway.idempotency import HEADER, MAX_KEY
from gateway.responses.bodies import ResponseBody
from gateway.responses.schemas import ResponsesRequest
from gateway.schemas import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from gateway.telling import timings

_COMPONENTS = "#/components/schemas/"
_JSON, _EVENTS, _TEXT = "application/json", "text/event-stream", "text/plain"
_ALWAYS = (answers.ErrorBody, answers.StreamEvent)
#: Told to nobody: who left, and what a wrong path or method gets wherever one is.
_UNTOLD = frozenset({errors.ClientGone, errors.RouteNotFound, errors.MethodNotAllowed})
#: What only the endpoints that generate may say.
_OF_WORKERS = (errors.CapacityError, errors.PeerError, errors.DeadlineExceeded, errors.KvOverflow)


@dataclass(frozen=True, slots=True)
class Operation:
    """One endpoint."""

    method: str
    path: str
    summary: str
    answer: Any = None  #: a type of ``gateway.answers`` or the like; None for plain text
    body: Any = None  #: a wire type
    generates: bool = False  #: streams, too; knows Idempotency-Key and timings; asks workers
    follows: bool = False  #: streams, and never ends
    open: bool = False  #: no key is needed
    statuses: tuple[int, ...] = (200,)  #: with ``answer``


OPERATIONS = (
    Operation(
        "post",
        "/v1/chat/completions",
        "Answer a conversation",
        answers.ChatCompletion,
        ChatRequest,
        generates=True,
    ),
    Operation(
        "post",
        "/v1/completions",
        "Go on with one text, or several",
        answers.Completion,
        CompletionRequest,
        generates=True,
    ),
    Operation(
        "post",
        "/v1/responses",
        "Answer a conversation; nothing is stored",
        ResponseBody,
        ResponsesRequest,
        generates=True,
    ),
    Operation("post", "/tokenize", "Text to token ids", answers.Tokenized, TokenizeRequest),
    Operation("post", "/detokenize", "Token ids to text", answers.Detokenized, DetokenizeRequest),
    Operation("get", "/v1/models", "The models served", answers.ModelList),
    Operation("get", "/v1/models/{name}", "One of them", answers.ModelBody),
    Operation("get", "/health", "Whether it is alive", answers.StatusBody, open=True),
    Operation(
        "get",
        "/ready",
        "Whether a request would find workers",
        answers.StatusBody,
        open=True,
        statuses=(200, 503),
    ),
    Operation("get", "/metrics", "For Prometheus"),
    Operation("get", "/live", "What happens, as it happens", follows=True),
)


def document(model: str, *, keys: bool, live: bool) -> dict[str, Any]:
    """The document of a gateway that serves ``model``. ``keys``: who asks must show one; ``live``:
    it has /live."""
    schemas = _schemas(model)
    paths: dict[str, dict[str, Any]] = {}
    for operation in (o for o in OPERATIONS if live or not o.follows):
        paths.setdefault(operation.path, {})[operation.method] = _described(operation, keys=keys)
    components: dict[str, Any] = {"schemas": schemas}
    if keys:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Baton", "version": "v1"},
        "paths": paths,
        "components": components,
    }


def _schemas(model: str) -> dict[str, Any]:
    types = [t for o in OPERATIONS for t in (o.answer, o.body) if t is not None]
    validated: Literal["validation"] = "validation"
    inputs = [(t, validated, TypeAdapter(t).core_schema) for t in (*types, *_ALWAYS)]
    template = DEFAULT_REF_TEMPLATE.replace("#/$defs/", _COMPONENTS)
    _, definitions = GenerateJsonSchema(ref_template=template).generate_definitions(inputs)
    found: dict[str, Any] = {str(name): schema for name, schema in definitions.items()}
    for schema in found.values():
        properties = schema.get("properties")
        if properties is not None:
            schema["additionalProperties"] = False
            if "model" in properties:
                nothing = [] if "type" in properties["model"] else [None]
                properties["model"] = {**properties["model"], "enum": [model, *nothing]}
    return found


def _described(operation: Operation, *, keys: bool) -> dict[str, Any]:
    locked = keys and not operation.open
    described: dict[str, Any] = {
        "summary": operation.summary,
        "responses": _responses(operation, locked=locked),
    }
    parameters = [_in_path(name) for name in ("name",) if f"{{{name}}}" in operation.path]
    if operation.generates:
        parameters.append(
            {
                "name": HEADER,
                "in": "header",
                "description": "Repeat a request with its key and body, and get its one answer",
                "schema": {"type": "string", "minLength": 1, "maxLength": MAX_KEY},
            }
        )
        parameters.append(
            {
                "name": timings.ASK,
                "in": "header",
                "description": "Have the answer tell where its time went",
                "schema": {"type": "string", "enum": [timings.ASKED]},
            }
        )
    if parameters:
        described["parameters"] = parameters
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": _content(operation.body)}
    if locked:
        described["security"] = [{"key": []}]
    return described


def _responses(operation: Operation, *, locked: bool) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for status, codes in _codes(_may_say(operation, locked=locked)).items():
        said[str(status)] = {
            "description": ", ".join(sorted(codes)),
            "content": _content(answers.ErrorBody),
        }
    content = {_TEXT: {"schema": {"type": "string"}}}
    if operation.answer is not None:
        content = _content(operation.answer)
    if operation.follows:
        content = {}
    if operation.generates or operation.follows:
        content[_EVENTS] = {"schema": {"$ref": _COMPONENTS + answers.StreamEvent.__name__}}
    for status in operation.statuses:
        said[str(status)] = {"description": operation.summary, "content": content}
    return said


def _may_say(operation: Operation, *, locked: bool) -> Iterable[type[BatonError]]:
    """The rows of the error table that an endpoint may answer with."""
    for error in errors.TABLE.values():
        if error in _UNTOLD or (error is errors.InvalidApiKey and not locked):
            continue
        limited = error is errors.RateLimited and (locked or operation.follows)
        limited |= error is errors.BodiesFull and operation.body is not None
        if issubclass(error, _OF_WORKERS) and not (operation.generates or limited):
            continue
        yield error


def _codes(rows: Iterable[type[BatonError]]) -> Mapping[int, set[str]]:
    by_status: dict[int, set[str]] = {}
    for row in rows:
        by_status.setdefault(row.http_status, set()).add(row.code)
    return by_status


def _content(type_: Any) -> dict[str, Any]:
    return {_JSON: {"schema": {"$ref": _COMPONENTS + type_.__name__}}}


def _in_path(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
