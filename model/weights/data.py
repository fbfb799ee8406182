"""The data of weight files, read a few MiB at a time.

Not mapped: pages of a mapping count as the process's memory while it is read (seen: 20 % more at
the peak even with each part given back), and a file cut short meanwhile is a signal, no error.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from model.weights.errors import CheckpointError
from model.weights.files import TensorInfo

#: safetensors' names of the dtypes that are served.
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

_STEP = 4 << 20  # bytes read at a time


class DataFiles:
    """Open safetensors files and one buffer to read them through."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._buffer = torch.empty(_STEP, dtype=torch.uint8)
        self._open: dict[Path, int] = {}
        for file in files:
            self._open[file] = os.open(file, os.O_RDONLY)

    def read(self, info: TensorInfo) -> Iterator[tuple[slice, Tensor]]:
        """A tensor in parts: which rows, and the rows, valid until the next are asked for.

        ``info.dtype`` must be one of DTYPES. Raises CheckpointError where the file ends early.
        """
        row = info.nbytes // info.shape[0]
        if self._buffer.numel() < row:
            self._buffer = torch.empty(row, dtype=torch.uint8)
        step = self._buffer.numel() // row
        for first in range(0, info.shape[0], step):
            rows = slice(first, min(first + step, info.shape[0]))
            part = self._buffer[: (rows.stop - first) * row]
            self._fill(part, info.file, info.offset + first * row)
            yield rows, part.view(DTYPES[info.dtype]).view(-1, *info.shape[1:])

    def _fill(self, part: Tensor, file: Path, offset: int) -> None:
        wanted = memoryview(part.numpy().data)
        while wanted:
            count = os.preadv(self._open[file], [wanted], offset)
            if not count:
                raise CheckpointError(f"{file}: ends at byte {offset}, in the middle of a tensor")
            wanted, offset = wanted[count:], offset + count

    def close(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)
