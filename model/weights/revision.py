"""A digest that tells one model from another without reading all of it."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path

from model.weights.files import read_raw_header, weight_files

_PAGES = 64
_PAGE = 4096  # bytes


def model_revision(directory: Path) -> str:
    """32 hex digits over config.json, every weight file's header, size and 64 sampled pages.

    Fine-tunes of one base differ nearly everywhere, so that evenly spaced pages tell them apart;
    a whole read would cost minutes on a large model. Raises CheckpointError.
    """
    digest = blake2b(digest_size=16)
    digest.update(blake2b((directory / "config.json").read_bytes()).digest())
    for file in weight_files(directory):
        digest.update(blake2b(read_raw_header(file)).digest())
        size = file.stat().st_size
        digest.update(size.to_bytes(8, "little"))
        with file.open("rb") as stream:
            for page in range(_PAGES):
                stream.seek((size - _PAGE) * page // (_PAGES - 1) if size > _PAGE else 0)
                digest.update(stream.read(_PAGE))
    return digest.hexdigest()
