"""Placement from end to end in one process: what workers tell of their caches, where requests go
by it, and what the client is told."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from baton import channels, wire
from baton.keys import ApiKey
from baton.prefix_keys import PrefixKeys, pack_digests, unpack_digests
from baton.v1 import worker_pb2, worker_pb2_grpc
from gateway.caches import Prefix
from gateway.keys import Keys, read
from tests.fakes import CLASS, FakeWorker, eventually, write_checkpoint
from tests.gateways import serving
from tests.workers import (
    BLOCK,
    LAYOUT,
    Worker,
    cluster,
    gateway_identity,
    generation,
    prompt,
    session,
)

TOKENS = list(range(100, 180))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("toy"))


def whole(tokens: list[int], salt: bytes = b"") -> worker_pb2.CacheChanges:
    """A cache that holds these, in the fakes' class."""
    keys = PrefixKeys(CLASS.layout, CLASS.block_size)
    told = pack_digests(keys.keys(keys.root(salt), tokens))
    return worker_pb2.CacheChanges(position=1, whole=True, entered=told)


async def told(worker: Worker, *, until: int) -> list[worker_pb2.CacheChanges]:
    """What a new watcher is told until it knows of so many blocks."""
    request = worker_pb2.WatchRequest(
        identity=wire.identity_to_wire(gateway_identity()), cache_changes=True
    )
    found, known = [], set[int]()
    async with channels.connect(worker.address, shared=False) as channel:
        call = worker_pb2_grpc.WorkerServiceStub(channel).Watch(request)
        async with asyncio.timeout(30):
            while len(known) != until or not found:
                status = await call.read()
                if status.HasField("cache"):
                    found.append(status.cache)
                    known |= set(unpack_digests(status.cache.entered))
                    known -= set(unpack_digests(status.cache.left))
        call.cancel()
    return found


async def test_workers_tell_what_their_caches_hold() -> None:
    async with cluster() as c, session(c.decode[0]) as s:
        [nothing] = await told(c.prefill[0], until=0)
        assert nothing.whole and not nothing.entered
        asked = prompt(40)
        watching = asyncio.create_task(told(c.prefill[0], until=10))
        await s.submit(generation(asked), c.prefill[0]).finished()
        first, *changes = await watching
        assert first.whole
        seen = [first, *changes]
        assert [one.since for one in changes] == [one.position for one in seen[:-1]]
        [late] = await told(c.prefill[0], until=10)
        expected = list(Prefix([*asked, 0], b"").chain(LAYOUT))
        assert len(expected) == 40 // BLOCK
        assert sorted(unpack_digests(late.entered)) == sorted(expected)
        assert late.position == seen[-1].position == 10
        # The decode worker keeps the answer's full blocks, too.
        assert len((await told(c.decode[0], until=11))[-1].entered) == 8 * 11


async def test_workers_without_a_prefix_cache_tell_nothing() -> None:
    async with cluster(prefix_cache=False) as c, channels.connect(c.prefill[0].address) as channel:
        request = worker_pb2.WatchRequest(
            identity=wire.identity_to_wire(gateway_identity()), cache_changes=True
        )
        call = worker_pb2_grpc.WorkerServiceStub(channel).Watch(request)
        assert not (await call.read()).HasField("cache")
        call.cancel()


async def test_requests_go_to_the_cache_that_holds_them_and_say_so(checkpoint: Path) -> None:
    busy = FakeWorker(local_prefill=True, queued_tokens=40, cache=[whole(TOKENS)])
    idle = FakeWorker(local_prefill=True, cache=[whole([])])
    asks = {"x-baton-debug": "placement"}
    async with serving(checkpoint, [busy, idle], placement="prefix") as gateway:
        for stream in (False, True):
            body = {"model": "toy", "prompt": TOKENS, "stream": stream}
            answer = await gateway.client.post("/v1/completions", json=body, headers=asks)
            said = json.loads(answer.headers["x-baton-placement"])
            assert said["policy"] == "prefix" and said["prefill"] is None
            assert said["decode"]["worker"] == busy.instance_id[:8]
            best = {one["worker"]: one["cached"] for one in said["decode"]["best"]}
            assert best == {busy.instance_id[:8]: 64, idle.instance_id[:8]: 0}
        other = await gateway.complete(TOKENS[1:])
        assert "x-baton-placement" not in other.headers
        assert (len(busy.submits), len(idle.submits)) == (2, 1)
        cluster_says = (await gateway.client.get(f"{gateway.admin_url}/cluster")).json()["gateway"]
        assert cluster_says["placement"] == "prefix"
        assert cluster_says["known_cached_blocks"] == 5


