"""Which safetensors files a model directory has, and what their headers say.

Headers are read here rather than by the safetensors library so that a damaged file is named with
what is wrong with it. Format: 8 bytes length (little endian), a JSON header, the data.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.weights.errors import CheckpointError

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_MAX_HEADER = 100_000_000  # bytes, the format's own limit


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor's place, shape and dtype (in the format's words: F32, BF16, ...)."""

    file: Path
    shape: tuple[int, ...]
    dtype: str
    offset: int  #: of its first byte in the file
    nbytes: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """All tensors of a directory, over all its files."""

    files: tuple[Path, ...]
    tensors: dict[str, TensorInfo]


def read_checkpoint(directory: Path) -> Checkpoint:
    """Read and check the headers of every weight file. Raises CheckpointError."""
    placed = _placement(directory)
    files = _distinct(directory, placed)
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        for name, info in _read_header(file).items():
            if name in tensors:
                raise CheckpointError(f"{file}: tensor '{name}' is in {tensors[name].file} too")
            tensors[name] = info
    for name, file in placed.items():
        if name not in tensors or tensors[name].file != file:
            raise CheckpointError(f"{file}: tensor '{name}' is missing, though {_INDEX} places it")
    return Checkpoint(files, tensors)


def weight_files(directory: Path) -> tuple[Path, ...]:
    """The weight files, in order. Raises CheckpointError when there are none."""
    return _distinct(directory, _placement(directory))


def _distinct(directory: Path, placed: dict[str, Path]) -> tuple[Path, ...]:
    return tuple(sorted(set(placed.values()))) if placed else (directory / _SINGLE,)


def _placement(directory: Path) -> dict[str, Path]:
    """Tensor name -> file as the index says; empty where a single file holds them all."""
    index = directory / _INDEX
    if (directory / _SINGLE).exists():
        return {}
    if not index.exists():
        raise CheckpointError(f"{directory}: has neither {_SINGLE} nor {_INDEX}")
    try:
        placed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = {str(name): directory / str(file) for name, file in placed.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: has no readable weight_map: {error!r}") from error
    for file in sorted(set(files.values())):
        if not file.exists():
            raise CheckpointError(f"{file}: this shard is missing, though {_INDEX} names it")
    return files


def read_raw_header(file: Path) -> bytes:
    """Length and JSON of a file's header. Raises CheckpointError where the file is too short."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            prefix = stream.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or length > min(size - 8, _MAX_HEADER):
                raise CheckpointError(
                    f"{file}: truncated or no safetensors file: {size} bytes, "
                    f"but the header alone would take {length + 8}"
                )
            return prefix + stream.read(length)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error}") from error


def _read_header(file: Path) -> dict[str, TensorInfo]:
    raw = read_raw_header(file)
    try:
        header: dict[str, dict[str, Any]] = json.loads(raw[8:])
        header.pop("__metadata__", None)
        tensors = {
            name: TensorInfo(
                file=file,
                shape=tuple(int(size) for size in entry["shape"]),
                dtype=str(entry["dtype"]),
                offset=len(raw) + int(entry["data_offsets"][0]),
                nbytes=int(entry["data_offsets"][1]) - int(entry["data_offsets"][0]),
            )
            for name, entry in header.items()
        }
        end = max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file}: the safetensors header is damaged: {error!r}") from error
    expected, found = len(raw) + end, file.stat().st_size
    if found != expected:
        raise CheckpointError(
            f"{file}: {'truncated' if found < expected else 'too long'}: "
            f"{expected} bytes expected from its header, {found} found"
        )
    return tensors
