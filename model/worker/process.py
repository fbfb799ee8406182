"""The life of a worker process: startup, serve, shutdown.

listen             health answers NOT_SERVING while the model loads
load               on a thread of its own; a signal ends the process at once
serve              health answers SERVING, until SIGTERM or SIGINT
drain              new work is refused; what runs gets --drain-grace seconds, then goes back
stop               calls end, the engine's step ends, the device is freed
"""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import TypeVar

import structlog

from baton import log as logs
from baton.errors import Draining
from baton.kv.heap import keep_freed_memory
from baton.membership import Entry, MembershipUnavailable
from baton.membership.registration import Registration, posts
from baton.parent import exit_with_parent
from baton.settings import WorkerSettings
from baton.tls.links import Links
from baton.v1 import worker_pb2_grpc
from model.weights.errors import CheckpointError
from model.worker.census import Census
from model.worker.loading import LoadedModel, Progress, load_model
from model.worker.roles import Roles
from model.worker.runtime import Profile, Runtime
from model.worker.server import LateHandlers, Server
from model.worker.service import WorkerService

log = structlog.get_logger(__name__)
T = TypeVar("T")

#: Adds the services of a worker's roles, and says what it is; closes what they opened at the end.
Services = Callable[[Runtime, LateHandlers], AbstractAsyncContextManager[Profile]]

#: Makes the runner that settings ask for; hears 0 to 1 of its progress.
Load = Callable[[WorkerSettings, Progress], LoadedModel]

#: Exit statuses: a setting or checkpoint that cannot be served; an engine that broke.
BAD_SETTING, BROKEN = 2, 3

_LAST_WORDS = 1.0  # seconds that streams get to carry their last message
_LOOK = 0.02  # seconds between looks at whether the worker is idle
_WATCH = 1.0  # seconds between looks at the engine's health


def run(name: str, settings: WorkerSettings, role: Services, load: Load = load_model) -> int:
    """Run a worker until SIGTERM or SIGINT; returns the exit status.

    A setting or a checkpoint that cannot be served: one line on stderr, status 2.
    """
    logs.configure(settings.log_level, settings.log_format, name)
    if settings.exit_with_parent:
        exit_with_parent()
    # Until there is something to shut down, Ctrl-C simply ends the process.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        return asyncio.run(_live(settings, role, load))
    except (CheckpointError, MembershipUnavailable, ValueError, OSError) as error:
        sys.stderr.write(f"{name}: {error}\n")
        return BAD_SETTING


async def _live(settings: WorkerSettings, role: Services, load: Load) -> int:
    server = Server(settings.host, settings.port, Links.of(settings))
    await server.start()
    try:
        log.info("loading", model=settings.model, device=settings.device, mock=settings.mock)
        loaded = await _in_thread(lambda: load(settings, _Logged()))
        # Not before: what loading frees goes back. Without glibc KV messages only cost more.
        keep_freed_memory()
        async with worker(loaded, settings, role, server) as runtime:
            stopping = _signals()
            log.info(
                "ready",
                address=settings.advertise or server.address,
                metrics=runtime.metrics_address or None,
                model=settings.served_name,
                instance=runtime.identity.instance_id,
                blocks=runtime.runner.num_blocks,
                max_model_len=runtime.max_model_len,
            )
            status = await _until_stopped_or_broken(stopping, runtime, server)
            log.info("draining", grace=settings.drain_grace)
            handed_back = await drain(runtime, server, settings.drain_grace)
        log.info("stopped", handed_back=handed_back)
        return status
    finally:
        # Not at once: gRPC writes a traceback for a health probe that the end of the loop cancels.
        await server.stop(_LAST_WORDS)


@asynccontextmanager
async def worker(
    loaded: LoadedModel,
    settings: WorkerSettings,
    role: Services,
    server: Server,
    census: Census | None = None,
) -> AsyncIterator[Runtime]:
    """A serving worker on a started server; at the end its calls are over and it is freed."""
    runtime = Runtime(loaded, settings, server.links, census)
    try:
        async with role(runtime, server.services) as profile:

            async def drain_for(grace: float) -> int:
                """It leaves only then: until its sequences are gone, gateways still watch it."""
                handed_back = await drain(runtime, server, grace)
                await registration.leave()
                return handed_back

            roles = Roles(runtime, profile)
            runtime.metrics.watch(
                runtime.engine.load,
                lambda: roles.now,
                profile.served_name,
                profile.prefill_decisions,
            )
            service = WorkerService(runtime, profile, roles, drain_for)
            server.services.add(worker_pb2_grpc.add_WorkerServiceServicer_to_server, service)
            runtime.census.mark()
            await server.serving(True)
            entry = Entry(
                settings.advertise or server.address,
                runtime.identity,
                roles.now,
                profile.served_name,
            )
            registration = Registration(
                posts(settings.posts, settings.beat, server.links),
                lambda: replace(entry, roles=roles.now),
            )
            for task in registration.tasks:
                runtime.census.stand(task)
            try:
                yield runtime
            finally:
                await registration.leave()
                await roles.close()
                runtime.leaving.set()
                await server.stop(_LAST_WORDS)
    finally:
        runtime.close()
        await runtime.tracing.close()


async def drain(runtime: Runtime, server: Server, grace: float) -> int:
    """Refuse new work, let what runs finish for ``grace`` seconds, hand back the rest.

    Returns how many sequences were handed back; their last messages are on their way.
    """
    await server.serving(False)
    runtime.engine.drain()
    await _idle(runtime, grace)
    handed_back = runtime.engine.drain(Draining("this worker is leaving"))
    await _idle(runtime, _LAST_WORDS)
    return handed_back


async def _idle(runtime: Runtime, patience: float) -> None:
    """Until nothing is under way, ``patience`` seconds at most."""
    for _ in range(round(patience / _LOOK)):
        if not runtime.busy:
            return
        await asyncio.sleep(_LOOK)


async def _until_stopped_or_broken(
    stopping: asyncio.Event, runtime: Runtime, server: Server
) -> int:
    """Serve; health follows the engine's. Returns the exit status."""
    healthy = True
    while True:
        try:
            async with asyncio.timeout(_WATCH):
                await stopping.wait()
            return 0
        except TimeoutError:
            load = runtime.engine.load()
        if load.failed and load.draining:
            log.error("the engine is broken")
            return BROKEN
        if healthy == load.failed:
            healthy = not load.failed
            log.warning("engine steps succeed again" if healthy else "engine steps keep failing")
            await server.serving(healthy)


def _signals() -> asyncio.Event:
    """Set by SIGTERM and SIGINT; a second one ends the process at once."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop() -> None:
        stopping.set()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    return stopping


async def _in_thread(work: Callable[[], T]) -> T:
    """``work`` on a daemon thread, so that a process that is told to end need not wait for it."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def call() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - raised again, where it is awaited
            loop.call_soon_threadsafe(done.set_exception, error)
        else:
            loop.call_soon_threadsafe(done.set_result, result)

    threading.Thread(target=call, name="load", daemon=True).start()
    return await done


class _Logged:
    """Logs the loading of weights in steps of a fifth."""

    def __init__(self) -> None:
        self._logged = 0

    def __call__(self, done: float) -> None:
        percent = int(done * 5) * 20
        if percent > self._logged:
            self._logged = percent
            log.info("loading weights", percent=percent)
