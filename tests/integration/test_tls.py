"""TLS between real servers in this process: what passes, what is refused, and is counted."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from baton import channels, wire
from baton.errors import PrefillLost
from baton.tls import gate
from baton.tls.authority import Authority
from baton.tls.links import Links
from baton.tls.names import Party
from baton.v1 import (
    decode_pb2_grpc,
    membership_pb2,
    membership_pb2_grpc,
    worker_pb2,
    worker_pb2_grpc,
)
from model.engine.mock_runner import CostModel
from tests.fakes import eventually, write_checkpoint
from tests.gateways import serving
from tests.relays import relayed
from tests.tls import Fleet, credentials, needs_openssl
from tests.workers import (
    Cluster,
    cluster,
    expected,
    gateway_identity,
    generation,
    prompt,
    session,
    status,
)

pytestmark = needs_openssl


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path / "fleet")


async def hand_over(c: Cluster, links: Links, first: int) -> None:
    """One prompt that shares no prefix with others, by a session of its own."""
    asked = generation(prompt(40, first), max_tokens=4)
    async with session(c.decode[0], links=links) as s:
        assert await s.submit(asked, c.prefill[0]).finished() == expected(asked)


async def test_kv_over_tls_and_nobody_refused(fleet: Fleet) -> None:
    async with cluster(tls=fleet, kv_transports=["nixl", "grpc"], local_prefill_queue=0) as c:
        links = fleet.gateway()
        await hand_over(c, links, 100)
        said = await status(c.decode[0], links)
        assert said.tls and not said.refused
        [pairing] = said.kv_pairings
        assert (pairing.transport, pairing.complete) == ("grpc", 1)
        assert "nixl: it cannot encrypt, and there is TLS" in pairing.downgrades[0]


async def test_through_a_relay(fleet: Fleet) -> None:
    async with relayed(tls=fleet, kv_transports=["relay"], local_prefill_queue=0) as (c, r):
        await hand_over(c, fleet.gateway(), 100)
        assert r.metrics.registry.get_sample_value("baton_relay_kv_bytes_total")


# -- who is refused, by a server -------------------------------------------------------------


async def session_call(channel: grpc.aio.Channel) -> None:
    # Nothing is written: beside a write that comes too late, grpc.aio loses the call's status.
    call = decode_pb2_grpc.DecodeServiceStub(channel).Session()
    try:
        await call.read()
    finally:
        call.cancel()


async def watch_call(channel: grpc.aio.Channel) -> None:
    request = worker_pb2.WatchRequest(identity=wire.identity_to_wire(gateway_identity()))
    call = worker_pb2_grpc.WorkerServiceStub(channel).Watch(request)
    try:
        await call.read()
    finally:
        call.cancel()


async def drain_call(channel: grpc.aio.Channel) -> None:
    await worker_pb2_grpc.WorkerServiceStub(channel).Drain(worker_pb2.DrainRequest())


Call = Callable[[grpc.aio.Channel], Awaitable[None]]


@pytest.mark.parametrize("call", [session_call, watch_call, drain_call])
async def test_the_wrong_role_is_refused_and_counted(fleet: Fleet, call: Call) -> None:
    async with cluster(prefill=0, tls=fleet) as c:
        intruder = fleet.links("p9", Party.PREFILL)
        with capture_logs() as logs:
            async with intruder.connect(c.decode[0].address, Party.DECODE, shared=False) as channel:
                with pytest.raises(grpc.aio.AioRpcError, match="names prefill 'p9'; /baton") as e:
                    await call(channel)
        assert e.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert [line for line in logs if line["event"] == "refused" and "p9" in line["reason"]]
        assert not [line for line in logs if "exc_info" in line]
        assert _refused(await status(c.decode[0], fleet.gateway())) == {"wrong_role": 1}


async def test_another_trust_domain_is_refused_and_counted(fleet: Fleet) -> None:
    """The same authority vouches for both."""
    Authority(fleet.directory, "elsewhere").issue("g9", [Party.GATEWAY])
    async with cluster(prefill=0, tls=fleet) as c:
        intruder = credentials("g9", fleet.directory, fleet.directory / "ca.pem")
        with pytest.raises(grpc.aio.AioRpcError, match="no role in the trust domain") as e:
            await _dial(c, intruder)
        assert e.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert _refused(await status(c.decode[0], fleet.gateway())) == {"no_name": 1}


@pytest.mark.parametrize("wrong", ["plain", "none", "authority", "expired"])
async def test_no_certificate_that_is_accepted(
    fleet: Fleet, wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "HANDSHAKE", 1.0)
    ca = fleet.directory / "ca.pem"
    async with cluster(prefill=0, tls=fleet) as c:
        if wrong == "plain":
            intruder = None
        elif wrong == "none":
            intruder = grpc.ssl_channel_credentials(ca.read_bytes())
        elif wrong == "authority":
            Authority(tmp_path / "other").issue("g9", [Party.GATEWAY])
            intruder = credentials("g9", tmp_path / "other", ca)
        else:
            Authority(fleet.directory).issue("g9", [Party.GATEWAY], days=-1)
            intruder = credentials("g9", fleet.directory, ca)
        with capture_logs() as logs:
            with pytest.raises(grpc.aio.AioRpcError) as e:
                await _dial(c, intruder)
            assert e.value.code() is grpc.StatusCode.UNAVAILABLE
            await eventually(lambda: c.decode[0].server.links.refused.get("no_call", 0) > 0)
        assert [line for line in logs if line["event"] == "refused"]


async def _dial(c: Cluster, intruder: grpc.ChannelCredentials | None) -> None:
    """A health check, of which every certificate of the fleet is capable."""
    async with channels.connect(
        c.decode[0].address, shared=False, credentials=intruder, host="decode.baton.internal"
    ) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        await stub.Check(health_pb2.HealthCheckRequest(), timeout=30)


async def test_a_gateway_counts_them_in_its_metrics(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody's certificate, another authority's, one of no role in this domain."""
    monkeypatch.setattr(gate, "HANDSHAKE", 1.0)
    files, ca = fleet.settings("g0", Party.GATEWAY), fleet.directory / "ca.pem"
    Authority(tmp_path / "other").issue("a9", [Party.ADMIN])
    Authority(fleet.directory, "elsewhere").issue("a9", [Party.ADMIN])
    checkpoint = write_checkpoint(tmp_path / "toy")
    async with serving(checkpoint, [], membership="embedded", **files) as g:
        for refused, why, intruder in (
            (1, "no_call", grpc.ssl_channel_credentials(ca.read_bytes())),
            (2, "no_call", credentials("a9", tmp_path / "other", ca)),
            (1, "no_name", credentials("a9", fleet.directory, ca)),
        ):
            async with channels.connect(
                g.service.rpc, shared=False, credentials=intruder, host="gateway.baton.internal"
            ) as channel:
                with pytest.raises(grpc.aio.AioRpcError):
                    stub = membership_pb2_grpc.MembershipServiceStub(channel)
                    await stub.List(membership_pb2.ListRequest(), timeout=30)
            counted = partial(g.metric, "baton_tls_refused_total", reason=why)
            await eventually(lambda counted=counted, least=refused: counted() >= least)


