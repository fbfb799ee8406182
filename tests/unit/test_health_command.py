"""``baton health`` says what a probe asks, through TLS by the certificate of the process itself."""

from __future__ import annotations

import asyncio
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from baton.cli import main
from baton.tls.names import Party
from model.worker.server import Server
from tests.tls import Fleet, needs_openssl


async def ask(*arguments: str) -> int:
    """Exit status of the command."""
    return await asyncio.to_thread(main, ["health", *arguments])


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BATON_TLS_CERT", "BATON_TLS_KEY", "BATON_TLS_CA"):
        monkeypatch.delenv(name, raising=False)


async def test_a_worker_loads_serves_and_is_gone(capsys: pytest.CaptureFixture[str]) -> None:
    server = Server("127.0.0.1", 0)
    await server.start()
    try:
        assert await ask(server.address) == 1
        assert await ask(server.address, "--alive") == 0
        await server.serving(True)
        assert await ask(server.address) == 0
    finally:
        await server.stop(0)
    assert await ask(server.address, "--alive") == 1
    said = capsys.readouterr().out.splitlines()
    assert [line.removeprefix(f"{server.address}: ") for line in said] == [
        *("loading weights", "loading weights", "ready", "does not answer, or is not ready yet")
    ]


@needs_openssl
async def test_a_worker_asks_itself_through_tls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = Fleet(tmp_path)
    files = fleet.settings("d0", Party.DECODE)
    server = Server("127.0.0.1", 0, fleet.links("d1", Party.DECODE))
    await server.start()
    try:
        await server.serving(True)
        assert await ask(server.address) == 1  # as a kubelet would
        for name, file in files.items():
            monkeypatch.setenv(f"BATON_{name.upper()}", str(file))
        assert await ask(server.address) == 0
    finally:
        await server.stop(0)


async def test_a_gateway_that_lives_may_not_be_ready() -> None:
    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" else 503)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Answers)
    thread = Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        assert await ask(url) == 1
        assert await ask(url, "--alive") == 0
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


async def test_what_is_no_process(capsys: pytest.CaptureFixture[str]) -> None:
    assert await ask("worker") == 1
    assert "'worker' is not HOST:PORT" in capsys.readouterr().err
