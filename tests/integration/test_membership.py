"""Workers come, go and hang while a gateway runs; it notices in time, and nothing is restarted."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from baton import channels
from baton.cli import ports
from baton.errors import HandoffFailed, PrefillLost
from baton.membership.registration import GatewayPost, Registration
from baton.settings import RelaySettings
from baton.v1 import membership_pb2, membership_pb2_grpc, worker_pb2
from gateway import members
from gateway.breaker import FAILURES
from gateway.fleet import Health
from gateway.relay.server import running as relay_running
from tests.fakes import (
    CLASS,
    MODEL,
    FakeSession,
    FakeWorker,
    Submitted,
    answering,
    eventually,
    failing,
    write_checkpoint,
)
from tests.gateways import Gateway, serving

OTHER_CLASS = replace(CLASS, model_revision="toy-2")
BEAT = 0.2  # as tests.gateways has it
PREFILL = (worker_pb2.ROLE_PREFILL,)
DIGESTS = [number.to_bytes(8, "little") for number in range(5000)]  #: of cached blocks


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("toy"))


@asynccontextmanager
async def embedded(checkpoint: Path, **settings: Any) -> AsyncIterator[Gateway]:
    """A gateway that knows nobody yet."""
    async with serving(checkpoint, [], membership="embedded", **settings) as gateway:
        yield gateway


@asynccontextmanager
async def joined(worker: FakeWorker, *gateways: str) -> AsyncIterator[Registration]:
    """A worker that runs, and is registered with these; then it leaves, and ends."""
    async with worker:
        registration = Registration([GatewayPost(at) for at in gateways], lambda: worker.entry)
        try:
            yield registration
        finally:
            await registration.leave()


def silence(registration: Registration) -> None:
    """As a process that is killed: it does not renew, and does not say goodbye."""
    for task in registration.tasks:
        task.cancel()
    registration.tasks = []


async def until_gone(gateway: Gateway) -> None:
    await eventually(lambda: not gateway.service.registry.members)


async def test_a_worker_is_seen_within_100_ms_of_joining(checkpoint: Path) -> None:
    """The best of twenty, at most: the machine is shared."""
    async with embedded(checkpoint) as gateway:
        took = [math.inf]
        while min(took) >= 0.1 and len(took) <= 20:
            async with FakeWorker() as worker:
                began = time.perf_counter()
                post = GatewayPost(gateway.service.rpc)
                registration = Registration([post], lambda worker=worker: worker.entry)
                while not gateway.service.registry.roster.workers:
                    await asyncio.sleep(0.001)
                took.append(time.perf_counter() - began)
                await registration.leave()
                await until_gone(gateway)
        print(f"seen after {[f'{1000 * seconds:.0f} ms' for seconds in took]}")
        assert min(took) < 0.1


async def test_a_silent_worker_is_suspect_after_one_beat_and_out_within_three(
    checkpoint: Path,
) -> None:
    """SIGSTOP or a partition: no stream is closed, no registration is renewed."""
    async with embedded(checkpoint) as gateway:
        worker = FakeWorker()
        async with joined(worker, gateway.service.rpc) as registration:
            await gateway.until_healthy(1)
            [member] = gateway.service.registry.members
            worker.silent = True
            silence(registration)
            async with beats() as count:
                await eventually(lambda: member.health is Health.SUSPECT)
                assert len(count) <= 2
                assert gateway.service.registry.roster.workers, "a last resort"
                await eventually(lambda: not gateway.service.registry.roster.workers)
                assert len(count) <= 4
            await until_gone(gateway)
            worker.silent = False
            async with joined_again(worker, gateway):
                await gateway.until_healthy(1)


@asynccontextmanager
async def beats() -> AsyncIterator[list[float]]:
    """Gets longer by one with every beat of this event loop, which on a busy machine is late for
    all that it runs."""
    count = list[float]()

    async def beat() -> None:
        while True:
            await asyncio.sleep(BEAT)
            count.append(time.perf_counter())

    beating = asyncio.create_task(beat())
    try:
        yield count
    finally:
        beating.cancel()


@asynccontextmanager
async def joined_again(worker: FakeWorker, gateway: Gateway) -> AsyncIterator[None]:
    """A worker that runs still renews after all."""
    registration = Registration([GatewayPost(gateway.service.rpc)], lambda: worker.entry)
    yield
    await registration.leave()


async def test_a_worker_that_leaves_is_gone_at_once(checkpoint: Path) -> None:
    async with embedded(checkpoint, heartbeat_interval=20.0) as gateway:
        worker = FakeWorker(local_prefill=True)
        async with joined(worker, gateway.service.rpc) as registration:
            await gateway.until_healthy(1)
            assert (await gateway.complete()).status_code == 200
            await registration.leave()
            await eventually(lambda: not gateway.service.registry.members, 15.0)
            assert (await gateway.complete()).status_code == 503


async def test_a_restarted_worker_at_its_old_address_is_another(checkpoint: Path) -> None:
    """It joins before anybody has noticed that the one before is gone."""
    async with embedded(checkpoint, heartbeat_interval=20.0) as gateway:
        first = FakeWorker(local_prefill=True)
        async with joined(first, gateway.service.rpc) as registration:
            await gateway.until_healthy(1)
            silence(registration)
            await first.kill()
            second = FakeWorker(local_prefill=True, port=first.port)
            async with joined(second, gateway.service.rpc):
                async with asyncio.timeout(15.0):
                    while second.instance_id not in {
                        w.instance_id for w in gateway.service.registry.roster.workers
                    }:
                        await asyncio.sleep(0.01)
                assert (await gateway.complete()).status_code == 200
                assert len(second.submits) == 1


async def test_workers_register_again_with_a_restarted_gateway_and_with_several(
    checkpoint: Path,
) -> None:
    unused = ports.free("127.0.0.1")
    here, there = next(unused), next(unused)
    worker = FakeWorker(local_prefill=True)
    async with joined(worker, f"127.0.0.1:{here}", f"127.0.0.1:{there}"):
        async with embedded(checkpoint, rpc_port=here) as one:
            await one.until_healthy(1)
            async with embedded(checkpoint, rpc_port=there) as other:
                await other.until_healthy(1)
                answers = await asyncio.gather(one.complete(), other.complete())
                assert [answer.status_code for answer in answers] == [200, 200]
                assert len(worker.sessions) == 2
        async with embedded(checkpoint, rpc_port=here) as again:
            await again.until_healthy(1)
            assert (await again.complete()).status_code == 200


async def test_a_gateway_and_a_relay_may_ask_another_gateway(checkpoint: Path) -> None:
    async with embedded(checkpoint) as first:
        source = f"gateway:{first.service.rpc}"
        settings = RelaySettings(membership=source, port=0, heartbeat_interval=BEAT)
        worker = FakeWorker(local_prefill=True)
        async with (
            serving(checkpoint, [], membership=source) as second,
            relay_running(settings) as relay,
            joined(worker, first.service.rpc) as registration,
        ):
            await second.until_healthy(1)
            assert (await second.complete()).status_code == 200
            await eventually(lambda: len(relay.registry.roster.workers) == 1)
            await registration.leave()
            await until_gone(second)


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"protocol": 99}, grpc.StatusCode.FAILED_PRECONDITION, "protocol version 99"),
        ({"address": "nowhere"}, grpc.StatusCode.INVALID_ARGUMENT, "not HOST:PORT"),
        ({"instance": ""}, grpc.StatusCode.INVALID_ARGUMENT, "says who it is"),
    ],
)
async def test_who_cannot_join_is_told_why(
    checkpoint: Path, change: dict[str, Any], code: grpc.StatusCode, said: str
) -> None:
    entry = FakeWorker(port=1).entry.to_wire()
    entry.identity.protocol = change.get("protocol", entry.identity.protocol)
    entry.identity.instance_id = change.get("instance", entry.identity.instance_id)
    entry.address = change.get("address", entry.address)
    async with embedded(checkpoint) as gateway:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await join(gateway, entry)
        assert not gateway.service.registry.members
    assert refused.value.code() is code
    assert said in (refused.value.details() or "")


async def test_a_gateway_with_a_list_takes_no_registrations(checkpoint: Path) -> None:
    async with serving(checkpoint, [FakeWorker(local_prefill=True)]) as gateway:
        with pytest.raises(grpc.aio.AioRpcError, match="--membership is not embedded"):
            await join(gateway, FakeWorker(port=1).entry.to_wire())
        listed = await ask_list(gateway)
        assert [worker.health for worker in listed.workers] == ["healthy"]


async def join(gateway: Gateway, entry: membership_pb2.Entry) -> None:
    async with channels.connect(gateway.service.rpc, shared=False) as channel:
        stub = membership_pb2_grpc.MembershipServiceStub(channel)
        await stub.Join(membership_pb2.JoinRequest(entry=entry), timeout=5.0)


async def ask_list(gateway: Gateway) -> membership_pb2.ListReply:
    async with channels.connect(gateway.service.rpc, shared=False) as channel:
        stub = membership_pb2_grpc.MembershipServiceStub(channel)
        reply: membership_pb2.ListReply = await stub.List(membership_pb2.ListRequest(), timeout=5.0)
        return reply


async def test_two_revisions_in_one_fleet_never_pair(checkpoint: Path) -> None:
    """Each gateway's model goes to its own class, and a replay stays inside it."""
    text = "hello"
    half = answering(text, stop_after=2)
    one = [FakeWorker(script=half), FakeWorker(roles=PREFILL)]
    two = [
        FakeWorker(script=answering(text), compatibility=OTHER_CLASS, model="toy-2"),
        FakeWorker(roles=PREFILL, compatibility=OTHER_CLASS, model="toy-2"),
    ]
    async with (
        serving(checkpoint, [*one, *two]) as gateway,
        serving(
            checkpoint, [], decode=[w.address for w in (*one, *two)], served_model_name="toy-2"
        ) as other,
    ):
        await other.until_healthy(4)
        answer = await other.client.post("/v1/completions", json={"model": "toy-2", "prompt": "hi"})
        assert answer.json()["choices"][0]["text"] == text
        asking = asyncio.create_task(gateway.complete())
        submitted = await one[0].submitted(1)
        assert submitted.prefill_instance_id == one[1].instance_id
        one[0].script = answering(text)
        await gateway.until_generated(2)
        one[0].sessions[0].close()
        assert (await asking).json()["choices"][0]["text"] == text
        assert len(one[0].submits) == 2 and len(two[0].submits) == 1
        assert two[0].submits[0].prefill_instance_id == two[1].instance_id


