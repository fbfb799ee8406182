"""A network of the run's own, in which the kernel drops packets without touching the machine's.

It is a network namespace with nothing but a loopback device, so an ordinary user may have one where
the kernel lets users have namespaces.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Sequence

_NAMESPACE = ("unshare", "--map-root-user", "--net")
#: Both ways pass the loopback device's input.
_WAYS = ("--dport", "--sport")


def permitted() -> bool:
    """Whether there can be one, with a filter of its own."""
    tried = (
        "ip link set lo up && iptables --wait --append INPUT --protocol tcp --dport 1 --jump DROP"
    )
    try:
        asked = subprocess.run([*_NAMESPACE, "sh", "-c", tried], capture_output=True, check=False)
    except FileNotFoundError:
        return False
    return asked.returncode == 0


def enter(arguments: Sequence[str]) -> None:
    """Replace this process by one of the same program in a network of its own. Never returns."""
    begin = 'ip link set lo up && exec "$@"'
    command = [*_NAMESPACE, "sh", "-c", begin, "sh", sys.executable, "-m", *arguments]
    os.execvp(command[0], command)


async def drop(port: int) -> None:
    """Lose every packet to and from a TCP port. Raises OSError where it is not allowed."""
    await _filter("--append", port)


async def pass_again(port: int) -> None:
    await _filter("--delete", port)


async def _filter(change: str, port: int) -> None:
    for way in _WAYS:
        process = await asyncio.create_subprocess_exec(
            *("iptables", "--wait", change, "INPUT", "--protocol", "tcp"),
            *(way, str(port), "--jump", "DROP"),
        )
        if code := await process.wait():
            raise OSError(f"iptables {change} for port {port} ended with {code}")
