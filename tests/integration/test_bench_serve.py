"""The load generator against endpoints in this process and beside it."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from aiohttp import web

from baton import cli
from bench import known, serve
from bench.load import raw
from bench.load.raw import Level, Run, Writer
from bench.load.senders import SenderFailed, Senders
from bench.load.workload import Endpoint, Lengths, drawn

_DONE = "data: [DONE]\n\n"
_TOKEN = 'data: {"choices": [{"delta": {"content": "a"}}]}\n\n'
_OPENING = 'data: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}\r\n\r\n'
_USAGE = (
    'data: {"choices": [], "usage": {"completion_tokens": 7, "prompt_tokens": 5, '
    '"prompt_tokens_details": {"cached_tokens": 2}}}\n\n'
)


@asynccontextmanager
async def endpoint(*answers: str | int) -> AsyncIterator[str]:
    """Gives each in turn: a stream's text, or a status."""
    left = iter(answers)

    async def answer(request: web.Request) -> web.StreamResponse:
        said = next(left)
        if isinstance(said, int):
            return web.Response(status=said, text="not\nnow")
        stream = web.StreamResponse()
        await stream.prepare(request)
        for half in (said[: len(said) // 2], said[len(said) // 2 :]):  # events come in pieces
            await stream.write(half.encode())
        return stream

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    listening = socket.create_server(("127.0.0.1", 0))
    await web.SockSite(runner, listening).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        await runner.cleanup()


async def sent(url: str, path: Path, count: int, **over: str) -> Run:
    """One after the other, so that each has its own answer."""
    asked = drawn(count, Lengths(3, 3), Lengths(5, 5), prefix=0, vocabulary=9, seed=1)
    told: list[bool] = []
    to = Endpoint(url=url, model="m", chat=True, words=True)
    senders = Senders(endpoint=to, processes=2, timeout=30.0, **over)
    with closing(Writer(path, {})) as out:
        await senders.run(Level("", "concurrency", 1.0), asked, out, told.append)
    run = raw.read(path)
    assert told == [one.good for one in run.levels[0].answers]
    return run


async def test_what_is_an_answer_and_what_is_not(tmp_path: Path) -> None:
    error = 'data: {"error": {"message": "out of memory"}}\n\n'
    streams = (
        _OPENING + _TOKEN * 3 + _USAGE + _DONE,
        _OPENING + _TOKEN * 3 + _DONE,
        429,
        _TOKEN + error,
        _TOKEN,
        _OPENING + _DONE,
        "data: what\n\n",
    )
    async with endpoint(*streams) as url:
        run = await sent(url, tmp_path / "raw.jsonl", len(streams))
    answers = run.levels[0].answers
    told, silent = answers[:2]
    assert (len(told.ticks), told.tokens, told.prompt, told.cached) == (3, 7, 5, 2)
    assert (len(silent.ticks), silent.tokens, silent.prompt) == (3, 3, None)
    statuses = [one.status for one in answers]
    assert statuses[:6] == [
        *("ok", "ok", "HTTP 429: not now", "error event: out of memory"),
        "the answer was cut off: no [DONE]",
        "the answer shows no token: no text and no ids",
    ]
    assert statuses[6].startswith("JSONDecodeError")
    assert all(one.due <= one.sent <= one.ended for one in answers)
    assert run.levels[0].lag and run.levels[0].cpu


async def test_nobody_listens(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    run = await sent(url, tmp_path / "raw.jsonl", 2)
    assert all("ClientConnectorError" in one.status for one in run.levels[0].answers)


async def test_workers_that_cannot_be_looked_at_end_the_run(tmp_path: Path) -> None:
    async with endpoint(*[_TOKEN + _DONE] * 3) as url:
        with pytest.raises(ExceptionGroup) as raised:
            await sent(url, tmp_path / "raw.jsonl", 3, cluster=f"{url}/cluster")
    assert raised.group_contains(Exception, match="404")


async def test_a_sender_that_dies_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "uvloop.py").write_text("raise SystemExit(3)")
    with pytest.raises(ExceptionGroup) as raised:
        await sent("http://127.0.0.1:1", tmp_path / "raw.jsonl", 1)
    assert raised.group_contains(SenderFailed, match="ended with 3 before it was ready")


async def test_known_delays_are_told(tmp_path: Path) -> None:
    """Medians, loosely, since this machine may be busy: ``python -m bench.known`` wants 2 %. A
    stall makes first tokens late, so of these it is certain alone that none is told too early."""
    asked = ["--requests", "16", "--processes", "2", "--within", "9"]
    out = tmp_path / "known.json"
    await asyncio.to_thread(known.main, [*asked, "--json", str(out)])
    told = {(one["params"]["of"], one["name"]): one["value"] for one in json.loads(out.read_text())}
    assert told["TTFT p50", "measured"] >= 0.99 * told["TTFT p50", "known"]
    for name in ("TPOT p50", "ITL p50", "E2E p50"):
        assert told[name, "error"] < 0.3, told


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--rate", "1", "--concurrency", "2"], "--rate and --concurrency are two kinds of load"),
        ([], "give --rate, --concurrency or --trace"),
        (["--speed", "2"], "give --rate, --concurrency or --trace"),
        (["--rate", "0"], "0 is not above 0"),
        (["--rate", "inf"], "a load has an end"),
        (["--rate", "1", "--prefix", "-1"], "-1 is below 0"),
        (["--rate", "1", "--attain", "90"], "90 is no share of 1"),
        (["--rate", "1", "--slo-ttft", "0"], "0 is not above 0"),
        (["--concurrency", "1.5"], "--concurrency is a whole number"),
        (["--rate", "1", "--api", "chat", "--prompts", "ids"], "--prompts ids needs"),
        (["--rate", "1", "--prompt-tokens", "9:3"], "invalid"),
        (["--rate", "1", "--extra-body", "[]"], r"\[\] is no JSON object"),
    ],
)
def test_loads_that_are_none(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        serve.main(["--model", "m", *flags])
    assert said.replace("\\", "") in capsys.readouterr().err


def test_a_trace_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert serve.main(["--model", "m", "--trace", str(tmp_path / "none.csv")]) == 2
    assert "none.csv" in capsys.readouterr().err


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["bench", "serve", "--help"])
    assert "--burstiness" in capsys.readouterr().out
    assert cli.main(["bench", "nothing"]) == 2
    monkeypatch.delitem(sys.modules, "bench.serve")
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    assert cli.main(["bench", "serve"]) == 1
    assert "pip install '.[bench]'" in capsys.readouterr().err
