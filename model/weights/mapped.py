"""Weight files as the kernel maps them, read once and a few MiB at a time."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from model.weights.files import TensorInfo

#: safetensors' names of the dtypes that are served.
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

_STEP = 8 << 20  # bytes mapped in at a time


class MappedFiles:
    """The data of safetensors files; to be closed when no tensor it gave is used any more."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._maps: dict[Path, mmap.mmap] = {}
        for file in files:
            with file.open("rb") as stream:
                # Private and writable only because torch warns of memory that it may not write.
                self._maps[file] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)

    def read(self, info: TensorInfo) -> Iterator[tuple[slice, Tensor]]:
        """A tensor in parts: which rows, and a view of them, valid until the next is asked for.

        Pages that were read are given back, so that what is resident does not grow by the file.
        ``info.dtype`` must be one of DTYPES.
        """
        mapped = self._maps[info.file]
        row = info.nbytes // info.shape[0]
        step = max(1, _STEP // row)
        for first in range(0, info.shape[0], step):
            rows = slice(first, min(first + step, info.shape[0]))
            begin, end = info.offset + rows.start * row, info.offset + rows.stop * row
            dtype = DTYPES[info.dtype]
            flat = torch.frombuffer(
                mapped, dtype=dtype, offset=begin, count=(end - begin) // dtype.itemsize
            )
            yield rows, flat.view(-1, *info.shape[1:])
            page = begin - begin % mmap.PAGESIZE
            mapped.madvise(mmap.MADV_DONTNEED, page, end - page)

    def close(self) -> None:
        for mapped in self._maps.values():
            mapped.close()