def _refused(said: worker_pb2.WorkerStatus) -> dict[str, int]:
    return {refusal.reason: refusal.count for refusal in said.refused}


# -- who is refused, by a client -------------------------------------------------------------


async def test_only_the_role_that_was_meant_is_talked_to(fleet: Fleet) -> None:
    """A decode worker at the prefill worker's address gets no prompt, and a prefill worker no
    session."""
    async with cluster(decode=2, tls=fleet) as c:
        links = fleet.gateway()
        async with session(c.decode[0], links=links) as s:
            stream = s.submit(generation(prompt(40)), c.prefill[0], address=c.decode[1].address)
            error = await stream.failed()
            assert isinstance(error, PrefillLost) and "Verification" in error.message
        async with session(c.prefill[0], links=links) as s:
            assert "Verification" in await asyncio.wait_for(s.ended, 30)


# -- roles that change -------------------------------------------------------------------------


async def test_a_role_that_the_certificate_does_not_name_is_refused_at_once(fleet: Fleet) -> None:
    async with cluster(prefill=0, decode=2, tls=fleet) as c:
        links = fleet.gateway()
        fleet.settings("d1", Party.PREFILL, Party.DECODE)  # read anew for the next call
        for worker, possible in ((c.decode[0], 1), (c.decode[1], 2)):
            assert len((await status(worker, links)).possible_roles) == possible
        async with links.connect(c.decode[0].address, Party.WORKER, shared=False) as channel:
            both = worker_pb2.SetRolesRequest(
                roles=[worker_pb2.ROLE_PREFILL, worker_pb2.ROLE_DECODE]
            )
            said = "does not name prefill: nobody would work with it"
            with pytest.raises(grpc.aio.AioRpcError, match=said) as e:
                await worker_pb2_grpc.WorkerServiceStub(channel).SetRoles(both)
            assert e.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        async with links.connect(c.decode[1].address, Party.WORKER, shared=False) as channel:
            await worker_pb2_grpc.WorkerServiceStub(channel).SetRoles(both)
        assert list((await status(c.decode[0], links)).roles) == [worker_pb2.ROLE_DECODE]
        asked = generation(prompt(40), max_tokens=4)
        async with session(c.decode[0], links=links) as s:
            assert await s.submit(asked, c.decode[1]).finished() == expected(asked)


