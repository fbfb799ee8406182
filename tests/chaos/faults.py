"""What can befall a process of the fleet: each fault is applied, lasts, and is undone."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP, Signals
from typing import ClassVar

from baton.cli.processes import Spec
from tests.chaos import launch, network
from tests.e2e.cluster import ROOT
from tests.fleets import Fleet
from tests.lines import TcpLine

#: Bytes per second of a slow link; seconds by which a late one is late, per read.
SLOW, LATE = 200e3, 0.1


def exposed(spec: Spec) -> Spec:
    """The same process, started by ``launch``, so that every fault can befall it."""
    return replace(
        spec,
        module="tests.chaos.launch",
        arguments=(spec.module, *spec.arguments),
        environment={**spec.environment, "PYTHONPATH": str(ROOT)},
    )


class Fault(ABC):
    """One fault of one process. ``undo`` returns when the process is itself again."""

    kind: ClassVar[str]
    #: Whom it may befall: first letters of their names.
    roles: ClassVar[str] = "pd"
    #: Its victim may do no work while it lasts, so another of its kind must be well, if it has any.
    disturbs: ClassVar[bool] = True

    def __init__(self, fleet: Fleet, target: str) -> None:
        self.fleet = fleet
        self.target = target

    @abstractmethod
    async def apply(self) -> None: ...

    async def undo(self) -> None:
        """Some leave nothing to undo."""
        return


class Kill(Fault):
    """kill -9; the supervisor starts it again."""

    kind = "kill"
    roles = "pdg"

    async def apply(self) -> None:
        process = self.fleet.ready[self.target]
        process.send(SIGKILL)
        while process.alive:
            await asyncio.sleep(0.01)

    async def undo(self) -> None:
        while self.target not in self.fleet.ready:
            await asyncio.sleep(0.1)


class Stop(Fault):
    """SIGSTOP, later SIGCONT."""

    kind = "stop"
    roles = "pdg"

    async def apply(self) -> None:
        self._process = self.fleet.ready[self.target]
        self._process.send(SIGSTOP)

    async def undo(self) -> None:
        if self.fleet.ready.get(self.target) == self._process:
            self._process.send(SIGCONT)


class Reset(Fault):
    """Every connection to it breaks at once: sessions, status, Prefill calls, KV; registrations
    of a gateway."""

    kind = "reset"
    roles = "pdg"
    disturbs = False

    async def apply(self) -> None:
        self.fleet.lines[self.target].cut()


class _OnLine(Fault):
    """Its line is in a certain state for a while."""

    async def apply(self) -> None:
        self._stack = ExitStack()
        self._stack.enter_context(self.state(self.fleet.lines[self.target]))

    async def undo(self) -> None:
        self._stack.close()

    @abstractmethod
    def state(self, line: TcpLine) -> AbstractContextManager[None]: ...


class Partition(_OnLine):
    """Nothing passes, and nobody is told. A gateway cannot be joined, but reaches its workers."""

    kind = "partition"
    roles = "pdg"

    def state(self, line: TcpLine) -> AbstractContextManager[None]:
        return line.slow(0.0)


class Drop(Fault):
    """A partition whose packets the kernel drops: connections are not even accepted, and what was
    sent is sent again when it is over. Only within a network of the run's own."""

    kind = "drop"
    roles = "pdg"

    async def apply(self) -> None:
        self._port = int(self.fleet.lines[self.target].address.rpartition(":")[2])
        await network.drop(self._port)

    async def undo(self) -> None:
        await network.pass_again(self._port)


class Deaf(_OnLine):
    """It hears nothing, but is heard."""

    kind = "deaf"

    def state(self, line: TcpLine) -> AbstractContextManager[None]:
        return line.slow(0.0, down=False)


class Mute(_OnLine):
    """It is not heard, but hears."""

    kind = "mute"

    def state(self, line: TcpLine) -> AbstractContextManager[None]:
        return line.slow(0.0, down=True)


class SlowLink(_OnLine):
    kind = "slow"
    disturbs = False

    def state(self, line: TcpLine) -> AbstractContextManager[None]:
        return line.slow(SLOW)


class LateLink(_OnLine):
    kind = "late"
    disturbs = False

    def state(self, line: TcpLine) -> AbstractContextManager[None]:
        return line.late(LATE)


class _Told(Fault):
    """The process is told by a signal what to meet with; see ``launch``."""

    roles = "pdg"
    disturbs = False
    begin: ClassVar[Signals]
    end: ClassVar[Signals]

    async def apply(self) -> None:
        self._process = self.fleet.ready[self.target]
        self._process.send(self.begin)

    async def undo(self) -> None:
        if self.fleet.ready.get(self.target) == self._process:  # not killed meanwhile
            self._process.send(self.end)


class LogsFull(_Told):
    """The disk of its logs is full: it lives on without them."""

    kind = "logs full"
    begin, end = launch.LOGS_FULL, launch.LOGS_FREE

    async def apply(self) -> None:
        await super().apply()
        errors = Path(f"/proc/{self._process.pid}/fd/2")
        while self._process.alive and not self._process.stopped and not _full(errors):
            await asyncio.sleep(0.05)


class ClockJump(_Told):
    """Its time of day jumps a day ahead, later back."""

    kind = "clock"
    begin, end = launch.AHEAD, launch.BACK


def _full(output: Path) -> bool:
    with suppress(FileNotFoundError):
        return output.readlink() == Path("/dev/full")
    return True  # it has been killed meanwhile


class EtcdRestart(Fault):
    """The membership's server is killed and started again, where it is etcd."""

    kind = "restart etcd"
    roles = "e"
    #: Whether it has lost its data: all keys, all leases.
    empty: ClassVar[bool] = False

    async def apply(self) -> None:
        assert self.fleet.etcd is not None
        self.fleet.etcd.kill()

    async def undo(self) -> None:
        assert self.fleet.etcd is not None
        await asyncio.to_thread(self.fleet.etcd.start, empty=self.empty)


class EtcdForgets(EtcdRestart):
    kind = "etcd anew"
    empty = True


class EtcdCutOff(Partition):
    """Nobody reaches it, and nobody is told."""

    kind = "etcd cut off"
    roles = "e"


_PROCESS = (Kill, Stop, Reset, Partition, Drop, Deaf, Mute, SlowLink, LateLink, LogsFull, ClockJump)
_ETCD = (EtcdRestart, EtcdForgets, EtcdCutOff)
KINDS: dict[str, type[Fault]] = {kind.kind: kind for kind in (*_PROCESS, *_ETCD)}
