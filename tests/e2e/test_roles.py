"""Real workers change their roles under load, told to by a command or by the gateway itself."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path
from typing import Any

import grpc
import httpx

from baton import wire
from baton.identity import ROLES
from baton.v1 import membership_pb2, membership_pb2_grpc, worker_pb2, worker_pb2_grpc
from tests.e2e import client, mocked
from tests.e2e.cluster import DEMO, Cluster, Process, cluster, get, until
from tests.e2e.test_membership import command

TOKENS = 400


def told(process: Process, role: str, grace: float = 0.2) -> tuple[int, float]:
    """How many sequences it handed back, and the seconds it took."""
    request = worker_pb2.SetRolesRequest(
        roles=wire.roles_to_wire(ROLES[role]), grace_ms=round(1000 * grace)
    )
    began = time.monotonic()
    with grpc.insecure_channel(process.address) as channel:
        reply = worker_pb2_grpc.WorkerServiceStub(channel).SetRoles(request, timeout=60.0)
    return reply.handed_back, time.monotonic() - began


def roles(running: Cluster) -> dict[str, str]:
    """What each worker does, as the gateway has it."""
    names = {process.address: process.name for process in running.workers}
    seen = get(running.cluster_url).json()["workers"]
    return {names[w["address"]]: "+".join(w["roles"]) for w in seen if "roles" in w}


def registered(running: Cluster, address: str) -> list[worker_pb2.Role]:
    """The roles with which a worker is a member."""
    with grpc.insecure_channel(running.rpc) as channel:
        stub = membership_pb2_grpc.MembershipServiceStub(channel)
        listed = stub.List(membership_pb2.ListRequest(), timeout=10.0).workers
    return next(list(each.entry.roles) for each in listed if each.entry.address == address)


async def test_no_stream_notices_a_change_of_roles() -> None:
    """Greedy and seeded, bitwise; whatever the workers do meanwhile."""
    rng = random.Random(5)
    bodies = [
        client.body(
            [rng.randrange(256) for _ in range(rng.choice((20, 100, 300)))],
            TOKENS,
            **({"temperature": 0.9, "seed": index} if index % 2 else {}),
        )
        for index in range(12)
    ]
    changes = [
        *(("d1", "prefill"), ("p0", "decode"), ("d0", "both"), ("p0", "prefill")),
        *(("d1", "both"), ("d0", "prefill"), ("d0", "decode"), ("d1", "decode")),
    ]
    with cluster(DEMO, "--deterministic", "--prefill", "1", "--decode", "2") as running:
        running.until_healthy("p0", "d0", "d1")
        pids = {process.name: process.pid for process in running.workers}
        async with client.connect(running.url) as http:
            wanted = await asyncio.gather(*(client.tokens(http, body) for body in bodies))
            over = asyncio.Event()

            async def follow(body: dict[str, Any], answer: list[int]) -> None:
                while not over.is_set():
                    assert await client.tokens(http, body) == answer

            moved = 0
            async with asyncio.TaskGroup() as group:
                for body, answer in zip(bodies, wanted, strict=True):
                    group.create_task(follow(body, answer))
                for name, role in changes:
                    await asyncio.sleep(0.5)
                    process = running.processes[name]
                    handed_back, seconds = await asyncio.to_thread(told, process, role)
                    print(f"{name} {role}: {seconds:.2f} s, {handed_back} handed back")
                    assert seconds < 20.0, "one second, on a machine that is not busy"
                    moved += handed_back
                over.set()
            assert moved, "no stream was under way"
            address = running.processes["d1"].address
            said = await asyncio.to_thread(command, "role", address, "both", "--grace", "0")
            assert f"{address}: prefill + decode" in said
            until(lambda: roles(running)["d1"] == "decode+prefill", 30.0, "the gateway knows")
            until(lambda: len(registered(running, address)) == 2, 30.0, "so does its register")
        assert {process.name: process.pid for process in running.workers} == pids


async def test_the_gateway_moves_workers_to_the_side_that_waits(tiny_llama: Path) -> None:
    """First everything is asked to decode, then to prefill."""
    flags = ("--mock", "--auto-roles", "--role-hold", "2", "--max-running", "4")
    slow = ("--mock-step-ms", "10", "--mock-prefill-us", "5000")
    rng = random.Random(6)
    with cluster(tiny_llama, *flags, *slow, "--prefill", "2", "--decode", "2") as running:
        running.until_healthy("p0", "p1", "d0", "d1")

        def count(role: str) -> int:
            return sum(role in doing for doing in roles(running).values())

        async def asked(length: int, max_tokens: int, role: str, workers: int) -> None:
            """Ask for that until so many workers have the role; every answer is right."""
            changed = asyncio.Event()

            async def follow(http: httpx.AsyncClient) -> None:
                while not changed.is_set():
                    job = mocked.job(rng, length, max_tokens)
                    answer = await client.tokens(http, job.body)
                    assert answer == job.expected(mocked.compatibility(running))

            async with client.connect(running.url) as http, asyncio.TaskGroup() as group:
                for _ in range(12):
                    group.create_task(follow(http))
                async with asyncio.timeout(150.0):
                    while await asyncio.to_thread(count, role) < workers:
                        await asyncio.sleep(0.2)
                changed.set()

        await asked(4, 480, "decode", 3)
        await asked(200, 2, "prefill", 2)