# -- health -------------------------------------------------------------------------------------


async def test_a_worker_that_hangs_is_out_and_its_streams_go_on_elsewhere(
    checkpoint: Path,
) -> None:
    """Its event loop answers as ever; its engine takes no step."""
    stuck = FakeWorker(local_prefill=True, script=answering("hello", stop_after=2))
    spare = FakeWorker(local_prefill=True, blocks_free=500)
    async with serving(checkpoint, [stuck, spare], stall_timeout=0.5) as gateway:
        asking = asyncio.create_task(gateway.complete())
        await stuck.submitted(1)
        stuck.running, stuck.steps = 1, 7
        assert (await asking).json()["choices"][0]["text"] == "hello"
        assert len(spare.submits) == 1 and len(stuck.cancels) == 1
        member = next(m for m in gateway.service.registry.members if m.address == stuck.address)
        assert member.health is Health.OUT and "took no step for 0.5 s" in member.reason
        stuck.steps = 8
        await gateway.until_healthy(2)


async def test_a_prompt_does_not_wait_for_a_prefill_worker_that_hangs(checkpoint: Path) -> None:
    async def script(session: FakeSession, submitted: Submitted) -> None:
        if submitted.key.attempt == 0:
            await asyncio.Event().wait()
        await answering("hello")(session, submitted)

    pair = [FakeWorker(roles=PREFILL), FakeWorker(roles=PREFILL)]
    decode = FakeWorker(script=script)
    async with serving(checkpoint, [decode, *pair], stall_timeout=0.5) as gateway:
        asking = asyncio.create_task(gateway.complete())
        first = await decode.submitted(1)
        [stuck] = [w for w in pair if w.instance_id == first.prefill_instance_id]
        [spare] = [w for w in pair if w is not stuck]
        stuck.queued_tokens, stuck.steps = 2, 7
        assert (await asking).json()["choices"][0]["text"] == "hello"
        assert await decode.cancelled() == first.key
        assert decode.submits[1].prefill_instance_id == spare.instance_id
        assert gateway.metric("baton_migrations_total", reason=PrefillLost.code) == 1


