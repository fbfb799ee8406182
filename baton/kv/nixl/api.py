"""The part of NIXL's Python API that is used here, and how it is imported: late and quiet."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from baton.kv.nixl import Unusable

#: A stretch of memory: address, bytes, device.
Stretch: TypeAlias = tuple[int, int, int]
HOST, CUDA = "DRAM", "VRAM"
#: As which agent local memory is listed.
OWN = "NIXL_INIT_AGENT"

#: What is settled for this process where the operator has not: errors alone are logged, and a
#: READ that could only be emulated fails.
_ENVIRONMENT = {
    "NIXL_LOG_LEVEL": "ERROR",
    "UCX_LOG_LEVEL": "error",
    "UCX_PROTO_EMULATION_ENABLE": "n",
}


class Handle(Protocol):
    """A transfer, or a list of memory prepared for transfers."""

    def release(self) -> None: ...


class NixlAgent(Protocol):
    """``nixl_agent``. Every method may block, and may raise one of ``Api.errors``."""

    def register_memory(
        self, reg_list: Sequence[tuple[int, int, int, str]], mem_type: str
    ) -> object: ...

    def deregister_memory(self, dereg_list: object) -> None: ...

    def get_agent_metadata(self) -> bytes: ...

    def add_remote_agent(self, metadata: bytes) -> str | bytes: ...

    def remove_remote_agent(self, agent: str) -> None: ...

    def prep_xfer_dlist(self, agent_name: str, xfer_list: object, mem_type: str) -> Handle: ...

    def make_prepped_xfer(
        self,
        operation: str,
        local_xfer_side: Handle,
        local_indices: Sequence[int],
        remote_xfer_side: Handle,
        remote_indices: Sequence[int],
    ) -> Handle: ...

    def get_xfer_descs(self, descs: Sequence[Stretch], mem_type: str) -> object: ...

    def initialize_xfer(
        self, operation: str, local_descs: object, remote_descs: object, remote_agent: str
    ) -> Handle: ...

    def transfer(self, handle: Handle) -> str:
        """Start it: "DONE", "PROC" or "ERR"."""
        ...

    def check_xfer_state(self, handle: Handle) -> str: ...

    def get_new_notifs(self) -> Mapping[str, Sequence[bytes]]: ...


@dataclass(frozen=True, slots=True)
class Api:
    """NIXL, imported."""

    make_agent: Callable[[str], NixlAgent]  #: over UCX, without threads or sockets of its own
    errors: tuple[type[Exception], ...]
    lost: type[Exception]  #: the one that says that the connection to the peer is no more
    blocks: Callable[[int, int, int, int], object]
    """So many equal blocks, one after another, for ``prep_xfer_dlist``: address, bytes of each,
    device, how many. Takes no memory per block."""


def load() -> Api:
    """Import NIXL. Takes a second, so not on the event loop. Raises Unusable."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        api: Any = importlib.import_module("nixl._api")
        bindings: Any = importlib.import_module("nixl._bindings")
        numpy: Any = importlib.import_module("numpy")
    except ImportError as error:
        raise Unusable(
            f"NIXL is not installed ({error}): pip install --no-deps nixl nixl-cu13"
        ) from error

    def make_agent(name: str) -> NixlAgent:
        config = api.nixl_agent_config(enable_prog_thread=False, backends=["UCX"])
        agent: NixlAgent = api.nixl_agent(name, config)
        return agent

    def blocks(address: int, nbytes: int, device: int, count: int) -> object:
        row: object = numpy.array([[address, nbytes, device, nbytes, count]], dtype=numpy.uint64)
        return row

    known = (value for value in vars(bindings).values() if isinstance(value, type))
    errors = tuple(value for value in known if issubclass(value, Exception))
    return Api(make_agent, (*errors, RuntimeError), bindings.nixlRemoteDisconnectError, blocks)
