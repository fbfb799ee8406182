"""What a request goes through, as it is told: in its answer, as a trace, at /live. A gateway and
mock workers in this process, over real gRPC and HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import httpx_sse
import pytest
import structlog
from structlog.testing import capture_logs

from baton import live
from baton.errors import Draining
from baton.keys import ApiKey
from model.engine.mock_runner import CostModel
from tests.collector import Collector, Span, collecting
from tests.fakes import MODEL, FakeWorker, answering, eventually, ids, write_checkpoint
from tests.gateways import Gateway, serving
from tests.workers import CALM, CALM_GATEWAY, LAYOUT, Cluster, cluster

#: Tokens of a prompt: several chunks, and so several pieces of KV.
PROMPT = list(range(1, 61))
COST = CostModel(step_s=0.002, prefill_token_s=1e-4)
#: Of it, when it is asked again: all but the last token, in whole blocks.
CACHED = (len(PROMPT) - 1) // LAYOUT.block_size * LAYOUT.block_size
TIMED = {"x-baton-timings": "1"}
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("toy"))


@asynccontextmanager
async def whole(
    checkpoint: Path, *, decode: int = 1, otlp: str | None = None, local: bool = False
) -> AsyncIterator[tuple[Gateway, Cluster]]:
    """A gateway in front of a prefill worker and decode workers."""
    traced: dict[str, Any] = {"otlp_endpoint": otlp} if otlp else {}
    where: dict[str, Any] = {"local_prefill": True} if local else {"local_prefill_queue": 0}
    async with (
        cluster(0 if local else 1, decode, cost=COST, **CALM, **where, **traced) as c,
        serving(
            checkpoint,
            [],
            healthy=len(c.workers),
            served_model_name="mock",
            decode=[w.address for w in c.decode],
            prefill=[w.address for w in c.prefill],
            **CALM_GATEWAY,
            **traced,
        ) as gateway,
    ):
        yield gateway, c


def body(**fields: Any) -> dict[str, Any]:
    asked = {"model": "mock", "prompt": PROMPT, "max_tokens": 6, "temperature": 0}
    return {**asked, "ignore_eos": True, **fields}


async def completed(gateway: Gateway, headers: dict[str, str], **fields: Any) -> dict[str, Any]:
    answer = await gateway.client.post("/v1/completions", json=body(**fields), headers=headers)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


# -- in its answer ---------------------------------------------------------------------------------


async def test_timings_in_a_whole_answer_and_in_the_last_chunk(checkpoint: Path) -> None:
    async with whole(checkpoint) as (gateway, c):
        said = (await completed(gateway, TIMED))["baton_timings"]
        [attempt], [choice] = said["attempts"], said["choices"]
        assert attempt["decode"] == c.decode[0].instance_id[:8]
        assert attempt["prefill"] == c.prefill[0].instance_id[:8]
        assert attempt["ended"] == [{"choice": 0, "reason": "length", "tokens": 6}]
        assert attempt["transport"] == "shm"
        blocks = -(-len(PROMPT) // LAYOUT.block_size)
        assert said["transfer_bytes"] == blocks * LAYOUT.block_bytes * LAYOUT.layers
        assert said["transfer_ms"] == pytest.approx(
            said["transfer_hidden_ms"] + said["transfer_not_hidden_ms"], abs=0.01
        )
        assert 0 < said["prefill_ms"] < said["first_token_ms"] <= said["total_ms"]
        assert len(choice["gaps_ms"]) == choice["gaps"]["count"] <= 5
        assert sum(choice["gaps_ms"]) == pytest.approx(said["decode_ms"], abs=0.1)

        answer = await gateway.client.post(
            "/v1/completions", json=body(stream=True, n=2, temperature=1), headers=TIMED
        )
        *_, last, done = [line for line in answer.text.splitlines() if line]
        streamed = json.loads(last.removeprefix("data: "))
        assert done == "data: [DONE]" and streamed["choices"] == []
        timings = streamed["baton_timings"]
        assert [choice["tokens"] for choice in timings["choices"]] == [6, 6]
        assert timings["cached_tokens"] == CACHED

        assert "baton_timings" not in await completed(gateway, {})
        refused = await gateway.client.post(
            "/v1/completions", json=body(), headers={"x-baton-timings": "yes"}
        )
        assert refused.status_code == 400 and "'yes'" in refused.text


async def test_timings_of_an_answer_that_a_stop_string_ends(checkpoint: Path) -> None:
    """Its worker never says how it ended, but what it measured of the prompt is known."""
    async with whole(checkpoint, local=True) as (gateway, _):
        text = (await completed(gateway, {}, max_tokens=40))["choices"][0]["text"]
        stop = next(c for c in text if c.isprintable() and not c.isspace() and c != "\ufffd")
        said = (await completed(gateway, TIMED, max_tokens=40, stop=[stop]))["baton_timings"]
        assert said["attempts"][0]["ended"][0]["reason"] in ("cancelled", "length")
        assert said["prefill_ms"] > 0 and said["transfer_bytes"] == 0


async def test_timings_name_every_attempt_and_why_it_ended(checkpoint: Path) -> None:
    lost = FakeWorker(local_prefill=True, script=answering("hello", stop_after=2))
    async with serving(checkpoint, [lost]) as gateway:
        asking = asyncio.create_task(
            gateway.client.post(
                "/v1/completions", json={"model": MODEL, "prompt": "hi"}, headers=TIMED
            )
        )
        await lost.submitted(1)
        lost.script = answering("hello")
        lost.sessions[0].close()
        said = (await asking).json()["baton_timings"]
        first, second = said["attempts"]
        assert [first["attempt"], second["attempt"]] == [0, 1]
        assert first["ended"][0]["reason"] == "decode_lost"
        assert second["ended"] == [{"choice": 0, "reason": "stop", "tokens": 6}]
        assert first["ends_ms"] <= second["begins_ms"]
        assert first["prefill_ms"] is None, "nobody said"


# -- as a trace ------------------------------------------------------------------------------------


def require_one_trace(collector: Collector) -> None:
    """Every span is of the trace that came in, and hangs on another, or on who asked."""
    known = {span.id for span in collector.spans} | {"00f067aa0ba902b7"}
    for span in collector.spans:
        assert span.trace_id == TRACE, span
        assert span.parent in known, span
        assert span.seconds >= 0, span


def names(spans: list[Span]) -> list[str]:
    return sorted(span.name for span in spans)


async def test_one_trace_from_http_to_every_layer(checkpoint: Path) -> None:
    asking = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
    async with collecting() as collector:
        async with whole(checkpoint, otlp=collector.endpoint) as (gateway, c):
            await completed(gateway, asking)
        require_one_trace(collector)
        root = collector.one("POST /v1/completions")
        assert root.parent == "00f067aa0ba902b7" and not root.failed
        assert root.attributes["gen_ai.usage.output_tokens"] == 6
        assert names(collector.below(root)) == ["attempt 0", "queue"]
        attempt = collector.one("attempt 0")
        assert attempt.events == ["first token"] and attempt.attributes["baton.reason"] == "length"
        [decode] = collector.below(attempt)
        assert decode.name == "decode attempt"
        assert names(collector.below(decode)) == ["generate", "prefill call"]
        call = collector.one("prefill call")
        assert call.attributes["baton.prefill.instance_id"] == c.prefill[0].instance_id
        assert names(collector.below(call)) == ["kv transfer", "prefill"]
        layers = collector.one("kv transfer").events
        assert layers == [f"kv layer {layer}" for layer in range(LAYOUT.layers)]
        prefill = collector.one("prefill")
        assert names(collector.below(prefill)) == ["prefill compute"]
        assert {span.process for span in collector.spans} == {"baton-gateway", "baton-worker"}


async def test_a_trace_is_whole_though_a_worker_dies(checkpoint: Path) -> None:
    asking = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
    async with collecting() as collector:
        async with whole(checkpoint, decode=2, otlp=collector.endpoint) as (gateway, c):
            answering = asyncio.create_task(completed(gateway, asking, max_tokens=150))
            running: list[Any] = []
            while not running:
                await asyncio.sleep(0.01)
                running = [w for w in c.decode if w.runtime.engine.load().running]
            await running[0].kill()
            answer = await answering
            assert answer["usage"]["completion_tokens"] == 150
        require_one_trace(collector)
        root = collector.one("POST /v1/completions")
        # The same worker is asked once more, since only the connection may have broken.
        attempts = [collector.one(f"attempt {n}") for n in range(root.attributes["baton.attempts"])]
        assert len(attempts) >= 2 and not root.failed
        assert {attempt.parent for attempt in attempts} == {root.id}
        *lost, last = attempts
        for attempt in lost:
            assert attempt.failed and attempt.attributes["error.type"] == "decode_lost"
        assert lost[0].attributes["baton.decode.instance_id"] == running[0].instance_id
        assert not last.failed and last.attributes["baton.reason"] == "length"
        assert collector.below(last), "the replay's own spans"


async def test_what_is_not_sampled_is_not_told(checkpoint: Path) -> None:
    async with collecting() as collector:
        async with whole(checkpoint, otlp=collector.endpoint) as (gateway, _):
            await completed(gateway, {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-00"})
        assert collector.spans == []


# -- at /live --------------------------------------------------------------------------------------


@asynccontextmanager
async def listening(url: str) -> AsyncIterator[AsyncIterator[live.Event]]:
    async with (
        httpx.AsyncClient(base_url=url, timeout=20) as client,
        httpx_sse.aconnect_sse(client, "GET", "/live") as source,
    ):

        async def events() -> AsyncIterator[live.Event]:
            async for sent in source.aiter_sse():
                event = live.parse(sent.event, sent.data)
                assert event is not None, sent
                yield event

        yield events()


async def until(events: AsyncIterator[live.Event], kind: type[live.Event]) -> list[live.Event]:
    """What comes, to the first of a kind."""
    heard: list[live.Event] = []
    async for event in events:
        heard.append(event)
        if isinstance(event, kind):
            break
    return heard


async def test_the_feed_tells_a_request_from_its_arrival_to_its_end(checkpoint: Path) -> None:
    async with whole(checkpoint) as (gateway, c), listening(gateway.admin_url) as events:
        snapshot = await anext(events)
        assert isinstance(snapshot, live.Snapshot)
        assert {w.id for w in snapshot.workers} == {w.instance_id[:8] for w in c.workers}
        assert snapshot.requests == [] and snapshot.gateway.open == 0
        answer = await completed(gateway, {})
        heard = [event for event in await until(events, live.Ended) if hasattr(event, "request")]
        assert {event.request for event in heard} == {answer["id"]}
        kinds = list(dict.fromkeys(event.name for event in heard))
        order = ["queued", "placed", "prefill", "kv", "first_token", "attempt_ended", "ended"]
        # The first token overtakes the KV.
        assert sorted(kinds, key=order.index) == order
        assert kinds.index("first_token") > kinds.index("prefill") > kinds.index("placed")
        placed = next(event for event in heard if isinstance(event, live.Placed))
        assert (placed.decode, placed.prefill) == (
            c.decode[0].instance_id[:8],
            c.prefill[0].instance_id[:8],
        )
        computed = [event for event in heard if isinstance(event, live.Prefill)]
        assert computed[-1].computed == computed[-1].total == len(PROMPT)
        kv = [event for event in heard if isinstance(event, live.Kv)][-1]
        assert (kv.bytes, kv.layers) == (kv.total_bytes, kv.total_layers)
        ended = heard[-1]
        assert isinstance(ended, live.Ended)
        assert (ended.status, ended.reason, ended.tokens, ended.attempts) == (200, "length", 6, 1)
        assert ended.ttft_ms is not None and 0 < ended.ttft_ms <= ended.total_ms


async def test_the_feed_tells_how_far_an_answer_is(checkpoint: Path) -> None:
    async with whole(checkpoint, local=True) as (gateway, _), listening(gateway.url) as events:
        asking = asyncio.create_task(completed(gateway, {}, prompt=[1, 2, 3], max_tokens=240))
        heard = await until(events, live.Ended)
        await asking
        told = [event for event in heard if isinstance(event, live.Decode)]
        tokens = [event.tokens for event in told]
        assert tokens and tokens == sorted(set(tokens)) and tokens[-1] <= 240
        assert all(event.tokens_per_s > 0 and event.attempt == 0 for event in told)
        ended = heard[-1]
        assert isinstance(ended, live.Ended) and ended.tokens == 240
        assert ended.itl_p50_ms is not None and ended.itl_max_ms is not None
        assert 0 < ended.itl_p50_ms <= ended.itl_max_ms


async def test_who_comes_in_mid_stream_hears_of_what_is_open(checkpoint: Path) -> None:
    worker = FakeWorker(local_prefill=True, script=answering("hello", stop_after=2))
    async with serving(checkpoint, [worker]) as gateway:
        asking = asyncio.create_task(gateway.complete("hi"))
        await eventually(lambda: gateway.metric("baton_time_to_first_token_seconds_count") == 1)
        async with listening(gateway.url) as events:
            snapshot = await anext(events)
            assert isinstance(snapshot, live.Snapshot)
            [request] = snapshot.requests
            assert (request.phase, request.attempt, request.prefill) == ("decode", 0, None)
            assert request.decode == worker.instance_id[:8] and request.ttft_ms is not None
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            *_, ended = await until(events, live.Ended)
            assert isinstance(ended, live.Ended)
            assert (ended.status, ended.reason) == (499, "client_gone")
            await worker.kill()
            told = [event async for event in first_worker(events)]
            assert (told[-1].id, told[-1].state) == (worker.instance_id[:8], "out")


async def test_several_prompts_of_one_call_are_told_apart(checkpoint: Path) -> None:
    worker = FakeWorker(local_prefill=True, script=answering("hello"))
    async with serving(checkpoint, [worker]) as gateway:
        gateway.client.headers.update(TIMED)
        timings = (await gateway.complete(["a", "b"], n=2)).json()["baton_timings"]
        assert [[c["choice"] for c in told["choices"]] for told in timings] == [[0, 1], [2, 3]]
    worker = FakeWorker(local_prefill=True, script=answering("hello", stop_after=2))
    async with serving(checkpoint, [worker]) as gateway:
        asking = asyncio.create_task(gateway.complete(["a", "b"]))
        await eventually(lambda: gateway.metric("baton_time_to_first_token_seconds_count") == 2)
        async with listening(gateway.url) as events:
            assert isinstance(await anext(events), live.Snapshot)
        # Nobody listens now; who comes again hears of both.
        async with listening(gateway.url) as events:
            snapshot = await anext(events)
            assert isinstance(snapshot, live.Snapshot)
            assert len(snapshot.requests) == 2
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            ended = [(await until(events, live.Ended))[-1] for _ in range(2)]
            assert {event.name for event in ended} == {"ended"}


async def first_worker(events: AsyncIterator[live.Event]) -> AsyncIterator[live.Worker]:
    """What is said of workers, until one is out."""
    async for event in events:
        if isinstance(event, live.Worker):
            yield event
            if event.state == "out":
                return


async def test_where_the_feed_is_served(checkpoint: Path, tmp_path: Path) -> None:
    keys, key = tmp_path / "keys", ApiKey.new()
    keys.write_text(json.dumps({"name": "alice", "id": key.id, "hash": key.hash}) + "\n")
    async with serving(checkpoint, [FakeWorker(local_prefill=True)], api_keys=keys) as gateway:
        shown = {"Authorization": f"Bearer {key.text}"}
        assert (await gateway.client.get("/live", headers=shown)).status_code == 404
        async with listening(gateway.admin_url) as events:
            assert isinstance(await anext(events), live.Snapshot)
    async with serving(checkpoint, [FakeWorker(local_prefill=True)], live="off") as gateway:
        assert (await gateway.client.get("/live")).status_code == 404
        assert (await gateway.client.get(f"{gateway.admin_url}/live")).status_code == 404


async def test_nothing_of_the_prompt_is_told(checkpoint: Path) -> None:
    secret = "the secret word"
    worker = FakeWorker(local_prefill=True, script=answering("another secret"))
    async with serving(checkpoint, [worker]) as gateway, listening(gateway.url) as events:
        await anext(events)
        assert (await gateway.complete(secret)).status_code == 200
        told = [live.rendered(event) for event in await until(events, live.Ended)]
        assert not any("secret" in line or str(ids(secret)[:3]) in line for line in told)


# -- in the log ------------------------------------------------------------------------------------


async def test_every_line_about_a_request_names_it(checkpoint: Path) -> None:
    async with whole(checkpoint, decode=2) as (gateway, c):
        with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
            asking = asyncio.create_task(completed(gateway, {}, max_tokens=150))
            running: list[Any] = []
            while not running:
                await asyncio.sleep(0.01)
                running = [w for w in c.decode if w.runtime.engine.load().running]
            running[0].runtime.engine.drain(Draining("it leaves"))
            name = (await asking)["id"]
        said = {line["event"]: line.get("request_id") for line in lines}
        assert {"attempt lost", "choice ended early", "kv transport"} <= said.keys()
        for event in ("attempt lost", "choice ended early", "kv transport"):
            assert said[event] == name, event