async def test_a_worker_whose_steps_fail_is_out_until_they_succeed(checkpoint: Path) -> None:
    worker = FakeWorker(local_prefill=True)
    async with serving(checkpoint, [worker]) as gateway:
        worker.failing = True
        await gateway.until_healthy(0)
        worker.failing = False
        await gateway.until_healthy(1)


async def test_a_worker_that_fails_again_and_again_is_left_alone(checkpoint: Path) -> None:
    broken = FakeWorker(roles=PREFILL)
    sound = FakeWorker(roles=PREFILL, queued_tokens=100)

    async def script(session: FakeSession, submitted: Submitted) -> None:
        at = submitted.prefill_instance_id
        way = failing(HandoffFailed("x")) if at == broken.instance_id else answering("hello")
        await way(session, submitted)

    decode = FakeWorker(script=script)
    async with serving(checkpoint, [decode, broken, sound]) as gateway:
        for _ in range(FAILURES + 5):
            assert (await gateway.complete()).status_code == 200
        tried = [s for s in decode.submits if s.prefill_instance_id == broken.instance_id]
        assert FAILURES <= len(tried) <= FAILURES + 1, "at most one trial since"


async def test_a_worker_in_a_list_comes_back_soon(checkpoint: Path) -> None:
    worker = FakeWorker(local_prefill=True)
    async with serving(checkpoint, [worker]) as gateway:
        await worker.kill()
        await gateway.until_healthy(0)
        async with FakeWorker(local_prefill=True, port=worker.port):
            await gateway.until_healthy(1)


