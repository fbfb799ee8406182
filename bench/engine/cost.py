"""What a step has to do at least: arithmetic, and bytes of memory that it must read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bench.shapes import ModelShape

Phase = Literal["prefill", "decode"]


@dataclass(frozen=True, slots=True)
class Case:
    """One thing that every side is timed at."""

    phase: Phase
    batch: int  #: sequences
    tokens: int  #: prefill: of the prompt; decode: of context, each sequence

    def __str__(self) -> str:
        if self.phase == "prefill":
            return f"prefill of {self.tokens} tokens"
        return f"decode, batch {self.batch}, context {self.tokens}"

    @property
    def computed(self) -> int:
        """Tokens computed by a prefill or one step."""
        return self.tokens if self.phase == "prefill" else self.batch


@dataclass(frozen=True, slots=True)
class Work:
    flops: int
    nbytes: int  #: read from memory, if every weight and every cached key and value is read once

    @property
    def intensity(self) -> float:
        """FLOP per byte."""
        return self.flops / self.nbytes


def work(shape: ModelShape, case: Case, weight_bits: int) -> Work:
    """Of one step (a prefill counts as one). Multiply and add are two; norms, activations, scales
    of rounded weights and what is written are left out, and logits are of one token a sequence."""
    head_dim = shape.hidden // shape.heads
    layer = shape.hidden * (2 * shape.heads + 2 * shape.kv_heads) * head_dim
    layer += 3 * shape.hidden * shape.intermediate
    layers, head = shape.layers * layer, shape.hidden * shape.vocab
    if case.phase == "prefill":
        pairs = case.tokens * (case.tokens + 1) // 2
    else:
        pairs = case.batch * (case.tokens + 1)
    attention = pairs * 4 * shape.heads * head_dim * shape.layers
    products = 2 * (case.computed * layers + case.batch * head)
    cached = case.batch * case.tokens * shape.token_bytes
    return Work(products + attention, (layers + head) * weight_bits // 8 + cached)
