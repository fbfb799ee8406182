"""``baton generate`` and ``baton chat``, as a shell sees them."""

from __future__ import annotations

import asyncio
import io
import os
import pty
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from baton import cli
from tests.fakes import EOS, FakeWorker, answering, ids, write_checkpoint
from tests.gateways import serving

TEXT = "fünf \x1b[31mthings"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("toy"))


def colocated(text: str = TEXT, **script: Any) -> FakeWorker:
    return FakeWorker(script=answering(text, **script), local_prefill=True)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs it with so much on standard input; its exit status."""

    def run(*arguments: str, said: str = "") -> int:
        monkeypatch.setattr("sys.stdin", io.StringIO(said))
        return cli.main(arguments)

    return run


async def test_generate(
    checkpoint: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    worker = colocated()
    async with serving(checkpoint, [worker]) as gateway:
        flags = ["--url", f"{gateway.url},http://127.0.0.1:1", "--max-new-tokens", "90"]
        given = ["--seed", "5", "--stop", "x", "--stop", "y", "--temperature", "0.5"]
        assert await asyncio.to_thread(command, "generate", "hi", *flags, *given) == 0
        capsys.readouterr()
        assert await asyncio.to_thread(command, "generate", *flags, said="from a pipe") == 0
        assert capsys.readouterr().out.endswith(f"{TEXT}\n"), "and nothing behind it"
        assert await asyncio.to_thread(command, "generate", "hi", *flags, "--model", "no") == 1
        assert "baton generate: model_not_found: model 'no'" in capsys.readouterr().err
    first, second = (submit.generation for submit in worker.submits)
    assert first.prompt_ids == tuple(ids("hi"))
    assert (first.sampling.seed, first.sampling.max_tokens) == (5, 90)
    assert first.sampling.temperature == 0.5
    assert second.prompt_ids == tuple(ids("from a pipe"))


async def test_chat_remembers(
    checkpoint: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    worker = colocated("yes")
    async with serving(checkpoint, [worker]) as gateway:
        said = "one\n\ntwo\n/reset\nthree\n"
        flags = ["--url", gateway.url, "--system", "be brief"]
        assert await asyncio.to_thread(command, "chat", *flags, said=said) == 0
        assert capsys.readouterr().out.endswith("yes\nyes\nyes\n")
    prompts = [submit.generation.prompt_ids for submit in worker.submits]
    opening = "<|system|>be brief<|user|>"
    assert prompts == [
        tuple(ids(f"{opening}one<|assistant|>")),
        tuple(ids(f"{opening}one<|assistant|>yes<|user|>two<|assistant|>")),
        tuple(ids(f"{opening}three<|assistant|>")),
    ]


def test_without_a_gateway_it_says_so(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = ["--url", "http://127.0.0.1:1", "--patience", "0.1"]
    assert command("chat", *nowhere, said="hi\n") == 1
    assert "baton chat: gateway_lost: http://127.0.0.1:1" in capsys.readouterr().err
    assert command("generate", "hi", "--url", "nonsense") == 1
    assert "baton generate: invalid_request: 'nonsense'" in capsys.readouterr().err


async def test_on_a_terminal_ctrl_c_stops_the_answer_and_not_the_chat(checkpoint: Path) -> None:
    worker = colocated(stop_after=len(ids(TEXT)))
    async with serving(checkpoint, [worker]) as gateway:
        terminal, theirs = pty.openpty()
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "baton", "chat", "--url", gateway.url),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "200"},
            preexec_fn=hear_ctrl_c,
        )
        os.close(theirs)
        screen = Terminal(terminal)
        await screen.shows("> ")
        os.write(terminal, b"hi\n")
        await screen.shows("things")
        child.send_signal(signal.SIGINT)
        assert (await worker.cancelled()) == worker.submits[0].key
        await screen.shows("stopped")
        await screen.shows("> ")
        os.write(terminal, b"more\n")
        await screen.shows("things")
        child.send_signal(signal.SIGINT)
        await screen.shows("stopped")
        os.write(terminal, b"/exit\n")
        assert await asyncio.wait_for(child.wait(), 60) == 0
        os.close(terminal)
    assert "\x1b[31m" not in screen.seen, "a model commands no terminal"
    said = worker.submits[1].generation.prompt_ids
    history = f"<|user|>hi<|assistant|>{TEXT}<|user|>more<|assistant|>"
    assert said == tuple(ids(history)), "what was seen of an answer is remembered"
    assert EOS not in said


def hear_ctrl_c() -> None:
    """In the child: what a shell runs in the background, these tests perhaps, ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """The other end of a terminal."""

    def __init__(self, descriptor: int) -> None:
        self.seen = ""
        self._descriptor = descriptor
        self._from = 0

    async def shows(self, text: str) -> None:
        """Wait until it does, behind what was waited for before."""
        async with asyncio.timeout(60):
            while (found := self.seen.find(text, self._from)) < 0:
                read = await asyncio.to_thread(os.read, self._descriptor, 4096)
                self.seen += read.decode(errors="replace")
        self._from = found + len(text)
