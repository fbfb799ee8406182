"""``baton up``: a gateway and its workers on this machine, started and stopped together."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shlex
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from baton.cli import ports, probes
from baton.cli.cores import Share, available, shares
from baton.cli.display import Display
from baton.cli.processes import GaveUp, Spec, StartFailed, Supervisor
from baton.configure import load
from baton.membership.source import join_address
from baton.settings import (
    DecodeSettings,
    GatewaySettings,
    ProcessSettings,
    UpSettings,
)
from baton.tls.authority import Authority, NoAuthority
from baton.tls.files import Files
from baton.tls.links import PLAIN, Links
from baton.tls.names import Party

_WORKER_HOST = "127.0.0.1"
_DEFAULT_QUESTION = "What is prefill?"

#: Decided here for each process, so never passed on as given.
_OWN = {
    *("config", "host", "port", "metrics_port"),
    *("admin_host", "admin_port", "rpc_host", "rpc_port"),
    *("device", "threads", "prefill", "decode"),
}


def main(argv: Sequence[str]) -> int:
    """Exit status: 0 after an orderly stop, 1 when something could not be started or kept."""
    if sys.platform == "win32":
        print("baton up: workers do not run on Windows; use Linux or WSL", file=sys.stderr)
        return 1
    settings = load(UpSettings, argv, "baton up")
    try:
        listening = front_ports(settings)
    except OSError as error:
        print(f"baton up: {error}", file=sys.stderr)
        return 1
    if not settings.tls:
        return asyncio.run(_run(settings, plan(settings, listening), listening, None))
    with TemporaryDirectory(prefix="baton-") as directory:
        try:
            keys = Keys(Path(directory))
            specs = plan(settings, listening, keys)
        except (NoAuthority, OSError) as error:
            print(f"baton up: --tls: {error}", file=sys.stderr)
            return 1
        return asyncio.run(_run(settings, specs, listening, keys))


class Keys:
    """A certificate for each process, by an authority that ends with us."""

    def __init__(self, directory: Path) -> None:
        """Raises NoAuthority, OSError."""
        self._authority = Authority(directory)
        own = self.own = self._authority.issue("admin", [Party.ADMIN])
        self.links = Links(Files(own.certificate, own.key, own.authorities, Party.ADMIN))

    def flags(self, id: str, parties: Iterable[Party]) -> list[str]:
        """For a process to be started. Raises NoAuthority, OSError."""
        return self._authority.issue(id, parties).flags


@dataclass(frozen=True, slots=True)
class FrontPorts:
    """Where the gateway listens."""

    api: int
    admin: int
    rpc: int  #: where the workers join


def front_ports(settings: UpSettings) -> FrontPorts:
    """Those that are set, and free ones. Raises OSError naming the flag of one in use."""
    chosen: dict[int, str] = {}
    for flag, host, port in (
        ("--port", settings.host, settings.port),
        ("--admin-port", settings.admin_host, settings.admin_port),
        ("--rpc-port", settings.rpc_host, settings.rpc_port),
    ):
        if port and not ports.available(host, port):
            raise OSError(f"{flag} {port} is in use on {host}; choose another")
        if port in chosen:
            raise OSError(f"{chosen[port]} and {flag} are both {port}")
        chosen[port or next(free for free in ports.free(host) if free not in chosen)] = flag
    return FrontPorts(*chosen)


async def _run(
    settings: UpSettings, specs: Sequence[Spec], front: FrontPorts, keys: Keys | None
) -> int:
    display = Display(Console(), [spec.name for spec in specs])
    _greet(settings, display, specs)
    supervisor = Supervisor(specs, display, grace=settings.grace, restart=settings.restart)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, supervisor.stop)
    display.start()
    try:
        await supervisor.run(lambda: _invite(settings, display, front, keys))
    except (StartFailed, GaveUp) as error:
        display.stop()
        print(f"baton up: {error}", file=sys.stderr)
        return 1
    finally:
        display.stop()
    display.note("stopped")
    return 0


def plan(settings: UpSettings, front: FrontPorts, keys: Keys | None = None) -> list[Spec]:
    """Every process to start: the workers, then the gateway, which they join."""
    prefill, decode, colocated = settings.counts
    taken = astuple(front)
    unused = (p for p in ports.free(_WORKER_HOST) if p not in taken)
    join = join_address(_reachable(settings.rpc_host), front.rpc)
    parts = iter(shares(available(), prefill + decode + colocated, settings.threads))
    devices = itertools.cycle(settings.device)
    scraped = _metrics_ports(settings.metrics_port)
    environment = _environment()
    links = keys.links if keys else PLAIN

    def tls(id: str, *parties: Party) -> list[str]:
        return keys.flags(id, parties) if keys else []

    def workers(
        count: int, letter: str, module: str, kind: type[ProcessSettings], *extra: str
    ) -> Iterator[Spec]:
        for index in range(count):
            number, share, device = next(unused), next(parts), next(devices)
            address = f"{_WORKER_HOST}:{number}"
            yield Spec(
                name=f"{letter}{index}",
                module=module,
                arguments=(
                    *("--host", _WORKER_HOST, "--port", str(number), "--device", device),
                    *("--join", join, "--threads", str(share.threads), *extra, *next(scraped)),
                    "--exit-with-parent",
                    *tls(f"{letter}{index}", Party.PREFILL, Party.DECODE),
                    *_passed_on(settings, kind),
                ),
                environment=_openmp(share.threads, environment),
                address=address,
                cores=_pin(share, device),
                probe=partial(probes.worker, links, address),
            )

    # Every one can take any role later.
    p = list(workers(prefill, "p", "decode_worker", DecodeSettings, "--role", "prefill"))
    d = list(workers(decode, "d", "decode_worker", DecodeSettings))
    c = list(workers(colocated, "c", "decode_worker", DecodeSettings, "--local-prefill"))
    gateway = Spec(
        name="gateway",
        module="gateway",
        arguments=(
            *("--host", settings.host, "--port", str(front.api)),
            *("--admin-host", settings.admin_host, "--admin-port", str(front.admin)),
            *("--rpc-host", settings.rpc_host, "--rpc-port", str(front.rpc)),
            *("--membership", "embedded", "--exit-with-parent"),
            *tls("gateway", Party.GATEWAY),
            *_passed_on(settings, GatewaySettings),
        ),
        environment=environment,
        address=f"{settings.host}:{front.api}",
        cores=None,
        probe=partial(probes.gateway, _url(settings.host, front.api)),
    )
    return [*p, *d, *c, gateway]


def _metrics_ports(first: int | None) -> Iterator[list[str]]:
    """A flag for each worker, or none for any. 0: each picks a free one."""
    if first is None:
        return itertools.repeat([])
    numbers = itertools.count(first, step=1 if first else 0)
    return (["--metrics-port", str(number)] for number in numbers)


def _pin(share: Share, device: str) -> frozenset[int] | None:
    """Cores matter to a worker that computes on them."""
    return share.pinned if device == "cpu" else None


def _passed_on(settings: UpSettings, kind: type[ProcessSettings]) -> list[str]:
    """Flags for what was set, wherever it was set, and a process of ``kind`` knows."""
    flags = []
    for name in type(settings).model_fields:
        if name in _OWN or name not in settings.model_fields_set or name not in kind.model_fields:
            continue
        value, flag = getattr(settings, name), name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, list):
            flags += [f"--{flag}", ",".join(value)]
        elif value is not None:
            flags += [f"--{flag}", str(value)]
    return flags


def _environment() -> dict[str, str]:
    """Ours, less what has become flags: BATON_PORT means the gateway's port to us alone."""
    known = {f"BATON_{name.upper()}" for name in UpSettings.model_fields}
    kept = {name: value for name, value in os.environ.items() if name.upper() not in known}
    if sys.stdout.isatty() and "NO_COLOR" not in kept:
        kept["FORCE_COLOR"] = "1"
    # gRPC's core writes every closed connection to stderr; our own log says what it meant.
    return {"GRPC_VERBOSITY": "ERROR"} | kept | {"PYTHONUNBUFFERED": "1"}


