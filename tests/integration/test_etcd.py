"""Workers that register in a real etcd, and a gateway that finds them there. Skipped where there
is no etcd (Debian: the package etcd-server) or no etcd3aio (the extra ``etcd``)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from baton.liveness import Beat
from baton.membership.registration import Registration, posts
from baton.membership.source import Source
from tests import etcd
from tests.etcd import Etcd
from tests.fakes import FakeWorker, eventually, write_checkpoint
from tests.gateways import Gateway, serving

pytest.importorskip("etcd3aio")
pytestmark = pytest.mark.skipif(etcd.BINARY is None, reason="no etcd server on this machine")

BEAT = Beat(0.7, 3)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Etcd]:
    with etcd.etcd(tmp_path) as running:
        yield running


@asynccontextmanager
async def registered(worker: FakeWorker, server: Etcd) -> AsyncIterator[Registration]:
    where = posts(Source("etcd", (server.address,)), BEAT)
    async with worker:
        registration = Registration(where, lambda: worker.entry)
        try:
            yield registration
        finally:
            await registration.leave()


@asynccontextmanager
async def gateway(checkpoint: Path, server: Etcd) -> AsyncIterator[Gateway]:
    async with serving(checkpoint, [], membership=f"etcd:{server.address}") as running:
        yield running


def members(running: Gateway) -> set[str]:
    return {member.address for member in running.service.registry.members}


async def test_workers_come_leave_and_expire(checkpoint: Path, server: Etcd) -> None:
    one, two = FakeWorker(local_prefill=True), FakeWorker(local_prefill=True)
    async with gateway(checkpoint, server) as running, registered(one, server) as first:
        await running.until_healthy(1)
        async with registered(two, server):
            await running.until_healthy(2)
            [known] = [m for m in running.service.registry.members if m.address == two.address]
            assert known.entry == two.entry, "class, numerics and roles included"
        await eventually(lambda: members(running) == {one.address}, 20.0)
        for task in first.tasks:  # as a process that is killed
            task.cancel()
        await eventually(lambda: not members(running), 20.0)


async def test_a_restarted_etcd_changes_nothing(checkpoint: Path, server: Etcd) -> None:
    worker = FakeWorker(local_prefill=True)
    async with gateway(checkpoint, server) as running, registered(worker, server):
        await running.until_healthy(1)
        server.kill()
        await asyncio.sleep(3.0)
        assert members(running) == {worker.address}, "what was last read stays"
        assert (await running.complete()).status_code == 200
        server.start()
        other = FakeWorker(local_prefill=True)
        async with registered(other, server):
            await eventually(lambda: members(running) == {worker.address, other.address}, 30.0)


async def test_an_etcd_without_its_data_learns_of_everyone_again(
    checkpoint: Path, server: Etcd
) -> None:
    worker = FakeWorker(local_prefill=True)
    async with gateway(checkpoint, server) as running, registered(worker, server):
        await running.until_healthy(1)
        [known] = running.service.registry.members
        server.kill()
        server.start(empty=True)
        other = FakeWorker(local_prefill=True)
        async with registered(other, server):
            await eventually(lambda: members(running) == {worker.address, other.address}, 30.0)
        members_now = running.service.registry.members
        assert any(member is known for member in members_now), "it has never been away"


async def test_a_lost_lease_is_taken_anew_and_nobody_notices(
    checkpoint: Path, server: Etcd
) -> None:
    from etcd3aio import Etcd3Client

    worker = FakeWorker(local_prefill=True)
    async with gateway(checkpoint, server) as running, registered(worker, server):
        await running.until_healthy(1)
        async with Etcd3Client([server.address]) as client:
            assert client.lease is not None
            [lost] = (await client.lease.leases()).leases
            await client.lease.revoke(lost.ID)
            assert members(running) == {worker.address}

            async def held() -> list[int]:
                return [lease.ID for lease in (await client.lease.leases()).leases]

            async with asyncio.timeout(20.0):
                while not (now := await held()) or lost.ID in now:
                    assert members(running) == {worker.address}
                    await asyncio.sleep(0.05)
        assert members(running) == {worker.address}
