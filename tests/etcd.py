"""An etcd server for a test, on ports of its own."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from baton.cli import ports

BINARY = shutil.which("etcd")


class Etcd:
    """One server. It keeps its address and, unless told otherwise, its data when restarted."""

    def __init__(self, folder: Path) -> None:
        unused = ports.free("127.0.0.1")
        self._client, self._peer = next(unused), next(unused)
        self._folder = folder
        self._starts = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._client}"

    def start(self, *, empty: bool = False) -> None:
        """Start it, and wait until it is well."""
        assert BINARY is not None
        self._starts += empty
        client, peer = f"http://{self.address}", f"http://127.0.0.1:{self._peer}"
        with (self._folder / "etcd.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(BINARY, "--data-dir", str(self._folder / f"data{self._starts}")),
                    *("--listen-client-urls", client, "--advertise-client-urls", client),
                    *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
                    *("--initial-cluster", f"default={peer}"),
                ],
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 60.0
        while not self._well():
            assert time.monotonic() < deadline, (self._folder / "etcd.log").read_text()[-2000:]
            time.sleep(0.1)

    def _well(self) -> bool:
        try:
            with urlopen(f"http://{self.address}/health", timeout=1.0) as reply:
                return b"true" in reply.read()
        except (URLError, OSError):
            return False

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextmanager
def etcd(folder: Path) -> Iterator[Etcd]:
    """A server that is well; killed at the end."""
    server = Etcd(folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()
