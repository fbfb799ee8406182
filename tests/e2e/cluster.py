"""A real cluster for a test: ``baton up`` with all its processes, and ways to hurt them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from baton.tls.files import Files
from baton.tls.links import PLAIN, Links
from baton.tls.names import Party
from baton.v1 import worker_pb2, worker_pb2_grpc

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "model" / "demo" / "checkpoint"
MODEL = "tested"

#: A busy machine with two cores imports torch in each process one after the other.
START_SECONDS = 120.0
#: Until blocks, tasks and descriptors of ended requests are back.
SETTLE_SECONDS = 30.0

_WORKER = re.compile(r"baton \| (\w+) ready on (\S+), pid (\d+)")
_ADMIN = re.compile(r"workers' state: (\S+)/cluster")
_RPC = re.compile(r"more workers: --join (\S+);")
_KEYS = re.compile(r"commands need (--tls-cert .*)")
_URL = re.compile(r"ready at (\S+)/v1;")


@dataclass(frozen=True, slots=True)
class Process:
    """A process that ``baton up`` started and found ready."""

    name: str
    address: str
    pid: int

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    @property
    def stopped(self) -> bool:
        """Under SIGSTOP."""
        stat = Path(f"/proc/{self.pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] == "T"

    @property
    def alive(self) -> bool:
        """There, and not a zombie."""
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return False
        return stat.rpartition(")")[2].split()[0] != "Z"


def until(true: Callable[[], Any], seconds: float, what: str) -> Any:
    """The first true value of ``true()``; fails the test after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)
    return value


def get(url: str) -> httpx.Response:
    """What is there, as patiently as a busy machine asks for."""
    return httpx.get(url, timeout=60.0, trust_env=False)


