"""The OpenAPI document: whole, valid, and kept by the gateway whatever it is sent."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from jsonschema import Draft202012Validator
from schemathesis.checks import CHECKS
from schemathesis.config import SchemathesisConfig
from schemathesis.schemas import BaseSchema
from starlette.routing import Route

from gateway.openapi import OPERATIONS
from gateway.telling.timings import ASK, ASKED, FIELD
from tests.fakes import MODEL, FakeWorker, answering, echoing
from tests.gateways import Gateway, serving
from tests.tool_talk import ADD, CALLS, JSON_SCHEMA, STOP, write_talking_checkpoint

#: What a schema cannot say: which ids, lengths and combinations a model takes. So not all that the
#: document allows is accepted; and a few of the things it does not name are said elsewhere.
_BEYOND_A_SCHEMA = {"positive_data_acceptance"}
CONFIG = SchemathesisConfig()
Mode = schemathesis.GenerationMode
HELLO = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", **ADD["function"]}


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    worker = FakeWorker(local_prefill=True, script=echoing(answering(CALLS)))
    # The one who sends shares this process: what it holds up is not the gateway's silence.
    model = write_talking_checkpoint(tmp_path)
    async with serving(model, [worker], heartbeat_interval=10) as served:
        yield served


async def test_it_has_every_endpoint_and_is_valid(gateway: Gateway) -> None:
    found = (await gateway.client.get("/openapi.json")).json()
    routes = [
        route
        for route in gateway.service.public.routes
        if isinstance(route, Route) and route.include_in_schema
    ]
    served = {
        (method.lower(), route.path.replace(":path", ""))
        for route in routes
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert served - {("get", "/openapi.json")} == {(o.method, o.path) for o in OPERATIONS}
    for schema in found["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    wire = found["components"]["schemas"]["ChatRequest"]
    assert wire["required"] == ["model", "messages"] and wire["additionalProperties"] is False
    assert "securitySchemes" not in found["components"]


async def test_answers_are_as_it_says(gateway: Gateway) -> None:
    found = (await gateway.client.get("/openapi.json")).json()

    def holds(name: str, body: Any) -> None:
        schema = {"$ref": f"#/components/schemas/{name}", "components": found["components"]}
        Draft202012Validator(schema).validate(body)

    gateway.client.headers[ASK] = ASKED
    chat = await gateway.chat(logprobs=True, top_logprobs=1, return_token_ids=True)
    holds("ChatCompletion", chat.json())
    assert FIELD in chat.json()
    called = await gateway.chat(tools=[ADD, STOP])
    holds("ChatCompletion", called.json())
    assert called.json()["choices"][0]["finish_reason"] == "tool_calls"
    holds("ChatCompletion", (await gateway.chat(response_format=JSON_SCHEMA)).json())
    texts = await gateway.complete(["a", "b"], logprobs=1, return_token_ids=True)
    holds("Completion", texts.json())
    holds("Completion", (await gateway.complete("ab", logprobs=1, echo=True)).json())
    body = {"model": MODEL, "input": "hi", "include": ["message.output_text.logprobs"]}
    holds("ResponseBody", (await gateway.client.post("/v1/responses", json=body)).json())
    schema = {"type": "json_schema", **JSON_SCHEMA["json_schema"]}
    for more in ({"tools": [TOOL]}, {"text": {"format": schema}}, {"tool_choice": "none"}):
        response = await gateway.client.post("/v1/responses", json={**body, **more})
        holds("ResponseBody", response.json())
    holds("ErrorBody", (await gateway.complete(wombat=1)).json())


def fuzz(url: str, examples: int) -> Counter[int]:
    """Send what the document allows, and what it does not; returns the answers' statuses.

    Each answer must be one that the document names, in its shape; no 5xx; none may hang.
    """
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json", config=CONFIG)
    # What is left out never ends.
    return send(schema.exclude(path="/live"), url, examples, [*Mode])


def send(
    schema: BaseSchema, url: str, examples: int, modes: Sequence[schemathesis.GenerationMode]
) -> Counter[int]:
    """So many of each operation and mode."""
    names = [name for name in CHECKS.get_all_names() if name not in _BEYOND_A_SCHEMA]
    checks = [CHECKS.get_one(name) for name in names]
    statuses = Counter[int]()
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in modes:
            if mode is Mode.NEGATIVE and not operation.body:
                continue

            @given(case=operation.as_strategy(generation_mode=mode))
            @settings(
                max_examples=examples,
                deadline=None,
                database=None,
                derandomize=True,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            def one(case: schemathesis.Case) -> None:
                answer = case.call_and_validate(base_url=url, timeout=20, checks=checks)
                statuses[answer.status_code] += 1

            one()
    return statuses


async def test_whatever_is_sent(gateway: Gateway) -> None:
    statuses = await asyncio.to_thread(fuzz, gateway.url, 12)
    assert statuses[200] > 10 and statuses[400] > 40, statuses


#: Endpoint, its wire type, and fields that every request is to have: with a value, or with any.
HELD: list[tuple[str, str, dict[str, Any], list[str]]] = [
    ("/v1/chat/completions", "ChatRequest", {"messages": HELLO}, ["tools"]),
    ("/v1/chat/completions", "ChatRequest", {"messages": HELLO}, ["tools", "tool_choice"]),
    ("/v1/chat/completions", "ChatRequest", {"messages": HELLO}, ["response_format"]),
    ("/v1/chat/completions", "ChatRequest", {"tools": [ADD]}, ["messages"]),
    ("/v1/completions", "CompletionRequest", {"prompt": "hi"}, ["structured_outputs"]),
    ("/v1/responses", "ResponsesRequest", {"input": "hi"}, ["tools"]),
    ("/v1/responses", "ResponsesRequest", {"input": "hi"}, ["text"]),
    ("/v1/responses", "ResponsesRequest", {"tools": [TOOL]}, ["input"]),
]


def having(document: Any, path: str, name: str, fixed: dict[str, Any], wanted: list[str]) -> Any:
    """The document of one endpoint whose requests have these fields, and no others."""
    document = deepcopy(document)
    document["paths"] = {path: document["paths"][path]}
    wire = document["components"]["schemas"][name]
    told = {field: without_null(wire["properties"][field]) for field in ("model", *wanted)}
    wire["properties"] = told | {field: {"enum": [value]} for field, value in fixed.items()}
    wire["required"] = [*wire["properties"]]
    return document


def without_null(schema: Any) -> Any:
    others = [one for one in schema.get("anyOf", ()) if one != {"type": "null"}]
    return {"anyOf": others} if others else schema


async def test_tools_formats_and_items_of_every_kind(gateway: Gateway) -> None:
    document = (await gateway.client.get("/openapi.json")).json()
    statuses = Counter[int]()
    for asked in HELD:
        schema = schemathesis.openapi.from_dict(having(document, *asked), config=CONFIG)
        statuses += await asyncio.to_thread(send, schema, gateway.url, 12, [Mode.POSITIVE])
    assert statuses[200] > 20 and statuses[400] > 20, statuses


@pytest.mark.slow
@pytest.mark.timeout(1200)
async def test_much_of_whatever_is_sent(gateway: Gateway) -> None:
    statuses = await asyncio.to_thread(fuzz, gateway.url, 300)
    assert statuses[200] > 150 and statuses[400] > 1000, statuses
