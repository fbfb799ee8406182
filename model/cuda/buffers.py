"""What a step reads, in pinned memory on the host and again on the device."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.cuda.packing import Layout, Packed


@dataclass(frozen=True, slots=True)
class Inputs:
    """Views of one buffer, int32: see ``pack``."""

    token_ids: Tensor
    positions: Tensor
    keys: Tensor
    query_starts: Tensor
    ends: Tensor
    page_starts: Tensor
    last: Tensor
    picked: Tensor
    blocks: Tensor  #: of a captured step's device: to the end of the buffer


@dataclass(frozen=True, slots=True)
class StepInputs:
    """One step as attention sees it."""

    host: Inputs  #: what can be known without asking the device
    device: Inputs
    longest: int  #: most tokens of one sequence
    rows: int | None  #: of a decode step that is captured or replayed; None: computed directly

    @property
    def tokens(self) -> int:
        return self.device.token_ids.shape[0]

    @property
    def sequences(self) -> int:
        return self.device.ends.shape[0]


class Mirror:
    """An int32 buffer on the host and its copy on the device.

    The host's is written anew for every step, so the copies of the last one must have ended: a
    step's results are waited for before the next is packed.
    """

    def __init__(self, capacity: int, device: torch.device) -> None:
        self._host = torch.zeros(capacity, dtype=torch.int32, pin_memory=device.type == "cuda")
        self._device = torch.zeros(capacity, dtype=torch.int32, device=device)

    @property
    def capacity(self) -> int:
        return self._host.shape[0]

    def upload(self, packed: Packed, rows: int | None = None) -> StepInputs:
        """Copy a step to the device, without waiting. Raises ValueError if it does not fit."""
        size = packed.layout.size
        if size > self.capacity:
            raise ValueError(f"a step of {size} integers does not fit a buffer of {self.capacity}")
        packed.write(self._host.numpy())
        self._device[:size].copy_(self._host[:size], non_blocking=True)
        layout = packed.layout
        host, device = _views(self._host, layout), _views(self._device, layout)
        if rows is not None:
            device = replace(device, blocks=self._device[layout.parts()["blocks"].start :])
        return StepInputs(host, device, packed.longest, rows)


def _views(buffer: Tensor, layout: Layout) -> Inputs:
    return Inputs(**{name: buffer[place] for name, place in layout.parts().items()})


def to_device(values: npt.NDArray[np.generic], device: torch.device) -> Tensor:
    """A copy on the device, without waiting for it."""
    host = torch.from_numpy(values)
    if device.type == "cuda":
        host = host.pin_memory()
    return host.to(device, non_blocking=True)