class Cluster:
    """``baton up`` as a child process. Everything it prints is kept."""

    def __init__(self, flags: Sequence[str]) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("BATON_")}
        self.lines: list[str] = []
        self._child = subprocess.Popen(
            # Short prompts are cheaper where they are decoded; here they are to be handed over.
            [sys.executable, "-m", "baton", "up", "--local-prefill-queue", "0", *flags],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            self.lines.append(line.rstrip("\n"))

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    @property
    def url(self) -> str:
        """Where the API is. Waits until all is ready, at most START_SECONDS."""

        def announced() -> re.Match[str] | None:
            assert self._child.poll() is None, f"baton up ended early:\n{self.output}"
            return _URL.search(self.output)

        return str(until(announced, START_SECONDS, f"ready; printed:\n{self.output}")[1])

    @property
    def cluster_url(self) -> str:
        """The gateway's view of its workers."""
        found = _ADMIN.search(self.output)
        assert found is not None
        return f"{found[1]}/cluster"

    @property
    def rpc(self) -> str:
        """Where workers join the gateway."""
        found = _RPC.search(self.output)
        assert found is not None
        return found[1]

    @property
    def keys(self) -> list[str]:
        """What a command is told to speak TLS to it; nothing without --tls."""
        found = _KEYS.search(self.output)
        return found[1].split() if found else []

    @property
    def links(self) -> Links:
        """Ours, with that certificate."""
        if not self.keys:
            return PLAIN
        certificate, key, authorities = map(Path, self.keys[1::2])
        return Links(Files(certificate, key, authorities, Party.ADMIN))

    @property
    def processes(self) -> dict[str, Process]:
        """Every process by name, as it was last found ready: a restarted one is a new one."""
        found = [Process(m[1], m[2], int(m[3])) for m in _WORKER.finditer(self.output)]
        return {process.name: process for process in found}

    @property
    def workers(self) -> list[Process]:
        return [process for name, process in self.processes.items() if name != "gateway"]

    def loads(self) -> dict[str, dict[str, Any]]:
        """What the gateway last heard of each healthy worker's load, by the worker's name."""
        names = {process.address: process.name for process in self.workers}
        seen = get(self.cluster_url).json()["workers"]
        return {
            names[worker["address"]]: worker["load"]
            for worker in seen
            if worker["state"] == "healthy"
        }

    def busiest(self, letter: str) -> Process:
        """The worker of a kind ("p", "d", "c") that has most to do, as they say themselves."""

        def work(process: Process) -> tuple[int, int]:
            load = report(process.address, idle=False, links=self.links).load
            return load.running + load.waiting, load.blocks_owned

        living = [each for each in self.workers if each.name.startswith(letter) and each.alive]
        return max(living, key=work)

    def prefilled_locally(self) -> int:
        """Prompts that decode workers computed themselves, as the gateway last heard."""
        workers = get(self.cluster_url).json()["workers"]
        decisions = [d for worker in workers for d in worker["prefill_decisions"]]
        return sum(decision["count"] for decision in decisions if decision["local"])

    def migrations(self) -> dict[str, float]:
        """How many attempts were placed again, by the code of what ended the one before."""
        return migrations(get(self.cluster_url.replace("/cluster", "/metrics")).text)

    def until_healthy(self, *names: str) -> None:
        """Wait until the gateway takes these workers for healthy."""
        until(lambda: self.loads().keys() >= set(names), START_SECONDS, f"{names} healthy")

    def until_back(self, killed: Process) -> None:
        """Wait until another process of that name is there in its place, and healthy."""
        name = killed.name
        until(
            lambda: self.processes[name].pid != killed.pid, START_SECONDS, f"{name} started again"
        )
        self.until_healthy(name)

    def stop(self, number: signal.Signals = signal.SIGTERM, seconds: float = 90.0) -> int:
        """Send a signal and wait; the exit status."""
        for process in self.workers:
            if process.alive and process.stopped:
                process.send(signal.SIGCONT)
        if self._child.poll() is None:
            self._child.send_signal(number)
        return self.wait(seconds)

    def wait(self, seconds: float) -> int:
        """The exit status, within so many seconds."""
        try:
            code = self._child.wait(seconds)
        except subprocess.TimeoutExpired:
            self._child.kill()
            raise
        self._reader.join(30.0)
        assert self._child.stdout is not None
        self._child.stdout.close()
        return code

    def check_integrity(self) -> None:
        """Every living worker's books balance, nothing is owned, nothing is left open."""
        for process in self.workers:
            if process.alive:
                until_idle(process, self.links)


def migrations(metrics: str) -> dict[str, float]:
    """Of a gateway's ``/metrics``: attempts placed again, by what ended the one before, where any
    were."""
    found = re.findall(r'^baton_migrations_total{reason="(\w+)"} (\S+)$', metrics, re.M)
    return {reason: float(count) for reason, count in found if float(count)}


def report(address: str, *, idle: bool, links: Links = PLAIN) -> worker_pb2.IntegrityReport:
    """A worker's own account."""
    with links.blocking(address, Party.WORKER) as channel:
        stub = worker_pb2_grpc.WorkerServiceStub(channel)
        request = worker_pb2.CheckIntegrityRequest(idle=idle)
        return stub.CheckIntegrity(request, timeout=10.0, wait_for_ready=True)


def until_idle(process: Process, links: Links = PLAIN) -> None:
    """Wait until the worker's idle check passes; fails with its violations."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while violations := list(report(process.address, idle=True, links=links).violations):
        assert time.monotonic() < deadline, f"{process.name}: {violations}"
        time.sleep(0.2)


@contextmanager
def cluster(model: Path, *flags: str) -> Iterator[Cluster]:
    """A ready cluster; afterwards its books must balance and it must stop cleanly.

    What it printed is shown with a failure.
    """
    running = Cluster(
        [
            *("--model", str(model), "--served-model-name", MODEL),
            *("--port", "0", "--admin-port", "0", "--rpc-port", "0", "--threads", "1", *flags),
        ]
    )
    try:
        assert running.url
        yield running
        running.check_integrity()
        assert running.stop() == 0
    except BaseException:
        print(running.output)
        raise
    finally:
        running.stop()
        assert not [process for process in running.processes.values() if process.alive]