# -- rotation --------------------------------------------------------------------------------


async def test_rotated_while_a_stream_runs(fleet: Fleet) -> None:
    """Authority and certificates: the stream goes on, and what is new uses the new ones only."""
    hurry = threading.Event()  # until then the stream would take many seconds

    def step(seconds: float) -> None:
        hurry.wait(seconds)

    slow = CostModel(step_s=0.1)
    async with cluster(
        tls=fleet, cost=slow, sleep=step, local_prefill_queue=0, heartbeat_interval=5.0
    ) as c:
        links, old = fleet.gateway(), (fleet.directory / "ca.pem").read_bytes()
        before = credentials("g0", fleet.directory, fleet.directory / "ca.pem")
        running = generation(prompt(20, 3), request_id="long", max_tokens=200)
        async with session(c.decode[0], links=links) as s:
            stream = s.submit(running, c.prefill[0])
            await stream.progress.wait()
            await asyncio.to_thread(fleet.renew)
            assert old not in (fleet.directory / "ca.pem").read_bytes()
            beside = generation(prompt(40, 200), request_id="beside", max_tokens=4)
            assert await s.submit(beside, c.prefill[0]).finished() == expected(beside)
            await hand_over(c, links, 300)
            with pytest.raises(grpc.aio.AioRpcError):
                await _dial(c, before)
            assert not stream.ended.done(), "else the test shows nothing"
            hurry.set()
            assert await stream.finished(60.0) == expected(running)


# -- membership ------------------------------------------------------------------------------


@asynccontextmanager
async def _joining(
    fleet: Fleet, id: str, party: Party, gateway: str
) -> AsyncIterator[membership_pb2_grpc.MembershipServiceAsyncStub]:
    """The membership service, as one process may call it."""
    async with fleet.links(id, party).connect(gateway, Party.GATEWAY, shared=False) as channel:
        yield membership_pb2_grpc.MembershipServiceStub(channel)


async def test_a_worker_registers_itself_and_nobody_else(fleet: Fleet, tmp_path: Path) -> None:
    files = fleet.settings("g0", Party.GATEWAY)
    decode = [worker_pb2.ROLE_DECODE]
    checkpoint = write_checkpoint(tmp_path / "toy")
    async with (
        serving(checkpoint, [], membership="embedded", heartbeat_interval=20.0, **files) as g,
        _joining(fleet, "d0", Party.DECODE, g.service.rpc) as d0,
        _joining(fleet, "d1", Party.DECODE, g.service.rpc) as d1,
        _joining(fleet, "p0", Party.PREFILL, g.service.rpc) as p0,
        _joining(fleet, "c0", Party.ADMIN, g.service.rpc) as admin,
    ):
        entry = membership_pb2.Entry(
            address="127.0.0.1:1",
            roles=decode,
            identity=wire.identity_to_wire(gateway_identity()),
        )
        leave = membership_pb2.LeaveRequest(
            address=entry.address, instance_id=entry.identity.instance_id
        )
        join = membership_pb2.JoinRequest(entry=entry)
        with pytest.raises(grpc.aio.AioRpcError, match="'p0' does not name decode"):
            await p0.Join(join)
        await d0.Join(join)
        with pytest.raises(grpc.aio.AioRpcError, match="'d1' is not that of 'd0', registered at"):
            await d1.Join(join)
        with pytest.raises(grpc.aio.AioRpcError, match="'d1' is not that of 'd0'"):
            await d1.Leave(leave)
        with pytest.raises(grpc.aio.AioRpcError, match="names admin 'c0'"):
            await admin.Join(join)
        assert len((await admin.List(membership_pb2.ListRequest())).workers) == 1
        await d0.Join(join)
        await d0.Leave(leave)
        await d1.Join(join)
        assert g.metric("baton_tls_refused_total", reason="wrong_id") == 2
        assert g.metric("baton_tls_refused_total", reason="wrong_role") == 2
        assert g.metric("baton_tls_certificate_expiry_timestamp_seconds") > time.time()
        async with httpx.AsyncClient(timeout=20) as http:
            said = (await http.get(f"{g.admin_url}/cluster")).json()["gateway"]
        assert said["tls"] and said["refused"] == {"wrong_role": 2, "wrong_id": 2}
