"""``baton workers``, ``baton role``, ``baton drain``: who is there, what it does, its leaving."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b

import grpc
from rich.console import Console
from rich.table import Table
from rich.text import Text

from baton.cli import tls
from baton.client import rpc
from baton.identity import ROLES
from baton.membership.source import split_address
from baton.settings import FrontSettings, RoleSettings, WorkerSettings
from baton.tls.files import BadCertificate
from baton.tls.names import Party
from baton.v1 import membership_pb2, membership_pb2_grpc, worker_pb2

_PATIENCE = 5.0  # seconds that a process gets to answer
_STYLES = {"healthy": "green", "suspect": "yellow", "connecting": "yellow"}
#: Said where nobody answers, or something else does.
_HINTS = {
    Party.GATEWAY: "The address is that of the gateway's --rpc-port, not of its HTTP ports.",
    Party.WORKER: "`baton workers` lists the addresses.",
}
_TLS = "A fleet with TLS also wants --tls-cert, --tls-key and --tls-ca."
_ROLES = {worker_pb2.ROLE_PREFILL: "prefill", worker_pb2.ROLE_DECODE: "decode"}


def main(argv: Sequence[str]) -> int:
    """Print a table; exit status 1 when the gateway does not answer."""
    parser = argparse.ArgumentParser(prog="baton workers", description="List a gateway's workers.")
    port = FrontSettings.model_fields["rpc_port"].default
    parser.add_argument(
        "--gateway",
        metavar="HOST:PORT",
        type=_address,
        default=f"127.0.0.1:{port}",
        help="the gateway's --rpc-port (default: %(default)s)",
    )
    tls.add_options(parser)
    options = parser.parse_args(argv)

    def ask(channel: grpc.Channel) -> int:
        stub = membership_pb2_grpc.MembershipServiceStub(channel)
        reply = stub.List(membership_pb2.ListRequest(), timeout=_PATIENCE)
        # As wide as it must be where nobody looks: a pipe cuts no columns.
        console = Console()
        Console(width=None if console.is_terminal else 250).print(table(reply.workers))
        return 0

    return _call("baton workers", options.gateway, Party.GATEWAY, options, ask)


def drain(argv: Sequence[str]) -> int:
    """Send a worker away; returns when its sequences have finished or were handed back."""
    parser = argparse.ArgumentParser(
        prog="baton drain",
        description="Have a worker take no new work, hand back what runs, and leave its gateways. "
        "Its process stays, to be stopped.",
    )
    parser.add_argument("worker", metavar="HOST:PORT", type=_address, help="the worker's address")
    parser.add_argument(
        "--grace",
        metavar="SECONDS",
        type=_seconds,
        default=WorkerSettings.model_fields["drain_grace"].default,
        help="seconds that running sequences get to finish (default: %(default)s)",
    )
    tls.add_options(parser)
    options = parser.parse_args(argv)

    def ask(channel: grpc.Channel) -> int:
        drained = rpc.drain(channel, options.grace)
        print(f"{options.worker} is drained; sequences handed back: {drained.handed_back}")
        return 0

    return _call("baton drain", options.worker, Party.WORKER, options, ask)


def role(argv: Sequence[str]) -> int:
    """Change what a worker does; returns when nothing decodes there that may no longer."""
    parser = argparse.ArgumentParser(
        prog="baton role",
        description="Have a worker prefill, decode or do both from now on. Its process and weights "
        "stay; what decodes there and may no longer goes on elsewhere.",
    )
    parser.add_argument("worker", metavar="HOST:PORT", type=_address, help="the worker's address")
    parser.add_argument("role", choices=ROLES, help="what it is to do")
    parser.add_argument(
        "--grace",
        metavar="SECONDS",
        type=_seconds,
        default=RoleSettings.model_fields["role_grace"].default,
        help="seconds that running sequences get to finish (default: %(default)s)",
    )
    tls.add_options(parser)
    options = parser.parse_args(argv)

    def ask(channel: grpc.Channel) -> int:
        now = rpc.set_role(channel, options.role, options.grace)
        print(
            f"{options.worker}: {' + '.join(now.roles)}; sequences handed back: {now.handed_back}, "
            f"prompts that it still finishes: {now.finishing}"
        )
        return 0

    return _call("baton role", options.worker, Party.WORKER, options, ask)


def _address(text: str) -> str:
    try:
        split_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _seconds(text: str) -> float:
    value = float(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text}: seconds are not negative")
    return value


def _call(
    prog: str,
    address: str,
    to: Party,
    options: argparse.Namespace,
    ask: Callable[[grpc.Channel], int],
) -> int:
    """``ask`` over a channel to ``address``, where ``to`` listens; one line and status 1 when it
    fails."""
    try:
        links = tls.links(options, Party.ADMIN)
    except (BadCertificate, OSError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 1
    with links.blocking(address, to) as channel:
        try:
            return ask(channel)
        except grpc.RpcError as error:
            assert isinstance(error, grpc.Call)
            lost = error.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNIMPLEMENTED}
            why = f"{error.code().name.lower()}: {error.details()}"
            print(f"{prog}: {address}: {why}", file=sys.stderr)
            if lost:
                print(_HINTS[to], _TLS, file=sys.stderr)
            return 1


def table(workers: Sequence[membership_pb2.ListedWorker]) -> Table:
    """One row for each, by address. Class and numerics are digests: workers with the same class
    (under --deterministic also the same numerics) may pair; /cluster has them whole."""
    names = ("address", "instance", "roles", "model", "health", "class", "numerics", "load")
    made = Table(*names, box=None, header_style="bold")
    for worker in sorted(workers, key=lambda worker: worker.entry.address):
        # What it says itself counts; what it registered with is what there is before that.
        said = worker.status if worker.HasField("status") else worker.entry
        identity = said.identity
        cells = (
            worker.entry.address,
            identity.instance_id[:8],
            _roles(worker),
            said.model,
            Text(_health(worker), _STYLES.get(worker.health, "red")),
            _digest(identity.compatibility.SerializeToString(deterministic=True)),
            _digest(identity.numerics_id.encode()),
            _load(worker.status) if worker.HasField("status") else "",
        )
        made.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))
    return made


def _digest(value: bytes) -> str:
    return blake2b(value, digest_size=4).hexdigest() if value else ""


def _roles(worker: membership_pb2.ListedWorker) -> str:
    said = worker.status if worker.HasField("status") else worker.entry
    own = " + prefill (its own)" if worker.status.local_prefill else ""
    return f"{_named(said.roles)}{own}"


def _named(roles: Iterable[worker_pb2.Role]) -> str:
    return " + ".join(_ROLES.get(role, "?") for role in roles)


def _health(worker: membership_pb2.ListedWorker) -> str:
    draining = ", draining" if worker.status.draining else ""
    why = f": {worker.reason}" if worker.reason else ""
    return f"{worker.health}{draining}{why}"


def _load(status: worker_pb2.WorkerStatus) -> str:
    load = status.load
    blocks = load.blocks_free + load.blocks_cached
    return (
        f"{load.queued_tokens} tokens queued, {load.running} running, {load.waiting} waiting, "
        f"{blocks} blocks free"
    )