async def test_who_is_there_is_listed(checkpoint: Path) -> None:
    worker = FakeWorker(local_prefill=True, queued_tokens=3, draining=True)
    async with serving(checkpoint, [worker]) as gateway:
        [listed] = (await ask_list(gateway)).workers
        assert listed.entry.address == worker.address
        assert listed.status.identity.instance_id == worker.instance_id
        assert (listed.status.load.queued_tokens, listed.status.draining) == (3, True)
        assert (listed.health, listed.status.model) == ("healthy", MODEL)


@pytest.mark.parametrize(
    ("lie", "why"),
    [
        ({"compatibility": replace(CLASS, block_size=0)}, "block_size 0"),
        ({"prefill_us_per_token": math.nan}, "prefill_us_per_token nan"),
        ({"prefill_us_per_token": -1.0}, "prefill_us_per_token -1.0"),
        ({"kv_pairings": [worker_pb2.KvPairing(bytes_per_s=math.inf)]}, "bytes_per_s inf"),
        ({"kv_pairings": [worker_pb2.KvPairing()] * 5000}, "5000 kv_pairings, but 4096"),
        (
            {"cache": [worker_pb2.CacheChanges(whole=True, entered=b"".join(DIGESTS))]},
            "cached blocks of 1000",
        ),
    ],
)
async def test_a_worker_that_lies_spoils_nothing(
    checkpoint: Path, lie: dict[str, Any], why: str
) -> None:
    liar, honest = FakeWorker(local_prefill=True, **lie), FakeWorker(local_prefill=True)
    async with serving(checkpoint, [liar, honest], healthy=1, placement="prefix") as gateway:
        seen = {m.address: m for m in gateway.service.registry.members}
        await eventually(lambda: why in seen[liar.address].reason)
        assert seen[liar.address].health is Health.REFUSED
        for _ in range(4):
            assert (await gateway.complete()).status_code == 200
        assert (await gateway.client.get(f"{gateway.admin_url}/cluster")).status_code == 200
    assert not liar.submits


async def test_registrations_are_bounded(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "MOST_MEMBERS", 1)
    worker = FakeWorker(local_prefill=True)
    async with embedded(checkpoint) as gateway, worker:
        await join(gateway, worker.entry.to_wire())
        await join(gateway, worker.entry.to_wire())  # again, as with every beat
        with pytest.raises(grpc.aio.AioRpcError, match="1 workers are registered, as many as may"):
            await join(gateway, FakeWorker(port=1).entry.to_wire())
        long = worker.entry.to_wire()
        long.model = "m" * 10_000
        with pytest.raises(grpc.aio.AioRpcError, match="bytes, but 8192 are allowed"):
            await join(gateway, long)
