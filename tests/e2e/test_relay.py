"""A fleet whose decode worker cannot reach its prefill worker: all goes through a relay, and when
that is killed, the request goes on all the same."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from baton.cli import ports
from baton.identity import CompatibilityClass
from tests.e2e import client
from tests.e2e.cluster import MODEL, ROOT, START_SECONDS, Process, get, until, until_idle
from tests.e2e.mocked import Job, job

#: A prompt of 300 tokens computes for about a second, and its KV comes in ten chunks.
SLOW = ("--mock", "--mock-prefill-us", "3000", "--chunk-tokens", "32", "--num-blocks", "256")
ANYWHERE = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a process runs, and how it and the relay find each other."""

    host: str  #: of the process
    outside: str  #: of the relay and the gateway, as seen from there
    enter: tuple[str, ...] = ()  #: command prefix


@dataclass(slots=True)
class Fleet:
    """Processes started one by one; each logs JSON to a file of its own."""

    folder: Path
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    commands: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def start(self, name: str, module: str, *arguments: str, place: Place | None = None) -> None:
        self.commands[name] = (module, *arguments)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("BATON_")}
        with (self.folder / name).open("ab") as log:
            self.running[name] = subprocess.Popen(
                [
                    *(place.enter if place else ()),
                    *(sys.executable, "-m", module, "--log-format", "json", *arguments),
                ],
                cwd=ROOT,
                env=environment | {"OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def events(self, name: str, event: str) -> list[Mapping[str, Any]]:
        """What a process logged under one name."""
        found = []
        for line in (self.folder / name).read_text().splitlines():
            with suppress(ValueError):
                said = json.loads(line)
                if said.get("event") == event:
                    found.append(said)
        return found

    def until_ready(self, name: str, times: int = 1) -> Mapping[str, Any]:
        def ready() -> Mapping[str, Any] | None:
            assert self.running[name].poll() is None, (self.folder / name).read_text()
            said = self.events(name, "ready")
            return said[-1] if len(said) >= times else None

        found: Mapping[str, Any] = until(ready, START_SECONDS, f"{name} ready")
        return found

    def kill(self, name: str) -> tuple[str, ...]:
        """What it was started with."""
        process = self.running.pop(name)
        process.kill()
        process.wait()
        return self.commands[name]

    def stop(self) -> None:
        """All must end by themselves, and well."""
        for process in self.running.values():
            process.send_signal(signal.SIGTERM)
        assert [process.wait(90) for process in self.running.values()] == [0] * len(self.running)

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for name, process in self.running.items():
            if process.poll() is None:
                process.kill()
                process.wait()
            if kind is not None:
                print(f"--- {name}\n{(self.folder / name).read_text()}")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@contextmanager
def _apart(letter: str, number: int) -> Iterator[Place]:
    """A network of its own with one way out: to this one, and no further."""
    name, link = f"baton-{letter}{os.getpid()}", f"b{letter}{os.getpid()}"
    inside, outside = f"10.213.{number}.2", f"10.213.{number}.1"
    with ExitStack() as undo:
        _ip("netns", "add", name)
        undo.callback(_ip, "netns", "del", name)  # its end of the link goes with it
        _ip("link", "add", link, "type", "veth", "peer", "name", "out", "netns", name)
        _ip("addr", "add", f"{outside}/30", "dev", link)
        _ip("link", "set", link, "up")
        _ip("-n", name, "addr", "add", f"{inside}/30", "dev", "out")
        _ip("-n", name, "link", "set", "out", "up")
        yield Place(inside, outside, ("ip", "netns", "exec", name))


@pytest.fixture(params=["apart", "forced"])
def places(request: pytest.FixtureRequest) -> Iterator[tuple[Place, Place]]:
    """Of the prefill and the decode worker: networks without a way from one to the other, or
    this one, where only the settings forbid it."""
    if request.param == "forced":
        yield Place(ANYWHERE, ANYWHERE), Place(ANYWHERE, ANYWHERE)
        return
    with ExitStack() as stack:
        try:
            made = [stack.enter_context(_apart(*one)) for one in (("p", 1), ("d", 2))]
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no network namespaces here: {error}")
        yield made[0], made[1]


@contextmanager
def _fleet(model: Path, folder: Path, places: tuple[Place, Place]) -> Iterator[Fleet]:
    """A prefill and a decode worker at ``places``, a relay and a gateway here; afterwards the
    workers' books must balance, and all must stop cleanly."""
    far, near = places
    free = ports.free(ANYWHERE)
    p, d, relay = f"{far.host}:{next(free)}", f"{near.host}:{next(free)}", next(free)
    serve = ("--model", str(model), "--served-model-name", MODEL)
    compute = (*serve, *SLOW, "--threads", "1")
    forced = ("--kv-transports", "relay") if far.host == near.host else ()
    between = ("--prefill", p, "--decode", d)
    with Fleet(folder) as fleet:
        fleet.start("p0", "prefill_worker", *compute, *_listen(p), place=far)
        fleet.start(
            *("d0", "decode_worker", *compute, *_listen(d), "--local-prefill-queue", "0"),
            *("--relay", f"{near.outside}:{relay}", *forced),
            place=near,
        )
        fleet.start(
            *("relay", "gateway.relay", *between, *_listen(f"0.0.0.0:{relay}")),
            *("--admin-port", "0"),
        )
        fleet.start(
            *("gateway", "gateway", *serve, *between),
            *(*_listen(f"{ANYWHERE}:0"), "--admin-port", "0", "--rpc-port", "0"),
        )
        for name in fleet.running:
            fleet.until_ready(name)
        until(lambda: len(_workers(fleet)) == 2, START_SECONDS, "both workers healthy")
        _until_relay_ready(fleet)
        yield fleet
        for name, address in (("p0", p), ("d0", d)):
            if name in fleet.running:
                until_idle(Process(name, address, fleet.running[name].pid))
        fleet.stop()


def _listen(address: str) -> tuple[str, ...]:
    host, _, port = address.partition(":")
    return "--host", host, "--port", port


async def test_workers_apart(tiny_llama: Path, tmp_path: Path, places: tuple[Place, Place]) -> None:
    rng = random.Random(7)
    with _fleet(tiny_llama, tmp_path, places) as fleet:
        same = CompatibilityClass(**_workers(fleet)[0]["compatibility"])
        work = [job(rng, length, 8) for length in (1, 40, 200)]
        async with client.connect(fleet.events("gateway", "ready")[0]["url"]) as http:
            for each in work:
                assert await client.tokens(http, each.body) == each.expected(same)
            assert _count(fleet, "baton_relay_calls_total") == len(work)
            blocks = sum(-(-len(each.prompt) // same.block_size) for each in work)
            kv_bytes = blocks * same.layers * same.block_bytes
            assert kv_bytes < _count(fleet, "baton_relay_kv_bytes_total") < 1.1 * kv_bytes
            (choice,) = fleet.events("d0", "kv transport")
            assert choice["name"] == "relay"
            assert _reasons(choice) == (
                {} if places[0].host == ANYWHERE else {"shm": "no process", "grpc": "could not be"}
            )

            # The relay dies: the decode worker computes the prompt itself.
            long, asking = await _on_its_way(fleet, http, rng)
            command = fleet.kill("relay")
            assert (await asking).token_ids == long.expected(same)

            # It comes back, and is used again.
            fleet.start("relay", *command)
            fleet.until_ready("relay", times=2)
            _until_relay_ready(fleet)
            again = job(rng, 100, 8)
            assert await client.tokens(http, again.body) == again.expected(same)
            assert _count(fleet, "baton_relay_calls_total") == 1

            # The decode worker dies: the relay lets go, and the prefill worker.
            _, abandoned = await _on_its_way(fleet, http, rng)
            fleet.kill("d0")
            until(lambda: not _count(fleet, "baton_relay_open_calls"), 30.0, "no call under way")
            abandoned.cancel()
            await asyncio.gather(abandoned, return_exceptions=True)


async def _on_its_way(
    fleet: Fleet, http: httpx.AsyncClient, rng: random.Random
) -> tuple[Job, asyncio.Task[client.Answer]]:
    """A request whose KV goes through the relay now; another where that has passed unseen."""
    for _ in range(5):
        asked = job(rng, 300, 8)
        asking = asyncio.create_task(client.whole(http, asked.body))
        while not asking.done():
            if await asyncio.to_thread(_count, fleet, "baton_relay_open_reads"):
                return asked, asking
            await asyncio.sleep(0.01)
    raise AssertionError("five times no KV was seen on its way")


def _reasons(choice: Mapping[str, Any]) -> dict[str, str]:
    """The transports passed over, and the words that a test looks for in why."""
    known = ("no process", "could not be")
    found = (line.partition(": ") for line in choice["passed_over"])
    return {name: next(w for w in known if w in why) for name, _, why in found}


def _workers(fleet: Fleet) -> list[dict[str, Any]]:
    """Those that the gateway finds healthy."""
    admin = fleet.events("gateway", "ready")[0]["admin"]
    workers = get(f"{admin}/cluster").json()["workers"]
    return [worker for worker in workers if worker["state"] == "healthy"]


def _until_relay_ready(fleet: Fleet) -> None:
    until(lambda: get(f"{_admin(fleet)}/ready").is_success, 90.0, "the relay sees workers")


def _admin(fleet: Fleet) -> str:
    url: str = fleet.events("relay", "ready")[-1]["admin"]
    return url.replace("0.0.0.0", ANYWHERE)


def _count(fleet: Fleet, name: str) -> float:
    """A sample of the relay's metrics."""
    for line in get(f"{_admin(fleet)}/metrics").text.splitlines():
        if line.startswith(f"{name} "):
            return float(line.split()[1])
    raise AssertionError(f"the relay does not count {name}")
