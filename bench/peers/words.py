"""A checkpoint that can be served: a model of some shape, and a tokenizer of as many tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice, product
from pathlib import Path
from string import ascii_lowercase

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from bench import shapes
from bench.shapes import CACHE, ModelShape

_FILES = ("config.json", "model.safetensors")


def served(shape: ModelShape, cache: Path = CACHE) -> Path:
    """The directory of ``shapes.checkpoint``'s model, linked, beside a tokenizer."""
    checkpoint = shapes.checkpoint(shape, cache)
    directory = cache / f"{checkpoint.name}-served"
    directory.mkdir(exist_ok=True)
    for name in _FILES:
        link = directory / name
        if not link.exists():
            link.symlink_to((checkpoint / name).absolute())
    tokenizer(shape.vocab).save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": shape.context}
    (directory / "tokenizer_config.json").write_text(json.dumps(config) + "\n")
    return directory


def tokenizer(vocab: int) -> Tokenizer:
    """Byte-level BPE, as SmolLM2's is: the bytes, then runs of two to four letters.

    Every token but single bytes is text by itself, so each one that comes is an event to show.
    Raises ValueError for fewer tokens than bytes, or more than there are runs of so many letters.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = list(islice(_merges(), max(0, vocab - len(alphabet))))
    if len(alphabet) + len(merges) != vocab:
        raise ValueError(f"{vocab} tokens cannot be made of {len(alphabet)} bytes and their merges")
    names = alphabet + [first + second for first, second in merges]
    made = Tokenizer(models.BPE({name: n for n, name in enumerate(names)}, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


def _merges() -> Iterator[tuple[str, str]]:
    """Pairs of letters, these with a letter, these with one another."""
    pairs = ["".join(pair) for pair in product(ascii_lowercase, repeat=2)]
    yield from product(ascii_lowercase, repeat=2)
    yield from product(pairs, ascii_lowercase)
    yield from product(pairs, repeat=2)
