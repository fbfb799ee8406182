"""The OpenAPI document: whole, valid, and kept by the gateway whatever it is sent."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from jsonschema import Draft202012Validator
from schemathesis.checks import CHECKS
from schemathesis.config import SchemathesisConfig
from starlette.routing import Route

from gateway.openapi import OPERATIONS
from gateway.telling.timings import ASK, ASKED, FIELD
from tests.fakes import MODEL, FakeWorker, answering
from tests.gateways import Gateway, serving
from tests.tool_talk import ADD, CALLS, JSON_SCHEMA, STOP, write_talking_checkpoint

#: What a schema cannot say: which ids, lengths and combinations a model takes. So not all that the
#: document allows is accepted; and a few of the things it does not name are said elsewhere.
_BEYOND_A_SCHEMA = {"positive_data_acceptance"}


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    worker = FakeWorker(local_prefill=True, script=answering(CALLS))
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
    body = {"model": MODEL, "input": "hi", "include": ["message.output_text.logprobs"]}
    holds("ResponseBody", (await gateway.client.post("/v1/responses", json=body)).json())
    schema = {"type": "json_schema", **JSON_SCHEMA["json_schema"]}
    tools = [{"type": "function", **ADD["function"]}]
    for more in ({"tools": tools}, {"text": {"format": schema}}, {"tool_choice": "none"}):
        response = await gateway.client.post("/v1/responses", json={**body, **more})
        holds("ResponseBody", response.json())
    holds("ErrorBody", (await gateway.complete(wombat=1)).json())


def fuzz(url: str, examples: int) -> Counter[int]:
    """Send what the document allows, and what it does not; returns the answers' statuses.

    Each answer must be one that the document names, in its shape; no 5xx; none may hang.
    """
    config = SchemathesisConfig()
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json", config=config)
    schema = schema.exclude(path="/live")  # it never ends
    names = [name for name in CHECKS.get_all_names() if name not in _BEYOND_A_SCHEMA]
    checks = [CHECKS.get_one(name) for name in names]
    statuses = Counter[int]()
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in schemathesis.GenerationMode:
            if mode is schemathesis.GenerationMode.NEGATIVE and not operation.body:
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


@pytest.mark.slow
@pytest.mark.timeout(1200)
async def test_much_of_whatever_is_sent(gateway: Gateway) -> None:
    statuses = await asyncio.to_thread(fuzz, gateway.url, 300)
    assert statuses[200] > 200 and statuses[400] > 1000, statuses
