"""What is compared: each system whole, started and stopped with everything that it needs."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, STDOUT, Process
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from baton.cli import ports
from bench import overload
from bench.overload import NAME
from bench.pair import PeerFailed

_HOST = "127.0.0.1"
#: Seconds until a system answers (vLLM compiles at its first start), between looks, until it ended.
_START, _LOOK, _STOP = 300.0, 0.5, 20.0
_NIXL = {
    "kv_connector": "NixlConnector",
    "kv_role": "kv_both",
    "kv_buffer_device": "cpu",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What all of them are given."""

    model: Path  #: a checkpoint with a tokenizer
    longest: int  #: tokens of a sequence
    cores: Sequence[int]  #: two
    vllm_python: Path | None  #: interpreter of vLLM's environment
    logs: Path  #: a directory for what vLLM says


def start(name: str, setup: Setup) -> AbstractAsyncContextManager[str]:
    """The URL of a ready system, one of SYSTEMS. Raises PeerFailed where it does not start."""
    if name in BATON:
        return _baton(BATON[name], setup)
    return _vllm(setup) if name == VLLM else _vllm_pair(setup)


#: ``baton up`` with these, each on two threads in all, and otherwise its own defaults.
BATON: Mapping[str, tuple[str, ...]] = {
    "baton-pd": ("--prefill", "1", "--decode", "1", "--threads", "1"),
    "baton-2": ("--colocated", "2", "--threads", "1"),
    "baton-1": ("--colocated", "1", "--threads", "2"),
}
VLLM, VLLM_PAIR = "vllm", "vllm-pair"
SYSTEMS = (*BATON, VLLM, VLLM_PAIR)


@asynccontextmanager
async def _baton(flags: Sequence[str], setup: Setup) -> AsyncIterator[str]:
    given = ("--model", str(setup.model), "--dtype", "bfloat16")
    most = ("--max-model-len", str(setup.longest))
    try:
        async with overload.fleet((*given, *most, *flags)) as running:
            yield running.url
    except RuntimeError as error:
        raise PeerFailed(str(error)) from error


@asynccontextmanager
async def _vllm(setup: Setup) -> AsyncIterator[str]:
    """One server, a thread on each core, with vLLM's own defaults."""
    async with AsyncExitStack() as stack:
        unused = ports.free(_HOST)
        yield await stack.enter_async_context(
            _vllm_server(setup, "vllm", setup.cores, next(unused))
        )


@asynccontextmanager
async def _vllm_pair(setup: Setup) -> AsyncIterator[str]:
    """A server on each core, KV by NIXL over UCX's TCP, and a proxy before them."""
    unused = ports.free(_HOST)
    async with AsyncExitStack() as stack:
        urls = []
        for name, core in zip(("prefill", "decode"), setup.cores, strict=True):
            side = {
                "VLLM_NIXL_SIDE_CHANNEL_PORT": str(next(unused)),
                "UCX_TLS": "tcp",
                "UCX_NET_DEVICES": "lo",
            }
            flags = ("--kv-transfer-config", json.dumps(_NIXL))
            server = _vllm_server(setup, f"vllm-{name}", [core], next(unused), flags, side)
            urls.append(await stack.enter_async_context(server))
        port = next(unused)
        command = (sys.executable, "-m", "bench.peers.proxy", str(port), *urls)
        url = f"http://{_HOST}:{port}"
        log = setup.logs / "proxy.log"
        yield await stack.enter_async_context(_server("proxy", command, os.environ, log, url))


def _vllm_server(
    setup: Setup,
    name: str,
    cores: Sequence[int],
    port: int,
    flags: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> AbstractAsyncContextManager[str]:
    """As vLLM's manual has it for a CPU; everything that is not said here is its own default."""
    if setup.vllm_python is None:
        raise PeerFailed(f"{name} needs --vllm-python")
    module = (str(setup.vllm_python), "-m", "vllm.entrypoints.openai.api_server")
    model = ("--model", str(setup.model), "--served-model-name", NAME, "--dtype", "bfloat16")
    place = ("--host", _HOST, "--port", str(port), "--max-model-len", str(setup.longest))
    given = {
        **{name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"},
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
        **(environment or {}),
    }
    log = setup.logs / f"{name}.log"
    return _server(name, (*module, *model, *place, *flags), given, log, f"http://{_HOST}:{port}")


@asynccontextmanager
async def _server(
    name: str, command: Sequence[str], environment: Mapping[str, str], log: Path, url: str
) -> AsyncIterator[str]:
    """A process, and all that it starts, from when it answers at /health to the end of the body."""
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            *command,
            env=environment,
            stdin=DEVNULL,
            stdout=out,
            stderr=STDOUT,
            start_new_session=True,  # a group, which is stopped as one
        )
    try:
        await _healthy(name, process, url, log)
        yield url
    finally:
        await _stop(process)


async def _healthy(name: str, process: Process, url: str, log: Path) -> None:
    """Raises PeerFailed when it ends instead, or says nothing for too long."""
    try:
        async with asyncio.timeout(_START), aiohttp.ClientSession() as session:
            while process.returncode is None:
                with suppress(aiohttp.ClientError):
                    async with session.get(f"{url}/health") as answer:
                        if answer.status == 200:
                            return
                await asyncio.sleep(_LOOK)
    except TimeoutError:
        pass
    raise PeerFailed(f"{name} is not ready; {log} says why")


async def _stop(process: Process) -> None:
    """Returns when it has ended, and kills what it has left."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), _STOP)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