async def test_a_key_finds_what_it_has_cached_and_no_other_does(
    checkpoint: Path, tmp_path: Path
) -> None:
    alice, bob = ApiKey.new(), ApiKey.new()
    file = tmp_path / "keys"
    named = {"alice": alice, "bob": bob}
    lines = [json.dumps({"name": n, "id": key.id, "hash": key.hash}) for n, key in named.items()]
    file.write_text("\n".join(lines))
    salt = Keys(read(file), "key", lambda: 0.0).caller(f"Bearer {alice.text}").cache_salt
    worker = FakeWorker(local_prefill=True, cache=[whole(TOKENS, salt)])
    async with serving(checkpoint, [worker], placement="prefix", api_keys=file) as gateway:
        for key, cached in ((alice, 64), (bob, 0)):
            answer = await gateway.client.post(
                "/v1/completions",
                json={"model": "toy", "prompt": TOKENS},
                headers={"x-baton-debug": "placement", "authorization": f"Bearer {key.text}"},
            )
            said = json.loads(answer.headers["x-baton-placement"])
            assert said["decode"]["best"][0]["cached"] == cached


async def test_a_gap_has_the_whole_told_again(checkpoint: Path) -> None:
    """And costs the worker nothing: it stays healthy."""
    gap = worker_pb2.CacheChanges(position=9, since=8)
    worker = FakeWorker(local_prefill=True, cache=[whole(TOKENS), gap])
    async with serving(checkpoint, [worker], placement="prefix") as gateway:
        await eventually(lambda: len(worker.watches) > 2)
        assert all(watch.cache_changes for watch in worker.watches)
        assert [m.health.value for m in gateway.service.registry.members] == ["healthy"]
        worker.cache = [whole(TOKENS)]
        asks = {"x-baton-debug": "placement"}
        async with asyncio.timeout(30):
            while True:
                body = {"model": "toy", "prompt": TOKENS}
                answer = await gateway.client.post("/v1/completions", json=body, headers=asks)
                said = json.loads(answer.headers["x-baton-placement"])
                if said["decode"]["best"][0]["cached"] == 64:
                    break


async def test_nobody_is_asked_for_what_no_policy_needs(checkpoint: Path) -> None:
    worker = FakeWorker(local_prefill=True)
    async with serving(checkpoint, [worker]):
        assert not worker.watches[0].cache_changes


async def test_a_session_by_header_or_user_stays_where_it_is(checkpoint: Path) -> None:
    workers = [FakeWorker(local_prefill=True) for _ in range(4)]
    async with serving(checkpoint, workers, placement="affinity") as gateway:
        for number in range(8):
            body = {"model": "toy", "prompt": TOKENS[number:], "user": "somebody"}
            await gateway.client.post("/v1/completions", json=body)
        assert sorted(len(each.submits) for each in workers) == [0, 0, 0, 8]
        for number in range(16):
            named = {"x-baton-session": str(number)}
            await gateway.client.post("/v1/completions", json=body, headers=named)
        assert sum(len(each.submits) > 0 for each in workers) > 1


async def test_what_cannot_be_explained_is_refused(checkpoint: Path) -> None:
    async with serving(checkpoint, [FakeWorker(local_prefill=True)]) as gateway:
        answer = await gateway.client.post(
            "/v1/completions",
            json={"model": "toy", "prompt": "hi"},
            headers={"x-baton-debug": "everything"},
        )
        assert answer.status_code == 400
        assert "x-baton-debug is 'everything', but only 'placement'" in answer.text