def _openmp(threads: int, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a worker that computes with so many threads.

    Several wait for one another asleep, unless the user says otherwise: the worker's RPC loop and
    the gateway need the same cores, and among threads that spin a step took 2 to 20 times as long.
    """
    policy = {"OMP_WAIT_POLICY": "PASSIVE"} if threads > 1 else {}
    return {**policy, **environment, "OMP_NUM_THREADS": str(threads)}


def _greet(settings: UpSettings, display: Display, specs: Sequence[Spec]) -> None:
    prefill, decode, colocated = settings.counts
    kinds = {"prefill": prefill, "decode": decode, "colocated": colocated}
    what = " + ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
    how = "mock" if settings.mock else f"{settings.dtype} on {','.join(settings.device)}"
    threads = specs[0].environment["OMP_NUM_THREADS"]
    display.note(f"{settings.model}: {what}, {how}, CPU threads per worker: {threads}")
    if sys.platform == "darwin":
        display.note("on macOS Baton goes as far as CPU workers and KV over gRPC", "yellow")


def _url(host: str, port: int) -> str:
    """Where a client on this machine reaches a server."""
    return f"http://{join_address(_reachable(host), port)}"


def _reachable(host: str) -> str:
    return "127.0.0.1" if host in {"0.0.0.0", "::", ""} else host


def _invite(settings: UpSettings, display: Display, front: FrontPorts, keys: Keys | None) -> None:
    """Say how to talk to it, in lines that can be copied."""
    url = _url(settings.host, front.api)
    body = {
        "model": settings.served_name,
        "stream": True,
        "messages": [{"role": "user", "content": _DEFAULT_QUESTION}],
    }
    display.note(f"the workers' state: {_url(settings.admin_host, front.admin)}/cluster")
    joining = join_address(_reachable(settings.rpc_host), front.rpc)
    display.note(f"more workers: --join {joining}; who is there: baton workers --gateway {joining}")
    if keys is not None:
        display.note(f"between processes there is TLS; commands need {' '.join(keys.own.flags)}")
    display.note(f"a chat, and the fleet live, in a browser: {url}/")
    display.note(f"ready at {url}/v1; Ctrl-C stops everything. Try:", "bold green")
    display.plain("")
    display.plain(
        f"curl -N {url}/v1/chat/completions -H 'Content-Type: application/json' "
        f"-d {shlex.quote(json.dumps(body))}"
    )
    display.plain("")
